import pytest
import torch
from bevkd_common.ops.voxelize import VoxelSpec, voxelize
from hypothesis import given, settings
from hypothesis import strategies as st

# 4 x 3 x 2 cells of 1 x 2 x 4 m.
SMALL = {"range_min": (-1.0, -2.0, -4.0), "range_max": (3.0, 4.0, 4.0), "size": (1.0, 2.0, 4.0)}


def points_of(*rows: tuple[float, ...]) -> torch.Tensor:
    """Points x, y, z; the other features number them."""
    return torch.tensor([[*row, float(i), 0.0] for i, row in enumerate(rows)])


def one_by_one(points, point_counts, spec):
    """Voxelisation as a loop over points: what mmcv's deterministic kernel computes."""
    voxels, coordinates, first = [], [], 0
    for sample, count in enumerate(point_counts):
        rows = {}
        for point in points[first : first + count].tolist():
            cell = []
            for axis in range(3):
                step = (torch.tensor(point[axis]) - torch.tensor(spec.range_min[axis])) / torch.tensor(
                    spec.size[axis]
                )
                cell.append(int(step.floor()))
            if not all(0 <= c < n for c, n in zip(cell, spec.cells, strict=True)):
                continue
            if tuple(cell) not in rows:
                if spec.max_voxels is not None and len(rows) == spec.max_voxels:
                    continue
                rows[tuple(cell)] = []
            if spec.max_points is None or len(rows[tuple(cell)]) < spec.max_points:
                rows[tuple(cell)].append(point)
        first += count
        coordinates += [[sample, z, y, x] for x, y, z in rows]
        voxels += rows.values()
    return voxels, coordinates


def test_cell_of_a_hand_computed_point():
    # (0.05 + 51.2) / 0.1 = 512.5 and (-1 + 5) / 0.2 = 20.
    spec = VoxelSpec((-51.2, -51.2, -5.0), (51.2, 51.2, 3.0), (0.1, 0.1, 0.2), 10, 100)
    points = torch.tensor([[9e9, 0, 0, 0, 0], [0.05, 0.07, -1.0 + 0.1, 7.0, 0.0]])
    voxels = voxelize(points, (1, 1), spec)
    assert spec.cells == (1024, 1024, 40)
    assert voxels.coordinates.tolist() == [[1, 20, 512, 512]]
    torch.testing.assert_close(voxels.points, points[1:])


def test_coordinates_are_batch_z_y_x():
    voxels = voxelize(points_of((2.5, 1.0, 3.0)), (1,), VoxelSpec(**SMALL))
    assert voxels.coordinates.tolist() == [[0, 1, 1, 3]]
    assert voxels.coordinates.dtype == torch.int64


def test_lower_border_is_inside_and_upper_border_is_outside():
    points = points_of((-1, -2, -4), (3, 0, 0), (0, 4, 0), (0, 0, 4), (2.9, 3.9, 3.9))
    voxels = voxelize(points, (5,), VoxelSpec(**SMALL))
    assert voxels.points[:, 3].tolist() == [0, 4]
    assert voxels.coordinates.tolist() == [[0, 0, 0, 0], [0, 1, 2, 3]]


def test_a_point_just_below_the_lower_border_is_not_truncated_into_the_first_cell():
    assert len(voxelize(points_of((-1.5, 0, 0)), (1,), VoxelSpec(**SMALL)).counts) == 0


def test_voxels_stand_in_the_order_of_their_first_point_and_points_in_the_order_they_came():
    points = points_of((2.5, 0.5, 0.5), (-0.5, 0.5, 0.5), (2.6, 0.6, 0.6), (-0.6, 0.4, 0.4), (2.7, 0.7, 0.7))
    voxels = voxelize(points, (5,), VoxelSpec(**SMALL))
    assert voxels.coordinates[:, 3].tolist() == [3, 0]
    assert voxels.counts.tolist() == [3, 2]
    assert voxels.voxel.tolist() == [0, 0, 0, 1, 1]
    assert voxels.points[:, 3].tolist() == [0, 2, 4, 1, 3]


def test_the_first_points_are_kept_and_open_voxels_fill_up_after_the_cap_on_voxels():
    a, b, c = (-0.5, 0, 0), (0.5, 0, 0), (1.5, 0, 0)
    points = points_of(a, b, c, a, a, b, c)
    voxels = voxelize(points, (7,), VoxelSpec(**SMALL, max_points=2, max_voxels=2))
    assert voxels.counts.tolist() == [2, 2]
    assert voxels.points[:, 3].tolist() == [0, 3, 1, 5]


def test_the_cap_on_voxels_holds_for_each_sample():
    a, b = (-0.5, 0, 0), (0.5, 0, 0)
    voxels = voxelize(points_of(a, b, b, a), (2, 2), VoxelSpec(**SMALL, max_voxels=1))
    assert voxels.coordinates.tolist() == [[0, 1, 1, 0], [1, 1, 1, 1]]
    assert voxels.points[:, 3].tolist() == [0, 2]


def test_points_that_are_not_finite_are_dropped():
    points = points_of((float("nan"), 0, 0), (0, float("inf"), 0), (0, 0, float("-inf")), (0, 0, 0))
    assert voxelize(points, (4,), VoxelSpec(**SMALL)).points[:, 3].tolist() == [3]


@pytest.mark.parametrize("max_points", [None, 3])
def test_empty_clouds_give_no_voxels(max_points):
    voxels = voxelize(torch.empty(0, 5), (0, 0), VoxelSpec(**SMALL, max_points=max_points, max_voxels=5))
    assert voxels.points.shape == (0, 5)
    assert voxels.coordinates.shape == (0, 4)
    assert voxels.counts.shape == voxels.voxel.shape == (0,)


def test_point_counts_must_add_up():
    with pytest.raises(ValueError, match=r"\(2,\) do not add up to 1 points"):
        voxelize(points_of((0, 0, 0)), (2,), VoxelSpec(**SMALL))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    max_points=st.one_of(st.none(), st.integers(1, 4)),
    max_voxels=st.one_of(st.none(), st.integers(1, 12)),
)
def test_equals_the_loop_over_points(seed, counts, max_points, max_voxels):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([5.0, 7.0, 9.0, 1.0, 1.0])
    # A quarter added to whole eighths keeps every point off the borders of cells.
    points = (torch.rand(sum(counts), 5, generator=generator) * spread * 8).round() / 8
    points[:, :3] += torch.tensor([-1.5, -2.5, -4.5]) + 1 / 32
    spec = VoxelSpec(**SMALL, max_points=max_points, max_voxels=max_voxels)
    expected_points, expected_coordinates = one_by_one(points, counts, spec)
    voxels = voxelize(points, tuple(counts), spec)
    assert voxels.coordinates.tolist() == expected_coordinates
    assert voxels.counts.tolist() == [len(rows) for rows in expected_points]
    assert voxels.points.tolist() == [point for rows in expected_points for point in rows]
    assert voxels.voxel.tolist() == [row for row, rows in enumerate(expected_points) for _ in rows]


def test_equal_specs_are_one_key():
    assert len({VoxelSpec(**SMALL), VoxelSpec(**SMALL), VoxelSpec(**SMALL, max_points=3)}) == 2
