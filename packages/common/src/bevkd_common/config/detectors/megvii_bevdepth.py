"""What can be chosen about Megvii's BEVDepth."""

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
"""Of the first convolution over the bird's-eye view."""


class LidarMountConfig(Config):
    """Where the LiDAR sits in the ego's axes (x forward, y left, z up from the road); defaults are nuScenes'."""

    x: float = 0.94
    """Metres."""
    y: float = 0.0
    z: float = 1.84
    yaw_degrees: float = -90.0
    """Of the LiDAR's x axis, counter-clockwise from the ego's."""


class MegviiBevDepthConfig(LiftConfig):
    """BEVDepth as Megvii released it; the defaults are the detector of two key frames, ResNet-50 and 256 x 704.

    The released weights are averages with `training.ema` of `decay` 0.999 and `initial_updates` beyond its warm-up,
    were trained in the ego's axes, and see test images at `test_resize` 0.

    Source: BEVDepth (arXiv 2206.10092) and its released configurations.
    """

    kind: Literal["megvii_bevdepth"] = "megvii_bevdepth"
    normalization: ImageNormalization = "imagenet_swapped"
    image_backbone: ImageBackboneConfig = TimmBackboneConfig(strides=(4, 8, 16, 32), frozen_stages=0)
    lift_stride: PositiveInt = 16
    """Pixels per cell of the features that are lifted, to which every level of the backbone is brought; the
    `image_neck_channels` are divided among the levels."""
    depth_bins: DepthBins = DepthBins(2.0, 58.0, 0.5)
    lift_channels: PositiveInt = 80
    z_range: Bounds = (-5.0, 3.0)
    depth_channels: PositiveInt = 512
    """Of the branches that tell depth and context."""
    depth_aggregation: bool = False
    """Whether lifted features mix across image columns and depths before they are pooled."""
    depth_weight: NonNegativeFloat = 3.0
    """Of the loss that compares depths with the LiDAR; 0 leaves it, and the LiDAR, out."""
    frames: Literal[1, 2] = 2
    """Key frames: the present one, or the one before it too."""
    bev_stages: Annotated[tuple[BevStageConfig, ...], Field(min_length=1)] = (
        BevStageConfig(channels=160, stride=1),
        BevStageConfig(channels=320),
        BevStageConfig(channels=640),
    )
    """Of the ResNet over the bird's-eye view; a convolution of stride 2 stands before them."""
    bev_neck_channels: PositiveInt = 64
    """That each stage, and the map itself, is brought to."""
    head: CenterHeadConfig = CenterHeadConfig(code_weights=(1.0,) * 10)
    mount: LidarMountConfig | None = None
    """Given: maps lie in the ego's axes, as the released weights have them, and cannot be distilled. None: they lie
    in the LiDAR's, like a teacher's."""

    @property
    def feature_stride(self) -> int:
        """Pixels per cell of the features that are lifted."""
        return self.lift_stride

    @property
    def bev_strides(self) -> tuple[int, ...]:
        """By how much each stage is coarser than the grid."""
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
    """What is built, in a few words."""
    frames = ", and the key frame before" if config.frames == 2 else ""
    aggregated = ", depths aggregated" if config.depth_aggregation else ""
    supervised = "supervised by LiDAR" if config.depth_weight else "without supervision"
    return f"{describe_lift(config)}{frames}, depths {supervised}{aggregated}"
