import pytest
import torch
import yaml
from bevkd_common.config.detectors.lidarformer import LidarFormerConfig
from bevkd_common.config.plugins import load
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch, Cloud
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.bev_query_encoder import BevQueryEncoder
from bevkd_common.models.detectors.lidarformer import LidarFormer, build
from bevkd_common.models.heads.detr_code import CODE
from bevkd_common.models.specs import LIDARFORMER
from bevkd_common.models.taps import BevMap, Queries
from torch import nn

CLASSES = ("car", "bus", "pedestrian")
# Longer along x than along y; queries of other cells than those of the maps they look at.
TINY = """
kind: lidarformer
sweeps: 1
point_range: [-12.8, -6.4, -5, 12.8, 6.4, 3]
reader: {kind: pillars, pillar: 0.8, channels: 16, point_scales: [0.1, 0.1, 0.3, 0.01, 1], norm_momentum: 0.1}
backbone_channels: [16, 24]
backbone_layers: [1, 1]
norm_momentum: 0.1
levels: 3
channels: 32
grid: {x0: -12.8, y0: -6.4, cell: 1.6, nx: 16, ny: 8}
encoder_layers: 2
hidden_channels: 32
dropout: 0.0
head: {queries: 16, layers: 2, hidden_channels: 32, dropout: 0.0}
"""
TAPS = ["bev_in", "bev_block0", "bev_block1", "bev_neck", "head"]


def tiny(**changes) -> LidarFormer:
    torch.manual_seed(0)
    return build(LidarFormerConfig.model_validate(yaml.safe_load(TINY) | changes), CLASSES)


