"""CenterPoint with pillars."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.center_head import Box6, CenterHeadConfig
from bevkd_common.config.model import Config


class CenterPointConfig(Config):
    """CenterPoint over pillars; defaults are mmdet3d's 0.2 m model for nuScenes."""

    kind: Literal["centerpoint"] = "centerpoint"
    sweeps: PositiveInt = 10
    """LiDAR sweeps, the key frame's own included."""
    point_range: Box6 = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    """Lower x, y, z and upper x, y, z in metres; points outside are dropped."""
    pillar: PositiveFloat = 0.2
    """Edge of a pillar in metres."""
    max_points: PositiveInt | None = 20
    """Points kept in a pillar, the first ones; none given keeps all, and pads none."""
    max_pillars: PositiveInt | None = 40000
    """Pillars kept in a sample, the first ones, in training and evaluation alike."""
    point_scales: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (1, 1, 1, 1, 1)
    """Factors on x, y, z, intensity and seconds before they enter the network; released weights expect ones.

    Unscaled, an intensity of 0 to 255 drowns offsets of decimetres until the network has learned otherwise, which a
    short training has no time for.
    """
    pillar_channels: PositiveInt = 64
    backbone_channels: tuple[PositiveInt, ...] = (64, 128, 256)
    backbone_layers: tuple[int, ...] = (3, 5, 5)
    """Convolutions of each stage after the strided one."""
    backbone_strides: tuple[PositiveInt, ...] = (2, 2, 2)
    neck_channels: tuple[PositiveInt, ...] = (128, 128, 128)
    neck_upsampling: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    """Factor that brings each stage to the resolution of the head."""
    norm_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Of the batch norms below the head. Source: mmdet3d; too slow for trainings of a few hundred steps."""
    head: CenterHeadConfig = CenterHeadConfig()

    @property
    def cells(self) -> tuple[int, int]:
        """Pillars along x and y."""
        x0, y0, _, x1, y1, _ = self.point_range
        return round((x1 - x0) / self.pillar), round((y1 - y0) / self.pillar)

    @property
    def head_stride(self) -> float:
        """Pillars a cell of the head is wide."""
        return self.backbone_strides[0] / self.neck_upsampling[0]

    @model_validator(mode="after")
    def _check(self) -> CenterPointConfig:
        backbone = {len(self.backbone_channels), len(self.backbone_layers), len(self.backbone_strides)}
        stages = backbone | {len(self.neck_channels), len(self.neck_upsampling)}
        if len(stages) > 1 or 0 in stages:
            raise ValueError("`backbone_*` and `neck_*` must be of one length, one number a stage")
        if any(layers < 0 for layers in self.backbone_layers):
            raise ValueError("`backbone_layers` must not be negative")
        self._check_range()
        for stage, factor in enumerate(self.neck_upsampling):
            if not float(factor if factor >= 1 else 1 / factor).is_integer():
                raise ValueError(f"`neck_upsampling` must be whole numbers or one over them, got {factor}")
            if prod(self.backbone_strides[: stage + 1]) / factor != self.head_stride:
                raise ValueError("`neck_upsampling` must bring all stages to one resolution")
        return self

    def _check_range(self) -> None:
        low, high = self.point_range[:3], self.point_range[3:]
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError("`point_range` must be lower x, y, z, then upper x, y, z")
        stride = prod(self.backbone_strides)
        for axis, cells, start, end in zip("xy", self.cells, low[:2], high[:2], strict=True):
            if abs(cells * self.pillar - (end - start)) > 1e-6 * (end - start) or cells % stride:
                raise ValueError(
                    f"`point_range` along {axis} must be a multiple of {stride} pillars of {self.pillar:g} m "
                    f"(the strides' product), got {end - start:g} m"
                )


def describe(config: CenterPointConfig) -> str:
    """What is built, in a few words."""
    widths = "/".join(map(str, config.backbone_channels))
    return f"pillars of {config.pillar:g} m, SECOND {widths}, {config.sweeps} sweeps"
