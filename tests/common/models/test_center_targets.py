import math

import pytest
import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.heads.center_code import decode, encode
from bevkd_common.models.heads.center_targets import (
    center_targets,
    draw_gaussians,
    gaussian_radius,
)
from hypothesis import given, settings
from hypothesis import strategies as st

FLOAT64 = torch.float64
# Longer along x than along y, and not centred.
GRID = Grid(x0=-4.0, y0=-8.0, cell=0.5, nx=32, ny=24)
seeds = st.integers(0, 2**32 - 1)


def box(x: float, y: float, length: float = 2.0, width: float = 1.0, **other: float) -> list[float]:
    values = {"z": 0.3, "h": 1.5, "yaw": 0.7, "vx": 1.0, "vy": -2.0} | other
    return [x, y, values["z"], length, width, values["h"], values["yaw"], values["vx"], values["vy"]]


def targets_of(*rows: list[float], task: list[int] | None = None, channel: list[int] | None = None):
    """Targets of one sample for two tasks of 1 and 2 classes."""
    return center_targets(
        Boxes(torch.tensor([rows])),
        task=torch.tensor([task or [0] * len(rows)]),
        channel=torch.tensor([channel or [0] * len(rows)]),
        class_counts=[1, 2],
        grid=GRID,
        overlap=0.1,
        min_radius=2,
    )


@pytest.mark.parametrize(("width", "length", "radius"), [(5.0, 20.0, 4.0), (1.0, 2.0, 0.6), (4.0, 4.0, 1.7298)])
def test_radius_of_hand_computed_sizes_in_cells(width, length, radius):
    computed = gaussian_radius(torch.tensor([width]), torch.tensor([length]), 0.1)
    assert computed.dtype == FLOAT64
    assert computed.item() == pytest.approx(radius, abs=1e-4)
    assert gaussian_radius(torch.tensor([length]), torch.tensor([width]), 0.1).item() == computed.item()


def test_a_radius_of_exactly_four_does_not_round_down():
    assert gaussian_radius(torch.tensor([5.0]), torch.tensor([20.0]), 0.1).long().item() == 4


@pytest.mark.parametrize(
    ("width", "length", "cell", "radius"),
    [
        (1.95, 4.6, 0.6, 2.10),
        (2.5, 6.9, 0.6, 2.87),
        (2.95, 11.0, 0.6, 3.83),
        (2.9, 12.3, 0.6, 3.95),
        (2.95, 11.0, 0.8, 2.87),
        (2.9, 12.3, 0.8, 2.97),
    ],
)
def test_radius_of_typical_vehicles(width, length, cell, radius):
    computed = gaussian_radius(torch.tensor([width]) / cell, torch.tensor([length]) / cell, 0.1)
    assert computed.item() == pytest.approx(radius, abs=0.006)


