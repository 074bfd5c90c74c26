"""Targets of the centre-point head: Gaussians at the centres, and a code of each box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import CenterTargets
from bevkd_common.models.heads.center_code import encode

MAX_BOXES = 500
"""Maximum number of boxes of a task in one sample; the first ones are used."""


def center_targets(
    boxes: Boxes,
    task: Tensor,
    channel: Tensor,
    class_counts: Sequence[int],
    grid: Grid,
    overlap: float,
    min_radius: int,
) -> CenterTargets:
    """Heat maps and box codes of a batch.

    Args:
        boxes: [B, M, 9] boxes.
        task: [B, M] int64, the task of each box; -1 where there is no box.
        channel: [B, M] int64, the class of each box within its task.
        class_counts: Classes of each task.
        grid: Cells of the head.
        overlap: See `gaussian_radius`.
        min_radius: Smallest radius of a Gaussian, in cells.

    Upstream: cells are truncated toward zero, not floored, as in mmdet3d: a centre up to one cell outside the
    lower border is learned at the border, with a negative offset.
    """
    center = _in_cells(boxes, grid)
    cell = center.trunc().long()
    inside = ((cell >= 0) & (cell < cell.new_tensor([grid.nx, grid.ny]))).all(dim=-1)
    usable = inside & (boxes.l > 0) & (boxes.w > 0)
    counted = torch.stack(
        [(task == t) & ((task == t).cumsum(dim=1) <= MAX_BOXES) for t in range(len(class_counts))]
    )
    masks = counted & usable
    learned = masks.any(dim=0)

    radius = gaussian_radius(boxes.w / grid.cell, boxes.l / grid.cell, overlap).long().clamp(min=min_radius)
    first_channel = torch.tensor([0, *class_counts], device=task.device).cumsum(0)
    sample = torch.arange(len(task), device=task.device)[:, None].expand_as(task)
    plane = sample * sum(class_counts) + first_channel[task] + channel
    heatmaps = draw_gaussians(
        plane[learned], cell[learned], radius[learned], (len(task) * sum(class_counts), grid.ny, grid.nx)
    )
    heatmaps = heatmaps.view(len(task), sum(class_counts), grid.ny, grid.nx)

    code = torch.where(learned[..., None], encode(boxes, center - cell), 0.0)
    indices = torch.where(learned, cell[..., 1] * grid.nx + cell[..., 0], 0)
    return CenterTargets(
        heatmaps=heatmaps.split(list(class_counts), dim=1),
        regression=[code] * len(class_counts),
        indices=[indices] * len(class_counts),
        mask=list(masks),
    )


def gaussian_radius(width: Tensor, length: Tensor, overlap: float) -> Tensor:
    """Radius in cells within which a shifted box still has an IoU of `overlap`; float64, not rounded.

    Upstream: CornerNet takes the least of three solutions. Its code, and all code derived from it, divides each
    by 2 where the quadratic formula has 2a; reproduced. With this error the solution below is always the least:
    it is at most (√o - o)(w + l) ≤ (w + l) / 4, the other two are at least (w + l) / 2.

    Source: CornerNet, section 3.2; CenterPoint.
    """
    area, scaled = width.double() * length.double(), overlap * (width.double() + length.double())
    return (scaled.square() + 4 * overlap * (1 - overlap) * area).sqrt() - scaled


def draw_gaussians(plane: Tensor, cell: Tensor, radius: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Draw Gaussians on planes of zeros; where they overlap, the larger value is used.

    Each covers the square window of its radius r with standard deviation (2r + 1) / 6 and is 1 at its centre.

    Args:
        plane: [G] int64, the plane that each is drawn on.
        cell: [G, 2] int64, column and row of its centre, on the plane.
        radius: [G] int64, in cells.
        shape: Number of planes, rows, columns.

    Returns:
        `shape`, float32.

    Upstream: the reference zeroes values below the float epsilon of the peak; within a window no value is
    below e⁻⁹, so no value is zeroed.
    """
    _, ny, nx = shape
    reach = int(radius.max()) if len(radius) else 0
    steps = torch.arange(-reach, reach + 1, device=cell.device)
    dy, dx = (offset.flatten() for offset in torch.meshgrid(steps, steps, indexing="ij"))
    x, y = cell[:, :1] + dx, cell[:, 1:] + dy
    sigma = (2 * radius[:, None] + 1) / 6
    value = torch.exp(-(dx.square() + dy.square()) / (2 * sigma.square()))
    value = value * (torch.maximum(dx.abs(), dy.abs()) <= radius[:, None])
    # Values beyond a border are moved to the border, where the same Gaussian is larger.
    index = (plane[:, None] * ny + y.clamp(0, ny - 1)) * nx + x.clamp(0, nx - 1)
    planes = torch.zeros(shape, device=cell.device)
    planes.view(-1).scatter_reduce_(0, index.flatten(), value.flatten(), reduce="amax")
    return planes


def _in_cells(boxes: Boxes, grid: Grid) -> Tensor:
    """Centres [..., M, 2] as fractional column and row."""
    return (boxes.centers[..., :2] - boxes.tensor.new_tensor([grid.x0, grid.y0])) / grid.cell
