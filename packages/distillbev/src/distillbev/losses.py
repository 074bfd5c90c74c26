"""The equations of DistillBEV, one function each; pure functions of tensors.

Boxes, masks and feature maps share the batch's LiDAR axes. Masks, scales and attention are [B, Y, X]; feature
maps [B, C, Y, X]. Losses come back unweighted: the caller multiplies alpha, beta and so on. Nothing is divided by
the number of channels or cells, only by the batch.

Source: DistillBEV, ICCV 2023. Where the paper's prose leaves a form open (equations 3 and 8), it is that of the
released training runs; the numbers 4 to 6 of the attention's three steps follow from their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.boxes import Boxes, points_in_boxes_bev
from bevkd_common.geometry.grid import Grid
from torch import Tensor
from torch.nn import functional as F

SamplePoint = Literal["center", "corner"]
Overlap = Literal["first", "smallest"]
AttentionSource = Literal["teacher_student", "teacher", "none"]
AttentionMap = Literal["signed_mean", "abs_mean"]

PROBABILITY_MARGIN = 1e-4
"""Teacher probabilities stay this far from 0 and 1, as the head's own loss keeps them."""

BLOCK = 1 << 22
"""Box-cell pairs that are tested at once; bounds the memory of crowded scenes, not the result."""


class Regions(NamedTuple):
    """The region of each cell, and the weight of the cell in it.

    Attributes:
        foreground: [B, Y, X] bool, cells in a ground-truth box.
        false_positive: [B, Y, X] bool, cells where only the teacher predicts an object.
        background: [B, Y, X] bool, every other cell. The three masks partition the grid.
        scale: [B, Y, X] S of equation 3.
    """

    foreground: Tensor
    false_positive: Tensor
    background: Tensor
    scale: Tensor


def foreground_and_scale(
    boxes: Boxes,
    valid: Tensor,
    grid: Grid,
    sample: SamplePoint = "center",
    overlap: Overlap = "first",
    ensure_center_cell: bool = False,
) -> tuple[Tensor, Tensor]:
    """Equations 1 and 3 on the foreground: cells in a ground-truth box, and 1 / sqrt(its area in cells).

    A cell is foreground if its sample point lies strictly inside the rotated footprint of a box; height and class
    do not matter.

    Args:
        boxes: [B, M] boxes, in the axes of `grid`.
        valid: [B, M] bool, False where padded.
        grid: Cells of the feature map that is compared.
        sample: Where in the cell the sample point lies. Upstream: the released code for convolutional students
            takes the lower corner, which moves the mask by half a cell; its transformer variant takes the centre.
        overlap: Which box owns a cell that several cover: the first of the list, as upstream, or the smallest.
        ensure_center_cell: Whether a box that holds no sample point gets the cell its centre lies in; upstream
            such a box (three of four traffic cones at 0.8 m) vanishes.

    Returns:
        The mask [B, Y, X], and S [B, Y, X], zero outside the mask, in the dtype of the boxes.
    """
    areas = boxes.l * boxes.w / grid.cell**2
    if overlap == "smallest":
        order = areas.argsort(dim=1)
        boxes = Boxes(boxes.tensor.gather(1, order[..., None].expand_as(boxes.tensor)))
        valid, areas = valid.gather(1, order), areas.gather(1, order)
    owner = _first_box_of_cell(boxes, valid, grid, sample, ensure_center_cell)
    unowned = areas.new_zeros(len(areas), 1)
    scale = torch.cat([areas.rsqrt(), unowned], dim=1).gather(1, owner)
    cells = (len(owner), grid.ny, grid.nx)
    return (owner < len(boxes)).view(cells), scale.view(cells)


