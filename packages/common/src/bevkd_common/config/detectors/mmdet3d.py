"""Configuration of a trained detector of mmdetection3d, as a teacher."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
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
    """The files that the detector is built from: its configuration, those that it inherits, and its weights."""
    return (*inherited(config.config), *([] if config.weights is None else [config.weights]))


def inherited(path: Path) -> tuple[Path, ...]:
    """A configuration file of mmengine, and the files that it and its bases inherit, each once.

    Bases of other packages (`mmdet3d::_base_/...`) are left out. The file is not executed; one that cannot be read
    inherits nothing here, and is refused when the detector is built.
    """
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = None
            waiting += [base.resolve() for base in _bases(file) if base.is_file()]
    return tuple(found)


def _bases(file: Path) -> Iterator[Path]:
    try:
        if file.suffix == ".py":
            yield from _python_bases(file, ast.parse(file.read_bytes()))
        else:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            yield from _named_bases(file, content.get("_base_", []))
    except (OSError, ValueError, SyntaxError, AttributeError, yaml.YAMLError):
        return


def _python_bases(file: Path, tree: ast.Module) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["_base_"]:
            yield from _named_bases(file, ast.literal_eval(node.value))
        elif isinstance(node, ast.ImportFrom) and node.level:  # in `with read_base():`
            yield file.parents[node.level - 1].joinpath(*(node.module or "").split(".")).with_suffix(".py")


def _named_bases(file: Path, names: str | Sequence[str]) -> Iterator[Path]:
    for name in [names] if isinstance(names, str) else names:
        if "::" not in name:
            yield file.parent / name


def describe(config: Mmdet3dConfig) -> str:
    """A short description of the detector, for the plan."""
    weights = "random weights" if config.weights is None else config.weights.name
    sensors = [f"{config.sweeps} sweeps"] if config.sweeps else []
    sensors += ["cameras"] if config.cameras else []
    return f"{config.config.stem} with {weights}, {' and '.join(sensors)}"
