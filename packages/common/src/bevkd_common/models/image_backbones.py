"""Image backbones, those of timm and a small one, and the normalisation of images in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import timm
import torch
from timm.layers.format import Format
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from bevkd_common.config.image_backbones import (
    ImageBackboneConfig,
    ImageNormalization,
    SmallResNetConfig,
    TimmBackboneConfig,
)
from bevkd_common.config.wording import did_you_mean
from bevkd_common.errors import UserError
from bevkd_common.models.weights import mismatches, read_checkpoint

IMAGENET_MEAN_RGB = (123.675, 116.28, 103.53)
IMAGENET_STD_RGB = (58.395, 57.12, 57.375)
"""In grey levels from 0 to 255, red first."""


class ImageNormalizer(nn.Module):
    """From uint8 RGB to what an image backbone was trained on.

    Upstream: "imagenet_rgb" is torchvision's normalisation and what BEVDet's first release uses. BEVDepth and
    BEVDet's later releases ask mmcv to turn BGR into RGB although the image already is RGB; the backbone then
    sees blue first, while mean and standard deviation still come red first. "imagenet_swapped" reproduces that
    for their weights.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, convention: ImageNormalization) -> None:
        super().__init__()
        self.swap_channels = convention == "imagenet_swapped"
        mean, std = torch.tensor(IMAGENET_MEAN_RGB), torch.tensor(IMAGENET_STD_RGB)
        self.register_buffer("scale", (1 / std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise uint8 RGB images [B, 3, H, W] to float32, laid out channels last."""
        if self.swap_channels:
            images = images.flip(1)
        images = images.to(self.scale.dtype).contiguous(memory_format=torch.channels_last)
        return images * self.scale + self.shift


class ImageBackbone(nn.Module):
    """A network that returns the feature maps of chosen strides.

    Attributes:
        channels: Channels of each level, finest first.
        strides: Image pixels per cell of each level.
        frozen: Names of the network's modules that never train, norms included.
    """

    def __init__(
        self, network: nn.Module, channels: Sequence[int], strides: Sequence[int], frozen: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.frozen = tuple(frozen)
        for name in self.frozen:
            network.get_submodule(name).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything that is not frozen."""
        super().train(mode)
        for name in self.frozen:
            self.network.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps [B, channels[i], ⌈H / strides[i]⌉, ⌈W / strides[i]⌉] of normalised images [B, 3, H, W]."""
        return self.network(images)


class SmallResNet(nn.Module):
    """A stem of one strided convolution, then stages of basic blocks, each of which halves the resolution.

    A stem of few channels with a pooling behind it, as large networks have it, starves a network this small.

    Args:
        stem_channels: At stride 2.
        channels: Of each stage, from stride 4 on.
        blocks: Of each stage.
        strides: Of the maps to return.
    """

    def __init__(
        self, stem_channels: int, channels: Sequence[int], blocks: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem_channels, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(stem_channels),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList(
            nn.Sequential(_halving(before, after), *(BasicBlock(after, after) for _ in range(depth - 1)))
            for before, after, depth in zip((stem_channels, *channels[:-1]), channels, blocks, strict=True)
        )
        # Level 0 is the stem, at stride 2.
        self.levels = [stride.bit_length() - 2 for stride in strides]
        self.level_channels = [(stem_channels, *channels)[level] for level in self.levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of the chosen strides, finest first, of images [B, 3, H, W]."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [maps[level] for level in self.levels]


def _halving(before: int, after: int) -> BasicBlock:
    shortcut = nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))
    return BasicBlock(before, after, 2, shortcut)


def build_image_backbone(config: ImageBackboneConfig) -> ImageBackbone:
    """Build a backbone, with the weights of a local checkpoint where the configuration names one.

    Raises:
        UserError: If timm has no such network, it has no feature map of a stride, or the checkpoint does not fit.
    """
    if isinstance(config, SmallResNetConfig):
        network = SmallResNet(config.stem_channels, config.channels, config.blocks, config.strides)
        return ImageBackbone(network, network.level_channels, config.strides)
    available = _available_strides(config.name)
    if missing := sorted(set(config.strides) - set(available)):
        raise UserError(f"the image backbone {config.name} has no maps of stride {missing}, only of {available}")
    backbone = _features(config, [available.index(stride) for stride in config.strides])
    if config.weights is not None:
        _load_weights(backbone.network, config.name, config.weights)
    return backbone


def _available_strides(name: str) -> list[int]:
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise UserError(f"timm has no image backbone `{name}`{near or '; see timm.list_models() for those it has'}")
    with torch.device("meta"):
        return _feature_info(timm.create_model(name, pretrained=False, features_only=True)).reduction()


def _features(config: TimmBackboneConfig, levels: list[int]) -> ImageBackbone:
    network = timm.create_model(config.name, pretrained=False, features_only=True, out_indices=tuple(levels))
    if getattr(network, "output_fmt", Format.NCHW) != Format.NCHW:
        raise UserError(f"the image backbone {config.name} returns channels last; choose a convolutional network")
    parts = dict(network.named_modules())
    for name in config.frozen:
        if name not in parts:
            near = did_you_mean(name, parts)
            raise UserError(f"the image backbone {config.name} has no module `{name}` to keep frozen{near}")
    return ImageBackbone(network, _feature_info(network).channels(), config.strides, config.frozen)


def _feature_info(network: nn.Module) -> Any:
    return network.feature_info


def _load_weights(network: nn.Module, name: str, path: Path) -> None:
    weights = read_checkpoint(path)
    expected = network.state_dict()
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False).state_dict().keys()
    # The classifier and the stages behind the last level are of no use here.
    found = {key: value for key, value in weights.items() if key in expected or key not in whole}
    # Checkpoints from before PyTorch 0.4.1 do not count batches.
    found = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")} | found
    if problems := mismatches(expected, found):
        raise UserError(
            f"{path} does not fit the image backbone {name}; is it a checkpoint of timm or torchvision?\n  "
            + "\n  ".join(problems)
        )
    network.load_state_dict(found)
