"""Deformable 3x3 convolution: each output reads nine samples of the input at learned offsets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

SAMPLES = 9
"""Samples of a 3x3 kernel, row by row."""


def deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Deformable convolution of stride 1 that keeps the size; torchvision's on a GPU.

    Torchvision's backward pass for the CPU takes five times as long as its forward pass, on one thread; there the
    samples are taken by `grid_sample`. Both give the same, but for the gradient of a sample that lies exactly on a
    cell: either of the two slopes that meet there is one.

    Args:
        x: [B, C, H, W].
        offset: [B, 18, H, W], for each sample of the kernel how far it moves, down and right, in cells.
        weight: [O, C / groups, 3, 3].
        bias: [O].
        mask: [B, 9, H, W], a factor on each sample.

    Returns:
        [B, O, H, W].

    Source: Deformable ConvNets, arXiv 1703.06211 and 1811.11168; the order of offsets is mmcv's and torchvision's.
    """
    if x.device.type != "cpu":
        moved: Tensor = deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)
        return moved
    samples = _samples(x, offset)
    if mask is not None:
        samples = samples * mask[:, None]
    groups = x.shape[1] // weight.shape[1]
    columns = samples.flatten(1, 2).unflatten(1, (groups, -1)).flatten(3)
    out = (weight.flatten(1).unflatten(0, (groups, -1)) @ columns).flatten(1, 2).unflatten(2, x.shape[2:])
    return out if bias is None else out + bias[:, None, None]


def _samples(x: Tensor, offset: Tensor) -> Tensor:
    """[B, C, 9, H, W], zero outside the map."""
    height, width = x.shape[2:]
    near = torch.arange(-1, 2, device=x.device, dtype=x.dtype)
    down, right = offset.unflatten(1, (SAMPLES, 2)).unbind(2)
    row = down + near.repeat_interleave(3)[:, None, None] + torch.arange(height, device=x.device)[:, None]
    column = right + near.repeat(3)[:, None, None] + torch.arange(width, device=x.device)
    # grid_sample counts from -1 at the outer border of the first cell to 1 at that of the last.
    where = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)
    taken = F.grid_sample(x, where.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False)
    return taken.unflatten(2, (SAMPLES, height))
