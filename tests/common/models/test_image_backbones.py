from pathlib import Path

import pytest
import timm
import torch
from bevkd_common.config.detectors.image_backbones import CaffeResNetConfig, SmallResNetConfig, TimmBackboneConfig
from bevkd_common.errors import UserError
from bevkd_common.models import image_backbones
from bevkd_common.models.caffe_resnet import CaffeBottleneck
from bevkd_common.models.image_backbones import ImageNormalizer, build_image_backbone
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

SWIN_TINY = "swin_tiny_patch4_window7_224"


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


def test_red_image_comes_last_and_is_not_divided_under_caffes_convention() -> None:
    normalized = ImageNormalizer("caffe_bgr")(solid(255, 0, 0))
    torch.testing.assert_close(normalized[0, :, 1, 1], torch.tensor([-103.53, -116.28, 255 - 123.675]))


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
        (TimmBackboneConfig(name="swinv2_tiny_window8_256", strides=(16, 32)), "returns channels last"),
        (
            TimmBackboneConfig(name="resnet18.nobodys"),
            r"no weights `nobodys` of resnet18, only `",
        ),
        (TimmBackboneConfig(name="efficientnet_b0", frozen_stages=1), "`frozen_stages` 1: .* no such stages"),
        (
            TimmBackboneConfig(name="resnet18", strides=(8,), frozen_stages=3),
            "`frozen_stages` 3: .* no such stages",
        ),
    ],
)
def test_backbones_that_cannot_serve_are_refused(config: TimmBackboneConfig, message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build_image_backbone(config)


def learned(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("config", "parameters", "moving"),
    [
        (TimmBackboneConfig(name="resnet101"), 42_500_160, 42_500_160),
        (TimmBackboneConfig(frozen_stages=0), 23_508_032, 23_508_032 - 9_536),
        (TimmBackboneConfig(name=SWIN_TINY), 27_520_122, 27_520_122),
        (TimmBackboneConfig(name="swin_base_patch4_window12_384"), 86_879_608, 86_879_608),
        (CaffeResNetConfig(deformable_stages=()), 42_500_160, 42_500_160 - 327_744),
        # 26 convolutions of 27 offsets and weights: 23 over 256 channels and 3 over 512.
        (CaffeResNetConfig(), 42_500_160 + 23 * 62_235 + 3 * 124_443, 42_500_160 + 1_804_734 - 327_744),
    ],
)
def test_paper_sizes(config: TimmBackboneConfig | CaffeResNetConfig, parameters: int, moving: int) -> None:
    with torch.device("meta"):
        backbone = build_image_backbone(config)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert learned(backbone) == moving


def test_caffe_resnet_has_the_keys_of_the_released_models() -> None:
    with torch.device("meta"):
        network = build_image_backbone(CaffeResNetConfig()).network
        plain = timm.create_model("resnet101", features_only=True, out_indices=(2, 3, 4))
    offsets = {key: tuple(v.shape) for key, v in network.state_dict().items() if "conv_offset" in key}
    assert len(offsets) == 2 * (23 + 3)
    assert offsets["layer3.22.conv2.conv_offset.weight"] == (27, 256, 3, 3)
    assert offsets["layer4.0.conv2.conv_offset.bias"] == (27,)
    others = {key: v.shape for key, v in network.state_dict().items() if key not in offsets}
    assert others == {key: v.shape for key, v in plain.state_dict().items()}
    assert len(others) == 104 + 5 * 104


def test_caffe_block_equals_its_formula() -> None:
    torch.manual_seed(0)
    block = CaffeBottleneck(6, 16, 2, deformable=False, project=True).double().eval()
    for norm in (module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert value is not None
            value.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 6, 7, 10, dtype=torch.float64)

    def normed(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        shape = (-1, 1, 1)
        scale = norm.weight / (var + 1e-5).sqrt()
        return (x - mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)

    first, second, third = (block.get_parameter(f"conv{i}.weight") for i in (1, 2, 3))
    out = normed(torch.einsum("oi,bihw->bohw", first[..., 0, 0], x[:, :, ::2, ::2]), block.bn1).relu()
    out = normed(F.conv2d(out, second, padding=1), block.bn2).relu()
    out = normed(torch.einsum("oi,bihw->bohw", third[..., 0, 0], out), block.bn3)
    shortcut = torch.einsum(
        "oi,bihw->bohw", block.get_parameter("downsample.0.weight")[..., 0, 0], x[:, :, ::2, ::2]
    )
    norm = block.get_submodule("downsample.1")
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(block(x), (out + normed(shortcut, norm)).relu())


def test_a_fresh_deformable_block_weighs_its_samples_by_half() -> None:
    torch.manual_seed(0)
    block, plain = (CaffeBottleneck(8, 8, deformable=deformable).eval() for deformable in (True, False))
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "conv_offset" not in k})
    with torch.no_grad():
        plain.get_parameter("conv2.weight").mul_(0.5)
    x = torch.randn(1, 8, 5, 6)
    torch.testing.assert_close(block(x), plain(x))


