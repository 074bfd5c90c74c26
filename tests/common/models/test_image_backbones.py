from pathlib import Path

import pytest
import timm
import torch
from bevkd_common.config.image_backbones import SmallResNetConfig, TimmBackboneConfig
from bevkd_common.errors import UserError
from bevkd_common.models.image_backbones import ImageNormalizer, build_image_backbone
from safetensors.torch import save_file
from torch import Tensor


def solid(red: int, green: int, blue: int) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)


def test_red_image_stays_red_with_imagenet_statistics() -> None:
    normalized = ImageNormalizer("imagenet_rgb")(solid(255, 0, 0))
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(normalized[0, :, 1, 0], expected)
    assert normalized[0, 0, 0, 0].item() == pytest.approx(2.2489, abs=1e-4)


def test_red_image_comes_last_under_the_swapped_convention() -> None:
    normalized = ImageNormalizer("imagenet_swapped")(solid(255, 0, 0))
    expected = torch.tensor([-123.675 / 58.395, -116.28 / 57.12, (255 - 103.53) / 57.375])
    torch.testing.assert_close(normalized[0, :, 0, 1], expected)
    assert normalized[0, 2, 0, 0].item() == pytest.approx(2.6400, abs=1e-4)


def test_normalizer_learns_and_saves_nothing() -> None:
    normalizer = ImageNormalizer("imagenet_rgb")
    assert normalizer.state_dict() == {}
    assert list(normalizer.parameters()) == []
    out = normalizer(torch.zeros(2, 3, 4, 6, dtype=torch.uint8))
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_resnet50_gives_the_levels_of_bevdet() -> None:
    backbone = build_image_backbone(TimmBackboneConfig())
    assert backbone.channels == (1024, 2048)
    assert backbone.strides == (16, 32)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 23_508_032


@pytest.mark.parametrize(
    ("channels", "strides"),
    [((32, 64, 96), (8, 16)), ((16, 24), (4, 8)), ((16, 24, 32, 40), (8, 16, 32)), ((16, 24), (2, 8))],
)
def test_small_resnet_has_the_stages_that_it_names(channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    config = SmallResNetConfig(channels=channels, blocks=(1,) * len(channels), strides=strides)
    backbone = build_image_backbone(config)
    maps = backbone(torch.randn(2, 3, 64, 96))
    by_stride = dict(zip((2, 4, 8, 16, 32), (16, *channels), strict=False))
    assert len(maps) == len(strides)
    assert [m.shape for m in maps] == [(2, by_stride[s], 64 // s, 96 // s) for s in strides]
    assert backbone.channels == tuple(by_stride[s] for s in strides)
    stages = {key.split(".")[2] for key in backbone.state_dict() if ".stages." in key}
    assert stages == {str(i) for i in range(len(channels))}


def test_small_resnet_has_the_blocks_that_it_names() -> None:
    config = SmallResNetConfig(channels=(16, 24), blocks=(1, 3), strides=(8,))
    keys = build_image_backbone(config).state_dict()
    assert {key.split(".")[3] for key in keys if ".stages.0." in key} == {"0"}
    assert {key.split(".")[3] for key in keys if ".stages.1." in key} == {"0", "1", "2"}


def resnet18_weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return timm.create_model("resnet18", pretrained=False).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_classifier_are_loaded(suffix: str, tmp_path: Path) -> None:
    weights = resnet18_weights()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}, path)
    else:
        save_file(weights, path)
    # Level 16 leaves the last stage out; the classifier is left out always.
    backbone = build_image_backbone(TimmBackboneConfig(name="resnet18", strides=(8, 16), weights=path))
    loaded = backbone.network.state_dict()
    assert "layer3.1.conv2.weight" in loaded
    assert not any(key.startswith(("fc.", "layer4.")) for key in loaded)
    assert len(loaded) == 90
    for key, value in loaded.items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("layer1.0.conv1.weight"), "missing layer1.0.conv1.weight"),
        (lambda weights: weights.update({"layer9.weight": torch.zeros(1)}), "unexpected layer9.weight"),
        (lambda weights: weights.update({"bn1.weight": torch.zeros(7)}), r"bn1.weight is \(7,\), wanted \(64,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: object, named: str, tmp_path: Path) -> None:
    weights = resnet18_weights()
    change(weights)
    torch.save(weights, tmp_path / "other.pth")
    config = TimmBackboneConfig(name="resnet18", weights=tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"(?s)other.pth does not fit the image backbone resnet18.*{named}"):
        build_image_backbone(config)


def test_weights_are_never_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint .*absent\.pth"):
        build_image_backbone(TimmBackboneConfig(name="resnet18", weights=tmp_path / "absent.pth"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TimmBackboneConfig(name="resnet5"), "no image backbone `resnet5`; did you mean `resnet50`"),
        (TimmBackboneConfig(name="??"), r"no image backbone `\?\?`; see timm.list_models"),
        (
            TimmBackboneConfig(name="resnet18", strides=(16, 64)),
            r"no maps of stride \[64\], only of \[2, 4, 8, 16, 32\]",
        ),
        (TimmBackboneConfig(name="swin_tiny_patch4_window7_224"), "returns channels last"),
    ],
)
def test_backbones_that_cannot_serve_are_refused(config: TimmBackboneConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_image_backbone(config)


def test_frozen_modules_keep_weights_and_statistics_in_training() -> None:
    config = TimmBackboneConfig(name="resnet18", strides=(4,), frozen=("conv1", "bn1"))
    backbone = build_image_backbone(config)
    frozen = {name: p.numel() for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"network.conv1.weight": 9408, "network.bn1.weight": 64, "network.bn1.bias": 64}
    assert not backbone.network.bn1.training
    backbone.eval().train()
    before = {name: value.clone() for name, value in backbone.network.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64) + 3)[0].sum().backward()
    moved = {name for name, value in backbone.network.named_buffers() if not torch.equal(value, before[name])}
    assert moved
    assert not any(name.startswith("bn1.") for name in moved)
    assert backbone.network.conv1.weight.grad is None


def test_an_unknown_frozen_module_is_named() -> None:
    with pytest.raises(UserError, match=r"resnet18 has no module `con1` to keep frozen.*conv1"):
        build_image_backbone(TimmBackboneConfig(name="resnet18", strides=(4,), frozen=("con1",)))
