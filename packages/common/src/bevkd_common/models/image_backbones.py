"""Image backbones, those of timm and our own, and the normalisation of images in front of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import timm
import torch
from timm.layers.format import Format
from timm.models import FeatureListNet
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock

from bevkd_common.config.detectors.image_backbones import (
    CaffeResNetConfig,
    ImageBackboneConfig,
    ImageNormalization,
    SmallResNetConfig,
    TimmBackboneConfig,
)
from bevkd_common.config.wording import did_you_mean, one_of
from bevkd_common.errors import UserError
from bevkd_common.models.caffe_resnet import CHANNELS, caffe_resnet
from bevkd_common.models.foreign_files import read_checkpoint
from bevkd_common.models.staged import ChannelsLastLevels, StagedNetwork
from bevkd_common.models.state_dicts import mismatches

HUB = "hub"
IMAGENET_MEAN_RGB = (123.675, 116.28, 103.53)
IMAGENET_STD_RGB = (58.395, 57.12, 57.375)
"""In grey levels from 0 to 255, red first."""


class ImageNormalizer(nn.Module):
    """From uint8 RGB to what an image backbone was trained on.

    Upstream: "imagenet_rgb" is torchvision's normalisation and what BEVDet's first release uses. BEVDepth and
    BEVDet's later releases ask mmcv to turn BGR into RGB although the image already is RGB; the backbone then
    receives blue first, while mean and standard deviation still come red first. "imagenet_swapped" reproduces that
    for their weights. "caffe_bgr" is blue first with its own means and nothing divided, as Caffe's ResNets and
    BEVFormer's larger models have it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, convention: ImageNormalization) -> None:
        super().__init__()
        self.swap_channels = convention != "imagenet_rgb"
        mean, std = torch.tensor(IMAGENET_MEAN_RGB), torch.tensor(IMAGENET_STD_RGB)
        if convention == "caffe_bgr":
            mean, std = mean.flip(0), torch.ones(3)
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

    Args:
        network: Gives the maps.
        channels: See above.
        strides: See above.
        frozen: Modules of the network that neither learn nor follow the statistics of batches.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self._frozen = tuple(frozen)  # in a tuple, a module is not registered a second time
        for module in self._frozen:
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """As of any module, but that what is frozen stays in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
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
    """Build a backbone with the weights that its configuration names; one that is built on `meta` gets none.

    Raises:
        UserError: If timm has no such network, it has no feature map of a stride, parts of it cannot be frozen, or
            the weights cannot be had or do not fit.
    """
    if isinstance(config, SmallResNetConfig):
        network = SmallResNet(config.stem_channels, config.channels, config.blocks, config.strides)
        return ImageBackbone(network, network.level_channels, config.strides)
    return _caffe_backbone(config) if isinstance(config, CaffeResNetConfig) else _timm_backbone(config)


def _caffe_backbone(config: CaffeResNetConfig) -> ImageBackbone:
    stages = [stride.bit_length() - 2 for stride in config.strides]
    parts = caffe_resnet(config.depth, config.deformable_stages)
    used = list(parts)[: list(parts).index(f"layer{stages[-1]}") + 1]
    levels = [f"layer{stage}" for stage in stages]
    network = StagedNetwork({name: parts[name] for name in used}, levels, recompute=config.recompute)
    if config.weights is not None and not _is_meta(network):
        whole = {f"{name}.{key}" for name, part in parts.items() for key in part.state_dict()}
        weights = _of_backbone(read_checkpoint(config.weights))
        _load(network, weights, {*whole, "fc.weight", "fc.bias"}, config.described, config.weights)
    frozen = [*_norms(network), *_leading(network, config.frozen_stages, config.described)]
    return ImageBackbone(network, [CHANNELS[stage - 1] for stage in stages], config.strides, frozen)


def _timm_backbone(config: TimmBackboneConfig) -> ImageBackbone:
    available = _available_strides(config.name)
    if missing := sorted(set(config.strides) - set(available)):
        raise UserError(f"the image backbone {config.name} has no maps of stride {missing}, only of {available}")
    with torch.device("meta"):
        whole = timm.create_model(config.name, pretrained=False)
    network, channels = _features(config, whole, [available.index(stride) for stride in config.strides])
    if config.weights is not None and not _is_meta(network):
        rename = _side_by_side if isinstance(whole, SwinTransformer) else dict
        weights = _hub_weights(config.name) if config.weights == HUB else read_checkpoint(Path(config.weights))
        _load(network, rename(weights), rename(whole.state_dict()).keys(), config.name, config.weights)
    frozen = [
        *(_norms(network) if config.frozen_norms else ()),
        *_leading(network, config.frozen_stages, config.name),
    ]
    if isinstance(whole, SwinTransformer):
        network = ChannelsLastLevels(network, channels)
    return ImageBackbone(network, channels, config.strides, frozen)


def _available_strides(name: str) -> list[int]:
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise UserError(f"timm has no image backbone `{name}`{near or '; see timm.list_models() for those it has'}")
    architecture, _, tag = name.partition(".")
    if tag and name not in (tagged := timm.list_pretrained(f"{architecture}.*")):
        raise UserError(f"timm has no weights `{tag}` of {architecture}, only {one_of(tagged)}")
    with torch.device("meta"):
        return _feature_info(timm.create_model(name, pretrained=False, features_only=True)).reduction()


def _features(config: TimmBackboneConfig, whole: nn.Module, levels: Sequence[int]) -> tuple[nn.Module, list[int]]:
    """The network that gives the levels, and the channels of each."""
    # A window larger than a coarse map must be padded, not shrunk: its weights are for that size.
    swin = {"always_partition": True, "strict_img_size": False} if isinstance(whole, SwinTransformer) else {}
    options: dict[str, Any] = {"features_only": True, "out_indices": tuple(levels), **swin}
    network = timm.create_model(config.name, pretrained=False, **options)
    if getattr(network, "output_fmt", Format.NCHW) != Format.NCHW and not swin:
        raise UserError(
            f"the image backbone {config.name} returns channels last; choose a convolutional network or a Swin"
            " transformer"
        )
    channels = _feature_info(network).channels()
    if isinstance(network, FeatureListNet):
        parts = dict(network.items())
        return StagedNetwork(parts, list(network.return_layers), recompute=config.recompute), channels
    if config.recompute:
        raise UserError(f"the image backbone {config.name} is not made of stages: leave out `recompute`")
    return network, channels


def _feature_info(network: nn.Module) -> Any:
    return network.feature_info


def _side_by_side(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of a Swin transformer as they are where its stages stand side by side: `layers_2.` for `layers.2.`."""
    return {re.sub(r"^layers\.(\d+)\.", r"layers_\1.", key): value for key, value in weights.items()}


