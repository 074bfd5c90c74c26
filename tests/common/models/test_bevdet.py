import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from bevkd_common.config.bevdepth import BevDepthConfig
from bevkd_common.config.bevdet import BevDetConfig
from bevkd_common.config.bevdet4d import BevDet4dConfig
from bevkd_common.config.image_backbones import TimmBackboneConfig
from bevkd_common.config.plugins import load
from bevkd_common.data.needs import AdjacentFrames, DataNeeds
from bevkd_common.data.samples import Batch, Cameras, DepthHits, History
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import rigid, rotation_z
from bevkd_common.models.detector import Outputs
from bevkd_common.models.detectors.bevdepth import build as build_depth
from bevkd_common.models.detectors.bevdet import BevDet, build
from bevkd_common.models.detectors.bevdet4d import build as build4d
from bevkd_common.models.heads.center_decode import Suppression
from bevkd_common.models.specs import BEVDET
from bevkd_common.models.taps import HeadMaps
from bevkd_common.models.weights import BEVDEPTH_R50, BEVDET4D_R50, BEVDET_R50, load_official
from pydantic import ValidationError
from torch import nn

MANIFEST = Path(__file__).parents[2] / "data" / "keys" / "bevdet_repo_bevdet_r50.tsv"
CLASSES = tuple(name for task in BevDetConfig().head.tasks for name in task)
TAPS = ["bev_in", "bev_block0", "bev_block1", "bev_block2", "bev_neck", "head"]
GEOMETRY = {f"img_view_transformer.{name}" for name in ("dx", "bx", "nx", "frustum")}
# Longer along x than along y, so that no transposed map passes.
TINY = """
kind: bevdet
image_size: [32, 80]
image_backbone: {kind: small_resnet, stem_channels: 8, channels: [8, 16, 24], blocks: [1, 1, 1], strides: [8, 16]}
image_neck_channels: 16
depth_bins: {start: 1, stop: 13, step: 1.0}
lift_channels: 8
grid: {x0: -12.8, y0: -6.4, cell: 0.8, nx: 32, ny: 16}
bev_stages: [{channels: 16, blocks: 1}, {channels: 24, blocks: 1}, {channels: 32, blocks: 1}]
bev_neck: {hidden_channels: 24, channels: 16}
head:
  channels: 16
  tasks: [[car, truck, construction_vehicle, bus, trailer, barrier, motorcycle, bicycle, pedestrian, traffic_cone]]
  nms: [{threshold: 1.0}]
"""


def tiny(**changes) -> BevDet:
    torch.manual_seed(0)
    return build(BevDetConfig.model_validate(yaml.safe_load(TINY) | changes), CLASSES)


def batch_of(samples: int = 2, seed: int = 0) -> Batch:
    """Noise seen by four level cameras at a height of 1.5 m, and three boxes a sample."""
    generator = torch.Generator().manual_seed(seed)
    yaw = torch.tensor([0.0, 0.5, 1.0, 1.5]) * math.pi + 0.1
    ahead = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    cameras = Cameras(
        images=torch.randint(0, 256, (samples, 4, 3, 32, 80), generator=generator, dtype=torch.uint8),
        intrinsics=torch.tensor([[40.0, 0, 40], [0, 40, 14], [0, 0, 1]]).expand(samples, 4, 3, 3),
        lidar_T_cam=rigid(rotation_z(yaw) @ ahead, torch.tensor([0.0, 0.0, -0.3])).expand(samples, 4, 4, 4),
        image_aug=torch.eye(3).expand(samples, 4, 3, 3),
    )
    low = torch.tensor([-10.0, -5, -1, 1, 1, 1, -3, -2, -2])
    boxes = torch.rand(samples, 3, 9, generator=generator) * torch.tensor([20.0, 10, 1, 3, 1, 1, 6, 4, 4]) + low
    return Batch(
        tokens=tuple(f"token{i}" for i in range(samples)),
        scenes=("scene",) * samples,
        boxes=Boxes(boxes),
        labels=torch.randint(0, 10, (samples, 3), generator=generator),
        cameras=cameras,
        points=None,
        point_counts=(),
        aug_T_lidar=torch.eye(4).expand(samples, 4, 4),
        global_T_lidar=torch.eye(4, dtype=torch.float64).expand(samples, 4, 4),
    )


def with_cameras(batch: Batch, **changes: torch.Tensor) -> Batch:
    return replace(batch, cameras=replace(batch.cameras, **changes))


