"""Points to voxels, with the rows and the caps of the reference's deterministic hard voxelisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class VoxelSpec:
    """How a point cloud is cut into voxels; equal specs share one voxelisation of a cloud.

    Attributes:
        range_min: Lower corner x, y, z in metres; points on it are inside.
        range_max: Upper corner; points on it are outside.
        size: Edges of a voxel along x, y, z in metres.
        max_points: Points kept in a voxel, the first ones; None keeps all.
        max_voxels: Voxels kept in a sample, the first ones; None keeps all.
    """

    range_min: Triple
    range_max: Triple
    size: Triple
    max_points: int | None = None
    max_voxels: int | None = None

    @property
    def cells(self) -> tuple[int, int, int]:
        """Number of voxels along x, y, z."""
        nx, ny, nz = (
            round((high - low) / size)
            for low, high, size in zip(self.range_min, self.range_max, self.size, strict=True)
        )
        return nx, ny, nz


@dataclass(frozen=True, eq=False)
class Voxels:
    """The occupied voxels of a batch, and their points without padding.

    Voxels stand sample by sample in the order in which their first point came; points stand voxel by voxel in
    the order in which they came.

    Attributes:
        points: [P, F] the points kept, as they came.
        voxel: [P] int64, the voxel (row of `coordinates`) of each point, never decreasing.
        counts: [V] int64, points kept in each voxel.
        coordinates: [V, 4] int64 batch, z, y, x.
    """

    points: Tensor
    voxel: Tensor
    counts: Tensor
    coordinates: Tensor


def voxelize(points: Tensor, point_counts: tuple[int, ...], spec: VoxelSpec) -> Voxels:
    """Sort points into voxels.

    A voxel index is `floor((p - low) / size)` in the precision of the points. Of a voxel the first
    `max_points` points are kept, of a sample the first `max_voxels` voxels; a voxel that was opened in time
    still fills up after the cap on voxels is reached.

    Args:
        points: [P, F] floating point, x, y, z first, the samples one after the other.
        point_counts: Points of each sample.
        spec: Range, size and caps.

    Raises:
        ValueError: If `point_counts` do not add up to the number of points.

    Source: mmcv 1.x and 2.x `Voxelization`, deterministic path.
    """
    if sum(point_counts) != len(points):
        raise ValueError(f"point counts {point_counts} do not add up to {len(points)} points")
    nx, ny, nz = spec.cells
    low, size = points.new_tensor(spec.range_min), points.new_tensor(spec.size)
    cell = ((points[:, :3] - low) / size).floor()
    inside = ((cell >= 0) & (cell < cell.new_tensor([nx, ny, nz]))).all(dim=1)
    x, y, z = cell.long().unbind(dim=1)
    samples = torch.arange(len(point_counts), device=points.device)
    sample = samples.repeat_interleave(torch.tensor(point_counts, device=points.device), output_size=len(points))
    nowhere = len(point_counts) * nz * ny * nx
    key, order = torch.where(inside, ((sample * nz + z) * ny + y) * nx + x, nowhere).sort(stable=True)
    key, counts = key[: int(inside.sum())].unique_consecutive(return_counts=True)
    start = counts.cumsum(0) - counts
    # The sort is stable: the first point of a voxel is the one that came first.
    by_arrival = order[start].argsort()
    key, counts, start = key[by_arrival], counts[by_arrival], start[by_arrival]
    if spec.max_voxels is not None:
        kept = _position_in_run(key // (nz * ny * nx), len(point_counts)) < spec.max_voxels
        key, counts, start = key[kept], counts[kept], start[kept]
    if spec.max_points is not None:
        counts = counts.clamp(max=spec.max_points)
    end = counts.cumsum(0)
    voxel = torch.arange(len(counts), device=points.device).repeat_interleave(counts)
    source = torch.arange(len(voxel), device=points.device) + (start - (end - counts))[voxel]
    return Voxels(
        points=points[order[source]],
        voxel=voxel,
        counts=counts,
        coordinates=torch.stack([key // (nz * ny * nx), key // (ny * nx) % nz, key // nx % ny, key % nx], dim=1),
    )


def _position_in_run(values: Tensor, bound: int) -> Tensor:
    """How many equal values stand before each, for a never decreasing [N] int64 tensor of values below `bound`."""
    runs = torch.bincount(values, minlength=bound)
    return torch.arange(len(values), device=values.device) - (runs.cumsum(0) - runs)[values]
