"""Which earlier frames a sample takes, where they stand, and where LiDAR points lie in images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.nuscenes_names import CAMERAS
from bevkd_common.data.assemble import depth_hits
from bevkd_common.data.needs import AdjacentFrames, KeyframeQueue
from bevkd_common.data.nuscenes.frames import choose_adjacent, choose_queue, earlier_frames, own_frame
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.nuscenes.index_build import build_index
from bevkd_common.geometry.cameras import ImageAug
from bevkd_common.ops.depth_maps import depth_map

ADJACENT, QUEUE = AdjacentFrames(), KeyframeQueue(frames=3)
RATE = 12.0


@pytest.fixture(scope="module")
def index(small_world) -> NuScenesIndex:
    return build_index(small_world.root, small_world.version)


def camera_frames(before: int, after: int) -> np.ndarray:
    """Seconds before the key frame of frames at 12 Hz; its own image is 20 ms older than the LiDAR sweep."""
    return np.arange(before, -after - 1, -1) / RATE + 0.02


def test_training_draws_from_the_window_and_from_all_of_it():
    seconds = camera_frames(60, 60)
    drawn = Counter(
        round(float(seconds[choose_adjacent(seconds, ADJACENT, np.random.default_rng(seed))][0]) * RATE)
        for seed in range(2000)
    )
    # 0.75 s are 9 images, 2.25 s are 27: every one of these nineteen, about equally often.
    assert sorted(drawn) == list(range(9, 28))
    assert min(drawn.values()) > 60


def test_evaluation_takes_the_middle_of_the_window():
    seconds = camera_frames(60, 60)
    assert seconds[choose_adjacent(seconds, ADJACENT, None)] == pytest.approx([1.5], abs=1 / RATE / 2)
    three = seconds[choose_adjacent(seconds, AdjacentFrames(frames=3), None)]
    assert three == pytest.approx([2.0, 1.5, 1.0], abs=1 / RATE / 2)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (60, 0, 18),  # the middle of the window
        (10, 60, 10),  # the window holds two, the farther is nearer to its middle
        (5, 60, 5),  # none in the window: the farthest there is
        (1, 60, 1),
        (0, 60, -18),  # the scene begins: the same after the key frame
        (0, 3, -3),
    ],
)
def test_where_a_scene_begins(before, after, expected):
    seconds = camera_frames(before, after)
    assert round(float(seconds[choose_adjacent(seconds, ADJACENT, None)][0]) * RATE) == expected


def test_where_a_scene_begins_the_key_frame_may_stand_in(index):
    alone = AdjacentFrames(later=False)
    for rng in (None, np.random.default_rng(0)):
        assert len(choose_adjacent(camera_frames(0, 60), alone, rng)) == 0
    before = camera_frames(10, 60)
    assert before[choose_adjacent(before, alone, None)] == before[choose_adjacent(before, ADJACENT, None)]
    (frame,) = earlier_frames(index, 0, alone, None)
    assert (frame.row, frame.seconds, frame.present) == (0, 0.0, False)


def test_a_scene_of_one_frame_has_no_other():
    assert len(choose_adjacent(camera_frames(0, 0), ADJACENT, None)) == 0
    assert len(choose_adjacent(camera_frames(0, 0), ADJACENT, np.random.default_rng(0))) == 0


def test_several_frames_are_apart_and_oldest_first():
    seconds = camera_frames(60, 0)
    for seed in range(50):
        chosen = seconds[choose_adjacent(seconds, AdjacentFrames(frames=4), np.random.default_rng(seed))]
        assert (np.diff(chosen) < 0).all()
    # Two frames in the window for four places.
    few = camera_frames(10, 0)
    chosen = few[choose_adjacent(few, AdjacentFrames(frames=4), np.random.default_rng(0))]
    assert len(chosen) == 4
    assert set(np.round(chosen * RATE)) <= {9.0, 10.0}


def test_a_queue_leaves_one_frame_out_at_random():
    drawn = Counter(tuple(choose_queue(20, 10, QUEUE, np.random.default_rng(seed))) for seed in range(600))
    assert set(drawn) == {(17, 18), (17, 19), (18, 19)}
    assert min(drawn.values()) > 150
    assert choose_queue(20, 10, QUEUE, None) == [18, 19]


def test_a_queue_ends_where_the_scene_begins():
    assert choose_queue(20, 19, QUEUE, None) == [19]
    assert choose_queue(20, 20, QUEUE, None) == []
    drawn = {tuple(choose_queue(20, 19, QUEUE, np.random.default_rng(seed))) for seed in range(100)}
    assert drawn == {(), (19,)}


def test_without_a_spare_frame_training_takes_what_evaluation_takes():
    fixed = KeyframeQueue(frames=4, spare=0)
    assert (
        choose_queue(20, 10, fixed, np.random.default_rng(0)) == choose_queue(20, 10, fixed, None) == [17, 18, 19]
    )


def test_moments_are_all_images_of_the_front_camera(index, small_world):
    records = {record["filename"]: record for record in small_world.tables["sample_data"]}
    moments = index.moments
    assert list(zip(moments.begin.tolist(), moments.end.tolist(), strict=True)) == [
        *[(0, 5)] * 3, *[(5, 8)] * 2, *[(8, 19)] * 3,
    ]  # fmt: skip
    assert (np.diff(moments.timestamp)[[0, 1, 2, 3, 5, 6, 8, 17]] == 250_000).all()
    for row, paths in enumerate(moments.path):
        times = [records[path.decode()]["timestamp"] - moments.timestamp[row] for path in paths]
        # Cameras fire 12 ms after one another, in the order front, front right, back right, back, ...
        assert times == [60_000, 0, 12_000, 48_000, 36_000, 24_000]


def test_moments_stand_where_the_devkit_puts_them(index, devkit):
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    def pose(record):
        return transform_matrix(record["translation"], Quaternion(record["rotation"]))

    records = {record["filename"]: record for record in devkit.sample_data}
    lidar = pose(next(r for r in devkit.calibrated_sensor if r["token"] == "rig-LIDAR_TOP"))
    compared = 0
    for row, paths in enumerate(index.moments.path):
        for column, path in enumerate(paths):
            record = records[path.decode()]
            rig = devkit.get("calibrated_sensor", record["calibrated_sensor_token"])
            global_T_ego = pose(devkit.get("ego_pose", record["ego_pose_token"]))
            np.testing.assert_allclose(index.moments.global_T_cam[row, column], global_T_ego @ pose(rig), atol=1e-9)
            np.testing.assert_array_equal(index.moments.intrinsics[row, column], rig["camera_intrinsic"])
            assert index.moments.size[row, column].tolist() == [48, 128]
            if CAMERAS[column] == "CAM_FRONT":
                np.testing.assert_allclose(index.moments.global_T_lidar[row], global_T_ego @ lidar, atol=1e-9)
            compared += 1
    assert compared == 114


@pytest.mark.parametrize("history", [ADJACENT, QUEUE])
def test_a_landmark_stays_where_it_is(index, history):
    """A point of the world, seen from an earlier frame's LiDAR or camera, has one place in the key frame's axes."""
    landmark = np.array([430.0, 1100.0, 2.0, 1.0])
    row = 7
    key_T_global = np.linalg.inv(index.key_frames.global_T_lidar[row])
    frames = earlier_frames(index, row, history, None)
    assert len(frames) == history.earlier
    for frame in frames:
        assert frame.present
        if frame.row is None:
            moment = next(m for m, paths in enumerate(index.moments.path) if paths[0].decode() == frame.paths[0])
            poses = [*index.moments.global_T_cam[moment], index.moments.global_T_lidar[moment]]
        else:
            global_T_lidar = index.key_frames.global_T_lidar[frame.row]
            poses = [*(global_T_lidar @ index.cameras.lidar_T_cam[frame.row]), global_T_lidar]
        for key_T_sensor, global_T_sensor in zip([*frame.lidar_T_cam, frame.lidar_T_past], poses, strict=True):
            seen = np.linalg.inv(global_T_sensor) @ landmark
            np.testing.assert_allclose(key_T_sensor @ seen, key_T_global @ landmark, atol=1e-8)
    turned = np.arccos(frames[0].lidar_T_past[0, 0])
    assert turned > 0.1


def test_frames_of_a_scene_that_begins(index):
    # The scene of row 5 has no frame before it, and frames up to 2.5 s after.
    (later,) = earlier_frames(index, 5, ADJACENT, None)
    assert later.present
    assert later.seconds == pytest.approx(-1.5, abs=0.05)
    absent = earlier_frames(index, 5, QUEUE, None)
    assert [(frame.present, frame.row, frame.seconds) for frame in absent] == [(False, 5, 0.0)] * 2
    assert absent[0].paths == own_frame(index, 5).paths
    first, second = earlier_frames(index, 6, QUEUE, None)
    assert [(first.present, first.row), (second.present, second.row)] == [(False, 6), (True, 5)]
    assert second.seconds == pytest.approx(0.5)


def test_points_land_where_they_were_seen(index):
    frame = own_frame(index, 1)
    # Two pixels of a camera that looks back, at 7 and at 0.4 m, one in the recorded image's outermost pixel, and
    # what is behind the camera.
    column = CAMERAS.index("CAM_BACK")
    lidar_T_cam, intrinsics = frame.lidar_T_cam[column], frame.intrinsics[column]
    pixels = np.array([[30.0, 20.0, 1.0], [90.0, 40.0, 1.0], [0.5, 20.0, 1.0], [30.0, 20.0, 1.0]])
    rays = pixels @ np.linalg.inv(intrinsics).T * np.array([7.0, 0.4, 7.0, -7.0])[:, None]
    points = torch.tensor(np.c_[rays, np.ones(4)] @ lidar_T_cam.T)[:, :3]
    aug = ImageAug(0.5, 4, 3, True, 0.0, (20, 60))
    hits = depth_hits(points, frame, [aug] * 6)
    own = hits.image == column
    expected = torch.tensor([[60 - (15.0 - 4), 10.0 - 3], [60 - (45.0 - 4), 20.0 - 3], [60 - (0.25 - 4), 10.0 - 3]])
    torch.testing.assert_close(hits.pixels[own], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(hits.depth[own], torch.tensor([7.0, 0.4, 7.0]), atol=1e-5, rtol=0)
    assert hits.inner[own].tolist() == [True, True, False]


def test_the_outermost_pixels_of_a_recorded_image_are_not_inner(index):
    frame = own_frame(index, 1)
    column = CAMERAS.index("CAM_BACK")
    # Of 128 x 48 pixels.
    pixels = np.array(
        [[0.9, 20, 1], [1.1, 20, 1], [126.9, 20, 1], [127.1, 20, 1], [9, 0.9, 1], [9, 46.9, 1], [9, 47.1, 1]]
    )
    rays = np.c_[7.0 * pixels @ np.linalg.inv(frame.intrinsics[column]).T, np.ones(7)]
    points = torch.tensor(rays @ frame.lidar_T_cam[column].T)[:, :3]
    hits = depth_hits(points, frame, [ImageAug(1.0, 0, 0, False, 0.0, (48, 128))] * 6)
    own = hits.image == column
    assert own.sum() == 7
    seen = hits.pixels[own & hits.inner]
    torch.testing.assert_close(seen, torch.tensor([[1.1, 20], [126.9, 20], [9, 46.9]]), atol=1e-3, rtol=0)


def test_what_the_augmentation_cuts_off_is_dropped(index):
    frame = own_frame(index, 1)
    generator = torch.Generator().manual_seed(0)
    points = torch.empty(2000, 3, dtype=torch.float64).uniform_(-20, 20, generator=generator)
    whole = depth_hits(points, frame, [ImageAug(1.0, 0, 0, False, 0.0, (48, 128))] * 6)
    part = depth_hits(points, frame, [ImageAug(1.0, 30, 10, False, 0.0, (20, 60))] * 6)
    u, v = (whole.pixels - torch.tensor([30.0, 10.0])).unbind(-1)
    kept = (u > -16) & (u < 76) & (v > -16) & (v < 36)
    assert 100 < kept.sum() < len(kept)
    torch.testing.assert_close(part.depth, whole.depth[kept])
    torch.testing.assert_close(part.image, whole.image[kept])


def test_points_beside_an_image_reach_the_first_row_and_column_of_cells_as_the_nearest(index):
    """Of 16 pixels: u -7 is rounded to cell 0 and u -9 to cell -1; v 9 to cell 1."""
    frame = own_frame(index, 1)
    column = CAMERAS.index("CAM_BACK")
    pixels = np.array([[-7, 9, 1], [-9, 9, 1], [5, -7.9, 1], [5, 7, 1]])
    metres = np.array([[5.0], [4.0], [6.0], [7.0]])
    rays = np.c_[metres * pixels @ np.linalg.inv(frame.intrinsics[column]).T, np.ones(4)]
    points = torch.tensor(rays @ frame.lidar_T_cam[column].T)[:, :3]
    hits = depth_hits(points, frame, [ImageAug(1.0, 0, 0, False, 0.0, (48, 128))] * 6)
    depth = depth_map(hits, 6, (48, 128), stride=16, rounding="nearest")[column]
    found = {tuple(cell.tolist()): round(float(depth[tuple(cell)]), 3) for cell in torch.isfinite(depth).nonzero()}
    assert found == {(1, 0): 5.0, (0, 0): 6.0}