@settings(max_examples=30, deadline=None)
@given(width=st.floats(0.5, 40), length=st.floats(0.5, 40), overlap=st.floats(0.05, 0.95))
def test_radius_is_the_least_of_the_three_solutions(width, length, overlap):
    around, area = width + length, width * length
    quadratics = [
        (1.0, around, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * around, area * (1 - overlap)),
        (4 * overlap, -2 * overlap * around, (overlap - 1) * area),
    ]
    expected = min((b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in quadratics)
    computed = gaussian_radius(torch.tensor([width], dtype=FLOAT64), torch.tensor([length], dtype=FLOAT64), overlap)
    assert computed.item() == pytest.approx(expected, rel=1e-9)


def test_stamp_of_radius_two():
    planes = draw_gaussians(torch.tensor([0]), torch.tensor([[3, 4]]), torch.tensor([2]), (1, 9, 8))
    window = planes[0, 2:7, 1:6]
    corner, knight, edge = 0.003151, 0.027324, 0.056135
    diagonal, beside = 0.236928, 0.486752
    expected = torch.tensor(
        [
            [corner, knight, edge, knight, corner],
            [knight, diagonal, beside, diagonal, knight],
            [edge, beside, 1.0, beside, edge],
            [knight, diagonal, beside, diagonal, knight],
            [corner, knight, edge, knight, corner],
        ]
    )
    torch.testing.assert_close(window, expected, atol=1e-6, rtol=0)
    assert planes.sum() == pytest.approx(window.sum().item())


def test_stamps_of_several_sizes_planes_and_borders():
    plane, cell = torch.tensor([1, 1, 0]), torch.tensor([[0, 0], [2, 0], [7, 5]])
    radius = torch.tensor([2, 3, 1])
    planes = draw_gaussians(plane, cell, radius, (2, 6, 8))
    expected = torch.zeros(2, 6, 8, dtype=FLOAT64)
    for p, (cx, cy), r in zip(plane.tolist(), cell.tolist(), radius.tolist(), strict=True):
        sigma = (2 * r + 1) / 6
        for y in range(max(0, cy - r), min(6, cy + r + 1)):
            for x in range(max(0, cx - r), min(8, cx + r + 1)):
                value = math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
                expected[p, y, x] = max(expected[p, y, x], value)
    torch.testing.assert_close(planes, expected.float(), atol=1e-6, rtol=0)
    assert (planes == 1).sum() == 3


def test_no_gaussians():
    nothing = torch.empty(0, dtype=torch.int64)
    planes = draw_gaussians(nothing, torch.empty(0, 2, dtype=torch.int64), nothing, (2, 3, 4))
    assert planes.shape == (2, 3, 4)
    assert not planes.any()


def test_index_offset_and_code_of_a_box():
    # x: (1.3 + 4) / 0.5 = 10.6, y: (-2.1 + 8) / 0.5 = 11.8.
    targets = targets_of(box(1.3, -2.1, length=4.0, width=2.0), task=[1], channel=[1])
    assert targets.indices[1].tolist() == [[11 * 32 + 10]]
    expected = [0.6, 0.8, 0.3, math.log(4), math.log(2), math.log(1.5), math.sin(0.7), math.cos(0.7), 1.0, -2.0]
    torch.testing.assert_close(targets.regression[1][0, 0], torch.tensor(expected), atol=1e-5, rtol=0)
    assert [mask.tolist() for mask in targets.mask] == [[[False]], [[True]]]
    assert [tuple(heatmap.shape) for heatmap in targets.heatmaps] == [(1, 1, 24, 32), (1, 2, 24, 32)]
    assert (targets.heatmaps[1] == 1).nonzero().tolist() == [[0, 1, 11, 10]]
    assert not targets.heatmaps[0].any()


def test_radii_come_from_width_and_length_in_cells():
    # 2.5 x 10 m are 5 x 20 cells: radius 4, where typical objects have the least radius, 2.
    long = targets_of(box(4.0, -2.0, length=10.0, width=2.5)).heatmaps[0][0, 0]
    # 3.6875 x 13.75 cells: 2.87, which is cut to 2.
    cut = targets_of(box(4.0, -2.0, length=6.875, width=1.84375)).heatmaps[0][0, 0]
    short = targets_of(box(4.0, -2.0)).heatmaps[0][0, 0]
    assert [int((heatmap > 0).sum()) for heatmap in (long, cut, short)] == [81, 25, 25]
    assert long[12, 16] == cut[12, 16] == short[12, 16] == 1


def test_cells_are_truncated_toward_zero():
    # -0.8 of a cell below x0 is learned in column 0 at offset -0.8; 1.2 cells below is not.
    targets = targets_of(box(-4.4, -8.3), box(-4.6, -7.0), box(-3.0, -8.5))
    assert targets.mask[0].tolist() == [[True, False, False]]
    assert targets.indices[0][0, 0] == 0
    torch.testing.assert_close(targets.regression[0][0, 0, :2], torch.tensor([-0.8, -0.6]), atol=1e-5, rtol=0)


def test_upper_borders_are_outside():
    targets = targets_of(box(11.99, 3.99), box(12.0, 0.0), box(0.0, 4.0))
    assert targets.mask[0].tolist() == [[True, False, False]]
    assert targets.indices[0][0, 0] == 24 * 32 - 1


def test_boxes_without_area_and_padding_are_not_learned():
    targets = targets_of(box(0, 0, length=0.0), box(0, 0, width=0.0), [0.0] * 9, box(0, 0), task=[0, 0, -1, 1])
    assert targets.mask[0].tolist() == [[False] * 4]
    assert targets.mask[1].tolist() == [[False, False, False, True]]
    assert not targets.heatmaps[0].any()
    assert all(code.isfinite().all() for code in targets.regression)


def test_unknown_velocities_stay_unknown():
    targets = targets_of(box(0, 0, vx=math.nan, vy=math.nan))
    assert targets.regression[0][0, 0].isnan().tolist() == [False] * 8 + [True] * 2


def test_samples_do_not_mix():
    boxes = Boxes(torch.tensor([[box(0, 0)], [box(2, 1)]]))
    targets = center_targets(boxes, torch.tensor([[0], [1]]), torch.tensor([[0], [1]]), [1, 2], GRID, 0.1, 2)
    peaks = [(heatmap == 1).nonzero().tolist() for heatmap in targets.heatmaps]
    assert peaks == [[[0, 0, 16, 8]], [[1, 1, 18, 12]]]


def test_at_most_500_boxes_of_a_task_count():
    rows = [box(0, 0)] * 502
    task = [1] + [0] * 501
    targets = targets_of(*rows, task=task)
    assert targets.mask[0].sum() == 500
    assert not targets.mask[0][0, 501]
    assert targets.mask[1].sum() == 1


def test_no_boxes_at_all():
    nothing = torch.empty(2, 0, dtype=torch.int64)
    targets = center_targets(Boxes(torch.empty(2, 0, 9)), nothing, nothing, [1, 2], GRID, 0.1, 2)
    assert [tuple(heatmap.shape) for heatmap in targets.heatmaps] == [(2, 1, 24, 32), (2, 2, 24, 32)]
    assert [tuple(mask.shape) for mask in targets.mask] == [(2, 0), (2, 0)]


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_decoding_is_the_inverse_of_encoding(seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([16.0, 12, 4, 8, 3, 3, 6.28, 10, 10], dtype=FLOAT64)
    low = torch.tensor([-4.0, -8, -2, 0.2, 0.2, 0.2, -3.14, -5, -5], dtype=FLOAT64)
    boxes = Boxes(torch.rand(2, 7, 9, generator=generator, dtype=FLOAT64) * spread + low)
    center = (boxes.centers[..., :2] - torch.tensor([-4.0, -8.0])) / 0.5
    cell = center.floor().long()
    indices = cell[..., 1] * 32 + cell[..., 0]
    again = decode(encode(boxes, center - cell), indices, GRID)
    torch.testing.assert_close(again.tensor, boxes.tensor, rtol=1e-9, atol=1e-9)
