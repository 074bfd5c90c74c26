"""The index against the devkit, its file, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bevkd_common.config.nuscenes_names import CAMERAS, CLASSES
from bevkd_common.data.index import BICYCLE_RACK, IGNORED, NuScenesIndex
from bevkd_common.data.index_build import build_index


@pytest.fixture(scope="module")
def index(small_world) -> NuScenesIndex:
    return build_index(small_world.root, small_world.version)


@pytest.fixture(scope="module")
def devkit(small_world):
    nuscenes = pytest.importorskip("nuscenes")
    return nuscenes.NuScenes(small_world.version, str(small_world.root), verbose=False)


def test_key_frames_come_scene_by_scene_in_time_order(index):
    frames = index.key_frames
    assert [token.decode() for token in frames.token] == [
        *(f"scene-9001-key{k}" for k in range(3)),
        *(f"scene-9002-key{k}" for k in range(2)),
        *(f"scene-9003-key{k}" for k in range(3)),
    ]
    assert np.diff(frames.timestamp)[[0, 1, 3, 5, 6]].tolist() == [500_000, 500_000, 500_000, 500_000, 2_000_000]


def test_sweep_matrices_equal_the_devkits_chain(index, devkit):
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    def pose(record, inverse=False):
        return transform_matrix(record["translation"], Quaternion(record["rotation"]), inverse=inverse)

    compared = 0
    for row, sample in enumerate(devkit.get("sample", token.decode()) for token in index.key_frames.token):
        key = record = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        rig = devkit.get("calibrated_sensor", key["calibrated_sensor_token"])
        lidar_T_global = pose(rig, True) @ pose(devkit.get("ego_pose", key["ego_pose_token"]), True)
        for column in range(index.sweeps.count[row]):
            global_T_sweep = pose(devkit.get("ego_pose", record["ego_pose_token"])) @ pose(rig)
            expected = lidar_T_global @ global_T_sweep
            np.testing.assert_allclose(index.sweeps.lidar_T_sweep[row, column], expected, atol=1e-9)
            assert index.sweeps.path[row, column].decode() == record["filename"]
            assert index.sweeps.timestamp[row, column] == record["timestamp"]
            compared += 1
            record = devkit.get("sample_data", record["prev"]) if record["prev"] else None
    # 21, 11 and 51 sweeps in the three scenes: a key frame sees at most ten before it, and none of another scene.
    assert index.sweeps.count.tolist() == [1, 11, 11, 1, 11, 1, 11, 11]
    assert compared == 58


def test_cameras_carry_their_own_time(index, devkit):
    compared = 0
    for row, token in enumerate(index.key_frames.token):
        sample = devkit.get("sample", token.decode())
        for column, camera in enumerate(CAMERAS):
            record = devkit.get("sample_data", sample["data"][camera])
            rig = devkit.get("calibrated_sensor", record["calibrated_sensor_token"])
            assert index.cameras.path[row, column].decode() == record["filename"]
            assert index.cameras.timestamp[row, column] == record["timestamp"]
            assert index.cameras.size[row, column].tolist() == [48, 128]
            np.testing.assert_array_equal(index.cameras.intrinsics[row, column], rig["camera_intrinsic"])
            # The devkit maps a LiDAR point into a camera step by step; its origin must come back.
            origin = np.linalg.inv(index.cameras.lidar_T_cam[row, column]) @ [1.0, 2.0, 3.0, 1.0]
            np.testing.assert_allclose(origin[:3], _devkit_into_camera(devkit, sample, camera), atol=1e-9)
            compared += 1
    assert compared == 48


def _devkit_into_camera(devkit, sample, camera):
    from pyquaternion import Quaternion

    point = np.array([1.0, 2.0, 3.0])
    for channel, inverse in (("LIDAR_TOP", False), (camera, True)):
        record = devkit.get("sample_data", sample["data"][channel])
        rig = devkit.get("calibrated_sensor", record["calibrated_sensor_token"])
        poses = [rig, devkit.get("ego_pose", record["ego_pose_token"])]
        for pose in reversed(poses) if inverse else poses:
            rotation = Quaternion(pose["rotation"]).rotation_matrix
            shift = np.array(pose["translation"])
            point = rotation.T @ (point - shift) if inverse else rotation @ point + shift
    return point


def test_boxes_equal_the_devkits(index, devkit):
    compared = 0
    for row, token in enumerate(index.key_frames.token):
        sample = devkit.get("sample", token.decode())
        rows = index.annotations.rows(row)
        assert [t.decode() for t in index.annotations.token[rows]] == sample["anns"]
        _, boxes, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
        ours = index.annotations.boxes[rows]
        for box, mine in zip(boxes, ours, strict=True):
            np.testing.assert_allclose(mine[:3], box.center, atol=1e-9)
            np.testing.assert_array_equal(mine[[4, 3, 5]], box.wlh)
            heading = box.orientation.rotate([1, 0, 0])
            np.testing.assert_allclose(mine[6], np.arctan2(heading[1], heading[0]), atol=1e-9)
            compared += 1
    assert compared == len(index.annotations.token) == 81


def test_velocities_equal_the_devkits(index, devkit):
    from pyquaternion import Quaternion

    known = 0
    for row, token in enumerate(index.key_frames.token):
        rotation = index.key_frames.global_T_lidar[row, :3, :3]
        for place in range(*index.annotations.rows(row).indices(10**6)):
            expected = devkit.box_velocity(index.annotations.token[place].decode())
            np.testing.assert_allclose(index.annotations.global_velocity[place], expected[:2], rtol=1e-12)
            expected[2] = 0  # ground velocity
            np.testing.assert_allclose(
                index.annotations.boxes[place, 7:], (rotation.T @ expected)[:2], rtol=1e-9, atol=1e-12
            )
            known += not np.isnan(expected).any()
        lidar = devkit.get("sample_data", devkit.get("sample", token.decode())["data"]["LIDAR_TOP"])
        ego = devkit.get("ego_pose", lidar["ego_pose_token"])
        rig = devkit.get("calibrated_sensor", lidar["calibrated_sensor_token"])
        np.testing.assert_allclose(
            rotation, (Quaternion(ego["rotation"]) * Quaternion(rig["rotation"])).rotation_matrix, atol=1e-12
        )
        np.testing.assert_array_equal(index.key_frames.ego_translation[row], ego["translation"])
    # Unknown: the pedestrian, seen once in each scene, and nine objects at the end of the last scene's long gap.
    assert (known, len(index.annotations.token) - known) == (69, 12)


def test_labels_counts_and_attributes(index, small_world):
    annotations = index.annotations
    by_token = {token.decode(): row for row, token in enumerate(annotations.token)}
    expected = {
        "car": ("car", 9, 0, b"vehicle.parked"),
        "truck": ("truck", 7, 2, b"vehicle.moving"),
        "bus": ("bus", 5, 0, b"vehicle.moving"),
        "person": ("pedestrian", 3, 0, b"pedestrian.moving"),
        "cone": ("traffic_cone", 0, 0, b""),
        "barrier": ("barrier", 0, 1, b""),
        "racked": ("bicycle", 2, 0, b"cycle.without_rider"),
        "rack": (BICYCLE_RACK, 4, 0, b""),
        "dog": (IGNORED, 2, 0, b""),
    }
    for name, (label, lidar, radar, attribute) in expected.items():
        row = by_token[f"{name}-scene-9001-1"]
        code = CLASSES.index(label) if isinstance(label, str) else label
        assert annotations.label[row] == code
        assert (annotations.lidar_points[row], annotations.radar_points[row]) == (lidar, radar)
        assert annotations.attribute[row] == attribute


def test_every_category_of_the_detection_task_has_its_class():
    from bevkd_common.data.index_build import DETECTION_CLASS

    utils = pytest.importorskip("nuscenes.eval.detection.utils")
    assert len(DETECTION_CLASS) == 14
    assert {name: utils.category_to_detection_name(name) for name in DETECTION_CLASS} == DETECTION_CLASS
    assert utils.category_to_detection_name("animal") is None


def test_official_splits_equal_the_devkits():
    from bevkd_common.data.nuscenes_tables import scene_names

    splits = pytest.importorskip("nuscenes.utils.splits").create_splits_scenes()
    sizes = {}
    for name in ("train", "val", "mini_train", "mini_val"):
        ours = scene_names(Path(), "v1.0-trainval", name)
        assert ours == splits[name]
        sizes[name] = len(ours)
    assert sizes == {"train": 700, "val": 150, "mini_train": 8, "mini_val": 2}