def test_caffe_resnet_gives_its_levels_and_freezes_what_it_names() -> None:
    torch.manual_seed(0)
    backbone = build_image_backbone(CaffeResNetConfig(depth=50, strides=(8, 16), deformable_stages=(3,)))
    assert (backbone.channels, backbone.strides) == ((512, 1024), (8, 16))
    assert not any(key.startswith("network.layer4") for key in backbone.state_dict())
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    maps = backbone.train()(torch.randn(1, 3, 40, 56))
    assert [tuple(m.shape) for m in maps] == [(1, 512, 5, 7), (1, 1024, 3, 4)]
    sum(m.sum() for m in maps).backward()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    moving = {name.split(".")[1] for name, p in backbone.named_parameters() if p.grad is not None}
    assert moving == {"layer2", "layer3"}
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1 + 3 * (3 + 4 + 6) + 3
    assert learned(nn.ModuleList(norms)) == 0


@pytest.mark.parametrize("prefix", ["", "backbone.", "img_backbone."])
def test_caffe_weights_are_found_in_a_detector(prefix: str, tmp_path: Path) -> None:
    config = CaffeResNetConfig(depth=50, strides=(8,), deformable_stages=(), frozen_stages=None)
    with torch.device("meta"):
        shapes = build_image_backbone(CaffeResNetConfig(depth=50, deformable_stages=())).network.state_dict()
    weights = {key: torch.tensor(float(i)).expand(v.shape) for i, (key, v) in enumerate(shapes.items())}
    path = tmp_path / "detector.pth"
    around = {"neck.weight": torch.zeros(1)} if prefix else {"fc.weight": torch.zeros(1)}
    torch.save({"state_dict": {prefix + key: value for key, value in weights.items()} | around}, path)
    loaded = build_image_backbone(config.model_copy(update={"weights": path})).network.state_dict()
    # 23 convolutions and norms up to the second stage and its shortcut.
    assert len(loaded) == 6 * 24
    assert all(torch.equal(value, weights[key].to(value.dtype)) for key, value in loaded.items())


@pytest.mark.parametrize("strides", [(2, 4), (32, 64)])
def test_a_resnet_has_four_strides(strides: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"the strides 4, 8, 16 and 32, got \["):
        CaffeResNetConfig(strides=strides)


