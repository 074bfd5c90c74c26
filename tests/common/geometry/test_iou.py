import math

import pytest
import torch
from bevkd_common.geometry import iou
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.iou import bev_intersection, bev_iou, bev_iou_aligned, iou_3d
from hypothesis import given, settings
from hypothesis import strategies as st

shapely_geometry = pytest.importorskip("shapely.geometry")

seeds = st.integers(0, 2**32 - 1)
PROPERTY = settings(max_examples=20, deadline=None)
FLOAT64 = torch.float64


def boxes_of(*rows: tuple[float, ...]) -> Boxes:
    """Rows x, y, z, l, w, h, yaw in degrees."""
    tensor = torch.tensor([[*row, 0, 0] for row in rows], dtype=FLOAT64)
    tensor[:, 6].deg2rad_()
    return Boxes(tensor)


def close_together(random_boxes, seed: int, count: int) -> Boxes:
    """Random boxes within 2 m, so that most pairs overlap, whatever the draw."""
    boxes = random_boxes(seed, count)
    return Boxes.from_parts(boxes.centers * 0.04, boxes.size, boxes.yaw, boxes.velocity)


def shapely_areas(a: Boxes, b: Boxes) -> tuple[torch.Tensor, torch.Tensor]:
    first = [shapely_geometry.Polygon(corners) for corners in a.bev_corners().tolist()]
    second = [shapely_geometry.Polygon(corners) for corners in b.bev_corners().tolist()]
    common = [[p.intersection(q).area for q in second] for p in first]
    union = [[p.union(q).area for q in second] for p in first]
    return torch.tensor(common, dtype=FLOAT64), torch.tensor(union, dtype=FLOAT64)


UNIT = (0, 0, 0, 4, 2, 2, 0)


