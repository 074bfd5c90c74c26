"""nuScenes as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bevkd_common.config.datasets.nuscenes_reading import NuScenesReadingConfig
from bevkd_common.config.datasets.synthetic import SyntheticConfig
from bevkd_common.config.datasets.world import WorldConfig


class NuScenesConfig(NuScenesReadingConfig):
    """nuScenes itself, or data of its shape."""

    kind: Literal["nuscenes"] = "nuscenes"
    version: str = "v1.0-trainval"
    """Name of the folder with the tables."""
    train_split: str = "train"
    """An official split, or one of `splits.json` beside the tables; `mini_train` for v1.0-mini."""
    val_split: str = "val"
    """As `train_split`; `mini_val` for v1.0-mini."""
    virtual_points: Path = Path("virtual_points")
    """What `bevkd data virtual-points` made, where a detector needs it; relative to the data root."""


NUSCENES_SIZES = WorldConfig(
    train_scenes=1,
    val_scenes=1,
    keyframes_per_scene=4,
    lidar_rate=20.0,
    camera_rate=12.0,
    image_size=(900, 1600),
    lidar_azimuths=1084,
    lidar_range=100.0,
)
"""A world that costs a detector as much time and memory as nuScenes, sample by sample. Source: its sensors."""


def like_nuscenes(config: NuScenesConfig) -> SyntheticConfig:
    """A made world with the sizes of nuScenes, read in the same way."""
    reading = {name: getattr(config, name) for name in NuScenesReadingConfig.model_fields}
    return SyntheticConfig(world=NUSCENES_SIZES, **reading)
