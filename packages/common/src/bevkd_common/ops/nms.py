"""Non-maximum suppression in blocks, without a loop over boxes; boxes come best first.

Memory grows with the number of boxes times the size of a block, not with the square of the number of boxes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.iou import bev_iou_aligned

BLOCK = 1024
"""Boxes that are compared with as many others at once; it bounds the memory, not the result."""


class Overlaps(Protocol):
    """A rule that says which boxes suppress which."""

    def __call__(self, first: Boxes, second: Boxes, wanted: Tensor) -> Tensor:
        """Compare boxes [..., I, 9] with boxes [..., J, 9].

        Args:
            first: The boxes that suppress.
            second: The boxes that are suppressed.
            wanted: [..., I, J] bool, the pairs that matter; the result for other pairs is not read.

        Returns:
            [..., I, J] bool.
        """
        ...


def suppress(boxes: Boxes, valid: Tensor, overlaps: Overlaps, block: int = BLOCK) -> Tensor:
    """Suppress greedily: a valid box is kept unless a kept box before it overlaps it.

    Args:
        boxes: [..., N, 9], best first.
        valid: [..., N] bool, the boxes that take part.
        overlaps: Which boxes suppress which.
        block: See `BLOCK`.

    Returns:
        [..., N] bool, the boxes that are kept.
    """
    keep = torch.zeros_like(valid)
    count = valid.shape[-1]
    for start in range(0, count, block):
        here = slice(start, min(start + block, count))
        candidates, alive = Boxes(boxes.tensor[..., here, :]), valid[..., here]
        for first in range(0, start, block):
            before = slice(first, first + block)
            wanted = keep[..., before].unsqueeze(-1) & alive.unsqueeze(-2)
            hit = overlaps(Boxes(boxes.tensor[..., before, :]), candidates, wanted) & wanted
            alive = alive & ~hit.any(dim=-2)
        wanted = (alive.unsqueeze(-1) & alive.unsqueeze(-2)).triu(diagonal=1)
        keep[..., here] = alive & keep_best(overlaps(candidates, candidates, wanted) & wanted)
    return keep


def keep_best(overlaps: Tensor) -> Tensor:
    """Resolve the pairs of one block.

    All boxes are assumed kept, and the assumption is corrected until nothing changes: each pass settles at least
    one more box for good, and a chain of boxes that suppress one another in turn needs a pass for each link.

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


def circle_overlaps(first: Boxes, second: Boxes, squared_distance: float) -> Tensor:
    """Find the pairs [..., I, J] whose centres are `squared_distance` m² or less apart on the ground.

    Upstream: CenterPoint's thresholds are compared with squared distances; its car's 4 is 2 m.
    """
    offset = first.centers[..., :2].unsqueeze(-2) - second.centers[..., :2].unsqueeze(-3)
    return offset.square().sum(dim=-1) <= squared_distance


def rotated_overlaps(first: Boxes, second: Boxes, wanted: Tensor, iou: float) -> Tensor:
    """Find the wanted pairs [..., I, J] whose footprints overlap by more than `iou`.

    The IoU is computed only for pairs whose circumscribed circles touch.
    """
    distance = torch.linalg.vector_norm(
        first.centers[..., :2].unsqueeze(-2) - second.centers[..., :2].unsqueeze(-3), dim=-1
    )
    pairs = wanted & (distance <= _radius(first).unsqueeze(-1) + _radius(second).unsqueeze(-2))
    rows, columns = pairs.shape[-2:]
    leading, row, column = pairs.reshape(-1, rows, columns).nonzero(as_tuple=True)
    mine = first.tensor.reshape(-1, first.tensor.shape[-1])[leading * rows + row]
    other = second.tensor.reshape(-1, second.tensor.shape[-1])[leading * columns + column]
    overlaps = torch.zeros_like(pairs)
    overlaps[pairs] = bev_iou_aligned(Boxes(mine), Boxes(other)) > iou
    return overlaps


def _radius(boxes: Boxes) -> Tensor:
    return torch.hypot(boxes.l, boxes.w) / 2
