"""Adapters: small networks that project a student's feature map to the shape of the teacher's.

A kind is a projection, optionally after a change of resolution: `conv1x1`, `up4_mlp3`, `avgpool2_conv1x1`.
Every kernel is 1x1 unless the name says otherwise; hidden layers are as wide as the student's map. Weights start
at PyTorch's defaults, and adapters are dropped after training.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bevkd_common.geometry.grid import Grid

STRIDES = {"up2": 1 / 2, "up4": 1 / 4, "avgpool2": 2, "avgpool4": 4, "down2": 2, "down4": 4}
"""Edge of a cell of the adapted map in cells of the student's map, by the first part of a kind."""


class BilinearUpsample(nn.Module):
    """Interpolate [B, C, Y, X] maps to `factor` times as many cells along each edge.

    With `align_corners` the outermost samples keep their positions, so output j reads source j·(n-1)/(factor·n-1):
    up to half a source cell, less half an output cell, away from where that output cell lies on the ground.
    """

    def __init__(self, factor: int, align_corners: bool) -> None:
        super().__init__()
        self.factor = factor
        self.align_corners = align_corners

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, Y, X] to [B, C, factor·Y, factor·X]."""
        return F.interpolate(features, scale_factor=self.factor, mode="bilinear", align_corners=self.align_corners)


def mlp(in_channels: int, out_channels: int, layers: int, first_stride: int = 1) -> nn.Sequential:
    """Blocks of convolution (with bias), batch norm and ReLU; the last one projects to `out_channels`.

    Args:
        in_channels: Channels of the student's map, and of every hidden one.
        out_channels: Channels of the teacher's map.
        layers: Number of blocks.
        first_stride: Kernel and stride of the first block: 1 keeps the resolution, 4 learns to divide it by four.
    """
    blocks: list[nn.Module] = []
    for index in range(layers):
        width = out_channels if index == layers - 1 else in_channels
        kernel = first_stride if index == 0 else 1
        blocks += [nn.Conv2d(in_channels, width, kernel, stride=kernel), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*blocks)


def adapted_grid(kind: str, grid: Grid) -> Grid:
    """Return the cells of a map on `grid` after an adapter; see `Grid.coarsened`."""
    return grid.coarsened(STRIDES.get(_split(kind)[0], 1))


def build_adapter(kind: str, in_channels: int, out_channels: int, align_corners: bool = True) -> nn.Module:
    """Build one adapter.

    Args:
        kind: `identity`, `conv1x1`, `conv3x3`, `mlp1`, `mlp2` or `mlp3`; before it, joined by an underscore, the
            change of resolution: `up2` or `up4` (bilinear), `avgpool2` or `avgpool4`, or `down2` or `down4`, with
            which the first layer of an MLP is strided.
        in_channels: Channels of the student's map.
        out_channels: Channels of the teacher's map.
        align_corners: Sample positions of the bilinear kinds, see `BilinearUpsample`.

    Raises:
        ValueError: If the kind is unknown, or an identity would have to change the number of channels.

    Source: DistillBEV, adaptation module; the released scripts use `up4_mlp3` and `conv1x1`.
    """
    resolution, projection = _split(kind)
    if resolution.startswith("down") and projection.startswith("mlp"):
        return mlp(in_channels, out_channels, int(projection[-1]), first_stride=round(STRIDES[resolution]))
    projector = _projection(kind, projection, in_channels, out_channels)
    if not resolution:
        return projector
    if resolution.startswith("up"):
        return nn.Sequential(BilinearUpsample(round(1 / STRIDES[resolution]), align_corners), projector)
    if resolution.startswith("avgpool"):
        return nn.Sequential(nn.AvgPool2d(round(STRIDES[resolution])), projector)
    raise ValueError(f"adapter {kind!r}: a learned `down` needs an MLP to stride")


def _split(kind: str) -> tuple[str, str]:
    """Change of resolution ("" for none) and projection."""
    resolution, _, projection = kind.rpartition("_")
    if resolution and resolution not in STRIDES:
        raise ValueError(f"adapter {kind!r}: unknown change of resolution {resolution!r}")
    return resolution, projection


def _projection(kind: str, projection: str, in_channels: int, out_channels: int) -> nn.Module:
    match projection:
        case "identity" if in_channels == out_channels:
            return nn.Identity()
        case "identity":
            raise ValueError(f"adapter {kind!r} cannot turn {in_channels} channels into {out_channels}")
        case "conv1x1":
            return nn.Conv2d(in_channels, out_channels, 1)
        case "conv3x3":
            return nn.Conv2d(in_channels, out_channels, 3, padding=1)
        case "mlp1" | "mlp2" | "mlp3":
            return mlp(in_channels, out_channels, int(projection[-1]))
    raise ValueError(f"adapter {kind!r}: unknown projection {projection!r}")
