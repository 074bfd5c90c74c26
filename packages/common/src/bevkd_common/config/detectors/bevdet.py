"""Configuration of BEVDet."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from bevkd_common.config.datasets.images import Bounds, ImageInputConfig
from bevkd_common.config.detectors.center_head import CenterHeadConfig, NmsConfig
from bevkd_common.config.detectors.image_backbones import (
    ImageBackboneConfig,
    ImageNormalization,
    TimmBackboneConfig,
)
from bevkd_common.config.model import Config
from bevkd_common.config.wording import one_of
from bevkd_common.geometry.grid import DepthBins, Grid

ScaleFactor = Annotated[int, Field(ge=1, le=8)]


SCALE_NMS = (
    NmsConfig(kind="rotate", threshold=0.2),
    NmsConfig(kind="rotate", threshold=0.2, size_factors=(0.7, 0.7)),
    NmsConfig(kind="rotate", threshold=0.2, size_factors=(0.4, 0.55)),
    NmsConfig(kind="circle", threshold=1.0),
    NmsConfig(kind="rotate", threshold=0.2),
    NmsConfig(kind="rotate", threshold=0.5, size_factors=(4.5, 9.0)),
)
"""BEVDet's rule for each of the six tasks: small objects are enlarged and large ones shrunk for the IoU."""


class BevStageConfig(Config):
    """One stage of the BEV backbone."""

    channels: PositiveInt
    """Channels of its feature map."""
    blocks: PositiveInt = 2
    """Residual blocks."""
    stride: ScaleFactor = 2
    """Stride of the first block."""


class BevNeckConfig(Config):
    """The BEV neck, which fuses the first and the last stage."""

    hidden_channels: PositiveInt = 512
    """Channels of the fused map."""
    channels: PositiveInt = 256
    """Channels of its output."""
    extra_norm_act: bool = False
    """Add a batch norm and a ReLU at the end, as in the students of DistillBEV, in all arms of an experiment."""


class LiftConfig(Config):
    """From images to a BEV map: the part that all detectors with lifted features share."""

    kind: str
    image_size: tuple[PositiveInt, PositiveInt] = (256, 704)
    """Height and width in pixels; must equal the size in the data set's `images`."""
    normalization: ImageNormalization = "imagenet_rgb"
    """Channel order and statistics of the images, which must be those of the backbone's weights."""
    image_backbone: ImageBackboneConfig = TimmBackboneConfig()
    """The image backbone."""
    image_neck_channels: PositiveInt = 512
    """Channels of the image neck."""
    depth_bins: DepthBins = DepthBins(1.0, 60.0, 1.0)
    """Depths for which a probability is predicted."""
    lift_channels: PositiveInt = 64
    """Channels of the lifted features."""
    grid: Grid = Grid(-51.2, -51.2, 0.8, 128, 128)
    """The BEV grid."""
    z_range: Bounds = (-10.0, 10.0)
    """Lower and upper z of the features that are pooled into the BEV map, metres."""
    index_mode: Literal["truncate", "floor"] = "truncate"
    """Rounding of coordinates to cells. Truncation extends the grid by a cell at its lower borders, as in the
    training of released weights."""

    @property
    def feature_stride(self) -> int:
        """Pixels per cell of the features that are lifted."""
        return self.image_backbone.strides[0]

    @model_validator(mode="after")
    def _check_lift(self) -> LiftConfig:
        if self.normalization not in (known := self.image_backbone.normalizations):
            raise ValueError(f"the weights of this `image_backbone` want the `normalization` {one_of(known)}")
        height, width = self.image_size
        if height % self.feature_stride or width % self.feature_stride:
            raise ValueError(
                f"`image_size` {height} x {width} is not a multiple of the finest stride {self.feature_stride}"
            )
        if self.z_range[0] == self.z_range[1]:
            raise ValueError(f"`z_range` is empty: both borders are {self.z_range[0]:g}")
        return self


class BevDetConfig(LiftConfig):
    """BEVDet; the defaults are the released detector with ResNet-50 at 256 x 704.

    Source: BEVDet (arXiv 2112.11790) and its released R50 configuration.
    """

    kind: Literal["bevdet"] = "bevdet"
    bev_stages: Annotated[tuple[BevStageConfig, ...], Field(min_length=2)] = (
        BevStageConfig(channels=128),
        BevStageConfig(channels=256),
        BevStageConfig(channels=512),
    )
    """Stages of the BEV backbone."""
    bev_neck: BevNeckConfig = BevNeckConfig()
    """The neck over the BEV backbone."""
    head: CenterHeadConfig = CenterHeadConfig(nms=SCALE_NMS)
    """The centre-point head."""

    @model_validator(mode="after")
    def _check(self) -> BevDetConfig:
        coarsest = prod(stage.stride for stage in self.bev_stages)
        if self.grid.nx % coarsest or self.grid.ny % coarsest:
            raise ValueError(
                f"`grid` has {self.grid.nx} x {self.grid.ny} cells, not a multiple of the {coarsest} by which the "
                "strides of `bev_stages` divide it"
            )
        return self


def check(config: LiftConfig, dataset: Config) -> Iterator[tuple[str, str]]:
    """What does not fit the data: pairs of a key within the detector's section and a reason."""
    images = getattr(dataset, "images", None)
    if not isinstance(images, ImageInputConfig):
        yield "", "this detector reads images, but the data set's configuration has no `images`"
    elif (images.height, images.width) != config.image_size:
        height, width = config.image_size
        delivered = f"{images.height} x {images.width}"
        yield (
            "image_size",
            f"the detector reads images of {height} x {width}, but `dataset.images` has {delivered}",
        )


def describe(config: LiftConfig) -> str:
    """A short description of the detector, for the plan."""
    height, width = config.image_size
    cells = f"{config.grid.nx} x {config.grid.ny} cells of {config.grid.cell:g} m"
    return f"{config.image_backbone.described}, images of {height} x {width}, {cells}"
