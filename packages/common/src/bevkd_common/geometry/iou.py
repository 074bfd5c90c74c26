"""Overlap of rotated boxes, exact up to rounding.

The footprints of a pair are looked at in the axes of the second one, a rectangle there. At each x the first
one covers an interval of y, whose overlap with the rectangle is a piecewise linear function of x; its kinks
can only be where the first footprint has a corner or an edge crosses a horizontal side. Between neighbouring
kinks the value half-way times the distance is the area. No polygon is built, so identical, touching,
contained and degenerate boxes are no special cases.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes, bev_corners

PAIRS_AT_ONCE = 1 << 17
"""Pairs whose intermediate values are held in memory at one time: some 100 MB in float32."""


def bev_iou(a: Boxes, b: Boxes) -> Tensor:
    """IoU of the footprints of all pairs: [M, 9] and [K, 9] give [M, K] in [0, 1].

    A pair of footprints without any area has IoU 0.
    """
    overlap = bev_intersection(a, b)
    return _over_union(overlap, _area(a)[:, None], _area(b)[None, :])


def bev_iou_aligned(a: Boxes, b: Boxes) -> Tensor:
    """IoU of the footprints row by row: [..., M, 9] twice give [..., M] in [0, 1]."""
    return _over_union(_intersection(a.bev, b.bev), _area(a), _area(b))


def iou_3d(a: Boxes, b: Boxes) -> Tensor:
    """IoU of the volumes of all pairs: [M, 9] and [K, 9] give [M, K] in [0, 1]."""
    top = torch.minimum((a.z + a.h / 2)[:, None], (b.z + b.h / 2)[None, :])
    bottom = torch.maximum((a.z - a.h / 2)[:, None], (b.z - b.h / 2)[None, :])
    overlap = bev_intersection(a, b) * (top - bottom).clamp(min=0)
    return _over_union(overlap, (_area(a) * a.h)[:, None], (_area(b) * b.h)[None, :])


def bev_intersection(a: Boxes, b: Boxes) -> Tensor:
    """Common area in square metres of the footprints of all pairs: [M, 9] and [K, 9] give [M, K]."""
    rows = max(1, PAIRS_AT_ONCE // max(1, len(b)))
    blocks = [_intersection(block[:, None], b.bev[None]) for block in a.bev.split(rows)]
    return torch.cat(blocks)


def _area(boxes: Boxes) -> Tensor:
    return boxes.l * boxes.w


def _over_union(overlap: Tensor, measure_a: Tensor, measure_b: Tensor) -> Tensor:
    overlap = torch.minimum(overlap, torch.minimum(measure_a, measure_b))
    union = measure_a + measure_b - overlap
    return torch.where(union > 0, overlap / union, torch.zeros_like(overlap))


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """Common area [...] of footprints x, y, l, w, yaw [..., 5], leading dimensions broadcast."""
    a, b = torch.broadcast_tensors(a, b)
    x, y = _turn_back(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1], b[..., 4])
    yaw = a[..., 4] - b[..., 4]
    half_length, half_width = a[..., 2] / 2, a[..., 3] / 2
    side_x, side_y = b[..., 2] / 2, b[..., 3] / 2
    cos, sin = _away_from_zero(yaw.cos()), _away_from_zero(yaw.sin())

    corner_x = bev_corners(torch.stack([x, y, a[..., 2], a[..., 3], yaw], dim=-1))[..., 0]
    crossings = []
    for side in (side_y, -side_y):
        for sign in (1, -1):
            crossings.append(x + (cos * (side - y) + sign * half_width) / sin)
            crossings.append(x + (sign * half_length - sin * (side - y)) / cos)
    kinks = torch.cat([corner_x, torch.stack(crossings, dim=-1)], dim=-1)
    kinks = kinks.clamp(-side_x[..., None], side_x[..., None]).sort(dim=-1).values

    middle = (kinks[..., 1:] + kinks[..., :-1]) / 2 - x[..., None]
    cos, sin, y, side_y = (value[..., None] for value in (cos, sin, y, side_y))
    flank_y, flank_reach = y + middle * sin / cos, half_width[..., None] / cos.abs()
    front_y, front_reach = y - middle * cos / sin, half_length[..., None] / sin.abs()
    top = torch.minimum(torch.minimum(flank_y + flank_reach, front_y + front_reach), side_y)
    bottom = torch.maximum(torch.maximum(flank_y - flank_reach, front_y - front_reach), -side_y)
    return ((top - bottom).clamp(min=0) * kinks.diff(dim=-1)).sum(dim=-1)


def _turn_back(x: Tensor, y: Tensor, yaw: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = yaw.cos(), yaw.sin()
    return x * cos + y * sin, y * cos - x * sin


def _away_from_zero(value: Tensor) -> Tensor:
    """Keep a divisor off zero; a side that is this close to parallel differs by less than rounding."""
    return torch.copysign(value.abs().clamp(min=torch.finfo(value.dtype).eps ** 2), value)