@pytest.mark.parametrize(
    ("other", "common"),
    [
        (UNIT, 8.0),
        ((0, 0, 0, 4, 2, 2, 180), 8.0),
        ((0, 0, 0, 4, 2, 2, 90), 4.0),
        ((1, 0, 0, 4, 2, 2, 0), 6.0),
        ((0, 0.5, 0, 4, 2, 2, 0), 6.0),
        ((4, 0, 0, 4, 2, 2, 0), 0.0),  # they share a side
        ((4, 2, 0, 4, 2, 2, 0), 0.0),  # they share a corner
        ((9, 0, 0, 4, 2, 2, 0), 0.0),
        ((0.5, 0.05, 0, 2, 1, 2, 30), 2.0),  # contained
        ((0.1, 0, 0, 20, 20, 2, 45), 8.0),  # containing
        ((0, 0, 0, 2**0.5, 2**0.5, 2, 45), 2.0),  # a square on its corner, touching both sides
        ((0, 0, 0, 2 * 2**0.5, 2 * 2**0.5, 2, 45), 6.0),  # the same twice as large loses two corners
        ((2, 1, 0, 2**0.5, 2**0.5, 2, 45), 0.5),  # a quarter of it, on the corner
        ((0, 0, 0, 4, 0, 2, 0), 0.0),
        ((0, 0, 0, 4, 0, 2, 20), 0.0),
        ((0, 0, 0, 0, 0, 2, 0), 0.0),
    ],
    ids=str,
)
def test_common_area_by_hand(other, common):
    a, b = boxes_of(UNIT), boxes_of(other)
    expected = torch.tensor([[common]], dtype=FLOAT64)
    torch.testing.assert_close(bev_intersection(a, b), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(bev_intersection(b, a), expected, atol=1e-12, rtol=0)
    union = 8 + other[3] * other[4] - common
    torch.testing.assert_close(bev_iou(a, b), expected / union, atol=1e-12, rtol=0)


def test_two_degenerate_boxes_have_no_overlap():
    point = boxes_of((0, 0, 0, 0, 0, 0, 0))
    assert bev_iou(point, point).tolist() == [[0.0]]
    assert iou_3d(point, point).tolist() == [[0.0]]
    assert bev_iou_aligned(point, point).tolist() == [0.0]


@PROPERTY
@given(seeds)
def test_iou_agrees_with_shapely(random_boxes, seed):
    a, b = close_together(random_boxes, seed, 8), close_together(random_boxes, seed + 1, 9)
    common, union = shapely_areas(a, b)
    assert (common > 0).float().mean() > 0.5
    torch.testing.assert_close(bev_intersection(a, b), common, atol=1e-10, rtol=0)
    torch.testing.assert_close(bev_iou(a, b), common / union, atol=1e-10, rtol=0)
    torch.testing.assert_close(bev_iou(a.to(torch.float32), b.to(torch.float32)).double(), common / union,
                               atol=1e-5, rtol=0)  # fmt: skip


@PROPERTY
@given(seeds, st.floats(0, 18))
def test_nearly_parallel_sides_are_no_special_case(random_boxes, seed, digits):
    a = close_together(random_boxes, seed, 6)
    quarter_turns = torch.arange(6) * math.pi / 2
    b = Boxes.from_parts(a.centers * 0.5, a.size.flip(0), a.yaw.flip(0), a.velocity)
    b = Boxes.from_parts(b.centers, b.size, a.yaw + quarter_turns + 10.0**-digits, b.velocity)
    common, union = shapely_areas(a, b)
    torch.testing.assert_close(bev_iou(a, b), common / union, atol=1e-10, rtol=0)


@PROPERTY
@given(seeds)
def test_iou_is_one_with_itself_symmetric_and_moves_along(random_boxes, random_rigid, seed):
    a, b = close_together(random_boxes, seed, 8), close_together(random_boxes, seed + 1, 8)
    overlap = bev_iou(a, b)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    torch.testing.assert_close(bev_iou(a, a).diagonal(), torch.ones(8, dtype=FLOAT64), atol=1e-12, rtol=0)
    torch.testing.assert_close(bev_iou(b, a), overlap.T, atol=1e-12, rtol=0)
    matrix = random_rigid(seed, 0.0, 50.0)
    torch.testing.assert_close(bev_iou(a.transform(matrix), b.transform(matrix)), overlap, atol=1e-11, rtol=0)
    torch.testing.assert_close(bev_iou(a.flip("x"), b.flip("x")), overlap, atol=1e-11, rtol=0)
    torch.testing.assert_close(bev_iou_aligned(a, b), overlap.diagonal())


def test_identical_boxes_in_float32_have_iou_one(random_boxes):
    boxes = random_boxes(5, 200).to(torch.float32)
    overlap = bev_iou_aligned(boxes, boxes)
    assert (overlap <= 1).all()
    torch.testing.assert_close(overlap, torch.ones(200), atol=1e-5, rtol=0)


def test_aligned_pairs_of_batches(random_boxes):
    a, b = close_together(random_boxes, 1, 6), close_together(random_boxes, 2, 6)
    batched = bev_iou_aligned(Boxes(a.tensor.reshape(2, 3, 9)), Boxes(b.tensor.reshape(2, 3, 9)))
    assert torch.equal(batched, bev_iou_aligned(a, b).reshape(2, 3))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (UNIT, 1.0),
        ((0, 0, 1, 4, 2, 2, 0), 1 / 3),  # half of the height: 8 / (16 + 16 - 8)
        ((0, 0, -1, 4, 2, 2, 0), 1 / 3),
        ((0, 0, 2, 4, 2, 2, 0), 0.0),
        ((0, 0, 5, 4, 2, 2, 0), 0.0),
        ((1, 0, 0, 4, 2, 2, 0), 12 / 20),
        ((0, 0, 0.5, 4, 2, 1, 90), 4 / (16 + 8 - 4)),  # contained in height
        ((0, 0, 0, 4, 2, 6, 0), 1 / 3),
    ],
    ids=str,
)
def test_iou_of_volumes_by_hand(other, expected):
    a, b = boxes_of(UNIT), boxes_of(other)
    assert iou_3d(a, b).item() == pytest.approx(expected, abs=1e-12)
    assert iou_3d(b, a).item() == pytest.approx(expected, abs=1e-12)


def test_shape_of_volumes(random_boxes):
    a, b = close_together(random_boxes, 1, 4), close_together(random_boxes, 2, 6)
    overlap = iou_3d(a, b)
    assert overlap.shape == (4, 6)
    assert overlap[1, 4] == iou_3d(a[1], b[4])[0, 0]
    assert (overlap > 0).any()


def test_pairs_are_cut_into_blocks_without_a_difference(random_boxes, monkeypatch):
    a, b = close_together(random_boxes, 1, 7), close_together(random_boxes, 2, 5)
    expected, most = bev_intersection(a, b), []
    whole = iou._intersection
    monkeypatch.setattr(iou, "_intersection", lambda x, y: most.append(x.shape[0] * y.shape[1]) or whole(x, y))
    monkeypatch.setattr(iou, "PAIRS_AT_ONCE", 12)
    assert torch.equal(bev_intersection(a, b), expected)
    assert most == [10, 10, 10, 5]
    monkeypatch.setattr(iou, "PAIRS_AT_ONCE", 3)
    assert torch.equal(bev_intersection(a, b), expected)


def test_no_boxes():
    some = boxes_of(UNIT, UNIT)
    none = Boxes.empty(dtype=FLOAT64)
    assert bev_iou(none, some).shape == (0, 2)
    assert bev_iou(some, none).shape == (2, 0)
    assert iou_3d(none, none).shape == (0, 0)
    assert bev_iou_aligned(none, none).shape == (0,)
