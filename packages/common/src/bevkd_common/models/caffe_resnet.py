"""ResNets in the style of Caffe, with deformable convolutions in chosen stages."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn import functional as F

from bevkd_common.models.deform_conv import ModulatedDeformConv

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Residual blocks of each stage, by the network's depth."""
CHANNELS = (256, 512, 1024, 2048)
"""Of the maps of each stage, at strides 4, 8, 16 and 32."""


class CaffeBottleneck(nn.Module):
    """A residual block that loses resolution in its first 1x1 convolution, where torchvision's does in the 3x3.

    Args:
        in_channels: Of the input.
        out_channels: Of the output, four times the width inside.
        stride: Of the block.
        deformable: Whether the 3x3 convolution is deformable.
        project: Whether the shortcut is a convolution; without, it is the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        deformable: bool = False,
        project: bool = False,
    ) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = (
            ModulatedDeformConv(width, width, bias=False)
            if deformable
            else nn.Conv2d(width, width, 3, padding=1, bias=False)
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
            if project
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉], non-negative."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def caffe_resnet(depth: int, deformable_stages: Collection[int]) -> dict[str, nn.Module]:
    """The parts `conv1` to `layer4` of a ResNet, under torchvision's names.

    Args:
        depth: A key of `BLOCKS`.
        deformable_stages: Counted from 1.
    """
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, 2, padding=1),
    }
    before = 64
    for stage, (blocks, channels) in enumerate(zip(BLOCKS[depth], CHANNELS, strict=True), start=1):
        deformable = stage in deformable_stages
        first = CaffeBottleneck(before, channels, 1 if stage == 1 else 2, deformable=deformable, project=True)
        others = (CaffeBottleneck(channels, channels, deformable=deformable) for _ in range(blocks - 1))
        parts[f"layer{stage}"] = nn.Sequential(first, *others)
        before = channels
    return parts
