"""The ten numbers that the centre-point head predicts for a box, in the order of its branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import Branch, Meaning

BRANCHES = (
    Branch("reg", 2, Meaning.CENTER_OFFSET),
    Branch("height", 1, Meaning.HEIGHT),
    Branch("dim", 3, Meaning.LOG_SIZE),
    Branch("rot", 2, Meaning.YAW),
    Branch("vel", 2, Meaning.VELOCITY),
)
"""The branches in the order of a box code; the heat map is a further branch."""
LAYOUT = tuple(branch.layout for branch in BRANCHES)
"""Names and channels of the branches."""


def branches_of(motion: Meaning) -> tuple[Branch, ...]:
    """Return the branches of a head whose last branch predicts velocities or displacements."""
    return tuple(replace(branch, meaning=motion) if branch.name == "vel" else branch for branch in BRANCHES)


def encode(boxes: Boxes, offset: Tensor) -> Tensor:
    """The code [..., M, 10] of boxes: dx, dy in cells, z, log l, log w, log h, sin yaw, cos yaw, vx, vy."""
    heading = torch.stack([boxes.yaw.sin(), boxes.yaw.cos()], dim=-1)
    return torch.cat([offset, boxes.centers[..., 2:], boxes.size.log(), heading, boxes.velocity], dim=-1)


def decode(code: Tensor, indices: Tensor, grid: Grid) -> Boxes:
    """The boxes [..., M, 9] of codes [..., M, 10] read at flat cells [..., M]: the inverse of `encode`."""
    offset, z, log_size, heading, velocity = code.split([2, 1, 3, 2, 2], dim=-1)
    cell = torch.stack([indices % grid.nx, indices // grid.nx], dim=-1)
    ground = (cell + offset) * grid.cell + offset.new_tensor([grid.x0, grid.y0])
    yaw = torch.atan2(heading[..., 0], heading[..., 1])
    return Boxes.from_parts(torch.cat([ground, z], dim=-1), log_size.exp(), yaw, velocity)


def gather_code(prediction: Mapping[str, Tensor], indices: Tensor) -> Tensor:
    """The ten numbers [B, M, 10] that a task's branches [B, C, Y, X] predict at flat cells [B, M]."""
    gathered = [
        prediction[name].flatten(2).gather(2, indices[:, None].expand(-1, channels, -1))
        for name, channels in LAYOUT
    ]
    return torch.cat(gathered, dim=1).transpose(1, 2)
