"""Point clouds of samples and batches, and what is computed from them."""

from dataclasses import replace

import pytest
import torch
from bevkd_common.data.samples import Batch, Cloud, Sample, collate
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.ops.voxelize import VoxelSpec

SPEC = VoxelSpec((0.0, 0.0, 0.0), (4.0, 4.0, 4.0), (1.0, 1.0, 4.0))


def sample(**clouds) -> Sample:
    return Sample(
        token="token",
        scene="scene",
        timestamp=0,
        boxes=Boxes(torch.zeros(0, 9)),
        labels=torch.zeros(0, dtype=torch.int64),
        cameras=None,
        clouds={name: Cloud(points, (len(points),), tuple("xyz")) for name, points in clouds.items()},
        aug_T_lidar=torch.eye(4),
        global_T_lidar=torch.eye(4, dtype=torch.float64),
    )


def batch() -> Batch:
    near, far = torch.full((2, 3), 0.5), torch.full((3, 3), 2.5)
    return collate([sample(lidar=near, other=far), sample(lidar=far, other=near)])


def test_a_batch_joins_the_clouds_of_its_samples():
    lidar = batch().cloud("lidar")
    assert (lidar.counts, lidar.columns) == ((2, 3), ("x", "y", "z"))
    assert [points[:, 0].tolist() for points in lidar.split()] == [[0.5] * 2, [2.5] * 3]
    assert [points[:, 0].tolist() for points in batch().cloud("other").split()] == [[2.5] * 3, [0.5] * 2]


def test_a_cloud_that_was_not_loaded():
    with pytest.raises(ValueError, match=r"without the point cloud `painted` \(lidar, other\): the `needs` must"):
        batch().cloud("painted")
    with pytest.raises(ValueError, match=r"`lidar` \(none\)"):
        collate([sample()]).cloud("lidar")


def test_results_are_computed_once_and_kept_with_the_points():
    lidar = batch().cloud("lidar")
    voxels = lidar.voxels(SPEC)
    assert lidar.voxels(replace(SPEC)) is voxels
    assert lidar.voxels(replace(SPEC, max_points=1)) is not voxels
    calls = []
    for _ in range(2):
        assert lidar.derived("key", lambda: calls.append(1)) is None
    assert calls == [1]
    # Other points, other voxels.
    moved = replace(lidar, points=lidar.points + 1)
    assert moved.voxels(SPEC).coordinates[:, 2:].unique(dim=0).tolist() == [[1, 1], [3, 3]]
    assert lidar.voxels(SPEC) is voxels
    assert lidar.to("cpu").voxels(SPEC) is not voxels


def test_every_cloud_moves_with_its_batch():
    moved = batch().to("meta")
    assert [cloud.points.is_meta for cloud in moved.clouds.values()] == [True, True]
