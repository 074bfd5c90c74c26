"""Hand-computed samples, and naive references in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from bevkd_common.data.samples import Cameras
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import rigid, rotation_z
from bevkd_common.models.bevformer import spatial as spatial_module
from bevkd_common.models.bevformer.spatial import SpatialCrossAttention, anchor_points, sightings
from bevkd_common.models.bevformer.temporal import TemporalSelfAttention
from torch import Tensor, nn

AHEAD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Axes of a camera that looks along +y: cam = (x, -z, y)."""
LENS = torch.tensor([[500.0, 0, 400], [0, 500, 300], [0, 0, 1]])


def looking(*poses: tuple[float, float, float], samples: int = 1, lens: Tensor = LENS) -> Cameras:
    """Cameras at (x, y), turned from +y by an angle."""
    turn = rotation_z(torch.tensor([angle for _, _, angle in poses]))
    place = torch.tensor([[x, y, 0.0] for x, y, _ in poses])
    count = len(poses)
    return Cameras(
        images=torch.zeros(samples, count, 3, 1, 1, dtype=torch.uint8),
        intrinsics=lens.expand(samples, count, 3, 3),
        lidar_T_cam=rigid(turn @ AHEAD, place).expand(samples, count, 4, 4),
        image_aug=torch.eye(3).expand(samples, count, 3, 3),
    )


def plain(module: nn.Module) -> nn.Module:
    """Zero offsets, identical projections."""
    with torch.no_grad():
        module.sampling_offsets.bias.zero_()
        for layer in (module.value_proj, module.output_proj):
            layer.weight.copy_(torch.eye(len(layer.weight)))
    return module


def scattered(module: nn.Module) -> nn.Module:
    """Every parameter at random."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module.double()


def bilinear(features: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Value [C] of a map [H, W, C] at shares of its extent, zero outside."""
    height, width = features.shape[:2]
    column, row = x * width - 0.5, y * height - 0.5
    left, low = math.floor(column.item()), math.floor(row.item())
    total = features.new_zeros(features.shape[2])
    for i, j in ((i, j) for i in (left, left + 1) for j in (low, low + 1)):
        if 0 <= i < width and 0 <= j < height:
            total = total + features[j, i] * (1 - (column - i).abs()) * (1 - (row - j).abs())
    return total


def assert_same_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected)
    towards = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=found.dtype)
    pairs = [torch.autograd.grad((value * towards).sum(), inputs) for value in (found, expected)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 0


# --- Temporal -----------------------------------------------------------------------------------------------------

QUERY = torch.tensor([[1.0, 1], [2, 2], [3, 3], [4, 4]])[None]
PAST = torch.tensor([[10.0, 0], [20, 0], [30, 0], [40, 0]])[None]


@pytest.mark.parametrize(
    ("past", "shift", "shifted", "expected"),
    [
        (QUERY, (0.0, 0.0), "history", [[2.0, 2], [4, 4], [6, 6], [8, 8]]),
        (PAST, (0.0, 0.0), "history", [[6.5, 1.5], [13, 3], [19.5, 4.5], [26, 6]]),
        (PAST, (0.0, 0.5), "history", [[16.5, 1.5], [23, 3], [4.5, 4.5], [6, 6]]),
        (PAST, (0.0, 0.5), "both", [[17.5, 2.5], [24, 4], [3, 3], [4, 4]]),
    ],
)
def test_queries_see_half_of_each_map(past, shift, shifted, expected):
    attention = plain(TemporalSelfAttention(2, heads=1, points=1, shifted=shifted))
    maps = torch.stack([past, QUERY], dim=1)
    seen, weights = attention(QUERY, torch.zeros(4, 2), maps, torch.tensor([shift]), (2, 2))
    torch.testing.assert_close((QUERY + seen)[0], torch.tensor(expected))
    assert weights.shape == (1, 4, 1, 2, 1)


def naive_temporal(module, query, position, maps, shift, shape):
    """Query by query, from the equations."""
    heads, slots, points = module.samples
    height, width = shape
    channels = query.shape[2] // heads
    rows = []
    for sample in range(len(query)):
        values = [module.value_proj(maps[sample, slot]).view(height, width, heads, channels) for slot in range(2)]
        for index in range(height * width):
            told = torch.cat([maps[sample, 0, index], query[sample, index] + position[index]])
            offsets = module.sampling_offsets(told).view(heads, slots, points, 2)
            weights = module.attention_weights(told).view(heads, slots, points).exp()
            row, column = divmod(index, width)
            parts = []
            for head in range(heads):
                total = 0.0
                for slot in range(slots):
                    moved = shift[sample] if slot == 0 else torch.zeros(2)
                    for point in range(points):
                        x = (column + 0.5 + offsets[head, slot, point, 0]) / width + moved[0]
                        y = (row + 0.5 + offsets[head, slot, point, 1]) / height + moved[1]
                        share = weights[head, slot, point] / weights[head, slot].sum()
                        total = total + share / 2 * bilinear(values[slot][:, :, head], x, y)
                parts.append(total)
            rows.append(module.output_proj(torch.cat(parts)))
    return torch.stack(rows).view(query.shape)


def test_temporal_attention_is_the_sum_over_its_points():
    module = scattered(TemporalSelfAttention(4, heads=2, points=3, shifted="history"))
    generator = torch.Generator().manual_seed(0)
    shape, samples = (3, 4), 2
    query, maps, position = (
        torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in ((samples, 12, 4), (samples, 2, 12, 4), (12, 4))
    )
    shift = torch.tensor([[0.13, -0.21], [-0.07, 0.3]], dtype=torch.float64)
    found, weights = module(query, position, maps, shift, shape)
    inputs = [query, maps, position, *module.parameters()]
    assert_same_gradients(found, naive_temporal(module, query, position, maps, shift, shape), inputs)
    assert weights.shape == (2, 12, 2, 2, 3)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 12, 2, 2, dtype=torch.float64))


