import pytest
import torch
import yaml
from bevkd_common.config.detectors.centerpoint_voxel import CenterPointVoxelConfig
from bevkd_common.config.plugins import load
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch, Cloud
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detectors.centerpoint import CenterPoint
from bevkd_common.models.detectors.centerpoint_voxel import build
from bevkd_common.models.specs import CENTERPOINT_VOXEL
from bevkd_common.models.taps import BevMap
from bevkd_common.ops.voxelize import VoxelSpec
from torch import nn

CLASSES = ("car", "pedestrian")
# A range that is longer along x than along y.
TINY = """
kind: centerpoint_voxel
sweeps: 1
point_range: [-12.8, -6.4, -2, 12.8, 6.4, 2]
voxel: 0.2
voxel_height: 0.4
max_points: null
max_voxels: null
point_scales: [0.1, 0.1, 0.5, 0.01, 1]
norm_momentum: 0.1
encoder_channels: [8, 16]
encoder_blocks: 1
backbone_channels: [16, 24]
backbone_layers: [1, 1]
neck_channels: [16, 16]
head:
  channels: 16
  tasks: [[car, pedestrian]]
  nms: [{threshold: 1.0}]
"""

MAPS = ["bev_in", "bev_block0", "bev_block1", "bev_neck"]


def tiny(**changes) -> CenterPoint:
    torch.manual_seed(0)
    return build(CenterPointVoxelConfig.model_validate(yaml.safe_load(TINY) | changes), CLASSES)


