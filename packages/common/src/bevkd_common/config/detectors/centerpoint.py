"""CenterPoint with pillars, and what all detectors over LiDAR points share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.detectors.center_head import Box6, CenterHeadConfig
from bevkd_common.config.model import Config
from bevkd_common.geometry.grid import Grid


class LidarDetectorConfig(Config, ABC):
    """Points, SECOND and SECONDFPN over a bird's-eye-view map of them, and the head."""

    sweeps: PositiveInt = 10
    """LiDAR sweeps, the key frame's own included."""
    point_range: Box6 = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    """Lower x, y, z and upper x, y, z in metres; points outside are dropped."""
    max_points: PositiveInt | None
    """Points kept in a pillar or voxel, the first ones; none given keeps all."""
    point_scales: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (1, 1, 1, 1, 1)
    """Factors on x, y, z, intensity and seconds before they enter the network; released weights expect ones.

    Unscaled, an intensity of 0 to 255 drowns offsets of decimetres until the network has learned otherwise, which a
    short training has no time for.
    """
    backbone_channels: tuple[PositiveInt, ...]
    backbone_layers: tuple[int, ...]
    """Convolutions of each stage after the strided one."""
    backbone_strides: tuple[PositiveInt, ...]
    neck_channels: tuple[PositiveInt, ...]
    neck_upsampling: tuple[PositiveFloat, ...]
    """Factor that brings each stage to the resolution of the head."""
    norm_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Of the batch norms below the head. Source: mmdet3d; too slow for trainings of a few hundred steps."""
    head: CenterHeadConfig = CenterHeadConfig()

    @property
    @abstractmethod
    def bev(self) -> Grid:
        """The cells of the map under the backbone."""

    @property
    def head_stride(self) -> float:
        """Cells of that map that a cell of the head is wide."""
        return self.backbone_strides[0] / self.neck_upsampling[0]

    @model_validator(mode="after")
    def _check(self) -> LidarDetectorConfig:
        backbone = {len(self.backbone_channels), len(self.backbone_layers), len(self.backbone_strides)}
        stages = backbone | {len(self.neck_channels), len(self.neck_upsampling)}
        if len(stages) > 1 or 0 in stages:
            raise ValueError("`backbone_*` and `neck_*` must be of one length, one number a stage")
        if any(layers < 0 for layers in self.backbone_layers):
            raise ValueError("`backbone_layers` must not be negative")
        low, high = self.point_range[:3], self.point_range[3:]
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError("`point_range` must be lower x, y, z, then upper x, y, z")
        for stage, factor in enumerate(self.neck_upsampling):
            if not float(factor if factor >= 1 else 1 / factor).is_integer():
                raise ValueError(f"`neck_upsampling` must be whole numbers or one over them, got {factor}")
            if prod(self.backbone_strides[: stage + 1]) / factor != self.head_stride:
                raise ValueError("`neck_upsampling` must bring all stages to one resolution")
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
    """CenterPoint over pillars; defaults are mmdet3d's 0.2 m model for nuScenes."""

    kind: Literal["centerpoint"] = "centerpoint"
    pillar: PositiveFloat = 0.2
    """Edge of a pillar in metres."""
    max_points: PositiveInt | None = 20
    """Points kept in a pillar, the first ones; none given keeps all, and pads none."""
    max_pillars: PositiveInt | None = 40000
    """Pillars kept in a sample, the first ones, in training and evaluation alike."""
    pillar_channels: PositiveInt = 64
    backbone_channels: tuple[PositiveInt, ...] = (64, 128, 256)
    backbone_layers: tuple[int, ...] = (3, 5, 5)
    backbone_strides: tuple[PositiveInt, ...] = (2, 2, 2)
    neck_channels: tuple[PositiveInt, ...] = (128, 128, 128)
    neck_upsampling: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)

    @property
    def bev(self) -> Grid:
        """One cell a pillar."""
        return self._grid(self.pillar)

    @model_validator(mode="after")
    def _check_pillars(self) -> CenterPointConfig:
        self._check_axes("xy", self.pillar, "pillars", prod(self.backbone_strides), "the strides' product")
        return self


def describe(config: CenterPointConfig) -> str:
    """What is built, in a few words."""
    widths = "/".join(map(str, config.backbone_channels))
    return f"pillars of {config.pillar:g} m, SECOND {widths}, {config.sweeps} sweeps"