def settled(model: BevDet, batch: Batch) -> BevDet:
    """Evaluation mode, the norms at the statistics of the batch, so that signals keep their size."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(batch, frozenset({"head"}))
    return model.eval()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def paper() -> BevDet:
    return build(BevDetConfig(), CLASSES)


@pytest.fixture(scope="module")
def manifest() -> dict[str, tuple[tuple[int, ...], str]]:
    rows = (line.split("\t") for line in MANIFEST.read_text().splitlines())
    return {key: (ast.literal_eval(shape), dtype) for key, shape, dtype in rows}


def test_paper_size_has_the_parameters_of_the_released_model(paper):
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
    assert list(paper.taps) == TAPS
    maps = {
        name: (t.channels, t.grid.cell, t.grid.nx, t.activation) for name, t in paper.taps.items() if name != "head"
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
    assert paper.head.suppressions == (
        Suppression("rotate", 0.2),
        Suppression("rotate", 0.2, (0.7, 0.7)),
        Suppression("rotate", 0.2, (0.4, 0.55)),
        Suppression("circle", 1.0),
        Suppression("rotate", 0.2),
        Suppression("rotate", 0.5, (4.5, 9.0)),
    )
    assert paper.head.code_weights.tolist() == pytest.approx([1.0] * 8 + [0.2, 0.2])
    assert paper.head.box_weight == 0.25


def test_the_specification_builds_the_detector():
    assert load(BEVDET.build) is build
    assert BEVDET.config.model_fields["kind"].default == BEVDET.kind == "bevdet"


@pytest.mark.parametrize("extra_norm_act", [False, True])
def test_maps_are_what_the_taps_say(extra_norm_act):
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


def test_stages_may_keep_the_resolution():
    stages = [{"channels": 8, "blocks": 2, "stride": 1}, {"channels": 12, "blocks": 1, "stride": 4}]
    model = tiny(bev_stages=stages)
    outputs = model(batch_of(), frozenset(model.taps))
    assert list(model.taps) == ["bev_in", "bev_block0", "bev_block1", "bev_neck", "head"]
    assert outputs.taps["bev_block0"].shape == (2, 8, 16, 32)
    assert outputs.taps["bev_block1"].shape == (2, 12, 4, 8)
    assert outputs.taps["bev_neck"].shape == (2, 16, 16, 32)
    assert model.taps["bev_block1"].grid == Grid(-12.8, -6.4, 3.2, 8, 4)


@pytest.mark.parametrize("level", range(6))
def test_nothing_above_the_wanted_tap_is_computed(level):
    model = tiny()
    modules = [model.lift_splat, *model.bev_stages, model.bev_neck, model.head]
    ran = []
    for position, module in enumerate(modules):
        module.register_forward_hook(lambda *_, position=position: ran.append(position))
    outputs = model(batch_of(), frozenset({TAPS[level]}))
    assert ran == list(range(level + 1))
    assert list(outputs.taps) == [TAPS[level]][: level < 5]
    assert bool(outputs.head) == (level == 5)


def test_wanting_nothing_computes_nothing():
    outputs = tiny()(replace(batch_of(), cameras=None), frozenset())
    assert (dict(outputs.taps), list(outputs.head)) == ({}, [])


def test_an_unknown_tap_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"no tap \['tsa0'\].*'bev_neck'"):
        tiny()(batch_of(), frozenset({"tsa0"}))


def test_a_batch_without_images_or_with_others_is_refused():
    with pytest.raises(ValueError, match="without cameras"):
        tiny()(replace(batch_of(), cameras=None), frozenset({"head"}))
    with pytest.raises(ValueError, match=r"images of 32 x 80, the batch has 32 x 64"):
        tiny()(with_cameras(batch_of(), images=batch_of().cameras.images[..., :64]), frozenset({"head"}))


def test_image_reaches_the_ground_where_its_camera_looks():
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


def test_each_camera_counts_once_and_samples_do_not_mix():
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


def test_colours_reach_the_backbone_in_the_order_asked_for():
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


def test_gradients_reach_every_parameter():
    model, batch = tiny(), batch_of()
    # timm starts residual branches at zero, which stops the gradient of what lies within for one step.
    for name, parameter in model.named_parameters():
        if name.endswith("bn2.weight"):
            nn.init.ones_(parameter)
    outputs = model(batch, frozenset({"head"}))
    terms = model.losses(outputs, model.targets(outputs, batch), batch)
    assert set(terms) == {"heatmap", "boxes"}
    sum(term.value * term.weight for term in terms.values()).backward()
    named = dict(model.named_parameters())
    without = [name for name, parameter in named.items() if parameter.grad is None or not parameter.grad.any()]
    assert len(named) > 90
    assert without == []


def test_training_learns_to_find_the_boxes():
    model, batch = tiny(), batch_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        outputs = model(batch, frozenset({"head"}))
        terms = model.losses(outputs, model.targets(outputs, batch), batch)
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


def test_bfloat16_autocast_trains_close_to_float32():
    batch = batch_of()
    model, want = settled(tiny(), batch), frozenset({"bev_in", "bev_neck", "head"})
    plain = model(batch, want)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch, want)
        terms = model.losses(outputs, model.targets(outputs, batch), batch)
    assert outputs.taps["bev_in"].dtype == torch.float32
    for name, exact in plain.taps.items():
        error = (outputs.taps[name].float() - exact).square().mean().sqrt()
        assert 0 < error < 0.15 * exact.square().mean().sqrt(), name
    total = sum(term.value * term.weight for term in terms.values())
    total.backward()
    assert total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_head_for_other_classes_is_refused():
    with pytest.raises(UserError, match="missing are tram"):
        build(BevDetConfig.model_validate(yaml.safe_load(TINY)), (*CLASSES, "tram"))


def test_a_missing_checkpoint_of_the_backbone_is_named(tmp_path):
    config = BevDetConfig(image_backbone=TimmBackboneConfig(name="resnet18", weights=tmp_path / "r18.pth"))
    with pytest.raises(UserError, match=r"r18\.pth"):
        build(config, CLASSES)


# BEVDet4D: the same with an earlier frame.

FOUR = MANIFEST.with_name("bevdet_repo_bevdet4d_r50.tsv")


def tiny4d(**changes) -> BevDet:
    torch.manual_seed(0)
    config = yaml.safe_load(TINY) | {"kind": "bevdet4d"} | changes
    return build4d(BevDet4dConfig.model_validate(config), CLASSES)


def with_history(batch: Batch, lidar_T_past: torch.Tensor | None = None, seconds=(1.5, 1.5), seed=7) -> Batch:
    """The same batch after another; `lidar_T_past` [4, 4] moved the ego in between."""
    moved = torch.eye(4) if lidar_T_past is None else lidar_T_past
    images = torch.randint(
        0, 256, batch.cameras.images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    past = replace(batch.cameras, images=images, lidar_T_cam=moved @ batch.cameras.lidar_T_cam)
    history = History(
        cameras=Cameras(**{name: value[:, None] for name, value in vars(past).items()}),
        lidar_T_past=moved.expand(len(batch), 1, 4, 4),
        seconds=torch.tensor(seconds)[:, None],
        present=torch.ones(len(batch), 1, dtype=torch.bool),
    )
    return replace(batch, history=history)


def test_4d_has_the_parameters_and_the_keys_of_the_released_model():
    model = build4d(BevDet4dConfig(image_backbone=TimmBackboneConfig(name="resnet50", strides=(16, 32))), CLASSES)
    sizes = {name: parameters(module) for name, module in model.named_children()}
    assert sizes["earlier"] == 184_896
    assert sizes["bev_stages"] == 12_541_824
    assert parameters(model) + 3 * 3 + 59 * 16 * 44 * 3 == 48_432_266
    rows = (line.split("\t") for line in FOUR.read_text().splitlines())
    manifest = {key: ast.literal_eval(shape) for key, shape, _ in rows}
    blank = {key: torch.empty(shape, device="meta") for key, shape in manifest.items()}
    theirs = {key: tuple(value.shape) for key, value in BEVDET4D_R50.rename(blank).items()}
    assert len(manifest) == len(theirs) + len(GEOMETRY) == 748
    assert theirs == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_4d_asks_for_an_earlier_frame():
    model = tiny4d(nearest_s=0.5, farthest_s=1.0)
    assert model.needs == DataNeeds(cameras=True, history=AdjacentFrames(nearest_s=0.5, farthest_s=1.0))
    assert model.taps["bev_in"].channels == 16
    with pytest.raises(ValueError, match="loaded without history"):
        model(batch_of(), frozenset({"head"}))
    with pytest.raises(ValidationError, match="`nearest_s` 2 must be below `farthest_s` 1"):
        BevDet4dConfig(nearest_s=2, farthest_s=1)


def test_4d_of_two_equal_frames_sees_everything_twice():
    model, batch = tiny4d().eval(), batch_of()
    batch = with_history(batch)
    same = replace(batch.history, cameras=Cameras(**{n: v[:, None] for n, v in vars(batch.cameras).items()}))
    lifted, _ = model.lifted(replace(batch, history=same))
    assert lifted.shape == (2, 16, 16, 32)
    torch.testing.assert_close(lifted[:, :8], lifted[:, 8:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model.lifted(batch)[0][:, :8], model.lifted(batch)[0][:, 8:], atol=1e-3)


@pytest.mark.parametrize("alignment", ["corner", "center"])
def test_4d_moves_the_earlier_map_with_the_ego(alignment):
    """What the earlier frame saw 3 cells ahead and 2 to the right is there, less the ego's way."""
    model, batch = tiny4d(alignment=alignment).eval(), batch_of()
    stood = model.lifted(with_history(batch))[0][:, 8:]
    drove = rigid(torch.eye(3), torch.tensor([-2 * 0.8, -3 * 0.8, 0.0]))
    moved = model.lifted(with_history(batch, drove))[0][:, 8:]
    torch.testing.assert_close(moved[:, :, :-3, :-2], stood[:, :, 3:, 2:], atol=1e-3, rtol=1e-3)
    assert float(moved[:, :, -3:].abs().max()) < 1e-3
    assert float(stood.abs().max()) > 0.01


