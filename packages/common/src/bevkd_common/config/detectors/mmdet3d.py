"""Configuration of a trained detector of mmdetection3d, as a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from bevkd_common.config.model import Config
from bevkd_common.geometry.grid import Grid

PointColumn = Annotated[int, Field(ge=0, le=4)]


class ForeignTapConfig(Config):
    """A feature map that one of the detector's modules returns."""

    module: Annotated[str, Field(min_length=1)]
    """Dotted name within the model, such as `pts_neck`."""
    output: NonNegativeInt = 0
    """Which of the maps, where the module returns several."""
    channels: PositiveInt
    """Channels of the map."""
    grid: Grid
    """Cells of the map in LiDAR axes; rows are y, columns are x."""
    activation: Literal["none", "relu"] = "none"
    """Activation that was applied last."""


class ForeignHeadConfig(Config):
    """A centre-point head, as mmdet3d's `CenterHead`, with the box code of ours."""

    module: Annotated[str, Field(min_length=1)] = "pts_bbox_head"
    """Dotted name within the model."""
    grid: Grid
    """Cells of its maps."""
    tasks: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)]
    """Classes of each task, in the order of its heat maps."""


class Mmdet3dConfig(Config):
    """Any detector of mmdetection3d 1.x that predicts boxes in LiDAR axes."""

    kind: Literal["mmdet3d"] = "mmdet3d"
    config: Path
    """Its configuration file, executed if it is Python; a relative path starts at the working directory."""
    weights: Path | None
    """Its checkpoint; null builds it with random weights and has to be written out."""
    classes: tuple[str, ...] | None = None
    """Class names in label order; None takes `class_names` of the file."""
    sweeps: NonNegativeInt = 10
    """LiDAR sweeps that it reads, that of the key frame included; 0 reads no points."""
    point_columns: Annotated[tuple[PointColumn, ...], Field(min_length=3)] = (0, 1, 2, 3, 4)
    """Columns that it reads of x, y, z, intensity and time lag; its `use_dim`."""
    cameras: bool = False
    """Whether it reads the images, blue channel first as mmdet3d loads them, and their calibration."""
    taps: Mapping[str, ForeignTapConfig] = Field(default_factory=dict)
    """Taps by name (`bev_neck`), in any order."""
    head: ForeignHeadConfig | None = None
    """The head, for methods that read heat maps or copy a head; None offers detections only."""

    @model_validator(mode="after")
    def _check(self) -> Mmdet3dConfig:
        if not (self.sweeps or self.cameras):
            raise ValueError("set `sweeps`, `cameras` or both: the detector would have no input")
        if "head" in self.taps:
            raise ValueError("`taps` cannot hold `head`: describe the head's maps in the section `head`")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"`classes` name one twice: {', '.join(self.classes)}")
        return self


def files(config: Mmdet3dConfig) -> tuple[Path, ...]:
    """The files that the detector is built from."""
    return (config.config, *([] if config.weights is None else [config.weights]))


def describe(config: Mmdet3dConfig) -> str:
    """A short description of the detector, for the plan."""
    weights = "random weights" if config.weights is None else config.weights.name
    sensors = [f"{config.sweeps} sweeps"] if config.sweeps else []
    sensors += ["cameras"] if config.cameras else []
    return f"{config.config.stem} with {weights}, {' and '.join(sensors)}"
