"""Sum-pooling of lifted image features into the cells of a BEV grid."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bevkd_common.geometry.grid import Grid

IndexMode = Literal["truncate", "floor"]


def bev_cells(
    points: Tensor, grid: Grid, z_range: tuple[float, float], index_mode: IndexMode = "truncate"
) -> Tensor:
    """Which cell each point falls into; the grid is one slice high.

    Upstream: BEVDet and BEVDepth convert coordinates to indices by truncation toward zero, so that a point up
    to one cell size *below* a lower border still counts as cell 0. In x and y that is a ring of one cell; in
    z, where the slice of BEVDet is 20 m high, it keeps everything above -30 m instead of above -10 m, which is
    where the lowest image rows end at a large depth. Released weights expect it.

    Args:
        points: metres in the grid's frame, [..., 3].
        grid: the cells.
        z_range: lower and upper border of the slice in metres.
        index_mode: "truncate" as the released detectors do, "floor" for the exact borders.

    Returns:
        int64 [...]: `y * nx + x`, and `ny * nx`, one past the last cell, for points outside.
    """
    x, y, z = points.unbind(-1)
    round_down = torch.trunc if index_mode == "truncate" else torch.floor
    column = round_down((x - grid.x0) / grid.cell)
    row = round_down((y - grid.y0) / grid.cell)
    layer = round_down((z - z_range[0]) / (z_range[1] - z_range[0]))
    inside = (column >= 0) & (column < grid.nx) & (row >= 0) & (row < grid.ny) & (layer == 0)
    return torch.where(inside, row * grid.nx + column, grid.ny * grid.nx).long()


def bev_pool(depth: Tensor, context: Tensor, cells: Tensor, grid: Grid) -> Tensor:
    """Sum depth-weighted image features over the points of each cell; no average is taken.

    `bev[b, c, y, x] = Σ depth[b, n, d, h, w] · context[b, n, c, h, w]` over the points whose cell is (y, x).
    The products are formed one depth bin at a time: all at once they would be the largest tensor of the whole
    detector. Computed in float32 or wider, also under autocast.

    Args:
        depth: weights [B, N, D, H, W].
        context: features [B, N, C, H, W].
        cells: int64 [B, N, D, H, W], as `bev_cells` gives them.
        grid: the cells.

    Returns:
        [B, C, Y, X].

    Source: Lift, Splat, Shoot, section 3.2; the sum as in BEVDet.
    """
    batch, bins, channels = len(depth), depth.shape[2], context.shape[2]
    dtype = torch.promote_types(context.dtype, torch.float32)
    per_sample = grid.ny * grid.nx
    first_cell = torch.arange(batch, device=cells.device).view(-1, 1, 1, 1, 1) * per_sample
    # All points outside share one row behind the last sample's.
    cells = torch.where(cells < per_sample, cells + first_cell, batch * per_sample)
    # One row a pixel: [D, B·N·H·W] and [B·N·H·W, C].
    cells = cells.movedim(2, 0).reshape(bins, -1)
    weights = depth.to(dtype).movedim(2, 0).reshape(bins, -1, 1)
    features = context.to(dtype).permute(0, 1, 3, 4, 2).reshape(-1, channels)
    pooled = features.new_zeros(batch * per_sample + 1, channels)
    for index, weight in zip(cells, weights, strict=True):
        pooled.index_add_(0, index, weight * features)
    return pooled[:-1].unflatten(0, (batch, grid.ny, grid.nx)).permute(0, 3, 1, 2)