def batch_of(samples: int = 2, points: int = 400) -> Batch:
    """Clouds with a dense clump in each of three boxes a sample."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(samples, 3, 9, generator=generator) * torch.tensor([20.0, 10, 1, 3, 1, 1, 6, 4, 4])
    boxes += torch.tensor([-10.0, -5, -1, 1, 1, 1, -3, -2, -2])
    cloud = torch.rand(samples, points, 5, generator=generator) * torch.tensor([25.6, 12.8, 4.0, 255.0, 0.5])
    cloud += torch.tensor([-12.8, -6.4, -2.0, 0.0, 0.0])
    clump = torch.randn(samples, 3, 100, 3, generator=generator) * 0.5 + boxes[:, :, None, :3]
    cloud[:, :300, :3] = clump.flatten(1, 2)
    return Batch(
        tokens=tuple(f"token{i}" for i in range(samples)),
        scenes=("scene",) * samples,
        boxes=Boxes(boxes),
        labels=torch.randint(0, 2, (samples, 3), generator=generator),
        cameras=None,
        clouds={"lidar": Cloud(cloud.flatten(0, 1), (points,) * samples, tuple("xyzit"))},
        aug_T_lidar=torch.eye(4).expand(samples, 4, 4),
        global_T_lidar=torch.eye(4, dtype=torch.float64).expand(samples, 4, 4),
    )


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("changes", "cell", "cells"),
    [({}, 0.8, 128), ({"point_range": (-54, -54, -5, 54, 54, 3), "voxel": 0.075}, 0.6, 180)],
)
def test_paper_sizes_have_the_parameters_and_maps_of_the_released_models(changes, cell, cells):
    config = CenterPointVoxelConfig(**changes)
    model = build(config, tuple(name for task in config.head.tasks for name in task))
    parts = {name: parameters(module) for name, module in model.named_children()}
    assert parts == {"reader": 2_694_352, "backbone": 4_280_832, "neck": 295_936, "head": 1_667_142}
    assert parameters(model) == 8_938_262
    maps = {n: (t.channels, round(t.grid.cell, 9), t.grid.nx) for n, t in model.taps.items() if n in MAPS}
    assert maps == {
        "bev_in": (256, cell, cells),
        "bev_block0": (128, cell, cells),
        "bev_block1": (256, 2 * cell, cells // 2),
        "bev_neck": (512, cell, cells),
    }
    assert model.taps["head"].grid.matches(Grid(config.point_range[0], config.point_range[1], cell, cells, cells))
    assert model.needs == DataNeeds(clouds=frozenset({"lidar"}), sweeps=10)
    assert model.spec.cells == (8 * cells, 8 * cells, 40)
    assert model.reader.encoder.shape == (41, 8 * cells, 8 * cells)
    assert (model.spec.max_points, model.spec.max_voxels) == (10, 120000)


def test_the_specification_builds_the_detector():
    assert load(CENTERPOINT_VOXEL.build) is build
    assert CENTERPOINT_VOXEL.config.model_fields["kind"].default == CENTERPOINT_VOXEL.kind == "centerpoint_voxel"


def test_voxels_are_cut_as_configured():
    model = tiny(max_points=7, max_voxels=90)
    assert model.spec == VoxelSpec((-12.8, -6.4, -2.0), (12.8, 6.4, 2.0), (0.2, 0.2, 0.4), 7, 90)
    assert model.reader.features.scales.tolist() == pytest.approx([0.1, 0.1, 0.5, 0.01, 1])


def test_maps_are_what_the_taps_say():
    model, batch = tiny(), batch_of()
    assert list(model.taps) == [*MAPS, "head", *(f"{name}_preactivation" for name in MAPS[1:])]
    outputs = model(batch, frozenset({*MAPS, "head"}))
    assert list(outputs.taps) == MAPS
    for name, value in outputs.taps.items():
        spec = model.taps[name]
        assert isinstance(spec, BevMap)
        assert value.shape == (2, spec.channels, spec.grid.ny, spec.grid.nx)
        assert spec.grid.extent == pytest.approx((-12.8, -6.4, 12.8, 6.4))
        assert value.min() >= 0
        assert value.max() > 0
    assert outputs.head[0]["heatmap"].shape == (2, 2, 32, 64)


def test_points_appear_where_they_lie():
    model, batch = tiny().eval(), batch_of(1)
    batch.cloud("lidar").points[:, :3] = torch.tensor([5.0, -3.0, 0.1])
    bev = model(batch, frozenset({"bev_in"})).taps["bev_in"]
    # (5 + 12.8) / 0.4 = 44.5 and (-3 + 6.4) / 0.4 = 8.5; a strided convolution reaches one cell further.
    cells = bev.any(dim=1).nonzero()[:, 1:]
    assert [8, 44] in cells.tolist()
    assert (cells - torch.tensor([8, 44])).abs().max() <= 1


def test_gradients_reach_every_parameter():
    model, batch = tiny(), batch_of(1)
    outputs = model(batch, frozenset({"head"}))
    terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    sum(term.value * term.weight for term in terms.values()).backward()
    named = list(model.named_parameters())
    assert len(named) == 3 * (1 + 2 + 1 + 2 + 1) + 3 * 4 + 3 * 2 + 3 + 6 * 5
    assert [name for name, value in named if value.grad is None or not value.grad.any()] == []


def test_training_learns_to_find_the_boxes():
    model, batch = tiny(), batch_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(50):
        outputs = model(batch, frozenset({"head"}))
        terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
        loss = sum(term.value * term.weight for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 5
    for sample, found in enumerate(model.decode(model(batch, frozenset({"head"})), batch)):
        distance = torch.cdist(batch.boxes.centers[sample], found.boxes.centers[:3])
        assert distance.amin(dim=1).max() < 0.6


def test_bfloat16_autocast_keeps_voxels_in_float32():
    model, batch = tiny(), batch_of()
    plain = model(batch, frozenset({"bev_in"})).taps["bev_in"]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch, frozenset({"bev_in", "head"}))
        terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    torch.testing.assert_close(outputs.taps["bev_in"], plain)
    assert outputs.head[0]["heatmap"].dtype == torch.bfloat16
    sum(term.value * term.weight for term in terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_empty_cloud_gives_an_empty_map():
    model, batch = tiny().eval(), batch_of()
    batch.cloud("lidar").points[:, 0] = 100.0
    outputs = model(batch, frozenset({"bev_in", "head"}))
    assert not outputs.taps["bev_in"].any()
    assert outputs.head[0]["reg"].isfinite().all()


def test_a_deformable_head_trains():
    head = yaml.safe_load(TINY)["head"] | {"deformable": True}
    model, batch = tiny(head=head), batch_of(1)
    outputs = model(batch, frozenset({"head"}))
    assert list(outputs.head[0]) == ["reg", "height", "dim", "rot", "vel", "heatmap"]
    terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    sum(term.value * term.weight for term in terms.values()).backward()
    assert [name for name, value in model.head.named_parameters() if not value.grad.any()] == []
    assert len(model.decode(outputs, batch)) == 1
