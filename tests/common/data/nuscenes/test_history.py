"""History, motion and depths in the samples of nuScenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bevkd_common.data.needs import AdjacentFrames, DataNeeds, KeyframeQueue
from bevkd_common.data.nuscenes.frames import earlier_frames
from bevkd_common.data.samples import collate
from bevkd_common.errors import UserError
from bevkd_common.geometry.cameras import project
from bevkd_common.geometry.transforms import transform_points

WIDE = (-200.0, -200.0, -50.0, 200.0, 200.0, 50.0)
HISTORY = DataNeeds(cameras=True, clouds=frozenset({"lidar"}), history=AdjacentFrames(frames=2))


@pytest.mark.parametrize("seed", [None, 3])
def test_history_shares_the_augmentations_of_its_key_frame(small_world, seed, source):
    samples = source(small_world, HISTORY, split="val")
    sample = samples.load(2, seed=seed)
    history = sample.history
    assert history.cameras.images.shape == (2, 6, 3, 32, 96)
    for frame in range(2):
        torch.testing.assert_close(history.cameras.image_aug[frame], sample.cameras.image_aug)
    assert history.present.tolist() == [True, True]
    assert history.seconds[0] > history.seconds[1] > 0.7
    # A landmark in the earlier axes, augmented as the key frame's: the same point on both ways.
    plain = samples.load(2, seed=None)
    frames = earlier_frames(samples.reader.index, int(samples.reader.rows[2]), HISTORY.history, _history_rng(seed))
    point = torch.tensor([[4.0, 9.0, 0.5]], dtype=torch.float64)
    aug = sample.aug_T_lidar.double()
    for frame, aug_T_past in zip(frames, history.lidar_T_past.double(), strict=True):
        there = transform_points(torch.tensor(frame.lidar_T_past), point)
        torch.testing.assert_close(
            transform_points(aug_T_past, transform_points(aug, point)),
            transform_points(aug, there),
            atol=1e-4,
            rtol=0,
        )
    if seed is None:
        assert history.seconds.tolist() == pytest.approx([f.seconds for f in frames])
        assert torch.equal(plain.history.cameras.images, history.cameras.images)


def _history_rng(seed):
    return None if seed is None else np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[3])


def test_history_leaves_the_other_draws_alone(small_world, source):
    both = DataNeeds(cameras=True, clouds=frozenset({"lidar"}), sweeps=10)
    with_history = DataNeeds(
        cameras=True, clouds=frozenset({"lidar"}), sweeps=10, depth=True, history=KeyframeQueue()
    )
    one, other = (source(small_world, needs).load(2, seed=8) for needs in (both, with_history))
    assert (one.history, one.depth, one.ego) == (None, None, None)
    assert torch.equal(one.cameras.images, other.cameras.images)
    assert torch.equal(one.clouds["lidar"].points, other.clouds["lidar"].points)
    assert torch.equal(one.boxes.tensor, other.boxes.tensor)


def test_images_of_a_queue_are_those_of_the_key_frames(small_world, source):
    needs = DataNeeds(cameras=True, history=KeyframeQueue(frames=3))
    samples = source(small_world, needs)
    last = samples.load(2, seed=None)
    for place, earlier in enumerate((0, 1)):
        expected = samples.load(earlier, seed=None).cameras.images
        assert torch.equal(last.history.cameras.images[place], expected)
    assert last.history.seconds.tolist() == pytest.approx([1.0, 0.5])
    begins = samples.load(3, seed=None)
    assert begins.history.present.tolist() == [False, False]
    assert torch.equal(begins.history.cameras.images[0], begins.cameras.images)


def test_a_batch_carries_history_motion_and_depths(small_world, source):
    needs = DataNeeds(cameras=True, history=KeyframeQueue(frames=3), depth=True, can_bus=True)
    samples = source(small_world, needs, can_bus="ego_poses")
    parts = [samples.load(index, seed=None) for index in (1, 2)]
    batch = collate(parts).to("cpu")
    assert batch.history.cameras.lidar_T_cam.shape == (2, 2, 6, 4, 4)
    assert batch.history.present.tolist() == [[False, True], [True, True]]
    assert batch.ego.global_T_ego.shape == (2, 3, 4, 4)
    assert batch.ego.velocity.shape == batch.ego.acceleration.shape == batch.ego.rotation_rate.shape == (2, 3, 3)
    rows = samples.reader.index.key_frames.global_T_ego[[0, 1, 2]]
    np.testing.assert_array_equal(batch.ego.global_T_ego[1].numpy(), rows)
    counts = torch.bincount(batch.depth.image // 6, minlength=2)
    assert counts.tolist() == [len(part.depth.image) for part in parts]
    assert torch.equal(batch.depth.image[counts[0] :], parts[1].depth.image + 6)
    shorter = batch.history.last(1)
    assert torch.equal(shorter.cameras.images, batch.history.cameras.images[:, 1:])
    assert torch.equal(shorter.seconds, batch.history.seconds[:, 1:])


def test_depths_are_those_of_the_key_frames_points(small_world, source):
    """Depths agree with the points of the sample, projected with its own, augmented matrices."""
    sample = source(
        small_world, DataNeeds(cameras=True, clouds=frozenset({"lidar"}), depth=True), point_range=WIDE
    ).load(1, seed=6)
    cameras = sample.cameras
    pixels, depth = project(
        sample.clouds["lidar"].points[:, :3].double(),
        cameras.intrinsics.double(),
        torch.linalg.inv(cameras.lidar_T_cam.double()),
        cameras.image_aug.double(),
    )
    found = 0
    scale = torch.linalg.det(sample.aug_T_lidar[:3, :3]).abs() ** (1 / 3)
    for image, pixel, metres in zip(sample.depth.image, sample.depth.pixels, sample.depth.depth, strict=True):
        near = (pixels[image] - pixel).norm(dim=-1).argmin()
        assert float((pixels[image, near] - pixel).norm()) < 0.01
        # The camera's own depth, whatever the scale of the augmented scene.
        assert float(depth[image, near]) == pytest.approx(float(metres), rel=1e-3)
        found += 1
    assert found > 100
    assert abs(float(scale) - 1) > 0.001


def test_motion_between_key_frames_is_not_read(small_world, source):
    with pytest.raises(UserError, match="CAN bus between key frames"):
        source(small_world, DataNeeds(cameras=True, can_bus=True, history=AdjacentFrames()))


def test_missing_frames_between_key_frames_are_found_before_the_first_sample(own_world, source):
    (own_world.root / "sweeps/CAM_BACK/scene-9001_0250.jpg").unlink()
    assert len(source(own_world, DataNeeds(cameras=True, history=KeyframeQueue()))) == 5
    with pytest.raises(UserError, match=r"1 files .* such as sweeps/CAM_BACK/scene-9001_0250\.jpg"):
        source(own_world, HISTORY)
    (own_world.root / "samples/LIDAR_TOP/scene-9001_0500.pcd.bin").unlink()
    with pytest.raises(UserError, match=r"1 files .* such as samples/LIDAR_TOP/scene-9001_0500\.pcd\.bin"):
        source(own_world, DataNeeds(cameras=True, depth=True))