def test_attention_starts_uniform_and_looks_in_eight_directions():
    module = TemporalSelfAttention(8, heads=8, points=4, shifted="history")
    offsets = module.sampling_offsets(torch.randn(16)).view(8, 2, 4, 2)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for slot in range(2):
        for point in range(4):
            expected = torch.tensor(compass, dtype=torch.float32) * (point + 1)
            torch.testing.assert_close(offsets[:, slot, point], expected)
    weights = module(torch.randn(1, 4, 8), torch.randn(4, 8), torch.randn(1, 2, 4, 8), torch.zeros(1, 2), (2, 2))[1]
    assert (weights == 0.25).all()


# --- Cameras ------------------------------------------------------------------------------------------------------


def test_anchors_stand_on_the_centres_of_the_cells():
    points = anchor_points(Grid(-51.2, -51.2, 0.512, 200, 200), (-5.0, 3.0), 4)
    assert points.shape == (40_000, 4, 3)
    torch.testing.assert_close(points[1, :, 0], torch.full((4,), -51.2 + 1.5 * 0.512))
    torch.testing.assert_close(points[200, :, 1], torch.full((4,), -51.2 + 1.5 * 0.512))
    assert points[7, :, 2].tolist() == pytest.approx([-4.5, -2.166667, 0.166667, 2.5], abs=1e-6)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((2.0, 10, 1), (0.625, 0.411184)),
        ((2.0, 10, -4.5), (0.625, 0.863487)),
        ((0.0, 10, 0), (0.5, 0.493421)),
        ((10.0, 10, 0), None),
        ((0.0, -10, 0), None),
        ((0.0, 0, 0), None),
    ],
)
def test_a_camera_along_y_sees_what_is_before_it(point, expected):
    seen = sightings(torch.tensor([[point]]), looking((0.0, 0.0, 0.0)), (608, 800))
    assert seen.anchors.isfinite().all()
    assert seen.seen.tolist() == [[expected is not None]]
    assert seen.cameras.tolist() == [[int(expected is not None)]]
    if expected is not None:
        assert seen.anchors.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_what_is_beside_the_image_is_where_it_is_and_what_is_behind_is_far_outside():
    points = torch.tensor([[[0.0, 10, 0], [10, 10, 0], [0, -10, 0]]])
    anchors = sightings(points, looking((0.0, 0.0, 0.0)), (608, 800)).anchors
    assert anchors[0, 0, 1].tolist() == pytest.approx([1.125, 0.493421], abs=1e-6)
    assert anchors[0, 0, 2].tolist() == [10.0, 10.0]


def test_the_augmentation_of_an_image_moves_anchors():
    cameras = looking((0.0, 0.0, 0.0))
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0])).expand(1, 1, 3, 3)
    point = torch.tensor([[[2.0, 10, 1]]])
    whole = sightings(point, cameras, (608, 800)).anchors
    torch.testing.assert_close(sightings(point, replace(cameras, image_aug=half), (304, 400)).anchors, whole)


