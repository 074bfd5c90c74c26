"""The 2D backbone of SECOND."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

NORM_EPS = 1e-3
NORM_MOMENTUM = 0.01


class Second(nn.Module):
    """Plain convolutional stages: each opens with a strided 3x3 convolution.

    Args:
        in_channels: Channels of the input map.
        channels: Channels of each stage.
        layers: 3x3 convolutions of each stage after the strided one.
        strides: Stride of each stage.
        norm_momentum: Of the batch norms.

    Source: SECOND; as in mmdet3d 1.4, batch norm with eps 1e-3 and momentum 0.01.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        layers: Sequence[int],
        strides: Sequence[int],
        norm_momentum: float = NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for out_channels, depth, stride in zip(channels, layers, strides, strict=True):
            block = _conv_norm_relu(in_channels, out_channels, stride, norm_momentum)
            for _ in range(depth):
                block += _conv_norm_relu(out_channels, out_channels, 1, norm_momentum)
            self.blocks.append(nn.Sequential(*block))
            in_channels = out_channels

    def forward(self, x: Tensor, depth: int | None = None) -> list[Tensor]:
        """The outputs of all stages, or of the first `depth`, finest first."""
        outputs = []
        for block in self.blocks[:depth]:
            x = block(x)
            outputs.append(x)
        return outputs


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int, momentum: float) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(out_channels, eps=NORM_EPS, momentum=momentum), nn.ReLU(inplace=True)]