@pytest.mark.parametrize(("network", "parameters", "buffers"), [("resnet18", 30, 30), ("regnety_002", 35, 27)])
def test_recomputed_blocks_change_neither_gradients_nor_statistics(
    network: str, parameters: int, buffers: int
) -> None:
    images = torch.randn(2, 3, 32, 32)

    def trained(recompute: bool) -> tuple[int, nn.Module]:
        torch.manual_seed(0)
        backbone = build_image_backbone(
            TimmBackboneConfig(name=network, strides=(4, 8), recompute=recompute)
        ).train()
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(m.square().mean() for m in backbone(images))
        loss.backward()
        return kept, backbone

    (much, plain), (little, recomputed) = trained(False), trained(True)
    assert little < 0.5 * much
    gradients = dict(plain.named_parameters())
    assert len(gradients) == parameters
    for name, parameter in recomputed.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=0, atol=0, msg=name)
    statistics = dict(plain.named_buffers())
    assert len(statistics) == buffers
    for name, value in recomputed.named_buffers():
        assert torch.equal(value, statistics[name]), name
    assert {m.momentum for m in recomputed.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize(
    ("config", "blocks", "kind"),
    [
        (TimmBackboneConfig(name="resnet50", strides=(32,), recompute=True), 16, "Bottleneck"),
        (TimmBackboneConfig(name=SWIN_TINY, strides=(32,), recompute=True), 12, "SwinTransformerBlock"),
        (TimmBackboneConfig(name="regnety_002", strides=(32,), recompute=True), 4, "RegStage"),
        (CaffeResNetConfig(depth=50, strides=(32,), frozen_stages=None, recompute=True), 16, "CaffeBottleneck"),
    ],
    ids=["resnet", "swin", "batch norms in timm's stages", "caffe"],
)
def test_backward_pass_holds_what_is_in_one_block_at_a_time(
    config: TimmBackboneConfig | CaffeResNetConfig, blocks: int, kind: str
) -> None:
    backbone = build_image_backbone(config).train()
    inside: dict[str, list[StorageWeakRef]] = {}
    most = 0

    def remember(block: str, out: Tensor) -> None:
        nonlocal most
        inside.setdefault(block, []).append(StorageWeakRef(out.untyped_storage()))
        most = max(most, sum(not all(held.expired() for held in times) for times in inside.values()))

    found = {name: m for name, m in backbone.named_modules() if type(m).__name__ == kind}
    assert len(found) == blocks
    for name, block in found.items():
        first = next(m for m in block.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        first.register_forward_hook(lambda _module, _inputs, out, name=name: remember(name, out))
    sum(m.square().mean() for m in backbone(torch.randn(2, 3, 32, 32))).backward()
    assert most == 1
    assert {len(times) for times in inside.values()} == {2}


def test_swin_gives_normed_levels_with_channels_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in timm.create_model(SWIN_TINY).state_dict().items()}
    weights = {key: (torch.rand(shape[-1]) * 0.1 - 0.05).expand(shape) for key, shape in shapes.items()}
    torch.save(weights, tmp_path / "swin.pth")
    backbone = build_image_backbone(TimmBackboneConfig(name=SWIN_TINY, weights=tmp_path / "swin.pth"))
    loaded = backbone.state_dict()
    for ours, theirs in (
        ("network.stages.layers_3.blocks.1.attn.qkv.weight", "layers.3.blocks.1.attn.qkv.weight"),
        ("network.stages.layers_1.downsample.reduction.weight", "layers.1.downsample.reduction.weight"),
        ("network.stages.patch_embed.proj.bias", "patch_embed.proj.bias"),
    ):
        assert torch.equal(loaded[ours], weights[theirs])
    # 64 x 96 pixels leave a last map of 2 x 3 cells, less than a window of 7.
    maps = backbone.eval()(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 384, 4, 6), (1, 768, 2, 3)]
    for level in maps:
        torch.testing.assert_close(level.mean(dim=1), torch.zeros(level[:, 0].shape), atol=1e-5, rtol=0)
        torch.testing.assert_close(level.var(dim=1, correction=0), torch.ones(level[:, 0].shape), atol=1e-2, rtol=0)
    windows = [m.window_size for m in backbone.modules() if hasattr(m, "window_size") and hasattr(m, "shift_size")]
    assert len(windows) == 12
    assert set(windows) == {(7, 7)}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_one_sentence_with_the_remedy(offline: None) -> None:
    with pytest.raises(UserError) as caught:
        build_image_backbone(TimmBackboneConfig(name="resnet18.tv_in1k", weights="hub"))
    message = str(caught.value)
    assert message.startswith("the weights of resnet18.tv_in1k cannot be fetched from the hub (")
    assert "\n" not in message
    assert "name it in `weights`; null starts at random" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50t", "timm knows no weights of resnet50t: name a file"),
        ("resnetv2_50x1_bit.goog_in21k_ft_in1k", r"normalised with means \(0.5, 0.5, 0.5\).*choose another tag"),
    ],
)
def test_weights_of_the_hub_that_cannot_serve_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_image_backbone(TimmBackboneConfig(name=name, weights="hub"))


def test_weights_of_the_hub_are_loaded_and_draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    create, asked = timm.create_model, []

    def stand_in(name: str, *, pretrained: bool = False, **options: object) -> nn.Module:
        if pretrained:
            asked.append(name)
            return create("resnet18", pretrained=False).requires_grad_(False).apply(blank)
        return create(name, pretrained=False, **options)

    def blank(module: nn.Module) -> None:
        for value in module.state_dict().values():
            value.fill_(2)

    monkeypatch.setattr(image_backbones.timm, "create_model", stand_in)
    drawn = []
    for weights in ("hub", None):
        torch.manual_seed(0)
        backbone = build_image_backbone(TimmBackboneConfig(name="resnet18.tv_in1k", weights=weights))
        drawn.append(torch.rand(3))
        assert all((value == 2).all() for value in backbone.state_dict().values()) == (weights == "hub")
    assert asked == ["resnet18.tv_in1k"]
    assert torch.equal(*drawn)
