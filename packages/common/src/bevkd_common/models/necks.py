"""Necks that bring the stages of a BEV backbone to one resolution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bevkd_common.models.second import NORM_EPS, NORM_MOMENTUM


class SecondFPN(nn.Module):
    """One (transposed) convolution a stage, and the results side by side.

    Args:
        in_channels: Channels of each stage.
        channels: Channels that each stage is brought to.
        upsampling: Factor of each stage: 2 doubles the resolution, 0.5 halves it.
        norm_momentum: Of the batch norms.
        transposed_at_one: Whether a stage that keeps its resolution has a transposed convolution too.

    Source: SECOND; batch norm with eps 1e-3 and momentum 0.01. In mmdet3d 1.4 CenterPoint sets
    `use_conv_for_no_stride`; BEVDepth does not, and has transposed convolutions of 1x1.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: Sequence[int],
        upsampling: Sequence[float],
        norm_momentum: float = NORM_MOMENTUM,
        *,
        transposed_at_one: bool = False,
    ) -> None:
        super().__init__()
        self.deblocks = nn.ModuleList(
            nn.Sequential(
                _resampling(inputs, outputs, factor, transposed=factor > 1 or (factor == 1 and transposed_at_one)),
                nn.BatchNorm2d(outputs, eps=NORM_EPS, momentum=norm_momentum),
                nn.ReLU(inplace=True),
            )
            for inputs, outputs, factor in zip(in_channels, channels, upsampling, strict=True)
        )

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """The stages [B, C, Y, X] at one resolution, channels in the order of the stages."""
        return torch.cat([deblock(x) for deblock, x in zip(self.deblocks, stages, strict=True)], dim=1)

    def last_activations(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the ReLU of each stage and its batch norm; see `pre_activation.last_activations`."""
        blocks = cast("Iterable[nn.Sequential]", self.deblocks)
        return [(block[2], block[1]) for block in blocks]


def _resampling(in_channels: int, out_channels: int, factor: float, *, transposed: bool) -> nn.Module:
    if transposed:
        step = round(factor)
        layer: nn.Conv2d | nn.ConvTranspose2d = nn.ConvTranspose2d(
            in_channels, out_channels, step, step, bias=False
        )
    else:
        step = round(1 / factor)
        layer = nn.Conv2d(in_channels, out_channels, step, step, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
