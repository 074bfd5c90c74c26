"""The networks that turn a camera image into features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from bevkd_common.config.model import Config

ImageNormalization = Literal["imagenet_rgb", "imagenet_swapped"]


def _increasing(strides: tuple[int, ...]) -> tuple[int, ...]:
    if any(stride < 2 or stride & (stride - 1) for stride in strides) or list(strides) != sorted(set(strides)):
        raise ValueError(f"strides are powers of two from 2 on, finest first and each once, got {list(strides)}")
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
    frozen: tuple[str, ...] = ()
    """Modules of the network, as timm calls them, that keep their weights and the statistics of their norms."""

    @property
    def described(self) -> str:
        """In a few words."""
        return f"timm {self.name} from {self.weights.name if self.weights else 'random weights'}"


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
    def described(self) -> str:
        """In a few words."""
        return f"small ResNet {'/'.join(map(str, self.channels))} from random weights"


ImageBackboneConfig = Annotated[TimmBackboneConfig | SmallResNetConfig, Field(discriminator="kind")]