def _of_backbone(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The backbone's part of a detector's weights; weights of a backbone alone stay as they are."""
    for prefix in ("img_backbone.", "backbone."):
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        if own:
            return own
    return weights


def _hub_weights(name: str) -> dict[str, Tensor]:
    """Return the pretrained weights that timm lists for a network.

    Raises:
        UserError: If there are none, they want images normalised in another way, or they cannot be fetched.
    """
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.has_weights:
        raise UserError(f"timm knows no weights of {name}: name a file in `weights`")
    mean, std = (torch.tensor(values) / 255 for values in (IMAGENET_MEAN_RGB, IMAGENET_STD_RGB))
    if not torch.allclose(torch.tensor([known.mean, known.std]), torch.stack([mean, std]), atol=1e-4):
        raise UserError(
            f"the weights of {name} want images normalised with means {known.mean} and deviations {known.std}, not "
            "ImageNet's: choose another tag; see timm.list_pretrained()"
        )
    try:
        # What is drawn here must not move what is drawn for the rest of the detector.
        with torch.random.fork_rng(devices=[]):
            return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # the hub's libraries have no common one
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the weights of {name} cannot be fetched from the hub ({type(error).__name__}: {reason}): connect this"
            " machine once, or bring the file and name it in `weights`; null starts at random"
        ) from error


def _load(
    network: nn.Module, weights: Mapping[str, Tensor], spare: Collection[str], what: str, source: str | Path
) -> None:
    """Load strictly.

    Args:
        network: At the size of the weights.
        weights: Under its names.
        spare: Keys that may be left over: the classifier's, and those of stages behind the last level.
        what: The network, for messages.
        source: Of the weights, for messages.

    Raises:
        UserError: If a key is missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    found = {key: value for key, value in weights.items() if key in expected or key not in spare}
    # Checkpoints from before PyTorch 0.4.1 do not count batches.
    found = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")} | found
    if problems := mismatches(expected, found):
        raise UserError(
            f"{source} does not fit the image backbone {what}; is it a checkpoint of this very network?\n  "
            + "\n  ".join(problems)
        )
    network.load_state_dict(found)


def _is_meta(network: nn.Module) -> bool:
    return next(network.parameters()).is_meta


def _norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def _leading(network: nn.Module, stages: int | None, what: str) -> list[nn.Module]:
    """What comes before the first stage of a ResNet, and its first stages.

    Raises:
        UserError: If the network has no such stages.
    """
    if stages is None:
        return []
    children = dict(network.named_children())
    if "layer1" not in children or (stages and f"layer{stages}" not in children):
        raise UserError(f"`frozen_stages` {stages}: the image backbone {what} has no such stages of a ResNet")
    names = list(children)
    return [children[name] for name in names[: names.index("layer1") + stages]]
