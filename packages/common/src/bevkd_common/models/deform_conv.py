"""Deformable convolutions, with modulation and without."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bevkd_common.ops.deform_conv import deform_conv


class ModulatedDeformConv(nn.Module):
    """A 3x3 convolution that moves and weighs its nine samples (deformable convolution v2).

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        bias: Whether a number is added to each channel of the output.

    Source: Deformable ConvNets v2, arXiv 1811.11168; the order of offsets is mmcv's, which torchvision shares.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        bound = 1 / math.sqrt(9 * in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        # Nine vertical and horizontal offsets, then nine weights; it begins as half a plain convolution.
        self.conv_offset = nn.Conv2d(in_channels, 27, 3, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H, W]."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            offset, weight = self.conv_offset(x).split([18, 9], dim=1)
            return deform_conv(x, offset, self.weight, self.bias, weight.sigmoid())


class DeformConv(nn.Module):
    """A 3x3 convolution that moves its nine samples (deformable convolution v1), without bias.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        groups: Of channels; the offsets are the same for all.

    Source: Deformable Convolutional Networks, arXiv 1703.06211; the order of offsets is mmcv's, which torchvision
    shares.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        # Nine vertical and horizontal offsets; it begins as a plain convolution.
        self.conv_offset = nn.Conv2d(in_channels, 18, 3, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H, W]; float32 also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            return deform_conv(x, self.conv_offset(x), self.weight)
