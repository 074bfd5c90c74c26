"""Readers of painted clouds: what a voxel of points as measured, painted and virtual ones becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bevkd_common.data.virtual_points.lifting import FIRST_CLASS, PAINTED, RAW, SECONDS, TAG
from bevkd_common.ops.voxelize import Voxels

RAW_FEATURES = FIRST_CLASS + 1
"""x, y, z, intensity, seconds."""
VIRTUAL_FEATURES = TAG + 2
"""x, y, z, reflectance, ten classes, score; then seconds, and whether the point is painted and not virtual."""
VOXEL_FEATURES = RAW_FEATURES + VIRTUAL_FEATURES + 1


class MixedMeans(nn.Module):
    """What describes a voxel of painted points; nothing is learned.

    Args:
        scales: A factor on each of the 17 numbers of a point, that on the tag aside.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__()
        factors = torch.tensor(scales)
        factors[TAG] = 1
        self.scales: Tensor
        self.register_buffer("scales", factors, persistent=False)

    def forward(self, voxels: Voxels) -> Tensor:
        """See `mixed_means`."""
        return mixed_means(replace(voxels, points=voxels.points * self.scales))


def mixed_means(voxels: Voxels) -> Tensor:
    """Means [V, 23] of the points in each voxel, those as measured apart from the painted and virtual ones.

    Channels 0 to 4 are the mean of the points as measured (x, y, z, intensity, seconds), 5 to 21 that of the others
    (x, y, z, reflectance, ten classes, score, seconds, share of painted ones), and 22 is the share of points as
    measured in the voxel. Of a sort that the voxel does not hold the mean is zero.

    Source: `DynamicVoxelEncoder` of CenterPoint's code base, whose painted points have no reflectance, and which
    drops the share; the released DistillBEV configurations have 23 channels.

    Args:
        voxels: Of a painted cloud, [P, 17] points.
    """
    points = voxels.points
    raw = points[:, TAG] == RAW
    seconds, painted = points[:, SECONDS, None], (points[:, TAG, None] == PAINTED).to(points.dtype)
    as_measured = torch.cat([points[:, :FIRST_CLASS], seconds], dim=1)
    added = torch.cat([points[:, :TAG], seconds, painted], dim=1)
    measured_mean, measured = _mean(as_measured[raw], voxels.voxel[raw], len(voxels.counts))
    added_mean, _ = _mean(added[~raw], voxels.voxel[~raw], len(voxels.counts))
    return torch.cat([measured_mean, added_mean, measured / voxels.counts[:, None]], dim=1)


def _mean(rows: Tensor, voxel: Tensor, voxels: int) -> tuple[Tensor, Tensor]:
    """Mean of the rows of each voxel [V, F], zero of none, and their number [V, 1]."""
    count = torch.bincount(voxel, minlength=voxels).to(rows.dtype)[:, None]
    return rows.new_zeros(voxels, rows.shape[1]).index_add(0, voxel, rows) / count.clamp(min=1), count