def _first_box_of_cell(
    boxes: Boxes, valid: Tensor, grid: Grid, sample: SamplePoint, ensure_center_cell: bool
) -> Tensor:
    """Index [B, Y·X] of the first box that covers each cell, M where none does."""
    points = cell_centers(grid, boxes.tensor.device, boxes.tensor.dtype).flatten(0, 1)
    if sample == "corner":
        points = points - grid.cell / 2
    batch, count = valid.shape
    owner = torch.full((batch, len(points)), count, device=valid.device, dtype=torch.int32)
    step = max(1, BLOCK // (batch * len(points)))
    for start in range(0, count, step):
        block = Boxes(boxes.tensor[:, start : start + step])
        covered = points_in_boxes_bev(points, block)
        if ensure_center_cell:
            covered = covered | (_center_cell(block, grid) & ~covered.any(dim=-1, keepdim=True))
        covered = covered & valid[:, start : start + step, None]
        number = torch.arange(start, start + covered.shape[1], device=valid.device, dtype=torch.int32)
        owner = torch.minimum(owner, torch.where(covered, number[:, None], count).amin(dim=1))
    return owner.long()


def _center_cell(boxes: Boxes, grid: Grid) -> Tensor:
    """One-hot [B, M, Y·X] of the cell that holds a box's centre; all False for centres off the grid."""
    column = torch.floor((boxes.x - grid.x0) / grid.cell)[..., None]
    row = torch.floor((boxes.y - grid.y0) / grid.cell)[..., None]
    on_column = torch.arange(grid.nx, device=column.device) == column
    on_row = torch.arange(grid.ny, device=row.device) == row
    return (on_row[..., :, None] & on_column[..., None, :]).flatten(-2)


def teacher_heatmap(logits: Sequence[Tensor]) -> Tensor:
    """The teacher's class-agnostic heat map [B, Y, X]: the largest probability over the classes of all tasks.

    Args:
        logits: One [B, K, Y, X] map a task, as the head returns them.

    Upstream: the sigmoid is taken in place there, so that a second call on the same prediction reads probabilities
    as logits and turns the whole background into false positives. Here the logits stay as they are.
    """
    probability = torch.cat([task.sigmoid() for task in logits], dim=1)
    return probability.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN).amax(dim=1)


def ground_truth_heatmap(heatmaps: Sequence[Tensor]) -> Tensor:
    """The class-agnostic ground truth [B, Y, X] of the tasks' Gaussian maps [B, K, Y, X]."""
    return torch.cat(list(heatmaps), dim=1).amax(dim=1)


