"""Non-maximum suppression without a loop over boxes; boxes come best first."""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.iou import bev_iou_aligned


def keep_best(overlaps: Tensor) -> Tensor:
    """Greedy suppression.

    A box is kept unless a kept box before it overlaps it. Assuming all are kept and correcting until nothing
    changes reaches the same set: each pass settles at least one more box for good, and a chain of boxes that
    suppress one another in turn needs as many passes as it has links.

    Args:
        overlaps: [..., N, N] bool, whether box i, if kept, suppresses box j; read for i before j only.

    Returns:
        [..., N] bool.
    """
    earlier = overlaps.triu(diagonal=1)
    keep = torch.ones(overlaps.shape[:-1], dtype=torch.bool, device=overlaps.device)
    for _ in range(overlaps.shape[-1]):
        corrected = ~(earlier & keep.unsqueeze(-1)).any(dim=-2)
        if torch.equal(corrected, keep):
            break
        keep = corrected
    return keep


def circle_overlaps(boxes: Boxes, squared_distance: float) -> Tensor:
    """Pairs [..., N, N] of boxes [..., N, 9] whose centres are `squared_distance` m² or less apart on the ground.

    Upstream: CenterPoint's thresholds are compared with squared distances; its car's 4 is 2 m.
    """
    centers = boxes.centers[..., :2]
    return (centers.unsqueeze(-2) - centers.unsqueeze(-3)).square().sum(dim=-1) <= squared_distance


def rotated_overlaps(boxes: Boxes, valid: Tensor, iou: float) -> Tensor:
    """Pairs [..., N, N] of boxes [..., N, 9], both `valid` [..., N], whose footprints overlap by more than `iou`.

    Only pairs i < j are compared, and of those only such whose circumscribed circles touch.
    """
    radius = torch.hypot(boxes.l, boxes.w) / 2
    centers = boxes.centers[..., :2]
    distance = torch.linalg.vector_norm(centers.unsqueeze(-2) - centers.unsqueeze(-3), dim=-1)
    near = distance <= radius.unsqueeze(-1) + radius.unsqueeze(-2)
    pairs = (near & valid.unsqueeze(-1) & valid.unsqueeze(-2)).triu(diagonal=1)
    first, second = _rows_of_pairs(pairs)
    flat = boxes.tensor.reshape(-1, boxes.tensor.shape[-1])
    overlaps = torch.zeros_like(pairs)
    overlaps[pairs] = bev_iou_aligned(Boxes(flat[first]), Boxes(flat[second])) > iou
    return overlaps


def _rows_of_pairs(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The two box rows, counted through all leading dimensions, of each pair [..., N, N] that is set."""
    size = pairs.shape[-1]
    leading, first, second = pairs.reshape(-1, size, size).nonzero(as_tuple=True)
    return leading * size + first, leading * size + second
