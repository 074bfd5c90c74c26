"""Fuse the levels of an image backbone, into one map or into several."""

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


class ImagePyramid(nn.Module):
    """A feature pyramid of which every level comes out.

    As `ImageFpn`, with an output convolution a level; further levels halve the last one by strided convolutions.

    Args:
        in_channels: Channels of the levels, finest first.
        out_channels: Channels of every level that comes out.
        levels: Levels that come out, at least as many as come in.

    Source: Feature Pyramid Networks (arXiv 1612.03144), as in BEVFormer's released detectors.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, levels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, kernel_size=1) for channels in in_channels)
        self.outputs = nn.ModuleList(
            nn.Conv2d(
                out_channels, out_channels, kernel_size=3, padding=1, stride=1 if level < len(in_channels) else 2
            )
            for level in range(levels)
        )
        for convolution in (*self.laterals, *self.outputs):
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Fuse maps [B, C_i, H_i, W_i], finest first, to maps [B, out_channels, H_i, W_i] and coarser ones."""
        fused = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        for place in reversed(range(len(fused) - 1)):
            coarser = F.interpolate(fused[place + 1], size=fused[place].shape[-2:], mode="nearest")
            fused[place] = fused[place] + coarser
        found = [output(level) for output, level in zip(self.outputs, fused, strict=False)]
        for output in self.outputs[len(found) :]:
            found.append(output(found[-1]))
        return found
