"""Megvii's BEVDepth as a whole: the released detector, its two frames, and its axes."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bevkd_common.config.detectors.megvii_bevdepth import LidarMountConfig, MegviiBevDepthConfig
from bevkd_common.config.plugins import load
from bevkd_common.data.needs import DataNeeds, KeyframeQueue
from bevkd_common.data.samples import Batch, Cameras, Cloud
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import rigid
from bevkd_common.models.detector import Outputs
from bevkd_common.models.detectors.bevdet import BevDet
from bevkd_common.models.detectors.megvii_bevdepth import build, ego_T_lidar
from bevkd_common.models.heads.center_code import LAYOUT
from bevkd_common.models.heads.center_decode import Suppression
from bevkd_common.models.own_axes import in_axes
from bevkd_common.models.specs import MEGVII_BEVDEPTH
from bevkd_common.models.weights.maps import load_official
from bevkd_common.models.weights.megvii_bevdepth import MEGVII_BEVDEPTH_R50
from bevkd_common.ops.bev_pool import bev_cells
from bevkd_common.ops.depth_maps import depth_labels
from torch import nn

KEYS = Path(__file__).parents[2] / "data" / "keys"
HEAD = frozenset({"head"})
DRIVE = rigid(torch.eye(3), torch.tensor([-2 * 0.8, -3 * 0.8, 0.0]))
"""Two cells to the right and three ahead between two frames."""


@pytest.fixture
def tiny_megvii(classes, tiny_config) -> Callable[..., BevDet]:
    own = {
        "image_backbone": tiny_config["image_backbone"] | {"strides": [4, 8, 16]},
        "image_neck_channels": 18,
        "lift_stride": 8,
        "depth_channels": 16,
        "z_range": [-4.0, 4.0],
        "bev_stages": [{"channels": 16, "stride": 1, "blocks": 1}, {"channels": 16, "blocks": 1}],
        "bev_neck_channels": 8,
    }
    config = {name: value for name, value in tiny_config.items() if name != "bev_neck"} | own

    def make(**changes) -> BevDet:
        torch.manual_seed(0)
        return build(MegviiBevDepthConfig.model_validate(config | changes), classes)

    return make


@pytest.fixture(scope="module")
def paper(classes) -> BevDet:
    return build(MegviiBevDepthConfig(), classes)


def manifest(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    rows = (line.split("\t") for line in (KEYS / f"{name}.tsv").read_text().splitlines())
    return {key: (ast.literal_eval(shape), dtype) for key, shape, dtype in rows}


def test_paper_size_has_the_parameters_of_the_released_model(paper, parameters):
    assert {name: parameters(module) for name, module in paper.named_children()} == {
        "normalizer": 0,
        "image_backbone": 23_508_032,
        "image_neck": 1_967_104,
        "lift_splat": 27_817_736,
        "bev_stages": 18_571_200,
        "bev_neck": 3_000_832,
        "head": 23_091_718 - 18_571_200 - 3_000_832,
        "earlier": 0,
    }
    assert parameters(paper) == 76_384_590
    assert sum(p.numel() for p in paper.parameters() if p.requires_grad) == 76_375_054


@pytest.mark.parametrize(
    ("aggregation", "name", "total", "keys"),
    [(False, "megvii_bevdepth_r50_2key", 76_384_590, 861), (True, "megvii_bevdepth_r50_2key_da", 76_615_550, 881)],
)
def test_the_released_keys_and_ours_are_one_to_one_with_equal_shapes(
    aggregation, name, total, keys, classes, parameters, released_shapes
):
    with torch.device("meta"):
        model = build(MegviiBevDepthConfig(depth_aggregation=aggregation), classes)
    released = released_shapes(name)
    blank = {key: torch.empty(shape, device="meta") for key, shape in released.items()}
    theirs = {key: tuple(value.shape) for key, value in MEGVII_BEVDEPTH_R50.rename(blank).items()}
    assert len(released) == len(theirs) + 4 == keys
    assert theirs == {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert parameters(model) == total


def test_loading_puts_every_tensor_in_its_place(paper):
    generator = torch.Generator().manual_seed(0)
    official = {
        key: torch.tensor(number) if dtype == "int64" else torch.rand(shape, generator=generator)
        for number, (key, (shape, dtype)) in enumerate(manifest("megvii_bevdepth_r50_2key").items())
    }
    load_official(paper, official, MEGVII_BEVDEPTH_R50)
    depth_net, trunk = paper.lift_splat.depth_net, paper.bev_stages
    pairs = {
        "backbone.img_backbone.layer4.2.bn3.running_var": paper.image_backbone.network.layer4[2].bn3.running_var,
        "backbone.img_neck.deblocks.2.0.weight": paper.image_neck.deblocks[2][0].weight,
        "backbone.depth_net.bn.running_mean": depth_net.bn.running_mean,
        "backbone.depth_net.context_mlp.fc2.bias": depth_net.context_mlp.fc2.bias,
        "backbone.depth_net.depth_se.conv_expand.weight": depth_net.depth_se.conv_expand.weight,
        "backbone.depth_net.depth_conv.1.bn2.weight": depth_net.depth_conv[1].bn2.weight,
        "backbone.depth_net.depth_conv.3.aspp3.bn.running_var": depth_net.depth_conv[3].aspp3.bn.running_var,
        "backbone.depth_net.depth_conv.4.conv_offset.bias": depth_net.depth_conv[4].conv_offset.bias,
        "head.trunk.conv1.weight": trunk[0].conv1.weight,
        "head.trunk.layer1.1.conv2.weight": trunk[0].blocks[1].conv2.weight,
        "head.trunk.layer3.0.downsample.1.bias": trunk[2].blocks[0].downsample[1].bias,
        "head.neck.deblocks.3.0.weight": paper.bev_neck.deblocks[3][0].weight,
        "head.task_heads.4.vel.1.bias": paper.head.task_heads[4]["vel"][1].bias,
    }
    for key, ours in pairs.items():
        assert torch.equal(official[f"model.{key}"], ours), key


def test_constants_of_geometry_equal_the_released_ones(paper):
    config, released = MegviiBevDepthConfig(), manifest("megvii_bevdepth_r50_2key")
    grid, (low, high) = config.grid, config.z_range
    size = torch.tensor([grid.cell, grid.cell, high - low])
    torch.testing.assert_close(size, torch.tensor([0.8, 0.8, 8.0]))
    first = torch.tensor([grid.x0, grid.y0, low]) + size / 2
    torch.testing.assert_close(first, torch.tensor([-50.8, -50.8, -1.0]))
    assert (grid.nx, grid.ny) == (128, 128)
    frustum = paper.lift_splat.frustum
    assert released["model.backbone.frustum"][0] == (*frustum.shape[:3], frustum.shape[3] + 1)
    torch.testing.assert_close(frustum[16, 8, 22], torch.tensor([359.674419, 136.0, 10.0]))
    assert frustum[-1, -1, -1].tolist() == [703.0, 255.0, 57.5]
    # F12: half a metre each, from 2 to 58 m.
    depths = torch.tensor([10.0, 2.0, 1.9, 57.9, 58.0])
    assert depth_labels(depths, config.depth_bins).tolist() == [16, 0, -1, 111, -1]


def test_a_known_cell_at_ten_metres_lands_where_computed_by_hand(paper):
    """F1: scale 0.44, crop (0, 140): the ray at 10 m ends at (0.13953, 1.41818, 10) before the camera."""
    ahead = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    cameras = Cameras(
        images=torch.zeros(1, 1, 3, 256, 704, dtype=torch.uint8),
        intrinsics=torch.tensor([[1250.0, 0, 800], [0, 1250, 450], [0, 0, 1]]).view(1, 1, 3, 3),
        lidar_T_cam=rigid(ahead, torch.tensor([0.0, 0.7, -0.3])).view(1, 1, 4, 4),
        image_aug=torch.tensor([[0.44, 0, 0], [0, 0.44, -140], [0, 0, 1]]).view(1, 1, 3, 3),
    )
    # LiDAR axes: (0.13953, 10.7, -1.71818).
    assert paper.lift_splat.cells(cameras)[0, 0, 16, 8, 22] == 77 * 128 + 64
    # Ego axes, x ahead: (10.7 + 0.94, -0.13953, -1.71818 + 1.84).
    ego = replace(cameras, lidar_T_cam=ego_T_lidar(LidarMountConfig()) @ cameras.lidar_T_cam)
    assert paper.lift_splat.cells(ego)[0, 0, 16, 8, 22] == 63 * 128 + 78


def test_borders_are_truncated_as_released_unless_asked_otherwise(paper):
    """F2: the released code keeps what lies less than a cell below the lower borders."""
    lift, outside = paper.lift_splat, 128 * 128
    points = torch.tensor([[-51.6, 0.1, 0.0], [-52.1, 0.1, 0.0], [0.1, 0.1, -12.0], [0.1, 0.1, -13.0]])
    kept = bev_cells(points, lift.grid, lift.z_range, lift.index_mode)
    assert kept.tolist() == [64 * 128, outside, 64 * 128 + 64, outside]
    assert bev_cells(points, lift.grid, lift.z_range, "floor").tolist() == [outside] * 4


def test_paper_size_has_the_head_of_the_released_model(paper):
    head = paper.head
    squared_metres = (4, 12, 10, 1, 0.85, 0.175)
    assert head.decoding.suppressions == tuple(Suppression("circle", threshold) for threshold in squared_metres)
    assert head.code_weights.tolist() == [1.0] * 10
    assert (head.supervision.box_weight, head.supervision.heatmap_weight) == (0.25, 1)
    assert (head.decoding.score_threshold, head.decoding.max_detections) == (0.1, 83)
    assert head.maps.grid == Grid(-51.2, -51.2, 0.8, 128, 128)
    assert paper.normalizer.swap_channels
    assert paper.depth_weight == 3.0


def test_paper_size_has_its_taps(paper):
    assert {
        name: (tap.channels, tap.grid.cell, tap.grid.nx, tap.activation)
        for name, tap in paper.taps.items()
        if name.startswith("bev_") and not name.endswith("_preactivation")
    } == {
        "bev_in": (160, 0.8, 128, "none"),
        "bev_block0": (160, 1.6, 64, "relu"),
        "bev_block1": (320, 3.2, 32, "relu"),
        "bev_block2": (640, 6.4, 16, "relu"),
        "bev_neck": (256, 0.8, 128, "relu"),
    }


def test_the_first_convolution_and_its_norm_never_train(paper):
    network = paper.image_backbone.network
    assert {name for name, p in paper.named_parameters() if not p.requires_grad} == {
        f"image_backbone.network.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias")
    }
    paper.train()
    assert (network.bn1.training, network.layer1[0].bn1.training) == (False, True)


def test_the_specification_builds_the_detector():
    assert load(MEGVII_BEVDEPTH.build) is build
    assert MegviiBevDepthConfig.model_fields["kind"].default == MEGVII_BEVDEPTH.kind == "megvii_bevdepth"


def test_it_asks_for_key_frames_and_for_the_lidar_in_training(tiny_megvii):
    history = KeyframeQueue(frames=2, spare=0)
    assert tiny_megvii().needs == DataNeeds(cameras=True, history=history, depth=True)
    assert tiny_megvii().needs.at_test == DataNeeds(cameras=True, history=history)
    assert tiny_megvii(frames=1, depth_weight=0.0).needs == DataNeeds(cameras=True)


@pytest.mark.parametrize("aggregation", [False, True])
def test_maps_are_what_the_taps_say(aggregation, tiny_megvii, batch_of, with_history):
    model = tiny_megvii(depth_aggregation=aggregation)
    names = {"bev_in", "bev_block0", "bev_block1", "bev_neck", "head"}
    outputs = model(with_history(batch_of()), frozenset(names))
    assert outputs.taps.keys() | {"head"} == names
    for name, value in outputs.taps.items():
        spec = model.taps[name]
        assert value.shape == (2, spec.channels, spec.grid.ny, spec.grid.nx)
        assert spec.grid.extent == pytest.approx((-12.8, -6.4, 12.8, 6.4))
        assert (value.min() >= 0) == (spec.activation == "relu")
        assert value.max() > 0
    assert outputs.head[0]["heatmap"].shape == (2, 10, 16, 32)
    assert outputs.extras["depth"].shape == (2, 4, 12, 4, 10)


def test_the_neck_joins_the_lifted_map_and_every_stage(tiny_megvii, batch_of, with_history):
    model = tiny_megvii().eval()
    taps = model(with_history(batch_of()), frozenset(model.taps)).taps
    for place, name in enumerate(("bev_in", "bev_block0", "bev_block1")):
        own = model.bev_neck.deblocks[place](taps[name])
        torch.testing.assert_close(taps["bev_neck"][:, 8 * place : 8 * place + 8], own)


# Two frames.


def test_two_equal_frames_are_seen_alike(tiny_megvii, batch_of, with_history):
    model, batch = tiny_megvii().eval(), with_history(batch_of())
    same = replace(batch.history, cameras=Cameras(**{n: v[:, None] for n, v in vars(batch.cameras).items()}))
    lifted, _ = model.lifted(replace(batch, history=same))
    assert torch.equal(lifted[:, :8], lifted[:, 8:])
    assert not torch.allclose(*model.lifted(batch)[0].chunk(2, dim=1), atol=1e-3)


def test_the_earlier_frame_is_lifted_to_where_the_ego_is_now(tiny_megvii, batch_of, with_history):
    """What it saw 3 cells ahead and 2 to the right is there, less the ego's way: no cell is interpolated."""
    model = tiny_megvii(index_mode="floor").eval()
    stood = model.lifted(with_history(batch_of()))[0][:, 8:].detach()
    moved = model.lifted(with_history(batch_of(), DRIVE))[0][:, 8:].detach()
    torch.testing.assert_close(moved[:, :, :-3, :-2], stood[:, :, 3:, 2:], atol=1e-4, rtol=1e-4)
    assert stood[:, :, 3:, 2:].abs().max() > 0.01
    assert not torch.allclose(moved, stood, atol=1e-3)


