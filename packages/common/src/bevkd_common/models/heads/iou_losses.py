"""Losses of the IoU-aware head.

Source: UniDistill's released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes

CLIP = 1e-4
POSITIVE_WEIGHT = 0.25
NEGATIVE_WEIGHT = 0.75


def hard_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss of targets that are 0 or 1, [B, K, Y, X] to a sum.

    `-1/4 (1 - p)² log p` where the target is 1, `-3/4 p² log(1 - p + 1e-4)` elsewhere, p clipped to [1e-4, 1 -
    1e-4].
    """
    p = logits.float().sigmoid().clamp(CLIP, 1 - CLIP)
    positive = -POSITIVE_WEIGHT * (1 - p).square() * p.log()
    negative = -NEGATIVE_WEIGHT * p.square() * (1 - p + CLIP).log()
    return torch.where(target == 1, positive, negative).sum()


def snapped_iou(first: Boxes, second: Boxes) -> Tensor:
    """IoU of footprints row by row, each turned to the nearest axis: [P, 9] twice give [P].

    Length and width are exchanged where the yaw is more than 45 degrees from the x axis.
    """
    overlap, areas = [], []
    for axis in (0, 1):
        low, high = zip(*(_borders(boxes, axis) for boxes in (first, second)), strict=True)
        overlap.append((torch.minimum(*high) - torch.maximum(*low)).clamp(min=0))
    areas = [boxes.l * boxes.w for boxes in (first, second)]
    common = overlap[0] * overlap[1]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-6)


def upright_iou(first: Boxes, second: Boxes, *, swap_width_and_height: bool = False) -> Tensor:
    """IoU of volumes row by row, without their yaws: [P, 9] twice give [P].

    Upstream: the released code exchanges width and height.
    """
    order = [0, 2, 1] if swap_width_and_height else [0, 1, 2]
    half = [boxes.size[:, order] / 2 for boxes in (first, second)]
    low = torch.maximum(first.centers - half[0], second.centers - half[1])
    high = torch.minimum(first.centers + half[0], second.centers + half[1])
    common = (high - low).clamp(min=0).prod(dim=-1)
    volumes = [boxes.size.prod(dim=-1) for boxes in (first, second)]
    return common / (volumes[0] + volumes[1] - common).clamp(min=1e-6)


def uncertainty_weighted(losses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [T, L] of T tasks under learned weights [L]: `L / (2 w²)` summed over tasks, [L], and the penalty.

    The penalty is T times the sum of `log(1 + w²)`.
    """
    squares = weights.square()
    return (0.5 * losses / squares).sum(dim=0), len(losses) * squares.log1p().sum()


def _borders(boxes: Boxes, axis: int) -> tuple[Tensor, Tensor]:
    turned = boxes.yaw.sin().abs() > boxes.yaw.cos().abs()
    along, across = (boxes.l, boxes.w) if axis == 0 else (boxes.w, boxes.l)
    half = torch.where(turned, across, along) / 2
    center = boxes.centers[:, axis]
    return center - half, center + half
