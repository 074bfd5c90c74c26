"""The networks that turn a camera image into features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from bevkd_common.config.model import Config

ImageNormalization = Literal["imagenet_rgb", "imagenet_swapped", "caffe_bgr"]


def _increasing(strides: tuple[int, ...]) -> tuple[int, ...]:
    if any(stride < 2 or stride & (stride - 1) for stride in strides) or list(strides) != sorted(set(strides)):
        raise ValueError(f"strides are powers of two from 2 on, finest first and each once, got {list(strides)}")
    return strides


Strides = Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_increasing)]
"""Image pixels per feature cell, one number a level, finest first."""

HubOrFile = Annotated[Literal["hub"] | Path, Field(union_mode="left_to_right")]

FrozenStages = Annotated[int, Field(ge=0, le=4)] | None
"""The stem and this many stages of a ResNet keep weights and statistics; None lets all learn."""


class TimmBackboneConfig(Config):
    """A network of the timm library: a convolutional one, or a Swin transformer."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet50"
    """As timm calls it; a tag behind a dot says which weights, as in `resnet50.tv_in1k` (torchvision's)."""
    strides: Strides = (16, 32)
    weights: HubOrFile | None = None
    """`hub` fetches those that timm knows, a path is a `.pth` or `.safetensors` file. None starts at random."""
    frozen_stages: FrozenStages = None
    frozen_norms: bool = False
    """Whether batch norms keep their statistics, and what they have learned."""
    recompute: bool = False
    """Compute each block again in the backward pass instead of keeping its maps (activation checkpointing)."""

    @property
    def normalizations(self) -> tuple[ImageNormalization, ...]:
        """What the weights may have been trained with."""
        return ("imagenet_rgb", "imagenet_swapped")

    @property
    def described(self) -> str:
        """In a few words."""
        return f"timm {self.name} from {_origin(self.weights)}"


class CaffeResNetConfig(Config):
    """A ResNet whose stages halve the resolution in their first 1x1 convolution, with norms that never learn.

    Its last stages may have deformable convolutions. Defaults are those of BEVFormer's larger models.
    """

    kind: Literal["caffe_resnet"] = "caffe_resnet"
    depth: Literal[50, 101] = 101
    strides: Strides = (8, 16, 32)
    deformable_stages: tuple[Annotated[int, Field(ge=1, le=4)], ...] = (3, 4)
    """Stages, counted from 1, whose 3x3 convolutions are deformable."""
    weights: Path | None = None
    """A `.pth` or `.safetensors` file of this network, or of a detector around it. None starts at random."""
    frozen_stages: FrozenStages = 1
    recompute: bool = False
    """Compute each block again in the backward pass instead of keeping its maps (activation checkpointing)."""

    @model_validator(mode="after")
    def _check(self) -> CaffeResNetConfig:
        if self.strides[0] < 4 or self.strides[-1] > 32:
            raise ValueError(f"a ResNet's stages have the strides 4, 8, 16 and 32, got {list(self.strides)}")
        return self

    @property
    def normalizations(self) -> tuple[ImageNormalization, ...]:
        """What the weights may have been trained with."""
        return ("caffe_bgr",)

    @property
    def described(self) -> str:
        """In a few words."""
        deformable = " with deformable convolutions" if self.deformable_stages else ""
        return f"caffe ResNet-{self.depth}{deformable} from {_origin(self.weights)}"


class SmallResNetConfig(Config):
    """A ResNet small enough for a CPU: one strided convolution, then basic blocks; starts at random."""

    kind: Literal["small_resnet"] = "small_resnet"
    stem_channels: PositiveInt = 16
    """Channels at stride 2."""
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 64, 96)
    """Channels at strides 4, 8, 16 and so on, up to the last of `strides`."""
    blocks: tuple[PositiveInt, ...] = (1, 1, 1)
    """Residual blocks, one number for each of `channels`."""
    strides: Strides = (8, 16)

    @model_validator(mode="after")
    def _check(self) -> SmallResNetConfig:
        if len(self.blocks) != len(self.channels):
            raise ValueError(f"`blocks` must be {len(self.channels)} numbers, as many as `channels`")
        coarsest = 2 ** (len(self.channels) + 1)
        if self.strides[-1] != coarsest:
            raise ValueError(
                f"{len(self.channels)} stages end at stride {coarsest}, the last of `strides` is {self.strides[-1]}"
            )
        return self

    @property
    def normalizations(self) -> tuple[ImageNormalization, ...]:
        """Any, because nothing was trained."""
        return ("imagenet_rgb", "imagenet_swapped", "caffe_bgr")

    @property
    def described(self) -> str:
        """In a few words."""
        return f"small ResNet {'/'.join(map(str, self.channels))} from random weights"


ImageBackboneConfig = Annotated[
    TimmBackboneConfig | CaffeResNetConfig | SmallResNetConfig, Field(discriminator="kind")
]


def _origin(weights: Literal["hub"] | Path | None) -> str:
    if weights is None:
        return "random weights"
    return weights.name if isinstance(weights, Path) else "weights of the hub"
