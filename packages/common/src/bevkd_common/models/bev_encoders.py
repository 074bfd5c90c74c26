"""The convolutional encoder that BEVDet runs over its BEV map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut.

    Upstream: where the shape changes, the shortcut is a plain 3x3 convolution with bias and without norm, not
    the 1x1 convolution with norm of a ResNet.

    Args:
        in_channels: Of the input.
        channels: Of the output.
        stride: Of the first convolution.
        project: Whether the shortcut is a convolution; without, it is the identity.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, *, project: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut = nn.Conv2d(in_channels, channels, 3, stride, padding=1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, Y, X] to [B, channels, Y / stride, X / stride], non-negative."""
        out = F.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))

    def last_activations(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the last ReLU and the batch norm of the branch; see `pre_activation.last_activations`."""
        return [(self.relu, self.bn2)]


def bev_stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """One stage of BEVDet's encoder: the first block changes channels and resolution, the others neither.

    Source: ResNetForBEVDet of BEVDet's released R50 detector.
    """
    first = ResidualBlock(in_channels, channels, stride, project=True)
    return nn.Sequential(first, *(ResidualBlock(channels, channels) for _ in range(blocks - 1)))


class BevNeck(nn.Module):
    """Fuse a fine and a coarse stage, then enlarge to the resolution of the head.

    Args:
        fine_channels: Of the fine stage.
        coarse_channels: Of the coarse stage.
        hidden_channels: Of the fused map.
        out_channels: Of the result.
        coarse_scale: How many times coarser the coarse stage is.
        fine_scale: How many times coarser than the result the fine stage is.
        extra_norm_act: Whether batch norm and ReLU follow the last convolution, which makes the result
            comparable with a LiDAR detector's non-negative features. DistillBEV's students have them.

    Source: FPN_LSS of BEVDet's released R50 detector.
    """

    def __init__(
        self,
        *,
        fine_channels: int,
        coarse_channels: int,
        hidden_channels: int,
        out_channels: int,
        coarse_scale: int,
        fine_scale: int,
        extra_norm_act: bool = False,
    ) -> None:
        super().__init__()
        self.enlarge_coarse = _enlarge(coarse_scale)
        self.fuse = nn.Sequential(
            nn.Conv2d(fine_channels + coarse_channels, hidden_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(inplace=True),
        )
        self.refine = nn.Sequential(
            _enlarge(fine_scale),
            nn.Conv2d(hidden_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            # Upstream: a bias and no activation, unlike every convolution before it.
            nn.Conv2d(out_channels, out_channels, 1),
        )
        norm_act = [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)] if extra_norm_act else []
        self.norm_act = nn.Sequential(*norm_act)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """From the lifted map and every stage to [B, out_channels, Y * t, X * t]; the second and the last count.

        Args:
            maps: The second [B, fine_channels, Y, X], the last [B, coarse_channels, Y / s, X / s].
        """
        fine, coarse = maps[1], maps[-1]
        fused = self.fuse(torch.cat([fine, self.enlarge_coarse(coarse)], dim=1))
        return self.norm_act(self.refine(fused))

    def last_activations(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the last ReLU and its batch norm, if there are any; see `pre_activation.last_activations`."""
        return [(self.norm_act[1], self.norm_act[0])] if len(self.norm_act) else []


def _enlarge(scale: int) -> nn.Module:
    # Upstream: the corners of both maps coincide, so cells do not lie exactly above one another.
    return nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=True)
