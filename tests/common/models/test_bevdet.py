import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bevkd_common.config.detectors.bevdet import BevDetConfig
from bevkd_common.config.detectors.image_backbones import TimmBackboneConfig
from bevkd_common.config.plugins import load
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Cameras
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detectors.bevdet import BevDet, build
from bevkd_common.models.heads.center_decode import Suppression
from bevkd_common.models.specs import BEVDET
from bevkd_common.models.taps import HeadMaps
from bevkd_common.models.weights.bevdet import BEVDET_R50
from bevkd_common.models.weights.maps import load_official
from torch import nn

MANIFEST = Path(__file__).parents[2] / "data" / "keys" / "bevdet_repo_bevdet_r50.tsv"
TAPS = ["bev_in", "bev_block0", "bev_block1", "bev_block2", "bev_neck", "head"]
GEOMETRY = {f"img_view_transformer.{name}" for name in ("dx", "bx", "nx", "frustum")}


@pytest.fixture(scope="module")
def paper(classes) -> BevDet:
    return build(BevDetConfig(), classes)


@pytest.fixture(scope="module")
def manifest() -> dict[str, tuple[tuple[int, ...], str]]:
    rows = (line.split("\t") for line in MANIFEST.read_text().splitlines())
    return {key: (ast.literal_eval(shape), dtype) for key, shape, dtype in rows}


def test_paper_size_has_the_parameters_of_the_released_model(paper, parameters):
    parts = {name: parameters(module) for name, module in paper.named_children()}
    assert parts == {
        "normalizer": 0,
        "image_backbone": 23_508_032,
        "image_neck": 3_933_696,
        "lift_splat": 63_099,
        "bev_stages": 12_394_368,
        "bev_neck": 6_556_416,
        "head": 1_519_686,
    }
    assert parameters(paper) == 47_975_297
    # The released model counts its constants of geometry as parameters.
    assert parameters(paper) + 3 * 3 + 59 * 16 * 44 * 3 == 48_099_914


def test_the_released_keys_and_ours_are_one_to_one_with_equal_shapes(paper, manifest):
    blank = {key: torch.empty(shape, device="meta") for key, (shape, _) in manifest.items()}
    theirs = {key: tuple(value.shape) for key, value in BEVDET_R50.rename(blank).items()}
    ours = {key: tuple(value.shape) for key, value in paper.state_dict().items()}
    assert len(manifest) == len(theirs) + len(GEOMETRY) == 722
    assert manifest.keys() > GEOMETRY
    assert theirs == ours
    learned = {key: (tuple(p.shape), "float32") for key, p in paper.named_parameters()}
    assert sum(math.prod(shape) for shape, _ in learned.values()) == 47_975_297
    counters = [key for key, (_, dtype) in manifest.items() if dtype == "int64"]
    assert len(counters) == sum(isinstance(module, nn.BatchNorm2d) for module in paper.modules())


def test_loading_puts_every_tensor_in_its_place_and_folds_the_old_boxes(paper, manifest):
    generator = torch.Generator().manual_seed(0)
    official = {
        key: torch.tensor(number) if dtype == "int64" else torch.rand(shape, generator=generator)
        for number, (key, (shape, dtype)) in enumerate(manifest.items())
    }
    load_official(paper, official, BEVDET_R50, family="old")
    ours = paper.state_dict()
    pairs = {
        "img_backbone.layer4.2.bn3.running_var": "image_backbone.network.layer4.2.bn3.running_var",
        "img_neck.lateral_convs.1.conv.bias": "image_neck.laterals.1.bias",
        "img_neck.fpn_convs.0.conv.weight": "image_neck.output.weight",
        "img_view_transformer.depthnet.weight": "lift_splat.depth_net.joint.weight",
        "img_bev_encoder_backbone.layers.2.0.downsample.bias": "bev_stages.2.0.shortcut.bias",
        "img_bev_encoder_backbone.layers.1.1.bn2.weight": "bev_stages.1.1.bn2.weight",
        "img_bev_encoder_neck.conv.3.weight": "bev_neck.fuse.3.weight",
        "img_bev_encoder_neck.up2.4.bias": "bev_neck.refine.4.bias",
        "pts_bbox_head.task_heads.3.heatmap.1.bias": "head.task_heads.3.heatmap.1.bias",
    }
    for theirs, name in pairs.items():
        assert torch.equal(official[theirs], ours[name]), name
    for task in range(6):
        old = official[f"pts_bbox_head.task_heads.{task}.rot.1.bias"]
        assert ours[f"head.task_heads.{task}.rot.1.bias"].tolist() == [-old[1].item(), -old[0].item()]


