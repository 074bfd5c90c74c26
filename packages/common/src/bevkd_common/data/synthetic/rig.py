"""Sensor rigs: the cameras and the LiDAR of one vehicle, with their mounts, models and rates.

Frames: the ego frame has x forward, y left, z up and its origin on the ground below the rear axle. A camera frame
has x right, y down, z forward. The axes of a LiDAR are those of its data set.
"""

from dataclasses import dataclass

import numpy as np

from .rigid import Floats

# Camera axes (x right, y down, z forward) in the axes of a camera body (x forward, y left, z up).
BODY_R_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Attributes:
        name: Name of the sensor, unique in its rig.
        ego_T_sensor: Mount, [4, 4].
        intrinsic: Pinhole matrix, [3, 3]; integer image coordinates are pixel centres.
        image_size: Height and width in pixels.
        rate: Images per second, a whole multiple of the key frames' rate.
        delay: Seconds from the exposure to the timestamp of the LiDAR sweep.
        noise: Standard deviation of the pixel noise, as a share of full scale.
    """

    name: str
    ego_T_sensor: Floats
    intrinsic: Floats
    image_size: tuple[int, int]
    rate: float
    delay: float
    noise: float


@dataclass(frozen=True, eq=False)
class Lidar:
    """A spinning LiDAR that turns clockwise, seen from above.

    Attributes:
        name: Name of the sensor, unique in its rig.
        ego_T_sensor: Mount, [4, 4].
        elevations: Elevation of each beam in radians, lowest first, [beams]; the steps may differ.
        azimuths: Columns of one sweep.
        rate: Sweeps per second, a whole multiple of the key frames' rate.
        range: Largest measured distance in metres.
        dropout: Share of the returns that are lost.
        noise: Standard deviation of the measured distance in metres.

    Raises:
        ValueError: If the elevations do not ascend.
    """

    name: str
    ego_T_sensor: Floats
    elevations: Floats
    azimuths: int
    rate: float
    range: float
    dropout: float
    noise: float

    def __post_init__(self) -> None:
        if not (np.diff(self.elevations) > 0).all():
            raise ValueError(f"the beam elevations of {self.name} must ascend")

    @property
    def beams(self) -> int:
        """Number of beams."""
        return len(self.elevations)


@dataclass(frozen=True)
class BodyPart:
    """A box of the ego vehicle that reflects LiDAR beams: centre and half sizes in the ego frame, in metres.

    Cameras do not see it.
    """

    centre: tuple[float, float, float]
    half: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Rig:
    """The sensors of one vehicle.

    Attributes:
        vehicle: Name of the vehicle.
        lidar: The LiDAR. Its sweeps define the key frames.
        cameras: The cameras.
        body: Parts of the vehicle in view of the LiDAR.
        time_jitter: Standard deviation of the trigger times in seconds.
    """

    vehicle: str
    lidar: Lidar
    cameras: tuple[Camera, ...]
    body: tuple[BodyPart, ...] = ()
    time_jitter: float = 0.0

    @property
    def sensors(self) -> tuple[Camera | Lidar, ...]:
        """All sensors, the LiDAR first."""
        return (self.lidar, *self.cameras)
