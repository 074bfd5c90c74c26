"""The sensors: six cameras and a LiDAR where nuScenes mounts them, and when each one fires.

Mounting points and focal lengths are those of the nuScenes vehicles, rounded; the principal point is that of
an image cropped at the top as camera detectors do. A world has two vehicles whose sensors differ slightly.
"""

from dataclasses import dataclass

import numpy as np

from bevkd_common.config.datasets.world import WorldConfig

from .rigid import Floats, rigid, rotation_from_euler, rotation_from_quaternion
from .scene import Stream

LIDAR = "LIDAR_TOP"
LIDAR_TRANSLATION = (0.9437, 0.0, 1.8402)
LIDAR_QUATERNION = (0.7078, -0.0065, 0.0106, -0.7063)
VEHICLES = ("s001", "s002")
# Share of the image height above the horizon of a level camera.
HORIZON = 0.3
TIME_JITTER = 0.001  # seconds


@dataclass(frozen=True)
class Mount:
    """Nominal pose of a camera on the vehicle; yaw counter-clockwise from straight ahead."""

    position: tuple[float, float, float]
    yaw_degrees: float
    focal: float  # in image widths
    delay: float  # seconds from its exposure to the end of the LiDAR's turn


CAMERAS: dict[str, Mount] = {
    "CAM_FRONT": Mount((1.70, 0.016, 1.51), 0.0, 0.791, 0.035),
    "CAM_FRONT_RIGHT": Mount((1.55, -0.493, 1.50), -55.0, 0.791, 0.027),
    "CAM_BACK_RIGHT": Mount((1.01, -0.481, 1.56), -110.0, 0.791, 0.019),
    "CAM_BACK": Mount((0.03, 0.003, 1.58), 180.0, 0.506, 0.010),
    "CAM_BACK_LEFT": Mount((1.04, 0.485, 1.59), 110.0, 0.791, 0.001),
    "CAM_FRONT_LEFT": Mount((1.52, 0.495, 1.51), 55.0, 0.791, 0.043),
}
CHANNELS = (LIDAR, *CAMERAS)
# Camera axes (x right, y down, z forward) in the axes of a camera body that looks along x.
_BODY_R_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True)
class Calibration:
    """One sensor on one vehicle; `intrinsic` [3, 3] is None for the LiDAR."""

    channel: str
    vehicle: str
    ego_T_sensor: Floats
    intrinsic: Floats | None


@dataclass(frozen=True)
class Trigger:
    """One frame of one sensor.

    `sample` is the key frame that it is, or the next one to come. The first key frame of a scene already has
    frames before it.
    """

    channel: str
    timestamp: int  # microseconds
    seconds: float  # since the scene's start; equals the timestamp exactly
    sample: int
    is_key_frame: bool


def calibrate(config: WorldConfig, vehicle: str) -> dict[str, Calibration]:
    """Sensors of a vehicle by channel."""
    rng = np.random.default_rng([config.seed, VEHICLES.index(vehicle), Stream.RIG])
    lidar = rigid(rotation_from_quaternion(LIDAR_QUATERNION), np.array(LIDAR_TRANSLATION))
    rig = {LIDAR: Calibration(LIDAR, vehicle, lidar, None)}
    height, width = config.image_size
    for channel, mount in CAMERAS.items():
        yaw, pitch, roll = np.array([np.radians(mount.yaw_degrees), 0, 0]) + rng.normal(0, np.radians(0.3), 3)
        ego_R_camera = rotation_from_euler(yaw, pitch, roll) @ _BODY_R_CAMERA
        position = np.array(mount.position) + rng.normal(0, 0.01, 3)
        focal = mount.focal * width * float(1 + rng.normal(0, 0.003))
        u, v = np.array([(width - 1) / 2, HORIZON * height]) + rng.normal(0, 0.005 * width, 2)
        intrinsic = np.array([[focal, 0, u], [0, focal, v], [0, 0, 1.0]])
        rig[channel] = Calibration(channel, vehicle, rigid(ego_R_camera, position), intrinsic)
    return rig


def schedule(config: WorldConfig, start: int, rng: np.random.Generator) -> dict[str, list[Trigger]]:
    """All frames of a scene by channel, in order of time, with a little jitter.

    A camera fires while the LiDAR sweeps past its field of view, so up to 43 ms before the end of the turn, which
    is the LiDAR's timestamp.
    """
    frames: dict[str, list[Trigger]] = {}
    for channel in CHANNELS:
        rate = config.lidar_rate if channel == LIDAR else config.camera_rate
        delay = 0.0 if channel == LIDAR else CAMERAS[channel].delay
        ratio = round(rate / config.keyframe_rate)
        ticks = np.arange(1 - ratio, (config.keyframes_per_scene - 1) * ratio + 1)
        jitter = np.clip(rng.normal(0, TIME_JITTER, len(ticks)), -3 * TIME_JITTER, 3 * TIME_JITTER)
        micros = np.round((ticks / rate - delay + jitter) * 1e6).astype(np.int64)
        frames[channel] = [
            Trigger(channel, start + int(micro), int(micro) * 1e-6, -(-int(tick) // ratio), int(tick) % ratio == 0)
            for tick, micro in zip(ticks, micros, strict=True)
        ]
    return frames
