"""Targets of the IoU-aware head: which cells predict which box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.heads.center_code import encode

REACH = 3
"""Cells around the cell of a box among which its nearest are looked for."""


@dataclass(frozen=True, eq=False)
class IouTargets:
    """Targets of all tasks; these are `HeatmapTargets`.

    Attributes:
        heatmaps: One [B, K, Y, X] map of zeros and ones per task.
        place: [P, 3] sample, task and flat cell of each positive.
        code: [P, 10] of the box that each positive predicts.
        boxes: [P, 9] that box.
    """

    heatmaps: list[Tensor]
    place: Tensor
    code: Tensor
    boxes: Tensor


@torch.no_grad()
def iou_targets(
    boxes: Boxes, task: Tensor, channel: Tensor, class_counts: list[int], grid: Grid, positives: int
) -> IouTargets:
    """Assign boxes to the cells whose lower corners are nearest to their centres.

    Each of these cells predicts the nearest box of the task, whichever made it positive.

    Args:
        boxes: [B, M].
        task: [B, M] int64; negative where there is no box.
        channel: [B, M] int64 class within the task.
        class_counts: Classes of each task.
        grid: Cells of the maps.
        positives: Cells of a box.

    Source: UniDistill's released code. Upstream: anchors are the lower corners of cells.
    """
    if not task.shape[1]:  # `argmin` needs a box, be it a padded one
        boxes = Boxes(boxes.tensor.new_zeros(len(task), 1, 9))
        task = channel = task.new_full((len(task), 1), -1)
    centers = boxes.centers[..., :2]
    position = (centers - centers.new_tensor([grid.x0, grid.y0])) / grid.cell
    steps = torch.arange(-REACH, REACH + 1, device=task.device)
    around = torch.cartesian_prod(steps, steps)
    cells = position.floor().long()[..., None, :] + around
    inside = ((cells >= 0) & (cells < cells.new_tensor([grid.nx, grid.ny]))).all(dim=-1)
    distance = (cells - position[..., None, :]).square().sum(dim=-1)
    distance = distance.masked_fill(~inside | (task < 0)[..., None], torch.inf)
    nearest = distance.topk(min(positives, len(around)), largest=False)
    sample, box, rank = nearest.values.isfinite().nonzero(as_tuple=True)
    cell = cells[sample, box, nearest.indices[sample, box, rank]]
    place = torch.stack([sample, task[sample, box], cell[:, 1] * grid.nx + cell[:, 0]], dim=1).unique(dim=0)
    sample, kind, flat = place.unbind(1)
    corner = torch.stack([flat % grid.nx, flat // grid.nx], dim=1)
    away = (position[sample] - corner[:, None]).square().sum(dim=-1)
    owner = away.masked_fill(task[sample] != kind[:, None], torch.inf).argmin(dim=1)
    owned = Boxes(boxes.tensor[sample, owner])
    offset = position[sample, owner] - corner
    return IouTargets(
        heatmaps=_heatmaps(place, channel[sample, owner], class_counts, (len(task), grid.ny, grid.nx)),
        place=place,
        code=encode(owned, offset),
        boxes=owned.tensor,
    )


def _heatmaps(place: Tensor, channel: Tensor, class_counts: list[int], shape: tuple[int, int, int]) -> list[Tensor]:
    samples, ny, nx = shape
    first = torch.tensor([0, *class_counts], device=place.device).cumsum(0)
    planes = torch.zeros(samples, sum(class_counts), ny * nx, device=place.device)
    planes[place[:, 0], first[place[:, 1]] + channel, place[:, 2]] = 1.0
    return list(planes.unflatten(2, (ny, nx)).split(class_counts, dim=1))
