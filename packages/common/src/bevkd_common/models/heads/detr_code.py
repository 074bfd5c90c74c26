"""The ten numbers that a query predicts for a box."""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.taps import Branch, Meaning

CODE = (
    Branch("position", 2, Meaning.POSITION),
    Branch("width_length", 2, Meaning.LOG_WIDTH_LENGTH),
    Branch("height", 1, Meaning.HEIGHT),
    Branch("size_z", 1, Meaning.LOG_HEIGHT),
    Branch("rot", 2, Meaning.YAW),
    Branch("vel", 2, Meaning.VELOCITY),
)
"""The parts of a box code, in order."""
CODE_CHANNELS = sum(part.channels for part in CODE)
MATCHED_CHANNELS = 8
"""Number of first channels, all but the velocity, that the matching of queries and boxes compares."""
CENTER = [0, 1, 4]
"""Indices of x, y, z in a code."""
HEADING = slice(6, 8)
"""Slice of sin yaw and cos yaw in a code."""
EDGE = 1e-5
"""Lower bound of a share and of its complement, so that logits stay finite."""


def encode(boxes: Boxes) -> Tensor:
    """The code [..., M, 10] of boxes: x, y, log w, log l, z, log h, sin yaw, cos yaw, vx, vy; metres, m/s.

    Source: BEVFormer, after DETR3D.
    """
    size = boxes.size.log()
    heading = torch.stack([boxes.yaw.sin(), boxes.yaw.cos()], dim=-1)
    parts = [boxes.centers[..., :2], size[..., [1, 0]], boxes.centers[..., 2:], size[..., 2:], heading]
    return torch.cat([*parts, boxes.velocity], dim=-1)


def decode(code: Tensor) -> Boxes:
    """The boxes [..., M, 9] of codes [..., M, 10]: the inverse of `encode`."""
    size = code[..., [3, 2, 5]].exp()
    yaw = torch.atan2(code[..., 6], code[..., 7])
    return Boxes.from_parts(code[..., CENTER], size, yaw, code[..., 8:])


def with_center(code: Tensor, center: Tensor) -> Tensor:
    """The codes [..., 10] with other centres [..., 3]."""
    return torch.cat([center[..., :2], code[..., 2:4], center[..., 2:], code[..., 5:]], dim=-1)


def turned(code: Tensor, heading: Tensor) -> Tensor:
    """The codes [..., 10] with a heading [..., 2] added to their sines and cosines."""
    return torch.cat([code[..., : HEADING.start], code[..., HEADING] + heading, code[..., HEADING.stop :]], dim=-1)


def inverse_sigmoid(share: Tensor) -> Tensor:
    """The logits of shares, finite at 0 and 1.

    Source: Deformable DETR, which bounds numerator and denominator, not the share.
    """
    share = share.clamp(0, 1)
    return (share.clamp(min=EDGE) / (1 - share).clamp(min=EDGE)).log()