def test_4d_learns_nothing_through_the_earlier_frame():
    model, batch = tiny4d().train(), with_history(batch_of())
    lifted, _ = model.lifted(batch)
    lifted[:, :8].sum().backward()
    alone = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.lifted(batch)[0].sum().backward()
    assert len(alone) > 20
    for name, parameter in model.named_parameters():
        if name in alone:
            torch.testing.assert_close(parameter.grad, alone[name])


def test_4d_learns_displacements_and_tells_velocities():
    batch = with_history(batch_of(), seconds=(2.0, -0.5))
    displacement, velocity = tiny4d(), tiny4d(motion="velocity")
    outputs = displacement(batch, frozenset({"head"}))
    in_metres = displacement.targets(outputs, batch).regression[0]
    in_metres_a_second = velocity.targets(outputs, batch).regression[0]
    torch.testing.assert_close(in_metres[0, :, 8:], 2.0 * in_metres_a_second[0, :, 8:])
    torch.testing.assert_close(in_metres[1, :, 8:], 0.5 * in_metres_a_second[1, :, 8:])
    assert float(in_metres_a_second[..., 8:].nan_to_num().abs().max()) > 0.1
    torch.testing.assert_close(in_metres[..., :8], in_metres_a_second[..., :8])
    for mine, plain, gap in zip(
        displacement.decode(outputs, batch), velocity.decode(outputs, batch), (2.0, 0.5), strict=True
    ):
        assert len(mine.boxes) == len(plain.boxes)
        torch.testing.assert_close(mine.boxes.velocity * gap, plain.boxes.velocity)
        torch.testing.assert_close(mine.boxes.centers, plain.boxes.centers)


