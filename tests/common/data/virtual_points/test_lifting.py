"""Points lifted from masks: hand-computed, against a loop, and through the poses of the tables."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.virtual_points.files import SweepJob, sweep_jobs
from bevkd_common.data.virtual_points.instances import Instances, named_rng
from bevkd_common.data.virtual_points.lifting import View, lift, nothing_lifted, painted_cloud, plain_points
from bevkd_common.data.virtual_points.makers import FromMasks, sweep_frame
from scipy.spatial.transform import Rotation

# Camera axes x right, y down, z forward; the LiDAR's y is the camera's z, its z the camera's -y.
FORWARD = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0.7], [0, -1, 0, -0.3], [0, 0, 0, 1]])
INTRINSICS = np.array([[10.0, 0, 20], [0, 10, 15], [0, 0, 1]])
SIZE = (30, 40)


def masks(*boxes: tuple[slice, slice]) -> np.ndarray:
    """Masks [I, H, W], each a rectangle of rows and columns."""
    found = np.zeros((len(boxes), *SIZE), np.bool_)
    for mask, (rows, columns) in zip(found, boxes, strict=True):
        mask[rows, columns] = True
    return found


def view(found: np.ndarray, labels: list[int], scores: list[float]) -> View:
    return View(Instances.of_masks(found, np.array(labels), np.array(scores)), INTRINSICS, FORWARD)


def seen_at(u: float, v: float, depth: float) -> list[float]:
    """A LiDAR point that the camera sees at a pixel: intensity 7, ring 3."""
    x, y = (u - 20) / 10 * depth, (v - 15) / 10 * depth
    return [x, depth + 0.7, -y - 0.3, 7, 3]


def pixels_of(points: np.ndarray) -> np.ndarray:
    """u, v, depth [N, 3] of LiDAR points, by hand."""
    x, depth, y = points[:, 0], points[:, 1] - 0.7, -(points[:, 2] + 0.3)
    return np.stack([x / depth * 10 + 20, y / depth * 10 + 15, depth], axis=1)


def cloud(*points: list[float]) -> np.ndarray:
    return np.array(points, np.float32)


def test_three_pixels_and_one_point():
    mask = masks((slice(4, 5), slice(6, 9)))
    made = lift(cloud(seen_at(7, 4, 20.0), seen_at(30, 25, 9.0)), [view(mask, [8], [0.6])], named_rng("a"))
    u, v, depth = pixels_of(made.virtual).T
    np.testing.assert_allclose(depth, 20.0, atol=1e-4)
    np.testing.assert_allclose(v, 4.0, atol=1e-4)
    assert len(u) == 50
    assert set(np.rint(u)) == {6.0, 7.0, 8.0}
    np.testing.assert_allclose(u, np.rint(u), atol=1e-4)
    # Of three pixels one stands for the 47 that are missing.
    assert sorted(np.unique(np.rint(u), return_counts=True)[1]) == [1, 1, 48]
    assert set(made.virtual_labels) == {8}
    np.testing.assert_allclose(made.virtual_scores, 0.6)
    np.testing.assert_array_equal(made.painted, cloud(seen_at(7, 4, 20.0))[:, :4])
    assert (made.painted_labels.tolist(), made.painted_scores.tolist()) == ([8], [pytest.approx(0.6)])

    rows = painted_cloud(cloud(seen_at(7, 4, 20.0), seen_at(30, 25, 9.0)), made)
    assert rows.shape == (2 + 1 + 50, 17)
    one_hot = [float(label == 8) for label in range(10)]
    np.testing.assert_allclose(rows[0], [*seen_at(7, 4, 20.0)[:4], *[1] * 10, 1, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(rows[2], [*seen_at(7, 4, 20.0)[:4], *one_hot, 0.6, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(rows[3], [*made.virtual[0], -1, *one_hot, 0.6, -1, 0], rtol=1e-6)


def test_a_large_instance_has_fifty_pixels_of_its_own():
    made = lift(
        cloud(seen_at(20, 15, 8.0)), [view(masks((slice(0, 30), slice(0, 40))), [0], [0.9])], named_rng("b")
    )
    pixels = {tuple(pixel) for pixel in np.rint(pixels_of(made.virtual)[:, :2]).tolist()}
    assert len(pixels) == 50
    assert {u for u, _ in pixels} <= set(range(40))
    assert {v for _, v in pixels} <= set(range(30))


def test_depths_are_those_of_the_nearest_point_of_the_same_instance():
    rng = np.random.default_rng(3)
    found = masks((slice(0, 15), slice(0, 20)), (slice(10, 30), slice(15, 40)), (slice(20, 30), slice(0, 10)))
    sweep = cloud(*(seen_at(*rng.uniform((0, 0, 3), (39, 29, 40))) for _ in range(60)))
    image = view(found, [1, 2, 3], [0.9, 0.8, 0.7])
    made = lift(sweep, [image], rng)
    hits = pixels_of(sweep.astype(np.float64))
    virtual = pixels_of(made.virtual.astype(np.float64))
    assert len(virtual) == 150
    # Of two masks the first one owns a LiDAR point.
    owner = [next((i for i in range(3) if found[i][round(v), round(u)]), None) for u, v, _ in hits]
    for row, (u, v, depth) in enumerate(virtual):
        instance = int(made.virtual_labels[row]) - 1
        assert found[instance][round(v), round(u)]
        own = [hit for hit, mine in zip(hits, owner, strict=True) if mine == instance]
        nearest = min(own, key=lambda hit: (hit[0] - round(u)) ** 2 + (hit[1] - round(v)) ** 2)
        assert depth == pytest.approx(nearest[2], rel=1e-5)
    painted = [i for i, mine in enumerate(owner) if mine is not None]
    np.testing.assert_array_equal(made.painted, sweep[painted, :4])
    assert made.painted_labels.tolist() == [owner[i] + 1 for i in painted]


def test_what_holds_no_point_gives_none():
    found = masks((slice(0, 5), slice(0, 5)), (slice(20, 25), slice(20, 25)))
    behind = [1.0, -5.0, 0.0, 7, 3]
    made = lift(cloud(seen_at(2, 2, 6.0), behind), [view(found, [4, 5], [0.5, 0.5])], named_rng("c"))
    assert (len(made.virtual), set(made.virtual_labels)) == (50, {4})
    nothing = lift(cloud(behind), [view(found, [4, 5], [0.5, 0.5])], named_rng("c"))
    assert (len(nothing.virtual), len(nothing.painted)) == (0, 0)
    none_found = view(np.zeros((0, *SIZE), np.bool_), [], [])
    assert len(lift(cloud(seen_at(2, 2, 6.0)), [none_found], named_rng("c")).virtual) == 0
    assert len(painted_cloud(cloud(behind), nothing_lifted())) == 1


def test_the_border_of_the_image_is_half_a_pixel_outside():
    whole = view(masks((slice(0, 30), slice(0, 40))), [0], [0.5])
    inside = [seen_at(u, v, 5.0) for u, v in ((-0.4, 3), (39.4, 3), (3, -0.4), (3, 29.4))]
    outside = [seen_at(u, v, 5.0) for u, v in ((-0.6, 3), (39.6, 3), (3, -0.6), (3, 29.6))]
    assert len(lift(cloud(*inside), [whole], named_rng("d")).painted) == 4
    assert len(lift(cloud(*outside), [whole], named_rng("d")).painted) == 0


def test_a_point_in_two_images_is_painted_by_the_better():
    everything = masks((slice(0, 30), slice(0, 40)))
    views = [view(everything, [1], [0.4]), view(everything, [2], [0.8]), view(everything, [3], [0.6])]
    made = lift(cloud(seen_at(9, 9, 5.0), seen_at(30, 20, 6.0)), views, named_rng("e"))
    assert made.painted_labels.tolist() == [2, 2]
    np.testing.assert_allclose(made.painted_scores, 0.8)
    assert np.bincount(made.virtual_labels).tolist() == [0, 50, 50, 50]


def test_instances_are_sorted_by_score_and_what_is_empty_is_left_out():
    found = masks((slice(0, 2), slice(0, 2)), (slice(5, 5), slice(0, 4)), (slice(1, 3), slice(1, 3)))
    instances = Instances.of_masks(found, np.array([4, 5, 6]), np.array([0.3, 0.9, 0.8]))
    assert (len(instances), instances.labels.tolist(), instances.scores.tolist()) == (2, [6, 4], [0.8, 0.3])
    assert instances.offset.tolist() == [0, 4, 8]
    owner = instances.owner().reshape(SIZE)
    # The pixel that both cover belongs to the better.
    assert owner[:3, :3].tolist() == [[1, 1, -1], [1, 0, 0], [-1, 0, 0]]
    assert (owner >= 0).sum() == 7


def test_plain_points_are_those_as_measured():
    sweep = cloud(seen_at(9, 9, 5.0), seen_at(30, 20, 6.0))
    made = lift(sweep, [view(masks((slice(0, 30), slice(0, 40))), [1], [0.4])], named_rng("f"))
    rows = painted_cloud(sweep, made)
    rows[:, 16] = 0.25
    np.testing.assert_array_equal(plain_points(rows), np.c_[sweep[:, :4], [0.25, 0.25]])


class Blocks:
    """Two rectangles in every image, told apart by class."""

    settings: ClassVar = {"masks": "blocks"}
    sentence = "blocks"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def instances(self, image: str, scene: str, size: tuple[int, int]) -> Instances:
        self.asked.append(image)
        found = np.zeros((2, *size), np.bool_)
        found[0, 10:40, 5:60], found[1, 12:30, 70:120] = True, True
        return Instances.of_masks(found, np.array([0, 8]), np.array([0.9, 0.8]))


def pose(tables: dict, token: str) -> np.ndarray:
    """4 x 4 global_T_sensor of a file, from the tables alone."""
    data = next(row for row in tables["sample_data"] if row["token"] == token)
    chain = np.eye(4)
    for table, key in (("ego_pose", "ego_pose_token"), ("calibrated_sensor", "calibrated_sensor_token")):
        row = next(row for row in tables[table] if row["token"] == data[key])
        step = np.eye(4)
        w, x, y, z = row["rotation"]
        step[:3, :3], step[:3, 3] = Rotation.from_quat([x, y, z, w]).as_matrix(), row["translation"]
        chain = chain @ step
    return chain


@pytest.mark.parametrize(
    ("sweep", "token", "image"),
    [
        ("samples/LIDAR_TOP/scene-9001_0500.pcd.bin", "LIDAR_TOP-scene-9001-500", "samples/{}/scene-9001_1.jpg"),
        ("sweeps/LIDAR_TOP/scene-9001_0300.pcd.bin", "LIDAR_TOP-scene-9001-300", "sweeps/{}/scene-9001_0250.jpg"),
        ("sweeps/LIDAR_TOP/scene-9001_0400.pcd.bin", "LIDAR_TOP-scene-9001-400", "samples/{}/scene-9001_1.jpg"),
    ],
)
def test_virtual_points_lie_on_pixels_of_their_masks_at_depths_of_points_there(small_world, sweep, token, image):
    index = open_index(small_world.root, small_world.version)
    job = next(job for job in sweep_jobs(index, 11) if job.sweep == sweep)
    assert (job.column == 0) == sweep.startswith("samples")
    blocks = Blocks()
    made = FromMasks(index, blocks).make(job)
    cameras = [path.split("/")[1] for path in blocks.asked]
    assert len(set(cameras)) == 6
    assert blocks.asked == [image.format(camera) for camera in cameras]

    points = np.fromfile(small_world.root / sweep, np.float32).reshape(-1, 5).astype(np.float64)
    global_T_sweep = pose(small_world.tables, token)
    explained = np.zeros(len(made.virtual), np.bool_)
    for camera in cameras:
        data = next(r for r in small_world.tables["sample_data"] if r["filename"] == image.format(camera))
        cam_T_sweep = np.linalg.inv(pose(small_world.tables, data["token"])) @ global_T_sweep
        rig = next(r for r in small_world.tables["calibrated_sensor"] if r["token"] == f"rig-{camera}")
        matrix = np.array(rig["camera_intrinsic"])

        def project(xyz, cam_T_sweep=cam_T_sweep, matrix=matrix):
            in_camera = xyz @ cam_T_sweep[:3, :3].T + cam_T_sweep[:3, 3]
            return np.c_[(in_camera / in_camera[:, 2:]) @ matrix[:2].T, in_camera[:, 2]]

        there, measured = project(made.virtual.astype(np.float64)), project(points[:, :3])
        on_pixel = np.abs(there[:, :2] - np.rint(there[:, :2])).max(axis=1) < 1e-3
        column, row = np.rint(there[:, :2]).T
        first = (row >= 10) & (row < 40) & (column >= 5) & (column < 60)
        second = (row >= 12) & (row < 30) & (column >= 70) & (column < 120)
        in_mask = np.where(made.virtual_labels == 0, first, second)
        known = (np.abs(there[:, 2:] - measured[:, 2]) < 1e-3).any(axis=1)
        explained |= on_pixel & in_mask & (there[:, 2] > 0) & known
    assert len(explained) >= 300
    assert explained.all()


def test_every_sweep_is_a_job_once_and_key_frames_come_first(small_world):
    index = open_index(small_world.root, small_world.version)
    jobs = sweep_jobs(index, 11)
    named = {row["filename"] for row in small_world.tables["sample_data"] if "LIDAR" in row["filename"]}
    assert {job.sweep for job in jobs} <= named
    assert len({job.sweep for job in jobs}) == len(jobs) > 40
    own = [job for job in jobs if job.sweep.startswith("samples")]
    assert jobs[: len(own)] == own
    assert (len(own), {job.column for job in own}) == (8, {0})
    assert all(index.sweeps.path[job.row, job.column].decode() == job.sweep for job in jobs)
    assert [job.sweep for job in sweep_jobs(index, 1)] == [job.sweep for job in own]


def test_the_images_of_a_sweep_are_the_nearest_in_time(small_world):
    index = open_index(small_world.root, small_world.version)
    # CAM_FRONT is 40 ms early: at 0.21 s, which is nearer to 0.3 s, and at 0.46 s, which is nearer to 0.35 s.
    seconds = [
        sweep_frame(index, SweepJob(index.sweeps.path[1, column].decode(), 1, column)).seconds for column in (4, 3)
    ]
    assert seconds == [pytest.approx(0.09), pytest.approx(-0.11)]
