"""Image backbones, all of them from timm, and the normalisation of images in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers.format import Format
from torch import Tensor, nn

from bevkd_common.config.image_backbones import (
    ImageBackboneConfig,
    ImageNormalization,
    SmallResNetConfig,
    TimmBackboneConfig,
)
from bevkd_common.errors import UserError

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
    """A timm network that returns the feature maps of chosen strides.

    Attributes:
        channels: channels of each level, finest first.
        strides: image pixels per cell of each level.
    """

    def __init__(self, network: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.channels = tuple(channels)
        self.strides = tuple(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps [B, channels[i], ⌈H / strides[i]⌉, ⌈W / strides[i]⌉] of normalised images [B, 3, H, W]."""
        return self.network(images)


def build_image_backbone(config: ImageBackboneConfig) -> ImageBackbone:
    """Build a backbone, with the weights of a local checkpoint where the configuration names one.

    Raises:
        UserError: if timm has no such network, it has no feature map of a stride, or the checkpoint does not fit.
    """
    if isinstance(config, SmallResNetConfig):
        return _build("resnet18", config.strides, _small_resnet_layout(config))
    backbone = _build(config.name, config.strides, {})
    if config.weights is not None:
        _load_weights(backbone.network, config, config.weights)
    return backbone


def _small_resnet_layout(config: SmallResNetConfig) -> dict[str, Any]:
    return {
        "channels": config.channels,
        "layers": config.blocks,
        "stem_type": "deep_tiered",
        "stem_width": config.stem_channels // 2,
    }


def _build(name: str, strides: tuple[int, ...], layout: dict[str, Any]) -> ImageBackbone:
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name[:6]}*")[:5]) or "see timm.list_models()"
        raise UserError(f"timm has no image backbone called {name!r}; similar names: {close}")
    with torch.device("meta"):
        available = _feature_info(
            timm.create_model(name, pretrained=False, features_only=True, **layout)
        ).reduction()
    missing = sorted(set(strides) - set(available))
    if missing:
        raise UserError(f"the image backbone {name} has no feature map of stride {missing}, it has {available}")
    levels = tuple(available.index(stride) for stride in strides)
    network = timm.create_model(name, pretrained=False, features_only=True, out_indices=levels, **layout)
    if network.output_fmt != Format.NCHW:
        raise UserError(f"the image backbone {name} returns channels last; choose a convolutional network")
    return ImageBackbone(network, _feature_info(network).channels(), strides)


def _feature_info(network: nn.Module) -> Any:
    return network.feature_info


def _load_weights(network: nn.Module, config: TimmBackboneConfig, path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"the weights of the image backbone {config.name} are not at {path}; put timm's or torchvision's "
            "checkpoint there, or leave `weights` out to start at random"
        )
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    expected = network.state_dict()
    with torch.device("meta"):
        whole = timm.create_model(config.name, pretrained=False).state_dict().keys()
    # The classifier and the stages behind the last level are of no use here.
    given = {key: value for key, value in state.items() if key in expected or key not in whole}
    # Checkpoints from before PyTorch 0.4.1 do not count batches.
    given = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")} | given
    differing = sorted(expected.keys() ^ given.keys()) or [
        key for key, value in expected.items() if value.shape != given[key].shape
    ]
    if differing:
        raise UserError(
            f"{path} does not fit the image backbone {config.name}: {len(differing)} tensors are missing, unknown "
            f"or of another shape, the first is {differing[0]}; is it a checkpoint of this network?"
        )
    network.load_state_dict(given)
