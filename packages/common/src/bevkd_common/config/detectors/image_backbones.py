"""Configurations of image backbones."""

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
"""Image pixels per cell of the feature map, one number per level, finest first."""

HubOrFile = Annotated[Literal["hub"] | Path, Field(union_mode="left_to_right")]

FrozenStages = Annotated[int, Field(ge=0, le=4)] | None
"""Number of frozen stages of a ResNet, beside the stem; None freezes nothing."""


class TimmBackboneConfig(Config):
    """A backbone of the timm library: a convolutional network or a Swin transformer."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet50"
    """Model name of timm; a tag after a dot names the weights, as in `resnet50.tv_in1k` (torchvision's)."""
    strides: Strides = (16, 32)
    """Strides of the feature maps that are used."""
    weights: HubOrFile | None = None
    """`hub` downloads the weights of `name`; a path is a `.pth` or `.safetensors` file; None: random weights."""
    frozen_stages: FrozenStages = None
    """Stages of a ResNet that are frozen, beside the stem; None freezes nothing."""
    frozen_norms: bool = False
    """Freeze statistics and weights of the batch norms."""
    recompute: bool = False
    """Activation checkpointing: compute each block again in the backward pass."""

    @property
    def normalizations(self) -> tuple[ImageNormalization, ...]:
        """Normalisations that the weights can have been trained with."""
        return ("imagenet_rgb", "imagenet_swapped")

    @property
    def described(self) -> str:
        """A short description, for the plan."""
        return f"timm {self.name} from {_origin(self.weights)}"


class CaffeResNetConfig(Config):
    """A ResNet with the stride in the first 1x1 convolution of each stage, and with frozen batch norms.

    Its last stages may have deformable convolutions. Defaults are those of BEVFormer's larger models.
    """

    kind: Literal["caffe_resnet"] = "caffe_resnet"
    depth: Literal[50, 101] = 101
    """Layers."""
    strides: Strides = (8, 16, 32)
    """Strides of the feature maps that are used."""
    deformable_stages: tuple[Annotated[int, Field(ge=1, le=4)], ...] = (3, 4)
    """Stages, counted from 1, whose 3x3 convolutions are deformable."""
    weights: Path | None = None
    """A `.pth` or `.safetensors` file of this network, or of a detector that contains it; None: random weights."""
    frozen_stages: FrozenStages = 1
    """Stages that are frozen, beside the stem; None freezes nothing."""
    recompute: bool = False
    """Activation checkpointing: compute each block again in the backward pass."""

    @model_validator(mode="after")
    def _check(self) -> CaffeResNetConfig:
        if self.strides[0] < 4 or self.strides[-1] > 32:
            raise ValueError(f"a ResNet's stages have the strides 4, 8, 16 and 32, got {list(self.strides)}")
        return self

    @property
    def normalizations(self) -> tuple[ImageNormalization, ...]:
        """Normalisations that the weights can have been trained with."""
        return ("caffe_bgr",)

    @property
    def described(self) -> str:
        """A short description, for the plan."""
        deformable = " with deformable convolutions" if self.deformable_stages else ""
        return f"caffe ResNet-{self.depth}{deformable} from {_origin(self.weights)}"


class SmallResNetConfig(Config):
    """A small ResNet for the CPU: one strided convolution, then basic blocks; trained from scratch."""

    kind: Literal["small_resnet"] = "small_resnet"
    stem_channels: PositiveInt = 16
    """Channels at stride 2."""
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 64, 96)
    """Channels at strides 4, 8, 16 and so on, up to the last of `strides`."""
    blocks: tuple[PositiveInt, ...] = (1, 1, 1)
    """Residual blocks, one number for each of `channels`."""
    strides: Strides = (8, 16)
    """Strides of the feature maps that are used."""

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
        """Any, because there are no pretrained weights."""
        return ("imagenet_rgb", "imagenet_swapped", "caffe_bgr")

    @property
    def described(self) -> str:
        """A short description, for the plan."""
        return f"small ResNet {'/'.join(map(str, self.channels))} from random weights"


ImageBackboneConfig = Annotated[
    TimmBackboneConfig | CaffeResNetConfig | SmallResNetConfig, Field(discriminator="kind")
]


def _origin(weights: Literal["hub"] | Path | None) -> str:
    if weights is None:
        return "random weights"
    return weights.name if isinstance(weights, Path) else "weights of the hub"