def resample_heatmap(heatmap: Tensor, rows: int, columns: int) -> Tensor:
    """Bring a heat map [B, Y, X] to another resolution: pooled by maximum, or repeated.

    Raises:
        ValueError: If the two resolutions are not whole multiples of each other.
    """
    have = heatmap.shape[-2:]
    if have[0] % rows == 0 and have[1] % columns == 0:
        kernel = (have[0] // rows, have[1] // columns)
        return F.max_pool2d(heatmap[:, None], kernel)[:, 0]
    if rows % have[0] == 0 and columns % have[1] == 0:
        return heatmap.repeat_interleave(rows // have[0], 1).repeat_interleave(columns // have[1], 2)
    raise ValueError(f"a heat map of {tuple(have)} cells does not fit a feature map of {(rows, columns)}")


def false_positive_mask(
    teacher: Tensor, ground_truth: Tensor, foreground: Tensor, gamma_teacher: float, gamma_ground_truth: float
) -> Tensor:
    """Equation 2: FP = (H_t > gamma) and (H_g < gamma), outside the boxes.

    Args:
        teacher: [B, Y, X] class-agnostic probability.
        ground_truth: [B, Y, X] class-agnostic Gaussians.
        foreground: [B, Y, X] bool.
        gamma_teacher: Probability above which the teacher predicts an object.
        gamma_ground_truth: Value below which the ground truth has none.
    """
    return (teacher > gamma_teacher) & (ground_truth < gamma_ground_truth) & ~foreground


def decompose(foreground: Tensor, foreground_scale: Tensor, false_positive: Tensor | None) -> Regions:
    """Equations 1 and 3, the whole grid: regions, and S = 1 / N of the region on FP and TN.

    The weights of a region that exists sum to one per sample; an empty region simply has none.

    Args:
        foreground: [B, Y, X] bool.
        foreground_scale: [B, Y, X] S inside boxes, zero elsewhere.
        false_positive: [B, Y, X] bool, or None where that region is not used: its cells are background then.

    Upstream: S on the foreground has the floor 1 / N_TN there, which no real box reaches.
    """
    if false_positive is None:
        false_positive = torch.zeros_like(foreground)
    background = ~foreground & ~false_positive
    dtype = foreground_scale.dtype
    scale = foreground_scale + _share_of_region(false_positive, dtype) + _share_of_region(background, dtype)
    return Regions(foreground, false_positive, background, scale)


def _share_of_region(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / N inside a mask [B, Y, X] of N cells, 0 outside."""
    inside = mask.to(dtype)
    return inside / inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def level_scale(regions: Regions) -> Regions:
    """Equation 3 ablated: all foreground cells of a sample count the same, and their sum stays what it was.

    Without adaptive scaling an object counts by its area; the weight of the foreground as a whole does not change.
    """
    foreground = regions.foreground
    total = (regions.scale * foreground).sum(dim=(1, 2), keepdim=True)
    level = torch.where(foreground, total * _share_of_region(foreground, total.dtype), regions.scale)
    return regions._replace(scale=level)


def level_weight(regions: Regions, alpha: float, w_fp: float, beta: float) -> Tensor:
    """Equation 1 ablated: all cells of a sample weigh the same, and their sum stays what it was; [B, Y, X]."""
    parts = ((regions.foreground, alpha), (regions.false_positive, w_fp), (regions.background, beta))
    weight = torch.stack([mask * regions.scale * factor for mask, factor in parts]).sum(dim=0)
    return weight.mean(dim=(1, 2), keepdim=True).expand_as(weight)


def spatial_attention(features: Tensor, tau: float) -> Tensor:
    """Equations 4 and 5: P(F) = mean_c |F|, and N(F) = Y·X · softmax of P / tau over the cells; mean one."""
    # A norm, because it needs no copy of the features.
    magnitude = torch.linalg.vector_norm(features, ord=1, dim=1) / features.shape[1]
    share = (magnitude / tau).flatten(1).softmax(dim=1)
    return share.view_as(magnitude) * share.shape[1]


def combined_attention(
    teacher: Tensor, student: Tensor, source: AttentionSource, tau: float, student_ratio: float
) -> Tensor:
    """Equation 6: A = (N(F_t) + r · N(F_s)) / (1 + r); [B, Y, X], mean one, without gradient.

    Args:
        teacher: [B, C, Y, X].
        student: [B, C, Y, X], adapted.
        source: Both maps, the teacher's alone, or none: A = 1.
        tau: Temperature, in units of the features.
        student_ratio: r, weight of the student's map relative to the teacher's.
    """
    if source == "none":
        return torch.ones_like(teacher[:, 0])
    attention = spatial_attention(teacher.detach(), tau)
    if source == "teacher":
        return attention
    return (attention + student_ratio * spatial_attention(student.detach(), tau)) / (1 + student_ratio)


def channel_attention(teacher: Tensor, tau: float) -> Tensor:
    """C · softmax over the channels of the mean |F_t| over the cells, divided by tau; [B, C], mean one.

    Upstream: multiplies the false-positive term, although the released runs switch channel attention off
    elsewhere; the paper does not mention it.
    """
    share = (teacher.abs().mean(dim=(2, 3)) / tau).softmax(dim=1)
    return share * share.shape[1]


def squared_error(teacher: Tensor, student: Tensor, channel_weight: Tensor | None = None) -> Tensor:
    """(F_s - F_t)^2 summed over the channels [B, Y, X], the channels weighted by [B, C] where given."""
    error = F.mse_loss(student, teacher, reduction="none")
    if channel_weight is not None:
        error = error * channel_weight[:, :, None, None]
    return error.sum(dim=1)


def feature_imitation(error: Tensor, cell_weight: Tensor, attention: Tensor) -> Tensor:
    """Equation 7 of one region: the sum of error · weight · A over the cells, averaged over the batch.

    Args:
        error: [B, Y, X] squared error, summed over the channels.
        cell_weight: [B, Y, X] mask times S.
        attention: [B, Y, X].
    """
    return (error * cell_weight * attention).sum() / len(error)


def attention_imitation(
    teacher: Tensor,
    student: Tensor,
    attention_map: AttentionMap,
    kernel: Callable[[Tensor], Tensor],
) -> Tensor:
    """Equation 8: the sum over the cells of |mean_c F_t - K(mean_c F_s)|, averaged over the batch.

    Args:
        teacher: [B, C, Y, X].
        student: [B, C, Y, X], adapted.
        attention_map: Mean of the features, as upstream, or of their absolute values.
        kernel: K, from [B, 1, Y, X] to the same shape; acts on the student alone. Upstream: a learnable 3x3
            convolution with bias, which can take up a gain and an offset without aligning the features.
    """
    if attention_map == "abs_mean":
        teacher, student = teacher.abs(), student.abs()
    target = teacher.mean(dim=1, keepdim=True)
    return (target - kernel(student.mean(dim=1, keepdim=True))).abs().sum() / len(teacher)
