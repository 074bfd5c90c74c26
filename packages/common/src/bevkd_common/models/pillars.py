"""From pillars of points to a BEV canvas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevkd_common.models.second import NORM_EPS, NORM_MOMENTUM
from bevkd_common.models.tokens import TokenFeatures
from bevkd_common.ops.voxelize import Voxels, VoxelSpec

OFFSET_FEATURES = 6
"""Offsets of a point from the mean of its pillar and from the pillar's centre, three each."""


class PillarFeatureNet(nn.Module):
    """One linear layer on every point of a pillar, and the maximum over its points.

    A point is described by its own features, its offset from the mean of the pillar's points and its offset
    from the pillar's centre, in this order. Runs in float32 under autocast: bfloat16 would round metres to
    quarters.

    Upstream: mmdet3d pads every pillar with zeros to `max_points` and lets the padding take part in batch
    norm and maximum. That is reproduced without storing it: the linear layer has no bias, so a padded slot
    enters the norm as 0 and leaves it as the shift. The offset from the centre's z came with mmdet3d 1.0;
    older checkpoints (10 inputs instead of 11) have a zero column there.

    Source: PointPillars; CenterPoint in mmdet3d 1.4 (`legacy=False`).

    Args:
        spec: The pillars.
        point_features: Numbers that a point comes with.
        channels: Features of a pillar.
        scales: A factor on each number of a point, not on its offsets; none given, all are 1.
        norm_momentum: Of the batch norm.
    """

    def __init__(
        self,
        spec: VoxelSpec,
        point_features: int,
        channels: int,
        scales: Sequence[float] = (),
        norm_momentum: float = NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        if spec.cells[2] != 1:
            raise ValueError(f"pillars span the whole height, these voxels are {spec.cells[2]} layers")
        self.max_points = spec.max_points
        low, size = torch.tensor(spec.range_min), torch.tensor(spec.size)
        self.register_buffer("scales", torch.tensor(scales or [1.0] * point_features), persistent=False)
        self.register_buffer("size", size, persistent=False)
        self.register_buffer("first_center", low + size / 2, persistent=False)
        self.linear = nn.Linear(point_features + OFFSET_FEATURES, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=NORM_EPS, momentum=norm_momentum)
        self.scales: Tensor
        self.size: Tensor
        self.first_center: Tensor

    def forward(self, voxels: Voxels) -> Tensor:
        """Features [V, C] float32 of the pillars, not negative."""
        with torch.autocast(voxels.points.device.type, enabled=False):
            inputs = self._describe(voxels)
            slots = len(inputs) if self.max_points is None else self.max_points * len(voxels.counts)
            scale, shift = padded_batch_norm(inputs, self.linear.weight, slots, self.norm)
            points = inputs @ (self.linear.weight * scale[:, None]).T
            most = torch.segment_reduce(points, "max", lengths=voxels.counts, axis=0, unsafe=True)
            if self.max_points is not None:
                most = torch.where((voxels.counts < self.max_points)[:, None], most.clamp(min=0), most)
            return (most + shift).relu()

    def _describe(self, voxels: Voxels) -> Tensor:
        xyz = voxels.points[:, :3]
        mean = xyz.new_zeros(len(voxels.counts), 3).index_add(0, voxels.voxel, xyz) / voxels.counts[:, None]
        center = self.first_center + voxels.coordinates[:, [3, 2, 1]] * self.size
        return torch.cat([voxels.points * self.scales, xyz - mean[voxels.voxel], xyz - center[voxels.voxel]], dim=1)


class PillarReader(nn.Module):
    """Pillars on a canvas.

    Args:
        pillars: What describes a pillar.
        ny: Cells of the canvas along y.
        nx: Cells of the canvas along x.
    """

    def __init__(self, pillars: PillarFeatureNet, ny: int, nx: int) -> None:
        super().__init__()
        self.pillars = pillars
        self.ny = ny
        self.nx = nx

    def forward(self, voxels: Voxels, batch: int) -> Tensor:
        """Return the canvas [B, C, Y, X] of the pillars of `batch` samples, not negative."""
        return self.on_canvas(self.pillars(voxels), voxels, batch)

    def on_canvas(self, features: Tensor, voxels: Voxels, batch: int) -> Tensor:
        """Return the canvas [B, C, Y, X] of pillar features [V, C]."""
        return scatter_to_bev(features, voxels.coordinates, batch, self.ny, self.nx)


def pillar_tokens(features: Tensor, voxels: Voxels, batch: int) -> TokenFeatures:
    """Return pillar features [V, C] as tokens at (z, y, x) in cells.

    Args:
        features: Of the pillars.
        voxels: The pillars.
        batch: Number of samples.
    """
    counts = voxels.coordinates[:, 0].bincount(minlength=batch).tolist()
    return TokenFeatures(features, voxels.coordinates[:, 1:], tuple(counts), voxels.counts)


def padded_batch_norm(inputs: Tensor, weight: Tensor, rows: int, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Batch norm over the outputs of a linear layer without bias, and as many zero rows as are missing to `rows`.

    Mean and variance of the outputs follow from those of the inputs, so that no gradient passes through the outputs
    of each point for them.

    Args:
        inputs: [P, D] of the layer.
        weight: [C, D] of the layer.
        rows: Number of rows in all.
        norm: Its running statistics are updated in training, as its own forward would.

    Returns:
        Scale and shift [C]: a row of outputs becomes `row * scale + shift`, a zero row the shift.
    """
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    # Of a single row, or none, there are no statistics to take.
    if norm.training and rows > 1:
        running_mean, running_variance = mean, variance
        assert norm.momentum is not None
        center = inputs.mean(dim=0) if len(inputs) else inputs.new_zeros(inputs.shape[1])
        deviations = inputs - center
        scatter = deviations.T @ deviations
        full = weight @ center
        mean = full * (len(inputs) / rows)
        spread = ((weight @ scatter) * weight).sum(dim=1)
        variance = (spread + len(inputs) * (full - mean).square() + (rows - len(inputs)) * mean.square()) / rows
        with torch.no_grad():
            running_mean.lerp_(mean, norm.momentum)
            running_variance.lerp_(variance * (rows / (rows - 1)), norm.momentum)
            norm.get_buffer("num_batches_tracked").add_(1)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def scatter_to_bev(features: Tensor, coordinates: Tensor, batch: int, ny: int, nx: int) -> Tensor:
    """Put pillar features [V, C] at their cells (batch, z, y, x) of a canvas [B, C, Y, X], zero elsewhere."""
    b, _, y, x = coordinates.unbind(dim=1)
    canvas = features.new_zeros(batch * ny * nx, features.shape[1])
    canvas = canvas.index_copy(0, (b * ny + y) * nx + x, features)
    # Channels stay last in memory, which is also what convolutions are fastest with.
    return canvas.view(batch, ny, nx, -1).permute(0, 3, 1, 2)