def test_4d_without_another_frame_learns_velocities():
    batch = with_history(batch_of(), seconds=(0.0, 0.0))
    absent = replace(batch.history, present=torch.zeros(2, 1, dtype=torch.bool))
    batch = replace(batch, history=absent)
    model, velocity = tiny4d(), tiny4d(motion="velocity")
    outputs = model(batch, frozenset({"head"}))
    one, other = (m.targets(outputs, batch).regression[0] for m in (model, velocity))
    torch.testing.assert_close(one, other, equal_nan=True)


def test_4d_takes_the_nearest_of_a_longer_history():
    model, batch = tiny4d().eval(), with_history(batch_of())
    longer = History(
        cameras=Cameras(**{n: torch.cat([v.flip(0), v], dim=1) for n, v in vars(batch.history.cameras).items()}),
        lidar_T_past=batch.history.lidar_T_past.repeat(1, 2, 1, 1),
        seconds=batch.history.seconds.repeat(1, 2),
        present=batch.history.present.repeat(1, 2),
    )
    assert torch.equal(model.lifted(replace(batch, history=longer))[0], model.lifted(batch)[0])


# BEVDepth: depths that know the camera and learn from the LiDAR.


def tiny_depth(**changes) -> BevDet:
    torch.manual_seed(0)
    config = yaml.safe_load(TINY) | {"kind": "bevdepth", "depth_channels": 16, "frames": 1} | changes
    return build_depth(BevDepthConfig.model_validate(config), CLASSES)


def with_depth(batch: Batch, *rows: tuple[int, float, float, float]) -> Batch:
    """Image, u, v and metres of each point."""
    table = torch.tensor(rows)
    return replace(batch, depth=DepthHits(table[:, 0].long(), table[:, 1:3], table[:, 3]))


