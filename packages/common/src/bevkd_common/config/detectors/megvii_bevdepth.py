"""Configuration of Megvii's BEVDepth."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from bevkd_common.config.datasets.images import Bounds
from bevkd_common.config.detectors.bevdet import BevStageConfig, LiftConfig
from bevkd_common.config.detectors.bevdet import describe as describe_lift
from bevkd_common.config.detectors.center_head import CenterHeadConfig
from bevkd_common.config.detectors.image_backbones import (
    ImageBackboneConfig,
    ImageNormalization,
    TimmBackboneConfig,
)
from bevkd_common.config.model import Config
from bevkd_common.geometry.grid import DepthBins

STEM_STRIDE = 2
"""Stride of the first convolution on the BEV map."""


class LidarMountConfig(Config):
    """Pose of the LiDAR in the ego's axes (x forward, y left, z up from the road); defaults: nuScenes."""

    x: float = 0.94
    """Metres forward."""
    y: float = 0.0
    """Metres to the left."""
    z: float = 1.84
    """Metres above the road."""
    yaw_degrees: float = -90.0
    """Angle from the ego's x axis to the LiDAR's, counter-clockwise."""


class MegviiBevDepthConfig(LiftConfig):
    """BEVDepth as Megvii released it; the defaults are the detector of two key frames, ResNet-50 and 256 x 704.

    The released weights are averages (`ema` with `decay` 0.999 and `initial_updates` beyond its warm-up), were
    trained in the ego's axes, and are tested on images with `test_resize` 0.

    Source: BEVDepth (arXiv 2206.10092) and its released configurations.
    """

    kind: Literal["megvii_bevdepth"] = "megvii_bevdepth"
    normalization: ImageNormalization = "imagenet_swapped"
    """Channel order and statistics of the images, which must be those of the backbone's weights."""
    image_backbone: ImageBackboneConfig = TimmBackboneConfig(strides=(4, 8, 16, 32), frozen_stages=0)
    """The image backbone."""
    lift_stride: PositiveInt = 16
    """Pixels per cell of the lifted features; every level of the backbone is resampled to it, and the
    `image_neck_channels` are divided among the levels."""
    depth_bins: DepthBins = DepthBins(2.0, 58.0, 0.5)
    """Depths for which a probability is predicted."""
    lift_channels: PositiveInt = 80
    """Channels of the lifted features."""
    z_range: Bounds = (-5.0, 3.0)
    """Lower and upper z of the features that are pooled into the BEV map, metres."""
    depth_channels: PositiveInt = 512
    """Channels of the branches for depth and context."""
    depth_aggregation: bool = False
    """Convolve the lifted features along image columns and depths before they are pooled."""
    depth_weight: NonNegativeFloat = 3.0
    """Loss weight of the depths against LiDAR points; 0 reads no LiDAR."""
    frames: Literal[1, 2] = 2
    """Key frames: the present one, or also the one before it."""
    bev_stages: Annotated[tuple[BevStageConfig, ...], Field(min_length=1)] = (
        BevStageConfig(channels=160, stride=1),
        BevStageConfig(channels=320),
        BevStageConfig(channels=640),
    )
    """Stages of the BEV backbone, a ResNet; a convolution of stride 2 precedes them."""
    bev_neck_channels: PositiveInt = 64
    """Channels to which the neck brings each stage, and the BEV map itself."""
    head: CenterHeadConfig = CenterHeadConfig(code_weights=(1.0,) * 10)
    """The centre-point head."""
    mount: LidarMountConfig | None = None
    """Given, the BEV map lies in the ego's axes, as for the released weights, and cannot be distilled. None: it
    lies in the LiDAR's axes, as that of a teacher."""

    @property
    def feature_stride(self) -> int:
        """Pixels per cell of the features that are lifted."""
        return self.lift_stride

    @property
    def bev_strides(self) -> tuple[int, ...]:
        """Stride of each stage relative to `grid`."""
        return tuple(
            STEM_STRIDE * prod(stage.stride for stage in self.bev_stages[: depth + 1])
            for depth in range(len(self.bev_stages))
        )

    @model_validator(mode="after")
    def _check(self) -> MegviiBevDepthConfig:
        strides, (height, width) = self.image_backbone.strides, self.image_size
        if height % strides[-1] or width % strides[-1]:
            raise ValueError(
                f"`image_size` {height} x {width} is not a multiple of the coarsest stride {strides[-1]}"
            )
        if any(max(stride, self.lift_stride) % min(stride, self.lift_stride) for stride in strides):
            raise ValueError(f"`lift_stride` {self.lift_stride} is not in whole steps from the strides {strides}")
        if self.image_neck_channels % len(strides):
            raise ValueError(
                f"`image_neck_channels` {self.image_neck_channels} cannot be divided among {len(strides)} levels"
            )
        coarsest = self.bev_strides[-1]
        if self.grid.nx % coarsest or self.grid.ny % coarsest:
            raise ValueError(
                f"`grid` has {self.grid.nx} x {self.grid.ny} cells, not a multiple of the {coarsest} by which stem "
                "and `bev_stages` divide it"
            )
        return self


def describe(config: MegviiBevDepthConfig) -> str:
    """A short description of the detector, for the plan."""
    frames = ", and the key frame before" if config.frames == 2 else ""
    aggregated = ", depths aggregated" if config.depth_aggregation else ""
    supervised = "supervised by LiDAR" if config.depth_weight else "without supervision"
    return f"{describe_lift(config)}{frames}, depths {supervised}{aggregated}"