def test_each_camera_lists_its_queries_first_and_counts_once_a_query():
    # Two anchors each: one query before both cameras, one before each, and one beside.
    x = torch.tensor([0.0, 0.0, 0.0, 60.0])
    y = torch.tensor([10.0, 20.0, -10.0, 10.0])
    points = torch.stack([torch.stack([x, y, torch.full((4,), z)], dim=-1) for z in (0.0, 0.5)], dim=1)
    seen = sightings(points, looking((0.0, 0.0, 0.0), (0.0, 15.0, math.pi), samples=2), (608, 800))
    assert seen.cameras.tolist() == [[2, 1, 1, 0]] * 2
    # Rows of the second sample follow those of the first.
    assert seen.row.tolist() == [[0, 1], [0, 2], [4, 5], [4, 6]]
    assert seen.seen.all()
    assert seen.anchors.shape == (4, 2, 2, 2)


# --- Spatial ------------------------------------------------------------------------------------------------------


def test_a_query_sees_the_mean_over_its_cameras():
    attention = plain(SpatialCrossAttention(1, heads=1, levels=1, points=1))
    with torch.no_grad():
        attention.output_proj.bias.fill_(0.25)
    # In the middle of both images, of the first alone, of none.
    points = torch.tensor([[[0.0, 10, 0]], [[0, 20, 0]], [[60, 10, 0]]])
    lens = torch.tensor([[500.0, 0, 400], [0, 500, 304], [0, 0, 1]])
    cameras = looking((0.0, 0.0, 0.0), (0.0, 15.0, math.pi), lens=lens)
    tokens = torch.tensor([4.0, 8.0]).view(2, 1, 1)
    query = torch.tensor([1.0, 2, 3]).view(1, 3, 1)
    seen, _ = attention(query, tokens, [(1, 1)], sightings(points, cameras, (608, 800)))
    assert (query + seen).flatten().tolist() == pytest.approx([6 + 1 + 0.25, 4 + 2 + 0.25, 3 + 0.25], abs=1e-5)


def test_points_take_turns_among_the_anchors(monkeypatch):
    caught = {}

    def catch(value, shapes, locations, weights):
        caught["locations"] = locations
        return value.new_zeros(*locations.shape[:2], 1)

    monkeypatch.setattr(spatial_module, "deformable_attention", catch)
    attention = plain(SpatialCrossAttention(1, heads=1, levels=1, points=8))
    u = torch.tensor([0.1, 0.2, 0.3, 0.4])
    anchors = torch.stack([(u * 800 - 400) / 50, torch.full((4,), 10.0), torch.zeros(4)], dim=-1)[None]
    seen = sightings(anchors, looking((0.0, 0.0, 0.0)), (608, 800))
    attention(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), [(1, 1)], seen)
    assert caught["locations"][..., 0].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4] * 2, abs=1e-6)


def ring(samples: int) -> Cameras:
    """Three cameras, calibrated otherwise in every sample."""
    cameras = looking((0.3, 0.5, 0.2), (-0.4, 0.1, 2.2), (0.2, -0.6, 4.3), samples=samples)
    turn = rigid(rotation_z(torch.arange(samples) * 0.35), torch.zeros(3))[:, None]
    return replace(cameras, lidar_T_cam=turn @ cameras.lidar_T_cam)


GROUND = Grid(-12.0, -8.0, 4.0, 6, 4)
SHAPES = [(4, 6), (2, 3)]


