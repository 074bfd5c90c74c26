import torch
from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.grid import Grid


def test_cell_centers_are_rows_of_y_and_columns_of_x():
    centers = cell_centers(Grid(x0=-1.0, y0=10.0, cell=0.5, nx=3, ny=2), dtype=torch.float64)
    x = [-0.75, -0.25, 0.25]
    expected = [[[x[i], y] for i in range(3)] for y in (10.25, 10.75)]
    assert centers.shape == (2, 3, 2)
    assert centers.tolist() == expected


def test_cell_centers_of_the_nuscenes_grid():
    centers = cell_centers(Grid(x0=-51.2, y0=-51.2, cell=0.8, nx=128, ny=128))
    assert centers.dtype == torch.float32
    torch.testing.assert_close(centers[77, 64], torch.tensor([0.4, 10.8]), atol=1e-5, rtol=0)
