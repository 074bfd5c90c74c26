"""Configuration of BEVFormer."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from bevkd_common.config.datasets.images import Bounds, Share
from bevkd_common.config.detectors.detr_head import DetrHeadConfig
from bevkd_common.config.detectors.image_backbones import (
    ImageBackboneConfig,
    ImageNormalization,
    TimmBackboneConfig,
)
from bevkd_common.config.model import Config
from bevkd_common.config.wording import one_of
from bevkd_common.geometry.grid import Grid


class BevFormerConfig(Config):
    """BEVFormer; the defaults are DistillBEV's student: ResNet-50, else as the released base.

    The released tiny, small and base differ in `image_size` (450 x 800, 720 x 1280, 900 x 1600), `grid` (50, 150,
    200 cells), `encoder_layers` (3, 3, 6), `image_levels` (1, 1, 4), `frames` (3, 3, 4), and their backbone: at
    strides (32; 32; 8, 16, 32), and a caffe ResNet-101 in small and base.

    Source: BEVFormer (arXiv 2203.17270) and its released configurations.
    """

    kind: Literal["bevformer"] = "bevformer"
    image_size: tuple[PositiveInt, PositiveInt] = (900, 1600)
    """Height and width in pixels; must equal the size in the data set's `images`. Images are padded at the bottom
    and right to a multiple of the coarsest stride, after the normalisation."""
    normalization: ImageNormalization = "imagenet_rgb"
    """Channel order and statistics of the images, which must be those of the backbone's weights."""
    image_backbone: ImageBackboneConfig = TimmBackboneConfig(strides=(8, 16, 32))
    """The image backbone."""
    image_levels: PositiveInt = 4
    """Levels of the image features; levels beyond those of the backbone are computed from its last one."""
    channels: PositiveInt = 256
    """Channels of image features, BEV queries and BEV map."""
    grid: Grid = Grid(-51.2, -51.2, 0.512, 200, 200)
    """The BEV grid, one query per cell."""
    z_range: Bounds = (-5.0, 3.0)
    """Lower and upper z between which the anchors of a query lie, metres."""
    anchors: PositiveInt = 4
    """Reference points above each cell that are projected into the images."""
    cameras: PositiveInt = 6
    """Images of a sample; each camera has a learned embedding."""
    encoder_layers: PositiveInt = 6
    """Layers of the encoder."""
    attention_heads: PositiveInt = 8
    """Attention heads of the encoder."""
    temporal_points: PositiveInt = 4
    """Sampling points of an attention head on the earlier BEV map, and as many on the present queries."""
    spatial_points: PositiveInt = 8
    """Sampling points of an attention head on each level of an image; a multiple of `anchors`."""
    hidden_channels: PositiveInt = 512
    """Width inside the feed-forward networks."""
    dropout: Share = 0.1
    """Dropout probability in the encoder."""
    frames: PositiveInt = 4
    """Key frames of a training sample, the present one included; in evaluation the BEV map is carried from one key
    frame to the next. 1 trains without history."""
    shifted: Literal["history", "both"] = "history"
    """Maps whose sampling points are shifted by the ego motion. Released weights were trained with a bug that also
    shifts them on the present map."""
    rotation_center: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    """Centre of the rotation of the earlier map, (column, row) in cells from its lower corner; None is the LiDAR.
    Released weights of every size use (100, 100), which is correct for 200 cells only."""
    wrap_yaw: bool = True
    """Wrap the change of yaw to half a turn; released weights were trained with 360 degrees at yaw 0."""
    grid_mask: Share = 0.7
    """Training: probability that a grid of bars covers parts of the images (GridMask)."""
    recompute: bool = False
    """Activation checkpointing of the encoder layers; `image_backbone.recompute` is that of the backbone."""
    head: DetrHeadConfig = DetrHeadConfig()
    """The query head."""

    @model_validator(mode="after")
    def _check(self) -> BevFormerConfig:
        if self.normalization not in (known := self.image_backbone.normalizations):
            raise ValueError(f"the weights of this `image_backbone` want the `normalization` {one_of(known)}")
        if self.channels % self.attention_heads or self.channels % 2:
            heads = self.attention_heads
            raise ValueError(f"`channels` {self.channels} must be even and a multiple of {heads} `attention_heads`")
        if self.spatial_points % self.anchors:
            raise ValueError(
                f"`spatial_points` {self.spatial_points} is not a multiple of {self.anchors} `anchors`"
            )
        if self.image_levels < len(self.image_backbone.strides):
            raise ValueError(
                f"`image_levels` is {self.image_levels}, but the image backbone has "
                f"{len(self.image_backbone.strides)} `strides`"
            )
        if self.z_range[1] - self.z_range[0] <= 1:
            raise ValueError("`z_range` must be higher than a metre: anchors lie at least half a metre inside")
        return self


def describe(config: BevFormerConfig) -> str:
    """A short description of the detector, for the plan."""
    height, width = config.image_size
    grid = config.grid
    frames = "1 key frame" if config.frames == 1 else f"queues of {config.frames} key frames"
    return (
        f"{config.image_backbone.described}, images of {height} x {width}, {frames}, "
        f"{grid.nx} x {grid.ny} queries {grid.cell:g} m apart, encoder depth {config.encoder_layers}"
    )
