"""What can be chosen about BEVFormer."""

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
    """Height and width in pixels; must be what the data set's `images` deliver. What is missing to a multiple of
    the coarsest stride is added below and to the right, after the normalisation."""
    normalization: ImageNormalization = "imagenet_rgb"
    image_backbone: ImageBackboneConfig = TimmBackboneConfig(strides=(8, 16, 32))
    image_levels: PositiveInt = 4
    """Levels of the image features; those beyond the backbone's are made of its last one."""
    channels: PositiveInt = 256
    """Of image features, queries and map."""
    grid: Grid = Grid(-51.2, -51.2, 0.512, 200, 200)
    z_range: Bounds = (-5.0, 3.0)
    """Lower and upper border of the space of interest, metres."""
    anchors: PositiveInt = 4
    """Points above each cell at which the images are looked at."""
    cameras: PositiveInt = 6
    """Images of a sample; each has an embedding of its own."""
    encoder_layers: PositiveInt = 6
    attention_heads: PositiveInt = 8
    temporal_points: PositiveInt = 4
    """Places of the earlier map, and of the present queries, that a head looks at."""
    spatial_points: PositiveInt = 8
    """Places of each level of an image that a head looks at; a multiple of `anchors`."""
    hidden_channels: PositiveInt = 512
    """Width inside the feed-forward networks."""
    dropout: Share = 0.1
    frames: PositiveInt = 4
    """Key frames in training, the present one included; detecting carries the map from one to the next instead. One
    knows no history."""
    shifted: Literal["history", "both"] = "history"
    """Where places move with the ego. Released weights were trained when a bug moved them in the present map
    too."""
    rotation_center: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    """What the earlier map turns about, (column, row) in cells from its lower corner; None is the LiDAR. Released
    weights of every size turned about (100, 100), which is right for 200 cells alone."""
    wrap_yaw: bool = True
    """Whether a turn through yaw 0 is a small one; released weights saw 360 degrees."""
    grid_mask: Share = 0.7
    """Training: probability that a grid of bars hides parts of the images."""
    recompute: bool = False
    """Compute each layer of the encoder again in the backward pass instead of keeping its maps; the image backbone
    has a key of its own."""
    head: DetrHeadConfig = DetrHeadConfig()

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
            raise ValueError("`z_range` must be higher than a metre: anchors keep half a metre from its borders")
        return self


def describe(config: BevFormerConfig) -> str:
    """What is built, in a few words."""
    height, width = config.image_size
    grid = config.grid
    frames = "1 key frame" if config.frames == 1 else f"queues of {config.frames} key frames"
    return (
        f"{config.image_backbone.described}, images of {height} x {width}, {frames}, "
        f"{grid.nx} x {grid.ny} queries {grid.cell:g} m apart, encoder depth {config.encoder_layers}"
    )
