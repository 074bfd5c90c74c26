"""The bird's-eye-view grid as plain numbers; needs no torch, so configs can hold one."""

from __future__ import annotations

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

    def matches(self, other: Grid) -> bool:
        """Whether both grids have the same cells, up to a thousandth of a cell at the borders."""
        if (self.nx, self.ny) != (other.nx, other.ny):
            return False
        tolerance = 1e-3 * min(self.cell, other.cell)
        return all(abs(a - b) <= tolerance for a, b in zip(self.extent, other.extent, strict=True))