def batch_of(samples: int = 2, seed: int = 0) -> Batch:
    """Two boxes a sample, 100 points in each."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(samples, 2, 9, generator=generator) * torch.tensor([20.0, 10, 1, 3, 1, 1, 6, 4, 4])
    boxes = boxes + torch.tensor([-10.0, -5, -1, 1, 1, 1, -3, -2, -2])
    cloud = torch.rand(samples, 2, 100, 5, generator=generator)
    cloud[..., :3] = torch.randn(samples, 2, 100, 3, generator=generator) * 0.5 + boxes[:, :, None, :3]
    return Batch(
        tokens=tuple(f"token{i}" for i in range(samples)),
        scenes=("scene",) * samples,
        boxes=Boxes(boxes),
        labels=torch.randint(0, 3, (samples, 2), generator=generator),
        cameras=None,
        clouds={"lidar": Cloud(cloud.flatten(0, 2), (200,) * samples, tuple("xyzit"))},
        aug_T_lidar=torch.eye(4).expand(samples, 4, 4),
        global_T_lidar=torch.eye(4, dtype=torch.float64).expand(samples, 4, 4),
    )


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_paper_size():
    model = build(LidarFormerConfig(), CLASSES)
    assert model.reader.spec.cells == (1600, 1600, 40)
    maps = {
        name: (tap.channels, tap.grid.nx, tap.activation)
        for name, tap in model.taps.items()
        if isinstance(tap, BevMap) and name in TAPS
    }
    assert maps == {
        "bev_in": (256, 200, "relu"),
        "bev_block0": (128, 200, "relu"),
        "bev_block1": (256, 100, "relu"),
        "bev_neck": (256, 200, "none"),
    }
    grid = Grid(-51.2, -51.2, 0.512, 200, 200)
    assert model.taps["head"] == Queries(grid, CLASSES, layers=6, count=900, channels=256, code=CODE)
    assert model.needs == DataNeeds(clouds=frozenset({"lidar"}), sweeps=10)
    attention = 256 * 257 + 128 * 257 + 2 * 256 * 257
    layer = attention + 512 * 257 + 256 * 513 + 4 * 256
    assert parameters(model.encoder) == 6 * layer + 200 * 200 * 256 + 4 * 256


def test_the_specification_builds_the_detector():
    assert load(LIDARFORMER.build) is build
    assert LIDARFORMER.config.model_fields["kind"].default == LIDARFORMER.kind == "lidarformer"


VOXELS = {"kind": "voxels", "voxel": 0.1, "encoder_channels": [4, 4, 8, 8], "encoder_blocks": 1}


@pytest.mark.parametrize("changes", [{}, {"reader": VOXELS}])
def test_maps_are_what_the_taps_say(changes):
    model = tiny(**changes)
    outputs = model(batch_of(), frozenset(TAPS))
    assert list(model.taps) == [*TAPS, "bev_block0_preactivation", "bev_block1_preactivation"]
    assert set(outputs.taps) == set(TAPS) - {"head"}
    for name, value in outputs.taps.items():
        spec = model.taps[name]
        assert isinstance(spec, BevMap)
        assert value.shape == (2, spec.channels, spec.grid.ny, spec.grid.nx)
        assert spec.grid.extent == pytest.approx((-12.8, -6.4, 12.8, 6.4))
        assert bool(value.min() >= 0) == (spec.activation == "relu")
    assert [tuple(layer) for layer in outputs.head] == [("class_logits", "box_code")] * 2


def test_points_appear_in_the_cell_where_they_lie():
    model, batch = tiny().eval(), batch_of(1)
    batch.cloud("lidar").points[:, :2] = torch.tensor([5.0, -3.0])
    canvas = model(batch, frozenset({"bev_in"})).taps["bev_in"]
    # (5 + 12.8) / 0.8 = 22.25 and (-3 + 6.4) / 0.8 = 4.25.
    assert canvas.any(dim=1).nonzero().tolist() == [[0, 4, 22]]


def test_voxels_reach_no_further_than_the_encoder():
    model, batch = tiny(reader=VOXELS).eval(), batch_of(1)
    batch.cloud("lidar").points[:, :2] = torch.tensor([5.0, -3.0])
    canvas = model(batch, frozenset({"bev_in"})).taps["bev_in"]
    assert canvas.shape[1:] == (16, 16, 32)
    row, column = canvas.any(dim=1)[0].nonzero().T
    assert 4 in row
    assert 22 in column
    assert (row - 4).abs().max() <= 1
    assert (column - 22).abs().max() <= 1


@pytest.mark.parametrize("level", range(5))
def test_nothing_above_the_wanted_tap_is_computed(level):
    model = tiny()
    modules = [model.reader, *model.backbone.blocks, model.encoder, model.head]
    ran = []
    for position, module in enumerate(modules):
        module.register_forward_hook(lambda *_, position=position: ran.append(position))
    outputs = model(batch_of(), frozenset({TAPS[level]}))
    assert ran == list(range(level + 1))
    assert list(outputs.taps) == [TAPS[level]][: level < 4]
    assert bool(outputs.head) == (level == 4)


def test_wanting_nothing_computes_nothing():
    batch = batch_of()
    outputs = tiny()(batch, frozenset())
    assert (dict(outputs.taps), list(outputs.head)) == ({}, [])
    assert not batch.cloud("lidar")._kept


def test_an_unknown_tap_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"no tap \['tsa0'\].*'bev_neck'"):
        tiny()(batch_of(), frozenset({"tsa0"}))


def test_queries_of_the_ground_look_at_the_maps_above_them():
    # Maps of 8 m x 4 m in two resolutions; queries of 1 m over the right half of it, without offsets.
    ground, grid = Grid(-4.0, 0.0, 0.5, 16, 8), Grid(0.0, 0.0, 1.0, 4, 4)
    encoder = BevQueryEncoder(8, grid, ground, 2, layers=1, heads=8, points=1, hidden_channels=8, dropout=0.0)
    nn.init.zeros_(encoder.layers[0].attention.sampling_offsets.bias)
    levels = [torch.randn(1, 8, 8, 16, requires_grad=True), torch.randn(1, 8, 4, 8, requires_grad=True)]
    # Row 1 and column 2: x from 2 m to 3 m, y from 1 m to 2 m.
    encoder(levels)[0, :, 1, 2].square().sum().backward()
    fine, coarse = (level.grad.abs().sum(dim=(0, 1)).nonzero().tolist() for level in levels)
    assert fine == [[2, 12], [2, 13], [3, 12], [3, 13]]
    assert [1, 6] in coarse
    # Rounding may touch a neighbour by a millionth.
    assert levels[1].grad[..., 1, 6].abs().sum() > 0.999 * levels[1].grad.abs().sum()


def test_cells_that_see_the_same_are_the_same_at_first():
    """No cell has a content of its own that a student would have to learn."""
    torch.manual_seed(0)
    grid, ground = Grid(0.0, 0.0, 2.0, 4, 4), Grid(0.0, 0.0, 1.0, 8, 8)
    encoder = BevQueryEncoder(8, grid, ground, 2, layers=2, heads=2, points=2, hidden_channels=8, dropout=0.0)
    with torch.no_grad():
        for layer in encoder.layers:
            layer.attention.sampling_offsets.bias.zero_()
        bev = encoder([torch.randn(1, 8, 1, 1).expand(1, 8, size, size) for size in (8, 4)])
    torch.testing.assert_close(bev, bev[..., :1, :1].expand_as(bev))
    assert bev.abs().max() > 0.1


def test_gradients_reach_every_parameter():
    model, batch = tiny(), batch_of()
    outputs = model(batch, frozenset({"head"}))
    terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    sum(term.value * term.weight for term in terms.values()).backward()
    named = list(model.named_parameters())
    assert len(named) == 3 + 2 * 2 * 3 + 2 * (2 + 3) + 2 + 2 * 16 + 3 + 2 * (22 + 16)
    silent = {name for name, parameter in named if parameter.grad is None or not parameter.grad.any()}
    # A bias of keys shifts all weights of a softmax alike, and in the first layer queries ask with nothing yet.
    asked = {f"encoder.layers.0.attention.{name}.weight" for name in ("sampling_offsets", "attention_weights")}
    assert {name for name in silent if "in_proj_bias" not in name} == asked


def test_training_learns_to_find_the_boxes():
    model, batch = tiny(), batch_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        outputs = model(batch, frozenset({"head"}))
        terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
        loss = sum(term.value * term.weight for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    detections = model.eval().decode(model(batch, frozenset({"head"})), batch)
    for sample, found in enumerate(detections):
        distance = torch.cdist(batch.boxes.centers[sample], found.boxes.centers[:2])
        assert distance.amin(dim=1).max() < 1.0
        assert found.labels[:2][distance.argmin(dim=1)].tolist() == batch.labels[sample].tolist()


def test_bfloat16_autocast_trains_with_losses_in_float32():
    model, batch = tiny(), batch_of()
    plain = model(batch, frozenset({"head"}))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch, frozenset({"bev_neck", "head"}))
        targets = model.targets(plain, batch)
        terms = model.losses(outputs, targets, batch).terms
    assert {term.value.dtype for term in terms.values()} == {torch.float32}
    for name, term in model.losses(plain, targets, batch).terms.items():
        assert terms[name].value.item() == pytest.approx(term.value.item(), rel=0.05)
    sum(term.value * term.weight for term in terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.decode(outputs, batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_boxes():
    model, batch = tiny().eval(), batch_of()
    here = model(batch, frozenset({"bev_neck", "head"}))
    targets = model.targets(here, batch)
    losses = model.losses(here, targets, batch).terms
    model, batch = model.cuda(), batch.to("cuda")
    there = model(batch, frozenset({"bev_neck", "head"}))
    torch.testing.assert_close(there.taps["bev_neck"].cpu(), here.taps["bev_neck"], rtol=1e-2, atol=1e-2)
    again = model.targets(there, batch)
    for ours, theirs in zip(again.matched, targets.matched, strict=True):
        assert torch.equal(ours.cpu(), theirs)
    for name, term in model.losses(there, again, batch).terms.items():
        assert term.value.item() == pytest.approx(losses[name].value.item(), rel=1e-2)
    assert len(model.decode(there, batch)) == 2
