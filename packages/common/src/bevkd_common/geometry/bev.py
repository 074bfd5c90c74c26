"""Where the cells of a bird's-eye-view grid lie."""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_common.geometry.grid import Grid


def cell_centers(
    grid: Grid, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Centres [Y, X, 2] of the cells as (x, y) in metres."""
    x = grid.x0 + (torch.arange(grid.nx, device=device, dtype=dtype) + 0.5) * grid.cell
    y = grid.y0 + (torch.arange(grid.ny, device=device, dtype=dtype) + 0.5) * grid.cell
    row_y, column_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([column_x, row_y], dim=-1)
