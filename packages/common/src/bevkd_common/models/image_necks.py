"""Fuse the levels of an image backbone into one map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ImageFpn(nn.Module):
    """A feature pyramid of which only the finest level comes out.

    Laterals and output are convolutions with bias, without norm or activation; coarser maps are enlarged to
    the exact size of the next finer one by nearest neighbour and added.

    Args:
        in_channels: Channels of the levels, finest first.
        out_channels: Channels of the laterals and of the output.

    Source: FPNForBEVDet of BEVDet's released R50 detector.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, kernel_size=1) for channels in in_channels)
        self.output = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Fuse maps [B, C_i, H_i, W_i], finest first, to [B, out_channels, H_0, W_0]."""
        *finer, fused = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        for level in reversed(finer):
            fused = level + F.interpolate(fused, size=level.shape[-2:], mode="nearest")
        return self.output(fused)
