"""The bird's-eye-view grid and the depth bins as plain numbers; no torch here, so configs can hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A grid of square cells on the ground, in metres of the batch's LiDAR axes.

    Cell (row j, column i) covers `[x0 + i·cell, x0 + (i+1)·cell) × [y0 + j·cell, y0 + (j+1)·cell)`; maps over
    it are `[..., ny, nx]`.

    Attributes:
        x0: lower x border of the grid.
        y0: lower y border of the grid.
        cell: edge of a cell.
        nx: number of cells along x.
        ny: number of cells along y.

    Raises:
        ValueError: if the cell edge or a cell count is not positive.
    """

    x0: float
    y0: float
    cell: float
    nx: int
    ny: int

    def __post_init__(self) -> None:
        if not (self.cell > 0 and self.nx > 0 and self.ny > 0):
            raise ValueError(f"a grid needs a positive cell edge and positive cell counts, got {self}")

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Borders `(x_min, y_min, x_max, y_max)` in metres."""
        return (self.x0, self.y0, self.x0 + self.nx * self.cell, self.y0 + self.ny * self.cell)

    def coarsened(self, stride: float) -> Grid:
        """Return the grid of a map with `stride` times wider cells; a stride below 1 gives finer cells.

        The lower corner stays. A last row or column that does not fill a cell is cut off, as pooling does.
        """
        # A stride such as 1 / 3 must not lose a cell from rounding.
        nx, ny = (int(count / stride + 1e-6) for count in (self.nx, self.ny))
        return Grid(self.x0, self.y0, self.cell * stride, nx, ny)

    def matches(self, other: Grid) -> bool:
        """Whether both grids have the same cells, up to a thousandth of a cell at the borders."""
        if (self.nx, self.ny) != (other.nx, other.ny):
            return False
        tolerance = 1e-3 * min(self.cell, other.cell)
        return all(abs(a - b) <= tolerance for a, b in zip(self.extent, other.extent, strict=True))


@dataclass(frozen=True)
class DepthBins:
    """Equal depth bins in front of a camera, in metres: bin k starts at `start + k·step`, all below `stop`.

    Attributes:
        start: lower border of the first bin.
        stop: where the last bin ends; not a bin itself.
        step: width of a bin.

    Raises:
        ValueError: unless 0 < start < stop and step > 0.
    """

    start: float
    stop: float
    step: float

    def __post_init__(self) -> None:
        if not (0 < self.start < self.stop and self.step > 0):
            raise ValueError(f"depth bins need 0 < start < stop and a positive step, got {self}")

    @property
    def count(self) -> int:
        """Number of bins; (1, 60, 1) has 59."""
        # A step such as 0.1 must not gain a bin from rounding.
        return math.ceil((self.stop - self.start) / self.step - 1e-6)
