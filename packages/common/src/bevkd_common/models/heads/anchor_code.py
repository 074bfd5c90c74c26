"""The seven numbers that an anchor head predicts for a box, relative to an anchor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.boxes import BOX_CHANNELS, LENGTH, YAW, Boxes, Z
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import Branch, Meaning

ANCHOR_CODE = (
    Branch("offset", 2, Meaning.ANCHOR_OFFSET),
    Branch("height", 1, Meaning.ANCHOR_HEIGHT),
    Branch("log_size", 3, Meaning.ANCHOR_LOG_SIZE),
    Branch("yaw", 1, Meaning.ANCHOR_YAW),
)
"""The parts of the code in order. Source: SECOND (Sensors 2018), equation 2."""

AnchorShape = tuple[float, float, float, float, float]
"""z of the centre, length, width, height in metres; yaw in radians."""


def anchors_on(grid: Grid, shapes: Sequence[AnchorShape]) -> Boxes:
    """Return anchors [Y · X · A, 9] at the centres of all cells, A per cell, in the order of `by_anchor`."""
    ground = cell_centers(grid).flatten(0, 1).repeat_interleave(len(shapes), dim=0)
    shape = torch.tensor(shapes).repeat(grid.ny * grid.nx, 1)
    return Boxes(F.pad(torch.cat([ground, shape], dim=1), (0, BOX_CHANNELS - YAW - 1)))


def by_anchor(prediction: Tensor, anchors: int) -> Tensor:
    """Return the numbers [B, Y · X · A, C] of each anchor from a map [B, A · C, Y, X] of `AnchorMaps`."""
    cells = prediction.permute(0, 2, 3, 1)
    return cells.reshape(len(cells), -1, prediction.shape[1] // anchors)


def encode(boxes: Boxes, anchors: Boxes) -> Tensor:
    """Return the codes [..., M, 7] of boxes [..., M, 9] relative to M anchors."""
    offset = (boxes.centers - anchors.centers) / _scale(anchors)
    return torch.cat([offset, (boxes.size / anchors.size).log(), (boxes.yaw - anchors.yaw)[..., None]], dim=-1)


def decode(code: Tensor, anchors: Boxes) -> Boxes:
    """Return the boxes [..., M, 9] of codes [..., M, 7], with unknown velocity: the inverse of `encode`."""
    offset, log_size, yaw = code.split([Z + 1, YAW - LENGTH, 1], dim=-1)
    centers = anchors.centers + offset * _scale(anchors)
    return Boxes.from_parts(centers, anchors.size * log_size.exp(), anchors.yaw + yaw[..., 0])


def _scale(anchors: Boxes) -> Tensor:
    """Ground diagonal, ground diagonal and height of each anchor [..., M, 3]."""
    diagonal = torch.hypot(anchors.l, anchors.w)
    return torch.stack([diagonal, diagonal, anchors.h], dim=-1)