def test_the_nearest_of_a_longer_history_is_taken(tiny_megvii, batch_of, with_history):
    model, batch = tiny_megvii().eval(), with_history(batch_of(), DRIVE)
    cameras = vars(batch.history.cameras)
    longer = replace(
        batch.history, cameras=Cameras(**{n: torch.cat([v.flip(0), v], dim=1) for n, v in cameras.items()})
    )
    assert not torch.equal(longer.cameras.images[:, 0], longer.cameras.images[:, 1])
    assert torch.equal(model.lifted(replace(batch, history=longer))[0], model.lifted(batch)[0])


def test_depths_of_the_earlier_frame_know_the_present_cameras(tiny_megvii, batch_of, with_history):
    model, batch, told = tiny_megvii().eval(), with_history(batch_of(), DRIVE), []
    model.lift_splat.depth_net.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1]))
    model(batch, HEAD)
    assert told == [batch.cameras, batch.cameras]


def test_nothing_is_learned_through_the_earlier_frame(tiny_megvii, batch_of, with_history):
    model, batch = tiny_megvii().eval(), with_history(batch_of())
    lifted, _ = model.lifted(batch)
    assert lifted[:, 8:].abs().max() > 0.01
    (gradient,) = torch.autograd.grad(lifted[:, 8:].sum() + lifted.sum(), model.image_neck.deblocks[1][0].weight)
    lifted, _ = model.lifted(batch)
    (alone,) = torch.autograd.grad(lifted[:, :8].sum(), model.image_neck.deblocks[1][0].weight)
    torch.testing.assert_close(gradient, alone)


