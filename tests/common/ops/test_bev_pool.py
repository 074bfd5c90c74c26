import itertools

import pytest
import torch
from bevkd_common.geometry.grid import Grid
from bevkd_common.ops.bev_pool import bev_cells, bev_pool

NUSCENES = Grid(x0=-51.2, y0=-51.2, cell=0.8, nx=128, ny=128)
OUTSIDE = 128 * 128
# Neither square nor centred: a transposed or mirrored index cannot pass.
OBLONG = Grid(x0=-2.0, y0=10.0, cell=0.5, nx=8, ny=4)


def cell_of(x: float, y: float, z: float, grid: Grid = NUSCENES, **kwargs: object) -> int:
    options = {"z_range": (-10.0, 10.0)} | kwargs
    return int(bev_cells(torch.tensor([x, y, z]), grid, **options))


@pytest.mark.parametrize(
    ("point", "cell"),
    [
        ((0.12791, 10.7, -1.9), 77 * 128 + 64),
        ((0.1, 0.1, 0.0), 64 * 128 + 64),
        ((-51.6, 0.1, 0.0), 64 * 128),  # -0.5 is cut to 0
        ((0.1, -51.6, 0.0), 64),
        ((-52.01, 0.1, 0.0), OUTSIDE),
        ((0.1, -52.01, 0.0), OUTSIDE),
        ((51.19, 0.1, 0.0), 64 * 128 + 127),
        ((51.21, 0.1, 0.0), OUTSIDE),
        ((0.1, 51.21, 0.0), OUTSIDE),
        ((0.1, 0.1, -19.3), 64 * 128 + 64),  # -0.465 of the 20 m slice
        ((0.1, 0.1, -29.9), 64 * 128 + 64),
        ((0.1, 0.1, -30.1), OUTSIDE),
        ((0.1, 0.1, 9.9), 64 * 128 + 64),
        ((0.1, 0.1, 10.1), OUTSIDE),
    ],
)
def test_truncation_keeps_a_ring_below_the_lower_borders_only(point: tuple[float, float, float], cell: int) -> None:
    assert cell_of(*point) == cell


@pytest.mark.parametrize(
    ("point", "cell"),
    [
        ((-51.6, 0.1, 0.0), OUTSIDE),
        ((0.1, -51.6, 0.0), OUTSIDE),
        ((0.1, 0.1, -10.1), OUTSIDE),
        ((-51.1, -51.1, -9.9), 0),
        ((51.1, 51.1, 9.9), OUTSIDE - 1),
        ((51.3, 51.1, 9.9), OUTSIDE),
        ((51.1, 51.1, 10.1), OUTSIDE),
    ],
)
def test_floor_keeps_the_exact_borders(point: tuple[float, float, float], cell: int) -> None:
    assert cell_of(*point, index_mode="floor") == cell


def test_slice_of_bevdepth_keeps_13_metres_below_ground() -> None:
    assert cell_of(0.1, 0.1, -12.0, z_range=(-5.0, 3.0)) == 64 * 128 + 64
    assert cell_of(0.1, 0.1, -13.01, z_range=(-5.0, 3.0)) == OUTSIDE


def test_rows_follow_y_and_columns_follow_x() -> None:
    assert cell_of(1.3, 10.7, 0.0, OBLONG) == 1 * 8 + 6
    assert cell_of(-1.9, 11.9, 0.0, OBLONG) == 3 * 8
    assert cell_of(-1.4, 12.1, 0.0, OBLONG) == 4 * 8  # outside, wherever it is along x


@pytest.mark.parametrize("mode", ["truncate", "floor"])
def test_points_that_are_not_finite_are_outside(mode: str) -> None:
    for axis, value in itertools.product(range(3), [torch.nan, torch.inf, -torch.inf]):
        point = torch.tensor([0.1, 0.1, 0.0])
        point[axis] = value
        assert bev_cells(point, NUSCENES, (-10.0, 10.0), mode) == OUTSIDE


