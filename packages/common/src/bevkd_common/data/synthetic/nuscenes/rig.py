"""The nuScenes rig: six cameras and a 32-beam LiDAR.

Mounts and focal lengths are those of the nuScenes vehicles, rounded. The principal point is that of an image whose
top is cropped, as camera detectors crop it. A world has two vehicles whose calibrations differ slightly.
"""

from dataclasses import dataclass

import numpy as np

from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.synthetic.rig import BODY_R_CAMERA, BodyPart, Camera, Lidar, Rig
from bevkd_common.data.synthetic.rigid import rigid, rotation_from_euler, rotation_from_quaternion
from bevkd_common.data.synthetic.scene import Stream

VEHICLES = ("s001", "s002")

LIDAR = "LIDAR_TOP"
LIDAR_TRANSLATION = (0.9437, 0.0, 1.8402)
LIDAR_QUATERNION = (0.7078, -0.0065, 0.0106, -0.7063)
BEAMS = 32
LOWEST_BEAM, HIGHEST_BEAM = np.radians(-30.67), np.radians(10.67)
ROOF_BAR = BodyPart(centre=(0.94, 0.0, 1.48), half=(0.60, 0.12, 0.05))

HORIZON = 0.3  # row of the horizon of a level camera, as a share of the image height
TIME_JITTER = 0.001  # seconds


@dataclass(frozen=True)
class Mount:
    """Nominal mount and optics of a camera.

    Attributes:
        position: In the ego frame, in metres.
        yaw_degrees: Counter-clockwise from straight ahead.
        focal: Focal length in image widths.
        delay: Seconds from the exposure to the timestamp of the LiDAR sweep.
    """

    position: tuple[float, float, float]
    yaw_degrees: float
    focal: float
    delay: float


CAMERAS: dict[str, Mount] = {
    "CAM_FRONT": Mount((1.70, 0.016, 1.51), 0.0, 0.791, 0.035),
    "CAM_FRONT_RIGHT": Mount((1.55, -0.493, 1.50), -55.0, 0.791, 0.027),
    "CAM_BACK_RIGHT": Mount((1.01, -0.481, 1.56), -110.0, 0.791, 0.019),
    "CAM_BACK": Mount((0.03, 0.003, 1.58), 180.0, 0.506, 0.010),
    "CAM_BACK_LEFT": Mount((1.04, 0.485, 1.59), 110.0, 0.791, 0.001),
    "CAM_FRONT_LEFT": Mount((1.52, 0.495, 1.51), 55.0, 0.791, 0.043),
}


def nuscenes_rig(config: WorldConfig, vehicle: str) -> Rig:
    """Returns the rig of a vehicle, with calibrations drawn around the nominal ones.

    Args:
        config: World that the vehicle drives in. It sets the seed, the image size and the rates.
        vehicle: One of `VEHICLES`.
    """
    rng = np.random.default_rng([config.seed, VEHICLES.index(vehicle), Stream.RIG])
    return Rig(
        vehicle=vehicle,
        lidar=_lidar(config),
        cameras=tuple(_camera(config, name, mount, rng) for name, mount in CAMERAS.items()),
        body=(ROOF_BAR,),
        time_jitter=TIME_JITTER,
    )


def _lidar(config: WorldConfig) -> Lidar:
    step = (HIGHEST_BEAM - LOWEST_BEAM) / (BEAMS - 1)
    return Lidar(
        name=LIDAR,
        ego_T_sensor=rigid(rotation_from_quaternion(LIDAR_QUATERNION), np.array(LIDAR_TRANSLATION)),
        elevations=LOWEST_BEAM + step * np.arange(BEAMS),
        azimuths=config.lidar_azimuths,
        rate=config.lidar_rate,
        range=config.lidar_range,
        dropout=config.lidar_dropout,
        noise=config.lidar_noise,
    )


def _camera(config: WorldConfig, name: str, mount: Mount, rng: np.random.Generator) -> Camera:
    height, width = config.image_size
    yaw, pitch, roll = np.array([np.radians(mount.yaw_degrees), 0, 0]) + rng.normal(0, np.radians(0.3), 3)
    position = np.array(mount.position) + rng.normal(0, 0.01, 3)
    focal = mount.focal * width * float(1 + rng.normal(0, 0.003))
    u, v = np.array([(width - 1) / 2, HORIZON * height]) + rng.normal(0, 0.005 * width, 2)
    return Camera(
        name=name,
        ego_T_sensor=rigid(rotation_from_euler(yaw, pitch, roll) @ BODY_R_CAMERA, position),
        intrinsic=np.array([[focal, 0, u], [0, focal, v], [0, 0, 1.0]]),
        image_size=config.image_size,
        rate=config.camera_rate,
        delay=mount.delay,
        noise=config.image_noise,
    )