def test_the_present_frame_is_supervised(tiny_megvii, batch_of, with_history):
    two, one = tiny_megvii().eval(), tiny_megvii(frames=1).eval()
    one.image_backbone, one.image_neck, one.lift_splat = two.image_backbone, two.image_neck, two.lift_splat
    depths = [model(with_history(batch_of()), HEAD).extras["depth"] for model in (two, one)]
    assert torch.equal(*depths)


def test_velocities_are_learned_and_told_as_they_are(tiny_megvii, batch_of, with_history):
    batch = with_history(batch_of(), seconds=(0.5, 2.0))
    two, one = tiny_megvii().eval(), tiny_megvii(frames=1)
    outputs = two(batch, HEAD)
    assert torch.equal(two.targets(outputs, batch).regression[0], one.targets(outputs, batch).regression[0])
    for ours, theirs in zip(two.decode(outputs, batch), one.decode(outputs, batch), strict=True):
        assert torch.equal(ours.boxes.tensor, theirs.boxes.tensor)


def test_a_batch_without_history_is_refused(tiny_megvii, batch_of):
    with pytest.raises(ValueError, match="loaded without history"):
        tiny_megvii()(batch_of(), HEAD)


def test_samples_do_not_mix(tiny_megvii, batch_of, with_history):
    model, batch = tiny_megvii(depth_aggregation=True).eval(), with_history(batch_of(), DRIVE)
    both = model(batch, HEAD)
    swapped = replace(
        batch,
        cameras=Cameras(**{name: value.flip(0) for name, value in vars(batch.cameras).items()}),
        history=replace(
            batch.history,
            cameras=Cameras(**{name: value.flip(0) for name, value in vars(batch.history.cameras).items()}),
        ),
    )
    other = model(swapped, HEAD)
    torch.testing.assert_close(other.extras["depth"].flip(0), both.extras["depth"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.head[0]["heatmap"].flip(0), both.head[0]["heatmap"], rtol=1e-4, atol=1e-5)
    assert (both.head[0]["heatmap"][0] - both.head[0]["heatmap"][1]).abs().max() > 1e-3


# Losses and training.


def test_depth_loss_reaches_the_depth_branch_alone(tiny_megvii, batch_of, with_depth):
    model = tiny_megvii(frames=1).train()
    batch = with_depth(batch_of(), (0, 8.0, 8.0, 3.0), (6, 40.0, 16.0, 7.0))
    outputs = model(batch, HEAD)
    term = model.losses(outputs, model.targets(outputs, batch), batch).terms["depth"]
    assert term.weight == 3.0
    term.value.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in moved} == {"image_backbone", "image_neck", "lift_splat"}
    assert not any("context" in name for name in moved)
    with pytest.raises(ValueError, match="loaded without them"):
        model.losses(outputs, model.targets(outputs, batch), batch_of())


