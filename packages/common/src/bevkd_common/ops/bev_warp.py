"""Warping of an earlier BEV map into the present axes of the ego."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.grid import Grid


def warp_bev(
    past: Tensor,
    lidar_T_past: Tensor,
    grid: Grid,
    *,
    anchor: Literal["center", "corner"] = "center",
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """Resample a map over the grid of earlier LiDAR axes to the same grid of the present ones.

    Args:
        past: [B, C, Y, X].
        lidar_T_past: [B, 4, 4], earlier to present axes; heights are left out.
        grid: Of the map, in the axes of each moment.
        anchor: The point of a cell that moves: its "center", or its lower "corner".
        mode: What a cell takes: a mixture of the four cells around it, or the nearest one.

    Returns:
        [B, C, Y, X], zero where the earlier map does not reach.

    Upstream: BEVDet4D's released code moves corners, which shifts the map by up to a cell when the ego turns;
    weights trained so need it.
    """
    points = cell_centers(grid, past.device, torch.float64)
    if anchor == "corner":
        points = points - grid.cell / 2
    past_T_lidar = torch.linalg.inv(lidar_T_past.double())
    moved = torch.einsum("bij,yxj->byxi", past_T_lidar[:, :2, :2], points) + past_T_lidar[:, None, None, :2, 3]
    index = (moved - points[0, 0]) / grid.cell
    # grid_sample with aligned corners counts from -1 at the first sample to 1 at the last.
    size = torch.tensor([grid.nx - 1, grid.ny - 1], device=past.device, dtype=torch.float64)
    # Places need more digits than a map in half precision has.
    dtype = torch.promote_types(past.dtype, torch.float32)
    where = (2 * index / size - 1).to(dtype)
    return F.grid_sample(past.to(dtype), where, mode=mode, padding_mode="zeros", align_corners=True).to(past.dtype)
