"""The networks that turn a camera image into features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from bevkd_common.config.model import Config

ImageNormalization = Literal["imagenet_rgb", "imagenet_swapped"]


def _increasing(strides: tuple[int, ...]) -> tuple[int, ...]:
    if any(stride & (stride - 1) for stride in strides) or list(strides) != sorted(set(strides)):
        raise ValueError(f"strides are powers of two, finest first and each once, got {list(strides)}")
    return strides


Strides = Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_increasing)]
"""Image pixels per feature cell, one number a level, finest first."""


class TimmBackboneConfig(Config):
    """A network of the timm library."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet50"
    """As timm calls it."""
    strides: Strides = (16, 32)
    weights: Path | None = None
    """A checkpoint on this machine (`.pth` or `.safetensors`); nothing is downloaded. None starts at random."""


class SmallResNetConfig(Config):
    """A ResNet small enough for a CPU: basic blocks, and a stem of three 3x3 convolutions; starts at random."""

    kind: Literal["small_resnet"] = "small_resnet"
    stem_channels: Annotated[int, Field(ge=8, multiple_of=8)] = 24
    """Channels at stride 2."""
    channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (32, 64, 96, 128)
    """Channels at strides 4, 8, 16 and 32; stages coarser than the last of `strides` are not built."""
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1, 1)
    """Residual blocks at strides 4, 8, 16 and 32."""
    strides: Strides = (8, 16)


ImageBackboneConfig = Annotated[TimmBackboneConfig | SmallResNetConfig, Field(discriminator="kind")]