def naive_spatial(module, query, tokens, points, cameras, image_size):
    """Query by query and camera by camera, from the equations."""
    heads, levels, count = module.samples
    samples, queries, channels = query.shape
    width = query.new_tensor([image_size[1], image_size[0]])
    outputs = []
    values = module.value_proj(tokens).view(samples, -1, tokens.shape[1], heads, channels // heads)
    for sample, index in ((b, q) for b in range(samples) for q in range(queries)):
        offsets = module.sampling_offsets(query[sample, index]).view(heads, levels, count, 2)
        logits = module.attention_weights(query[sample, index]).view(heads, levels, count).exp()
        total, hits = query.new_zeros(channels), 0
        for camera in range(values.shape[1]):
            cam_T_lidar = torch.linalg.inv(cameras.lidar_T_cam[sample, camera].double())
            local = points[index].double() @ cam_T_lidar[:3, :3].T + cam_T_lidar[:3, 3]
            pixels = local @ cameras.intrinsics[sample, camera].double().T
            uv = pixels[:, :2] / pixels[:, 2:] / width
            inside = (local[:, 2] > 0) & ((uv > 0) & (uv < 1)).all(dim=1)
            if not inside.any():
                continue
            hits += 1
            parts = []
            for head in range(heads):
                part, start = 0.0, 0
                for level, (rows, columns) in enumerate(SHAPES):
                    stop = start + rows * columns
                    features = values[sample, camera, start:stop, head].view(rows, columns, -1)
                    start = stop
                    for point in range(count):
                        anchor = point % len(uv)
                        if local[anchor, 2] <= 0:
                            continue
                        place = uv[anchor] + offsets[head, level, point] / query.new_tensor([columns, rows])
                        share = logits[head, level, point] / logits[head].sum()
                        part = part + share * bilinear(features, place[0], place[1])
                parts.append(part)
            total = total + torch.cat([torch.as_tensor(part) for part in parts])
        outputs.append(module.output_proj(total / max(hits, 1)))
    return torch.stack(outputs).view(query.shape)


def test_spatial_attention_is_the_mean_over_cameras_of_the_sum_over_points():
    module = scattered(SpatialCrossAttention(4, heads=2, levels=2, points=4))
    generator = torch.Generator().manual_seed(0)
    samples, cameras = 2, ring(2)
    points = anchor_points(GROUND, (-3.0, 2.0), 2)
    query, tokens = (
        torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in ((samples, 24, 4), (samples * 3, 30, 4))
    )
    seen = sightings(points.double(), Cameras(*(value.double() for value in vars(cameras).values())), (608, 800))
    found, weights = module(query, tokens, SHAPES, seen)
    expected = naive_spatial(module, query, tokens, points, cameras, (608, 800))
    assert_same_gradients(found, expected, [query, tokens, *module.parameters()])
    assert set(seen.cameras.flatten().tolist()) == {0, 1}
    # Calibrations differ, so the samples do not have the same queries in sight.
    assert (seen.cameras[0] != seen.cameras[1]).any()
    torch.testing.assert_close(weights.sum(dim=(-1, -2)), torch.ones(2, 24, 2, dtype=torch.float64))


def test_queries_that_no_camera_sees_have_finite_gradients_and_the_bias():
    module = scattered(SpatialCrossAttention(4, heads=2, levels=2, points=4)).float()
    points = anchor_points(GROUND, (-3.0, 2.0), 2) + torch.tensor([0.0, 0.0, 100.0])
    query = torch.randn(2, 24, 4, requires_grad=True)
    tokens = torch.randn(6, 30, 4, requires_grad=True)
    found, _ = module(query, tokens, SHAPES, sightings(points, ring(2), (608, 800)))
    torch.testing.assert_close(found, module.output_proj.bias.expand(2, 24, 4))
    for gradient in torch.autograd.grad(found.sum(), [query, tokens]):
        assert not gradient.any()


def test_samples_of_a_batch_do_not_know_of_each_other():
    module = scattered(SpatialCrossAttention(4, heads=2, levels=2, points=4)).float()
    points, cameras = anchor_points(GROUND, (-3.0, 2.0), 2), ring(2)
    query, tokens = torch.randn(2, 24, 4), torch.randn(6, 30, 4)
    both, _ = module(query, tokens, SHAPES, sightings(points, cameras, (608, 800)))
    for sample in range(2):
        alone = Cameras(*(value[sample : sample + 1] for value in vars(cameras).values()))
        own = tokens[3 * sample : 3 * sample + 3]
        one, _ = module(query[sample : sample + 1], own, SHAPES, sightings(points, alone, (608, 800)))
        torch.testing.assert_close(both[sample : sample + 1], one)


class Exported(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = scattered(SpatialCrossAttention(4, heads=2, levels=2, points=4)).float()
        self.points = nn.Buffer(anchor_points(GROUND, (-3.0, 2.0), 2))

    def forward(self, query, tokens, intrinsics, lidar_T_cam, image_aug):
        cameras = Cameras(tokens, intrinsics, lidar_T_cam, image_aug)
        return self.attention(query, tokens, SHAPES, sightings(self.points, cameras, (608, 800)))[0]


def test_an_exported_graph_serves_other_calibrations():
    model = Exported().eval()
    query, tokens = torch.randn(1, 24, 4), torch.randn(3, 30, 4)
    first, second = ring(2), ring(2)

    def given(cameras: Cameras, sample: int) -> tuple[Tensor, ...]:
        rows = (cameras.intrinsics, cameras.lidar_T_cam, cameras.image_aug)
        return (query, tokens, *(row[sample : sample + 1].clone() for row in rows))

    graph = torch.export.export(model, given(first, 0), strict=False).module()
    expected = model(*given(second, 1))
    torch.testing.assert_close(graph(*given(second, 1)), expected)
    assert (model(*given(first, 0)) - expected).abs().max() > 0.01
