"""Configuration of CenterPoint with pillars, and the part that all LiDAR detectors with SECOND share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.detectors.center_head import Box6, CenterHeadConfig
from bevkd_common.config.model import Config
from bevkd_common.geometry.grid import Grid


class LidarDetectorConfig(Config, ABC):
    """A point reader, SECOND and SECONDFPN on its BEV map, and the centre-point head."""

    sweeps: PositiveInt = 10
    """LiDAR sweeps, that of the key frame included."""
    point_range: Box6 = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    """Lower x, y, z and upper x, y, z in metres; points outside are dropped."""
    max_points: PositiveInt | None
    """Points kept in a pillar or voxel, the first ones; None keeps all."""
    point_scales: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (1, 1, 1, 1, 1)
    """Factors on x, y, z, intensity and time lag before the network; 1 for released weights.

    Without factors, an intensity of 0 to 255 dominates offsets of decimetres at the beginning of a training, which
    matters if it is short.
    """
    backbone_channels: tuple[PositiveInt, ...]
    """Channels of each stage of SECOND."""
    backbone_layers: tuple[int, ...]
    """Convolutions of each stage after the strided one."""
    backbone_strides: tuple[PositiveInt, ...]
    """Stride of each stage."""
    neck_channels: tuple[PositiveInt, ...]
    """Channels to which SECONDFPN brings each stage."""
    neck_upsampling: tuple[PositiveFloat, ...]
    """Upsampling factor from each stage to the resolution of the head."""
    norm_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Momentum of the batch norms before the head. Source: mmdet3d; trainings of a few hundred steps need more."""
    head: CenterHeadConfig = CenterHeadConfig()
    """The centre-point head."""

    @property
    @abstractmethod
    def bev(self) -> Grid:
        """The BEV grid of the backbone's input."""

    @property
    def head_stride(self) -> float:
        """Edge of a cell of the head, in cells of `bev`."""
        return self.backbone_strides[0] / self.neck_upsampling[0]

    @model_validator(mode="after")
    def _check(self) -> LidarDetectorConfig:
        backbone = {len(self.backbone_channels), len(self.backbone_layers), len(self.backbone_strides)}
        stages = backbone | {len(self.neck_channels), len(self.neck_upsampling)}
        if len(stages) > 1 or 0 in stages:
            raise ValueError("`backbone_*` and `neck_*` must have the same length, one number per stage")
        if any(layers < 0 for layers in self.backbone_layers):
            raise ValueError("`backbone_layers` must not be negative")
        low, high = self.point_range[:3], self.point_range[3:]
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError("`point_range` must be lower x, y, z, then upper x, y, z")
        for stage, factor in enumerate(self.neck_upsampling):
            if not float(factor if factor >= 1 else 1 / factor).is_integer():
                raise ValueError(f"`neck_upsampling` must be whole numbers or one over them, got {factor}")
            if prod(self.backbone_strides[: stage + 1]) / factor != self.head_stride:
                raise ValueError("`neck_upsampling` must bring all stages to the same resolution")
        return self

    def _check_axes(self, axes: str, edge: float, what: str, multiple: int, reason: str) -> None:
        """Raise ValueError if the range along some of "xyz" is no multiple of so many edges."""
        for axis in axes:
            start, end = (self.point_range["xyz".index(axis) + side] for side in (0, 3))
            cells = round((end - start) / edge)
            if abs(cells * edge - (end - start)) > 1e-6 * (end - start) or cells % multiple:
                raise ValueError(
                    f"`point_range` along {axis} must be a multiple of {multiple} {what} of {edge:g} m "
                    f"({reason}), got {end - start:g} m"
                )

    def _grid(self, cell: float) -> Grid:
        x0, y0, _, x1, y1, _ = self.point_range
        return Grid(x0, y0, cell, round((x1 - x0) / cell), round((y1 - y0) / cell))


class CenterPointConfig(LidarDetectorConfig):
    """CenterPoint with pillars; defaults are those of mmdet3d's 0.2 m model for nuScenes."""

    kind: Literal["centerpoint"] = "centerpoint"
    pillar: PositiveFloat = 0.2
    """Edge of a pillar in metres."""
    max_points: PositiveInt | None = 20
    """Points kept in a pillar, the first ones; None keeps all, without padding."""
    max_pillars: PositiveInt | None = 40000
    """Pillars kept in a sample, the first ones, in training and evaluation alike."""
    pillar_channels: PositiveInt = 64
    """Channels of a pillar."""
    backbone_channels: tuple[PositiveInt, ...] = (64, 128, 256)
    """Channels of each stage of SECOND."""
    backbone_layers: tuple[int, ...] = (3, 5, 5)
    """Convolutions of each stage after the strided one."""
    backbone_strides: tuple[PositiveInt, ...] = (2, 2, 2)
    """Stride of each stage."""
    neck_channels: tuple[PositiveInt, ...] = (128, 128, 128)
    """Channels to which SECONDFPN brings each stage."""
    neck_upsampling: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    """Upsampling factor from each stage to the resolution of the head."""

    @property
    def bev(self) -> Grid:
        """One cell per pillar."""
        return self._grid(self.pillar)

    @model_validator(mode="after")
    def _check_pillars(self) -> CenterPointConfig:
        self._check_axes("xy", self.pillar, "pillars", prod(self.backbone_strides), "the strides' product")
        return self


def describe(config: CenterPointConfig) -> str:
    """A short description of the detector, for the plan."""
    widths = "/".join(map(str, config.backbone_channels))
    return f"pillars of {config.pillar:g} m, SECOND {widths}, {config.sweeps} sweeps"