def test_depth_loss_is_that_of_the_softmax(tiny_megvii, batch_of, with_depth):
    """Even logits over 12 bins; the second point lies before the first bin."""
    model, batch = tiny_megvii(frames=1), with_depth(batch_of(), (0, 8.0, 8.0, 3.0), (6, 40.0, 16.0, 0.5))
    outputs = replace(model(batch, HEAD), extras={"depth": torch.zeros(2, 4, 12, 4, 10)})
    told = model.losses(outputs, model.targets(outputs, batch), batch).terms["depth"].value
    assert told.item() == pytest.approx(-math.log(1 / 12) - 11 * math.log(11 / 12), rel=1e-6)


@pytest.mark.parametrize("aggregation", [False, True])
def test_training_lowers_the_loss(aggregation, tiny_megvii, batch_of, with_history, with_depth):
    model = tiny_megvii(depth_aggregation=aggregation)
    batch = with_depth(with_history(batch_of(), DRIVE), (0, 8.0, 8.0, 3.0), (6, 40.0, 16.0, 7.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history: list[dict[str, float]] = []
    for _ in range(15):
        outputs = model(batch, HEAD)
        terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
        optimizer.zero_grad()
        torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()
        optimizer.step()
        history.append({name: term.value.item() for name, term in terms.items()})
    assert {name: history[-1][name] < 0.7 * first for name, first in history[0].items()} == {
        "heatmap": True,
        "boxes": True,
        "depth": True,
    }


def test_gradients_reach_every_parameter(tiny_megvii, batch_of, with_history, with_depth):
    model = tiny_megvii(depth_aggregation=True)
    # An odd number of boxes, so that the signs of their errors cannot add up to nothing.
    batch = with_depth(
        with_history(batch_of(3), DRIVE, seconds=(0.5,) * 3), (0, 8.0, 8.0, 3.0), (6, 40.0, 16.0, 7.0)
    )
    outputs = model(batch, HEAD)
    terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()
    named = dict(model.named_parameters())
    without = [name for name, p in named.items() if p.grad is None or not p.grad.any()]
    assert len(named) > 130
    assert without == []


def test_maps_and_head_stay_in_float32_under_autocast(tiny_megvii, batch_of, with_history):
    model, batch = tiny_megvii().eval(), with_history(batch_of())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch, HEAD | {"bev_block0", "bev_neck"})
        assert model.image_features(batch.cameras).dtype == torch.bfloat16
    assert {value.dtype for value in (*outputs.taps.values(), *outputs.head[0].values())} == {torch.float32}


# Axes of its own.

SQUARE = {"x0": -12.8, "y0": -12.8, "cell": 0.8, "nx": 32, "ny": 32}


def flawless(model: BevDet, batch: Batch) -> Outputs:
    """The outputs of a head that predicts its targets."""
    targets = model.targets(Outputs({}), batch)
    grid, code = model.head.maps.grid, targets.regression[0]
    maps = torch.zeros(len(batch), 10, grid.ny * grid.nx)
    maps.scatter_(2, targets.indices[0][:, None].expand(-1, 10, -1), code.transpose(1, 2))
    parts = maps.unflatten(2, (grid.ny, grid.nx)).split([channels for _, channels in LAYOUT], dim=1)
    branches = {name: part for (name, _), part in zip(LAYOUT, parts, strict=True)}
    peaks = torch.where(targets.heatmaps[0] == 1, 9.0, -9.0)
    return Outputs({}, [branches | {"heatmap": peaks}])


def test_the_mount_of_nuscenes_points_the_ego_ahead():
    matrix = ego_T_lidar(LidarMountConfig())
    ahead = matrix @ torch.tensor([0.0, 10.0, -1.84, 1.0])
    assert ahead.tolist() == pytest.approx([10.94, 0.0, 0.0, 1.0], abs=1e-6)


def test_boxes_come_and_go_in_lidar_axes(tiny_megvii, batch_of, with_history):
    model = tiny_megvii(grid=SQUARE, mount={})
    batch = with_history(batch_of())
    found = model.decode(flawless(model, batch), batch)
    for sample, detections in enumerate(found):
        order = detections.boxes.centers[:, 0].argsort()
        wanted = batch.boxes.tensor[sample][batch.boxes.centers[sample][:, 0].argsort()]
        torch.testing.assert_close(detections.boxes.tensor[order], wanted, rtol=1e-4, atol=1e-4)


def test_a_turned_mount_turns_the_map(tiny_megvii, batch_of, with_history):
    """Ego x is LiDAR y and ego y is LiDAR -x; a depth net that ignores the camera sees the same."""
    plain = tiny_megvii(grid=SQUARE, index_mode="floor").eval()
    turned = tiny_megvii(grid=SQUARE, index_mode="floor", mount={"x": 0.0, "z": 0.0}).eval()
    for model in (plain, turned):
        nn.init.zeros_(model.lift_splat.depth_net.bn.weight)
    batch = with_history(batch_of(), DRIVE)
    expected = plain.lifted(batch)[0].detach()
    lifted = turned.lifted(turned.in_own_axes(batch))[0].detach()
    torch.testing.assert_close(lifted, expected.transpose(2, 3).flip(2), rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 0.01


def test_maps_in_other_axes_are_not_for_comparison(tiny_megvii, batch_of, with_history):
    model = tiny_megvii(mount={})
    assert list(model.taps) == ["image_neck", "depth_logits", "head"]
    with pytest.raises(ValueError, match=r"no tap \['bev_in'\], it has \['depth_logits', 'head', 'image_neck'\]"):
        model(with_history(batch_of()), frozenset({"bev_in"}))
    assert model(with_history(batch_of()), HEAD).head[0]["reg"].shape == (2, 2, 16, 32)


def test_a_batch_in_other_axes_says_the_same(batch_of, with_history):
    """Points at 4 m before each camera stay where they are, seen from the ground; so does the augmentation."""
    batch = with_history(batch_of(), DRIVE)
    turn = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    batch = replace(
        batch, aug_T_lidar=turn.expand(2, 4, 4), clouds={"lidar": Cloud(torch.zeros(3, 5), (2, 1), tuple("xyzit"))}
    )
    ego = ego_T_lidar(LidarMountConfig())
    moved, ahead = in_axes(batch, ego), torch.tensor([0.0, 0, 4, 1])
    for ours, theirs in ((moved, batch), (moved.history, batch.history)):
        wanted = (ego @ (theirs.cameras.lidar_T_cam @ ahead)[..., None])[..., 0]
        torch.testing.assert_close(ours.cameras.lidar_T_cam @ ahead, wanted)
    torch.testing.assert_close(moved.aug_T_lidar @ ego, ego @ batch.aug_T_lidar)
    torch.testing.assert_close(moved.history.lidar_T_past @ ego, ego @ batch.history.lidar_T_past)
    torch.testing.assert_close(moved.global_T_lidar.float() @ ego, batch.global_T_lidar.float())
    assert not moved.clouds
