"""From voxels of points to a BEV map, by sparse convolutions in three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevkd_common.models.second import NORM_EPS, NORM_MOMENTUM
from bevkd_common.ops.sparse_conv import sparse_conv, submanifold_conv
from bevkd_common.ops.sparse_tensor import SparseTensor, Triple, linear_index
from bevkd_common.ops.voxelize import Voxels


class VoxelMeans(nn.Module):
    """The mean of a voxel's points, each number of a point times a factor; nothing is learned.

    Args:
        scales: A factor on each number of a point.

    Source: CenterPoint in mmdet3d 1.4, whose factors are all 1.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor(scales), persistent=False)

    def forward(self, voxels: Voxels) -> Tensor:
        """Features [V, F] of the voxels."""
        points = voxels.points * self.scales
        sums = points.new_zeros(len(voxels.counts), points.shape[1]).index_add(0, voxels.voxel, points)
        return sums / voxels.counts[:, None]


class VoxelReader(nn.Module):
    """What describes a voxel, and the encoder over all of them.

    Args:
        features: Called with voxels; gives their features [V, F].
        encoder: Of F channels.
    """

    def __init__(self, features: nn.Module, encoder: SparseEncoder) -> None:
        super().__init__()
        self.features = features
        self.encoder = encoder

    def forward(self, voxels: Voxels, batch: int) -> Tensor:
        """The map [B, C, Y, X] of the voxels of `batch` samples, not negative."""
        return self.encoder(self.features(voxels), voxels.coordinates, batch)


class SparseEncoder(nn.Module):
    """Stages of residual blocks over voxels that double their edges from one to the next; then layers to channels.

    Upstream: the grid is one layer higher than the voxels, and the last strided convolution does not pad along z.

    Args:
        cells: Voxels along x, y, z.
        in_channels: Features of a voxel.
        channels: Of each stage.
        blocks: Residual blocks of each stage.
        norm_momentum: Of the batch norms.
        biases: Whether the convolutions of the residual blocks have biases.

    Source: SECOND's encoder with the residual blocks of CenterPoint; as in mmdet3d 1.4.
    """

    def __init__(
        self,
        cells: Triple,
        in_channels: int,
        channels: Sequence[int],
        blocks: int,
        norm_momentum: float = NORM_MOMENTUM,
        *,
        biases: bool = False,
    ) -> None:
        super().__init__()
        nx, ny, nz = cells
        self.shape = (nz + 1, ny, nx)
        self.stem = SparseConvNorm(SubmanifoldConv3d(in_channels, channels[0], "stage0"), norm_momentum)
        self.stages = nn.ModuleList()
        for stage, width in enumerate(channels):
            layers: list[nn.Module] = [
                SparseBlock(width, f"stage{stage}", norm_momentum, biases=biases) for _ in range(blocks)
            ]
            if stage + 1 < len(channels):
                padding = (0 if stage + 2 == len(channels) else 1, 1, 1)
                down = SparseConv3d(width, channels[stage + 1], (3, 3, 3), (2, 2, 2), padding)
                layers.append(SparseConvNorm(down, norm_momentum))
            self.stages.append(nn.Sequential(*layers))
        lower = SparseConv3d(channels[-1], channels[-1], (3, 1, 1), (2, 1, 1), (0, 0, 0))
        self.output = SparseConvNorm(lower, norm_momentum)

    def forward(self, features: Tensor, coordinates: Tensor, batch: int) -> Tensor:
        """The map [B, C, Y, X] of voxels with features [V, F] and coordinates [V, 4] batch, z, y, x.

        A feature of layer z becomes channel `c * Z + z`. Not negative, and zero where nothing is near.
        """
        # Neighbours in space become neighbours in memory.
        order = linear_index(coordinates, self.shape).argsort()
        x = self.stem(SparseTensor(features[order], coordinates[order], self.shape, batch))
        for stage in self.stages:
            x = stage(x)
        return self.output(x).to_dense().flatten(1, 2)


class SparseBlock(nn.Module):
    """Two submanifold 3x3x3 convolutions with batch norm and a shortcut.

    Args:
        channels: Of input and output.
        key: Shared by the convolutions over the same voxels.
        norm_momentum: Of the batch norms.
        biases: Whether the convolutions have biases.
    """

    def __init__(self, channels: int, key: str, norm_momentum: float, *, biases: bool = False) -> None:
        super().__init__()
        self.conv1 = SubmanifoldConv3d(channels, channels, key, bias=biases)
        self.bn1 = nn.BatchNorm1d(channels, eps=NORM_EPS, momentum=norm_momentum)
        self.conv2 = SubmanifoldConv3d(channels, channels, key, bias=biases)
        self.bn2 = nn.BatchNorm1d(channels, eps=NORM_EPS, momentum=norm_momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """The same voxels with features that are not negative."""
        out = self.conv1(x)
        out = self.conv2(out.with_features(F.relu(_normalize(self.bn1, out.features))))
        return out.with_features(F.relu(_normalize(self.bn2, out.features) + x.features))


class SparseConvNorm(nn.Module):
    """A sparse convolution, batch norm and ReLU.

    Args:
        conv: The convolution.
        norm_momentum: Of the batch norm.
    """

    def __init__(self, conv: SubmanifoldConv3d | SparseConv3d, norm_momentum: float) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm1d(conv.weight.shape[0], eps=NORM_EPS, momentum=norm_momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features that are not negative."""
        out = self.conv(x)
        return out.with_features(F.relu(_normalize(self.norm, out.features)))


class SubmanifoldConv3d(nn.Module):
    """A 3x3x3 convolution that keeps the voxels as they are.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        key: Shared by the convolutions over the same voxels.
        bias: Whether it has a bias, which starts at zero.
    """

    def __init__(self, in_channels: int, out_channels: int, key: str, *, bias: bool = False) -> None:
        super().__init__()
        self.key = key
        self.weight = _weight(in_channels, out_channels, (3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: SparseTensor) -> SparseTensor:
        """See `submanifold_conv`."""
        return submanifold_conv(x, self.weight, self.bias, self.key)


class SparseConv3d(nn.Module):
    """A strided convolution without bias, whose voxels are where its kernel meets one.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel: Edges along z, y, x.
        stride: Along z, y, x.
        padding: Along z, y, x.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple, padding: Triple
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        self.weight = _weight(in_channels, out_channels, kernel)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """See `sparse_conv`."""
        return sparse_conv(x, self.weight, None, self.stride, self.padding)


def _weight(in_channels: int, out_channels: int, kernel: Triple) -> nn.Parameter:
    """[O, kz, ky, kx, I], started as spconv and torch start a convolution."""
    bound = 1 / math.sqrt(in_channels * math.prod(kernel))
    return nn.Parameter(torch.empty(out_channels, *kernel, in_channels).uniform_(-bound, bound))


def _normalize(norm: nn.BatchNorm1d, features: Tensor) -> Tensor:
    if norm.training and len(features) < 2:
        # Of a single voxel, or none, there are no statistics to take.
        return F.batch_norm(
            features, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
        )
    return norm(features)
