"""Deformable convolution without modulation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformConv(nn.Module):
    """A 3x3 convolution without bias that moves its nine samples (deformable convolution v1).

    Runs in float32 under autocast. It begins as a plain convolution.

    Args:
        channels: Of input and output.
        groups: Of channels that do not see each other; all are moved alike.

    Source: Deformable Convolutional Networks, arXiv 1703.06211; the order of offsets is mmcv's, which torchvision
    shares.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(9 * channels // groups)
        self.weight = nn.Parameter(torch.empty(channels, channels // groups, 3, 3).uniform_(-bound, bound))
        # For each of the nine samples how far it moves down and to the right, in cells.
        self.conv_offset = nn.Conv2d(channels, 18, 3, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight.dtype)
            moved: Tensor = deform_conv2d(x, self.conv_offset(x), self.weight, padding=1)
        return moved