@pytest.mark.parametrize(
    ("frames", "name", "total", "keys"), [(1, "bevdepth", 53_009_831, 780), (2, "bevdepth4d", 53_342_183, 806)]
)
def test_depth_has_the_parameters_and_the_keys_of_the_released_models(frames, name, total, keys):
    backbone = TimmBackboneConfig(name="resnet50", strides=(16, 32))
    model = build_depth(BevDepthConfig(image_backbone=backbone, frames=frames), CLASSES)
    assert parameters(model) + 3 * 3 + 59 * 16 * 44 * 3 == total
    rows = (line.split("\t") for line in MANIFEST.with_name(f"bevdet_repo_{name}_r50.tsv").read_text().splitlines())
    manifest = {key: ast.literal_eval(shape) for key, shape, _ in rows}
    assert len(manifest) == keys
    blank = {key: torch.empty(shape, device="meta") for key, shape in manifest.items()}
    theirs = {key: tuple(value.shape) for key, value in BEVDEPTH_R50.rename(blank).items()}
    assert theirs == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_depth_asks_for_the_lidar_in_training_alone():
    assert tiny_depth().needs == DataNeeds(cameras=True, depth=True)
    assert tiny_depth().needs.at_test == DataNeeds(cameras=True)
    assert tiny_depth(depth_weight=0.0).needs == DataNeeds(cameras=True)
    assert tiny_depth(frames=2).needs == DataNeeds(cameras=True, history=AdjacentFrames(), depth=True)


def test_depth_loss_by_hand():
    """Two cells of 2 x 4 x 10 x 4 with a point: at 3.2 m (bin 2 of 12) and 12.9 m (bin 11); one out of the bins."""
    model = tiny_depth()
    batch = with_depth(
        batch_of(), (0, 8.1, 7.9, 3.2), (0, 9.0, 7.5, 5.0), (5, 79.0 - 8, 24.2, 12.9), (3, 8.0, 8.0, 0.4)
    )
    logits = torch.full((2, 4, 12, 4, 10), -1.0)
    logits[0, 0, 2, 1, 1] = 3.0
    outputs = Outputs({}, (), {"depth": logits})
    term = model.losses(
        replace(model(batch, frozenset({"head"})), extras=outputs.extras), model.targets(outputs, batch), batch
    )["depth"]
    absent = math.log1p(math.exp(-1.0))  # of a bin rightly told absent
    right, wrong = math.log1p(math.exp(-3.0)), math.log1p(math.exp(1.0))
    expected = (11 * absent + right + 11 * absent + wrong) / logits.numel()
    assert float(term.value) == pytest.approx(expected, rel=1e-5)
    assert term.weight == 100.0


def test_depth_loss_reaches_the_depth_branch_alone():
    model = tiny_depth().train()
    batch = with_depth(batch_of(), (0, 8.0, 8.0, 3.0), (6, 40.0, 16.0, 7.0))
    outputs = model(batch, frozenset({"head"}))
    losses = model.losses(outputs, model.targets(outputs, batch), batch)
    assert set(losses) > {"depth"}
    losses["depth"].value.backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"image_backbone", "image_neck", "lift_splat"}
    assert model.lift_splat.depth_net.context.weight.grad is None
    with pytest.raises(ValueError, match="loaded without them"):
        model.losses(outputs, model.targets(outputs, batch), batch_of())


def test_depths_depend_on_the_camera():
    model, batch = tiny_depth().eval(), batch_of()
    plain = model(batch, frozenset({"head"})).extras["depth"]
    wider = with_cameras(batch, intrinsics=batch.cameras.intrinsics * torch.tensor([[2.0], [2.0], [1.0]]))
    assert not torch.allclose(model(wider, frozenset({"head"})).extras["depth"], plain)
    other = settled(tiny(), batch)
    features = other.image_features(batch.cameras)
    assert torch.equal(
        other.lift_splat.depth_net(features, wider.cameras)[0],
        other.lift_splat.depth_net(features, batch.cameras)[0],
    )


def test_the_present_frame_is_supervised():
    model = tiny_depth(frames=2).eval()
    batch = with_history(batch_of())
    both = model(batch, frozenset({"head"})).extras["depth"]
    alone = tiny_depth(frames=1).eval()
    alone.image_backbone, alone.image_neck, alone.lift_splat = (
        model.image_backbone,
        model.image_neck,
        model.lift_splat,
    )
    assert torch.equal(both, alone(batch, frozenset({"head"})).extras["depth"])