def test_constants_of_geometry_equal_the_released_ones(paper, manifest):
    config = BevDetConfig()
    grid, (z_low, z_high) = config.grid, config.z_range
    size = torch.tensor([grid.cell, grid.cell, z_high - z_low])
    first_center = torch.tensor([grid.x0, grid.y0, z_low]) + size / 2
    cells = torch.tensor([grid.nx, grid.ny, 1])
    frustum = paper.lift_splat.frustum
    shapes = {"dx": size, "bx": first_center, "nx": cells, "frustum": frustum}
    assert {key: manifest[f"img_view_transformer.{key}"][0] for key in shapes} == {
        key: tuple(value.shape) for key, value in shapes.items()
    }
    torch.testing.assert_close(size, torch.tensor([0.8, 0.8, 20.0]))
    torch.testing.assert_close(first_center, torch.tensor([-50.8, -50.8, 0.0]))
    assert cells.tolist() == [128, 128, 1]
    # Columns 703 / 43 pixels apart, rows 17, depths 1 m.
    torch.testing.assert_close(frustum[9, 8, 22], torch.tensor([359.674419, 136.0, 10.0]))
    assert frustum[0, 0, 0].tolist() == [0.0, 0.0, 1.0]
    assert frustum[-1, -1, -1].tolist() == [703.0, 255.0, 59.0]


def test_paper_size_has_the_taps_of_the_released_model(paper):
    blocks = [f"bev_block{stage}_preactivation" for stage in range(3)]
    assert list(paper.taps) == ["image_neck", "depth_logits", *TAPS, *blocks]
    maps = {
        name: (t.channels, t.grid.cell, t.grid.nx, t.activation)
        for name, t in paper.taps.items()
        if name in TAPS[:5]
    }
    assert maps == {
        "bev_in": (64, 0.8, 128, "none"),
        "bev_block0": (128, 1.6, 64, "relu"),
        "bev_block1": (256, 3.2, 32, "relu"),
        "bev_block2": (512, 6.4, 16, "relu"),
        "bev_neck": (256, 0.8, 128, "none"),
    }
    head = paper.taps["head"]
    assert isinstance(head, HeadMaps)
    assert head.grid == Grid(-51.2, -51.2, 0.8, 128, 128)
    assert paper.needs == DataNeeds(cameras=True)


def test_paper_size_thins_out_by_scale_nms(paper):
    assert paper.head.decoding.suppressions == (
        Suppression("rotate", 0.2),
        Suppression("rotate", 0.2, (0.7, 0.7)),
        Suppression("rotate", 0.2, (0.4, 0.55)),
        Suppression("circle", 1.0),
        Suppression("rotate", 0.2),
        Suppression("rotate", 0.5, (4.5, 9.0)),
    )
    assert paper.head.code_weights.tolist() == pytest.approx([1.0] * 8 + [0.2, 0.2])
    assert paper.head.supervision.box_weight == 0.25


def test_the_specification_builds_the_detector():
    assert load(BEVDET.build) is build
    assert BEVDET.config.model_fields["kind"].default == BEVDET.kind == "bevdet"


