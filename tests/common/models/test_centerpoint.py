import math

import pytest
import torch
import yaml
from bevkd_common.config.detectors.centerpoint import CenterPointConfig
from bevkd_common.config.plugins import load
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch, Cloud
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detectors.centerpoint import CenterPoint, build
from bevkd_common.models.specs import CENTERPOINT
from bevkd_common.models.taps import BevMap, HeadMaps
from bevkd_common.ops.voxelize import VoxelSpec
from torch import nn

CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
# The tiny recipe's size over a range that is longer along x than along y.
TINY = """
kind: centerpoint
sweeps: 1
point_range: [-12.8, -6.4, -5, 12.8, 6.4, 3]
pillar: 0.4
max_points: null
max_pillars: null
pillar_channels: 16
backbone_channels: [16, 24, 32]
backbone_layers: [1, 1, 1]
neck_channels: [16, 16, 16]
neck_upsampling: [1, 2, 4]
head:
  channels: 16
  tasks: [[car, truck, construction_vehicle, bus, trailer, barrier, motorcycle, bicycle, pedestrian, traffic_cone]]
  nms: [{threshold: 1.0}]
"""
TAPS = ["bev_in", "bev_block0", "bev_block1", "bev_block2", "bev_neck", "head"]


def tiny(**changes) -> CenterPoint:
    torch.manual_seed(0)
    return build(CenterPointConfig.model_validate(yaml.safe_load(TINY) | changes), CLASSES)


