"""The occupied voxels of a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch import Tensor

Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """The occupied voxels of a batch.

    Attributes:
        features: [V, C] floating point.
        coordinates: [V, 4] int64 batch, z, y, x, each voxel once, in any order.
        shape: Cells along z, y, x.
        batch: Number of samples.
        rulebooks: What convolutions with equal keys share.
    """

    features: Tensor
    coordinates: Tensor
    shape: Triple
    batch: int
    rulebooks: Mapping[str, Any] = field(default_factory=dict)

    def with_features(self, features: Tensor) -> SparseTensor:
        """The same voxels with other features [V, C']."""
        return replace(self, features=features)

    def to_dense(self) -> Tensor:
        """All cells [B, C, Z, Y, X], zero where there is no voxel; channels are last in memory."""
        canvas = self.features.new_zeros(self.batch * prod(self.shape), self.features.shape[1])
        canvas = canvas.index_copy(0, linear_index(self.coordinates, self.shape), self.features)
        return canvas.view(self.batch, *self.shape, -1).permute(0, 4, 1, 2, 3)


def linear_index(coordinates: Tensor, shape: Triple) -> Tensor:
    """Return the index [V] of each voxel [V, 4] in a dense grid, x running fastest."""
    batch, z, y, x = coordinates.unbind(dim=1)
    return ((batch * shape[0] + z) * shape[1] + y) * shape[2] + x