def test_two_points_in_one_cell_add_up_and_each_gets_its_gradient() -> None:
    points = torch.tensor([[0.1, 0.1, 0.0], [0.3, 0.5, 0.0], [51.21, 0.0, 0.0]])
    cells = bev_cells(points, NUSCENES, (-10.0, 10.0)).view(1, 1, 1, 1, 3)
    context = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 1, 3).requires_grad_()
    depth = torch.ones(1, 1, 1, 1, 3, requires_grad=True)

    bev = bev_pool(depth, context, cells, NUSCENES)

    expected = torch.zeros(1, 1, 128, 128)
    expected[0, 0, 64, 64] = 3.0
    torch.testing.assert_close(bev, expected, rtol=0, atol=0)
    bev.sum().backward()
    assert context.grad is not None
    assert depth.grad is not None
    assert context.grad.flatten().tolist() == [1.0, 1.0, 0.0]
    assert depth.grad.flatten().tolist() == [1.0, 2.0, 0.0]


def random_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(2, 3, 4, 2, 5, generator=generator, dtype=dtype)
    context = torch.randn(2, 3, 6, 2, 5, generator=generator, dtype=dtype)
    cells = torch.randint(0, OBLONG.ny * OBLONG.nx + 1, depth.shape, generator=generator)
    return depth, context, cells


def test_pooling_equals_the_sum_point_by_point() -> None:
    depth, context, cells = random_inputs(torch.float64)
    expected = torch.zeros(2, 6, 4, 8, dtype=torch.float64)
    inside = 0
    for b, n, d, h, w in itertools.product(*map(range, depth.shape)):
        row, column = divmod(int(cells[b, n, d, h, w]), 8)
        if row < 4:
            inside += 1
            expected[b, :, row, column] += depth[b, n, d, h, w] * context[b, n, :, h, w]
    assert 0 < inside < depth.numel()
    torch.testing.assert_close(bev_pool(depth, context, cells, OBLONG), expected)


def test_gradients_equal_finite_differences() -> None:
    depth, context, cells = random_inputs(torch.float64)
    assert torch.autograd.gradcheck(
        lambda d, c: bev_pool(d, c, cells, OBLONG), (depth.requires_grad_(), context.requires_grad_())
    )


def test_sums_are_float32_under_autocast() -> None:
    depth, context, cells = random_inputs(torch.float32)
    exact = bev_pool(depth, context.bfloat16().float(), cells, OBLONG)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = bev_pool(depth, context.bfloat16(), cells, OBLONG)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, exact)


def test_map_is_laid_out_channels_last() -> None:
    assert bev_pool(*random_inputs(torch.float32), OBLONG).is_contiguous(memory_format=torch.channels_last)


def test_outputs_and_gradients_equal_the_naive_reference_in_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (2, 3, 5, 2, 4)
    depth = torch.rand(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 3, 6, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    cells = torch.randint(0, OBLONG.nx * OBLONG.ny + 1, shape, generator=generator)
    ours = bev_pool(depth, context, cells, OBLONG)
    flat = context.new_zeros(2, OBLONG.ny * OBLONG.nx + 1, 6)
    for b, n, d, h, w in itertools.product(*map(range, shape)):
        cell = int(cells[b, n, d, h, w])
        added = torch.zeros_like(flat)
        added[b, cell] = 1.0
        flat = flat + added * (depth[b, n, d, h, w] * context[b, n, :, h, w])
    theirs = flat[:, :-1].unflatten(1, (OBLONG.ny, OBLONG.nx)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for mine, reference in zip(
        torch.autograd.grad((ours * weight).sum(), (depth, context)),
        torch.autograd.grad((theirs * weight).sum(), (depth, context)),
        strict=True,
    ):
        assert float(reference.abs().max()) > 0.1
        torch.testing.assert_close(mine, reference, atol=1e-10, rtol=0)
