import dataclasses
import subprocess
import sys

import pytest
from bevkd_common.geometry.grid import DepthBins, Grid

NUSCENES = Grid(x0=-51.2, y0=-51.2, cell=0.8, nx=128, ny=128)


def test_extent_is_the_lower_corner_and_the_cells_from_there():
    assert Grid(x0=-10.0, y0=4.0, cell=0.5, nx=6, ny=8).extent == (-10.0, 4.0, -7.0, 8.0)
    assert NUSCENES.extent == pytest.approx((-51.2, -51.2, 51.2, 51.2))


@pytest.mark.parametrize(
    ("stride", "cells"),
    [(1, (10, 7)), (2, (5, 3)), (4, (2, 1)), (1 / 2, (20, 14)), (1 / 3, (30, 21)), (1 / 7, (70, 49))],
)
def test_coarser_and_finer_cells_start_at_the_same_corner(stride, cells):
    """Cells that stick out are cut off, and none is lost to rounding."""
    grid = Grid(x0=-1.0, y0=2.0, cell=0.6, nx=10, ny=7).coarsened(stride)
    assert (grid.nx, grid.ny) == cells
    assert (grid.x0, grid.y0, grid.cell) == (-1.0, 2.0, pytest.approx(0.6 * stride))


@pytest.mark.parametrize(
    "change",
    [{"x0": -51.0}, {"y0": -51.0}, {"nx": 127}, {"ny": 127}, {"cell": 0.81}, {"cell": 0.4, "nx": 256, "ny": 256}],
    ids=str,
)
def test_a_grid_with_other_cells_does_not_match(change):
    assert not NUSCENES.matches(dataclasses.replace(NUSCENES, **change))


def test_grids_match_up_to_a_thousandth_of_a_cell():
    assert NUSCENES.matches(NUSCENES)
    assert NUSCENES.matches(dataclasses.replace(NUSCENES, x0=-51.2 + 0.0007))
    assert not NUSCENES.matches(dataclasses.replace(NUSCENES, x0=-51.2 + 0.0009))
    assert not NUSCENES.matches(dataclasses.replace(NUSCENES, x0=-51.2 - 0.0009))


def test_cells_that_drift_apart_do_not_match():
    # 128 cells of 0.8001 end 1.3 cm away: sixteen times the tolerance, though each cell differs by 0.1 mm.
    assert not NUSCENES.matches(dataclasses.replace(NUSCENES, cell=0.8001))


@pytest.mark.parametrize("change", [{"cell": 0.0}, {"cell": -0.8}, {"nx": 0}, {"ny": 0}], ids=str)
def test_a_grid_without_cells_is_refused(change):
    with pytest.raises(ValueError, match="positive"):
        dataclasses.replace(NUSCENES, **change)


@pytest.mark.parametrize(
    ("bins", "count"),
    [
        (DepthBins(1.0, 60.0, 1.0), 59),  # BEVDet
        (DepthBins(1.0, 60.0, 0.5), 118),  # BEVDet 2.0 with depth
        (DepthBins(2.0, 58.0, 0.5), 112),  # BEVDepth
        (DepthBins(1.0, 2.3, 0.1), 13),  # 1.3 / 0.1 rounds to just above 13
        (DepthBins(1.0, 2.05, 0.1), 11),  # a last bin that is cut short still counts
    ],
    ids=str,
)
def test_number_of_depth_bins(bins, count):
    assert bins.count == count


@pytest.mark.parametrize(
    "bounds", [(0.0, 60.0, 1.0), (-1.0, 60.0, 1.0), (5.0, 5.0, 1.0), (1.0, 60.0, 0.0)], ids=str
)
def test_depth_bins_without_depth_are_refused(bounds):
    with pytest.raises(ValueError, match="0 < start < stop"):
        DepthBins(*bounds)


def test_the_grid_does_not_import_torch():
    code = "import sys, bevkd_common.geometry.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_grids_and_bins_are_keys():
    assert len({NUSCENES, dataclasses.replace(NUSCENES), dataclasses.replace(NUSCENES, nx=1)}) == 2
    assert len({DepthBins(1.0, 60.0, 1.0), DepthBins(1.0, 60.0, 1.0)}) == 1