def batch_of(samples: int = 2, points: int = 600, seed: int = 0) -> Batch:
    """Clouds with a dense clump in each of three boxes a sample."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([25.6, 12.8, 8.0, 255.0, 0.5])
    low = torch.tensor([-12.8, -6.4, -5.0, 0.0, 0.0])
    boxes = torch.rand(samples, 3, 9, generator=generator)
    boxes = boxes * torch.tensor([20.0, 10, 1, 3, 1, 1, 6, 4, 4]) + torch.tensor(
        [-10.0, -5, -1, 1, 1, 1, -3, -2, -2]
    )
    cloud = torch.rand(samples, points, 5, generator=generator) * spread + low
    clump = torch.randn(samples, 3, 100, 3, generator=generator) * 0.5 + boxes[:, :, None, :3]
    cloud[:, :300, :3] = clump.flatten(1, 2)
    return Batch(
        tokens=tuple(f"token{i}" for i in range(samples)),
        scenes=("scene",) * samples,
        boxes=Boxes(boxes),
        labels=torch.randint(0, 10, (samples, 3), generator=generator),
        cameras=None,
        clouds={"lidar": Cloud(cloud.flatten(0, 1), (points,) * samples, tuple("xyzit"))},
        aug_T_lidar=torch.eye(4).expand(samples, 4, 4),
        global_T_lidar=torch.eye(4, dtype=torch.float64).expand(samples, 4, 4),
    )


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_paper_size_has_the_parameters_of_the_released_model():
    model = build(CenterPointConfig(), CLASSES)
    parts = {name: parameters(module) for name, module in model.named_children()}
    assert parts == {"reader": 832, "backbone": 4_207_616, "neck": 180_992, "head": 1_593_414}
    assert parameters(model) == 5_982_854


def test_paper_size_has_the_taps_of_the_released_model():
    model = build(CenterPointConfig(), CLASSES)
    before = [f"{name}_preactivation" for name in TAPS[1:5]]
    assert list(model.taps) == ["bev_in", "pillars", *TAPS[1:], *before]
    maps = {
        name: (t.channels, t.grid.cell, t.grid.nx, t.activation)
        for name, t in model.taps.items()
        if name in TAPS[:5]
    }
    assert maps == {
        "bev_in": (64, 0.2, 512, "relu"),
        "bev_block0": (64, 0.4, 256, "relu"),
        "bev_block1": (128, 0.8, 128, "relu"),
        "bev_block2": (256, 1.6, 64, "relu"),
        "bev_neck": (384, 0.8, 128, "relu"),
    }
    head = model.taps["head"]
    assert isinstance(head, HeadMaps)
    assert head.grid == Grid(-51.2, -51.2, 0.8, 128, 128)
    assert sum(head.tasks, ()) == CLASSES
    assert model.needs == DataNeeds(clouds=frozenset({"lidar"}), sweeps=10)
    assert model.spec.cells == (512, 512, 1)
    assert (model.spec.max_points, model.spec.max_voxels) == (20, 40000)


def test_the_specification_builds_the_detector():
    assert load(CENTERPOINT.build) is build
    assert CENTERPOINT.config.model_fields["kind"].default == CENTERPOINT.kind == "centerpoint"


def test_maps_are_what_the_taps_say():
    model, batch = tiny(), batch_of()
    outputs = model(batch, frozenset(TAPS))
    assert set(outputs.taps) == set(TAPS) - {"head"}
    for name, value in outputs.taps.items():
        spec = model.taps[name]
        assert isinstance(spec, BevMap)
        assert value.shape == (2, spec.channels, spec.grid.ny, spec.grid.nx)
        assert spec.grid.extent == pytest.approx((-12.8, -6.4, 12.8, 6.4))
        assert value.min() >= 0
        assert value.max() > 0
    assert [tuple(task) for task in outputs.head] == [("reg", "height", "dim", "rot", "vel", "heatmap")]
    assert outputs.head[0]["heatmap"].shape == (2, 10, 16, 32)


def test_points_appear_in_the_cell_where_they_lie():
    model, batch = tiny().eval(), batch_of(1)
    batch.cloud("lidar").points[:, :2] = torch.tensor([5.0, -3.0])
    canvas = model(batch, frozenset({"bev_in"})).taps["bev_in"]
    # (5 + 12.8) / 0.4 = 44.5 and (-3 + 6.4) / 0.4 = 8.5.
    assert canvas.any(dim=1).nonzero().tolist() == [[0, 8, 44]]


@pytest.mark.parametrize("level", range(6))
def test_nothing_above_the_wanted_tap_is_computed(level):
    model, batch = tiny(), batch_of()
    modules = [model.reader.pillars, *model.backbone.blocks, model.neck, model.head]
    ran = []
    for position, module in enumerate(modules):
        module.register_forward_hook(lambda *_, position=position: ran.append(position))
    outputs = model(batch, frozenset({TAPS[level]}))
    assert ran == list(range(level + 1))
    assert list(outputs.taps) == [TAPS[level]][: level < 5]
    assert bool(outputs.head) == (level == 5)


def test_wanting_nothing_computes_nothing():
    model, batch = tiny(), batch_of()
    outputs = model(batch, frozenset())
    assert (dict(outputs.taps), list(outputs.head)) == ({}, [])
    assert not batch.cloud("lidar")._kept


def test_pillars_are_cut_as_configured():
    model = tiny(max_points=7, max_pillars=90)
    assert model.spec == VoxelSpec((-12.8, -6.4, -5.0), (12.8, 6.4, 3.0), (0.4, 0.4, 8.0), 7, 90)
    voxels = batch_of().cloud("lidar").voxels(model.spec)
    assert voxels.counts.max() == 7
    assert voxels.coordinates[:, 0].bincount().tolist() == [90, 90]
    assert model.reader.pillars.max_points == 7


def test_an_unknown_tap_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"no tap \['tsa0'\].*'bev_neck'"):
        tiny()(batch_of(), frozenset({"tsa0"}))


def test_voxels_are_shared_between_equal_models():
    batch = batch_of()
    first, second = tiny(), tiny()
    first(batch, frozenset({"bev_in"}))
    voxels = batch.cloud("lidar").voxels(first.spec)
    assert batch.cloud("lidar").voxels(second.spec) is voxels


def test_gradients_reach_every_parameter():
    model, batch = tiny(), batch_of()
    outputs = model(batch, frozenset({"head"}))
    terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    sum(term.value * term.weight for term in terms.values()).backward()
    named = list(model.named_parameters())
    assert len(named) == 3 + 3 * 2 * 3 + 3 * 3 + 3 + 6 * 5
    assert [name for name, parameter in named if parameter.grad is None or not parameter.grad.any()] == []


def test_training_learns_to_find_the_boxes():
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
    assert history[-1] < history[0] / 10
    detections = model.decode(model(batch, frozenset({"head"})), batch)
    for sample, found in enumerate(detections):
        best = slice(0, 3)
        distance = torch.cdist(batch.boxes.centers[sample], found.boxes.centers[best])
        assert distance.amin(dim=1).max() < 0.4
        assert sorted(found.labels[best].tolist()) == sorted(batch.labels[sample].tolist())


def test_bfloat16_autocast_trains_with_losses_in_float32():
    model, batch = tiny(), batch_of()
    plain = model(batch, frozenset({"head"}))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch, frozenset({"bev_neck", "head"}))
        terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    exact = model.losses(plain, model.targets(plain, batch), batch).terms
    assert outputs.head[0]["heatmap"].dtype == torch.bfloat16
    assert {term.value.dtype for term in terms.values()} == {torch.float32}
    for name, term in terms.items():
        assert term.value.item() == pytest.approx(exact[name].value.item(), rel=0.05)
    sum(term.value * term.weight for term in terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.decode(outputs, batch)


def test_unknown_velocities_are_not_learned_from():
    model, batch = tiny(), batch_of()
    batch.boxes.tensor[..., 7:] = math.nan
    outputs = model(batch, frozenset({"head"}))
    terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    sum(term.value for term in terms.values()).backward()
    last = model.head.task_heads[0]["vel"][1]
    assert all(term.value.isfinite() for term in terms.values())
    assert not last.weight.grad.any()


def test_an_empty_cloud_gives_an_empty_canvas():
    model, batch = tiny().eval(), batch_of()
    batch.cloud("lidar").points[:, 0] = 100.0
    outputs = model(batch, frozenset({"bev_in", "head"}))
    assert not outputs.taps["bev_in"].any()
    assert outputs.head[0]["reg"].isfinite().all()


def test_weights_survive_a_round_trip_without_the_constants():
    model = tiny()
    assert not [key for key in model.state_dict() if "label" in key or "weights" in key or "center" in key]
    other = tiny()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    batch = batch_of()
    ours = model.eval()(batch, frozenset({"bev_neck"})).taps["bev_neck"]
    torch.testing.assert_close(ours, other.eval()(batch, frozenset({"bev_neck"})).taps["bev_neck"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_boxes():
    model, batch = tiny().eval(), batch_of()
    here = model(batch, frozenset({"bev_neck", "head"}))
    targets = model.targets(here, batch)
    losses = model.losses(here, targets, batch).terms
    model, batch = model.cuda(), batch.to("cuda")
    there = model(batch, frozenset({"bev_neck", "head"}))
    torch.testing.assert_close(there.taps["bev_neck"].cpu(), here.taps["bev_neck"], rtol=1e-2, atol=1e-3)
    again = model.targets(there, batch)
    torch.testing.assert_close(again.heatmaps[0].cpu(), targets.heatmaps[0])
    assert torch.equal(again.indices[0].cpu(), targets.indices[0])
    for name, term in model.losses(there, again, batch).terms.items():
        assert term.value.item() == pytest.approx(losses[name].value.item(), rel=1e-2)
    assert len(model.decode(there, batch)) == 2