@pytest.mark.parametrize("extra_norm_act", [False, True])
def test_maps_are_what_the_taps_say(extra_norm_act, tiny, batch_of):
    model = tiny(bev_neck={"hidden_channels": 24, "channels": 16, "extra_norm_act": extra_norm_act})
    outputs = model(batch_of(), frozenset(TAPS))
    assert set(outputs.taps) == set(TAPS) - {"head"}
    activations = {}
    for name, value in outputs.taps.items():
        spec = model.taps[name]
        assert value.shape == (2, spec.channels, spec.grid.ny, spec.grid.nx)
        assert spec.grid.extent == pytest.approx((-12.8, -6.4, 12.8, 6.4))
        assert (value.min() >= 0) == (spec.activation == "relu")
        assert value.max() > 0
        activations[name] = spec.activation
    assert activations["bev_neck"] == ("relu" if extra_norm_act else "none")
    assert [tuple(task) for task in outputs.head] == [("reg", "height", "dim", "rot", "vel", "heatmap")]
    assert outputs.head[0]["heatmap"].shape == (2, 10, 16, 32)
    assert outputs.state is None


def test_stages_may_keep_the_resolution(tiny, batch_of):
    stages = [{"channels": 8, "blocks": 2, "stride": 1}, {"channels": 12, "blocks": 1, "stride": 4}]
    model = tiny(bev_stages=stages)
    outputs = model(batch_of(), frozenset(model.taps))
    names = [name for name in model.taps if not name.endswith("_preactivation")]
    assert names == ["image_neck", "depth_logits", "bev_in", "bev_block0", "bev_block1", "bev_neck", "head"]
    assert outputs.taps["bev_block0"].shape == (2, 8, 16, 32)
    assert outputs.taps["bev_block1"].shape == (2, 12, 4, 8)
    assert outputs.taps["bev_neck"].shape == (2, 16, 16, 32)
    assert model.taps["bev_block1"].grid == Grid(-12.8, -6.4, 3.2, 8, 4)


@pytest.mark.parametrize("level", range(6))
def test_nothing_above_the_wanted_tap_is_computed(level, tiny, batch_of):
    model = tiny()
    modules = [model.lift_splat.depth_net, *model.bev_stages, model.bev_neck, model.head]
    ran = []
    for position, module in enumerate(modules):
        module.register_forward_hook(lambda *_, position=position: ran.append(position))
    outputs = model(batch_of(), frozenset({TAPS[level]}))
    assert ran == list(range(level + 1))
    assert list(outputs.taps) == [TAPS[level]][: level < 5]
    assert bool(outputs.head) == (level == 5)


def test_wanting_nothing_computes_nothing(tiny, batch_of):
    outputs = tiny()(replace(batch_of(), cameras=None), frozenset())
    assert (dict(outputs.taps), list(outputs.head)) == ({}, [])


def test_an_unknown_tap_is_refused_with_the_choices(tiny, batch_of):
    with pytest.raises(ValueError, match=r"no tap \['tsa0'\].*'bev_neck'"):
        tiny()(batch_of(), frozenset({"tsa0"}))


def test_a_batch_without_images_or_with_others_is_refused(tiny, batch_of, with_cameras):
    with pytest.raises(ValueError, match="without cameras"):
        tiny()(replace(batch_of(), cameras=None), frozenset({"head"}))
    with pytest.raises(ValueError, match=r"images of 32 x 80, the batch has 32 x 64"):
        tiny()(with_cameras(batch_of(), images=batch_of().cameras.images[..., :64]), frozenset({"head"}))


def test_image_reaches_the_ground_where_its_camera_looks(tiny, batch_of, with_cameras, settled):
    batch = batch_of(1)
    model = settled(tiny(), batch)
    batch = with_cameras(batch, images=torch.zeros_like(batch.cameras.images))
    # Camera 1 looks along -x: left of the nuScenes LiDAR.
    images = batch.cameras.images.clone()
    images[0, 1] = 255
    want = frozenset({"bev_in"})
    difference = (
        model(with_cameras(batch, images=images), want).taps["bev_in"] - model(batch, want).taps["bev_in"]
    )[0]
    energy = difference.square().sum(dim=0)
    assert energy[:, :15].sum() > 0.95 * energy.sum() > 0


