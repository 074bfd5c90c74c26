"""Configuration of a synthetic world."""

import hashlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Part of every data set's name: increase it whenever the bytes generated from a seed change.
GENERATOR_VERSION = 3

MeanCount = Annotated[float, Field(ge=0, le=20)]


class ObjectCounts(BaseModel):
    """Mean number of objects of each detection class in a scene with a stationary ego vehicle.

    A moving ego vehicle covers more street: its scene holds proportionally more objects, at equal density. A
    scene draws the integer below or above its mean, so that no class is missing by chance. About two thirds of
    the objects are within 24 m of the ego at any one key frame.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    car: MeanCount = 5.5
    truck: MeanCount = 1.4
    construction_vehicle: MeanCount = 1.5
    bus: MeanCount = 1.2
    trailer: MeanCount = 1.7
    barrier: MeanCount = 3.0
    motorcycle: MeanCount = 1.9
    bicycle: MeanCount = 2.0
    pedestrian: MeanCount = 4.5
    traffic_cone: MeanCount = 3.0


class WorldConfig(BaseModel):
    """Everything that determines the bytes of a synthetic data set.

    The defaults are the tiny world: 240 training and 100 validation key frames, half a second apart, small images,
    a LiDAR with a resolution of half a degree. Frames between key frames are always written; their rates are
    whole multiples of the key frame rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, description="The only source of randomness.")
    train_scenes: int = Field(48, ge=1, le=4000)
    val_scenes: int = Field(20, ge=1, le=4000)
    keyframes_per_scene: int = Field(5, ge=1, le=40)
    keyframe_rate: float = Field(2.0, ge=1, le=10, description="Annotated frames per second.")
    lidar_rate: float = Field(10.0, gt=0, le=50, description="LiDAR sweeps per second.")
    camera_rate: float = Field(4.0, gt=0, le=50, description="Images per second and camera.")
    image_size: tuple[int, int] = Field((64, 176), description="Height and width in pixels.")
    image_noise: float = Field(0.02, ge=0, le=0.5, description="Standard deviation, as a share of full scale.")
    jpeg_quality: int = Field(92, ge=1, le=100)
    lidar_azimuths: int = Field(720, ge=36, le=2160, description="Columns of one sweep; there are 32 beams.")
    lidar_range: float = Field(60.0, gt=0, le=200, description="Farthest return in metres.")
    lidar_dropout: float = Field(0.12, ge=0, lt=1, description="Share of the returns that are lost.")
    lidar_noise: float = Field(0.02, ge=0, le=0.2, description="Standard deviation of the range in metres.")
    objects: ObjectCounts = ObjectCounts()
    clutter: int = Field(50, ge=10, le=400, description="Objects without annotations, counted as `objects`.")

    @model_validator(mode="after")
    def _check_rates_and_size(self) -> "WorldConfig":
        for name, rate in (("lidar_rate", self.lidar_rate), ("camera_rate", self.camera_rate)):
            ratio = rate / self.keyframe_rate
            if abs(ratio - round(ratio)) > 1e-9 or ratio < 1:
                raise ValueError(f"{name} must be a whole multiple of keyframe_rate ({self.keyframe_rate} Hz)")
        if min(self.image_size) < 16 or max(self.image_size) > 4096:
            raise ValueError("image_size must be (height, width) with 16 to 4096 pixels each")
        return self

    @property
    def scenes(self) -> int:
        """Number of scenes of both splits."""
        return self.train_scenes + self.val_scenes

    def name(self) -> str:
        """Folder name of the data set; it changes with any field and with the generator's version."""
        text = f"{GENERATOR_VERSION}:{self.model_dump_json()}"
        return f"synthetic-seed{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
