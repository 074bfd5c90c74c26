"""A detector of mmdetection3d as a teacher that is finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from bevkd_common.config.model import Config
from bevkd_common.geometry.grid import Grid

PointColumn = Annotated[int, Field(ge=0, le=4)]


class ForeignTapConfig(Config):
    """A map that one of its modules returns."""

    module: Annotated[str, Field(min_length=1)]
    """Dotted name within the model, such as `pts_neck`."""
    output: NonNegativeInt = 0
    """Which of the maps, where the module returns several."""
    channels: PositiveInt
    grid: Grid
    """Where the cells of the map lie, in LiDAR axes; rows are y, columns are x."""
    activation: Literal["none", "relu"] = "none"
    """What the map has passed last."""


class ForeignHeadConfig(Config):
    """A head with centre-point maps, as mmdet3d's `CenterHead`; its numbers are those of ours."""

    module: Annotated[str, Field(min_length=1)] = "pts_bbox_head"
    grid: Grid
    """Cells of its maps."""
    tasks: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)]
    """Classes of each task, in the order of its heat maps."""


class Mmdet3dConfig(Config):
    """Any detector of mmdetection3d 1.x that finds boxes in LiDAR axes."""

    kind: Literal["mmdet3d"] = "mmdet3d"
    config: Path
    """Its configuration file, executed if it is Python; a relative path starts at the working directory."""
    weights: Path | None
    """Its checkpoint; null starts at random, which has to be asked for."""
    classes: tuple[str, ...] | None = None
    """Names of its labels in their order; none given, the file's `class_names`."""
    sweeps: NonNegativeInt = 10
    """LiDAR sweeps that it is given, the key frame's own included; 0 gives no points."""
    point_columns: Annotated[tuple[PointColumn, ...], Field(min_length=3)] = (0, 1, 2, 3, 4)
    """What it reads of x, y, z, intensity and seconds before the key frame; its `use_dim`."""
    cameras: bool = False
    """Whether it is given the images, blue channel first as mmdet3d loads them, and their matrices."""
    taps: Mapping[str, ForeignTapConfig] = Field(default_factory=dict)
    """Maps that a method may imitate, by our names (`bev_neck`), in any order."""
    head: ForeignHeadConfig | None = None
    """What the head predicts, for methods that read heat maps or copy a head; none given, boxes alone."""

    @model_validator(mode="after")
    def _check(self) -> Mmdet3dConfig:
        if not (self.sweeps or self.cameras):
            raise ValueError("give it `sweeps`, `cameras` or both: it would see nothing")
        if "head" in self.taps:
            raise ValueError("`taps` cannot hold `head`: describe the head's maps in the section `head`")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"`classes` name one twice: {', '.join(self.classes)}")
        return self


def files(config: Mmdet3dConfig) -> tuple[Path, ...]:
    """What it is made from."""
    return (config.config, *([] if config.weights is None else [config.weights]))


def describe(config: Mmdet3dConfig) -> str:
    """What is built, in a few words."""
    weights = "random weights" if config.weights is None else config.weights.name
    sensors = [f"{config.sweeps} sweeps"] if config.sweeps else []
    sensors += ["cameras"] if config.cameras else []
    return f"{config.config.stem} with {weights}, {' and '.join(sensors)}"