def test_each_camera_counts_once_and_samples_do_not_mix(tiny, batch_of, with_cameras, settled):
    batch = batch_of()
    model, cameras = settled(tiny(), batch), batch.cameras

    def neck(**changes: torch.Tensor) -> torch.Tensor:
        return model(with_cameras(batch, **changes), frozenset({"bev_neck"})).taps["bev_neck"]

    fields = {name: getattr(cameras, name) for name in Cameras.__dataclass_fields__}
    whole, order = neck(), [3, 1, 0, 2]
    torch.testing.assert_close(neck(**{k: v[:, order] for k, v in fields.items()}), whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        neck(**{k: v.flip(0) for k, v in fields.items()}).flip(0), whole, rtol=1e-3, atol=1e-4
    )
    assert (neck(images=cameras.images[:, order]) - whole).abs().max() > 0.1
    assert (whole[0] - whole[1]).abs().max() > 0.1


def test_colours_reach_the_backbone_in_the_order_asked_for(tiny, batch_of):
    batch = batch_of()
    seen = {}
    for convention in ("imagenet_rgb", "imagenet_swapped"):
        model = tiny(normalization=convention).eval()
        model.image_backbone.register_forward_pre_hook(
            lambda _, inputs, convention=convention: seen.update({convention: inputs[0]})
        )
        model(batch, frozenset({"bev_in"}))
    red = batch.cameras.images.flatten(0, 1)[:, 0] / 255
    torch.testing.assert_close(seen["imagenet_rgb"][:, 0], (red - 0.485) / 0.229)
    torch.testing.assert_close(seen["imagenet_swapped"][:, 2], (red * 255 - 103.53) / 57.375)


def test_gradients_reach_every_parameter(tiny, batch_of):
    model, batch = tiny(), batch_of()
    # timm starts residual branches at zero, which stops the gradient of what lies within for one step.
    for name, parameter in model.named_parameters():
        if name.endswith("bn2.weight"):
            nn.init.ones_(parameter)
    outputs = model(batch, frozenset({"head"}))
    terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    assert set(terms) == {"heatmap", "boxes"}
    sum(term.value * term.weight for term in terms.values()).backward()
    named = dict(model.named_parameters())
    without = [name for name, parameter in named.items() if parameter.grad is None or not parameter.grad.any()]
    assert len(named) > 90
    assert without == []


def test_training_learns_to_find_the_boxes(tiny, batch_of):
    model, batch = tiny(), batch_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        outputs = model(batch, frozenset({"head"}))
        terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
        loss = sum(term.value * term.weight for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 5
    detections = model.decode(model(batch, frozenset({"head"})), batch)
    assert len(detections) == 2
    for sample, found in enumerate(detections):
        distance = torch.cdist(batch.boxes.centers[sample], found.boxes.centers[:3])
        assert distance.amin(dim=1).max() < 0.8
        assert sorted(found.labels[:3].tolist()) == sorted(batch.labels[sample].tolist())


def test_bfloat16_autocast_trains_close_to_float32(tiny, batch_of, settled):
    batch = batch_of()
    model, want = settled(tiny(), batch), frozenset({"bev_in", "bev_neck", "head"})
    plain = model(batch, want)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch, want)
        terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    assert outputs.taps["bev_in"].dtype == torch.float32
    for name, exact in plain.taps.items():
        error = (outputs.taps[name].float() - exact).square().mean().sqrt()
        assert 0 < error < 0.15 * exact.square().mean().sqrt(), name
    total = sum(term.value * term.weight for term in terms.values())
    total.backward()
    assert total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_head_for_other_classes_is_refused(classes, tiny_config):
    with pytest.raises(UserError, match="missing are tram"):
        build(BevDetConfig.model_validate(tiny_config), (*classes, "tram"))


def test_a_missing_checkpoint_of_the_backbone_is_named(classes, tmp_path):
    config = BevDetConfig(image_backbone=TimmBackboneConfig(name="resnet18", weights=tmp_path / "r18.pth"))
    with pytest.raises(UserError, match=r"r18\.pth"):
        build(config, classes)
