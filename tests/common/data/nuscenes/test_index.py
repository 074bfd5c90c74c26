"""The index against the devkit, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bevkd_common.config.datasets.nuscenes_names import CAMERAS, CLASSES
from bevkd_common.data.nuscenes.index import BICYCLE_RACK, IGNORED, NuScenesIndex
from bevkd_common.data.nuscenes.index_build import build_index
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.errors import UserError


@pytest.fixture(scope="module")
def index(small_world) -> NuScenesIndex:
    return build_index(small_world.root, small_world.version)


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
        global_T_ego = index.key_frames.global_T_ego[row]
        np.testing.assert_array_equal(global_T_ego[:3, 3], ego["translation"])
        np.testing.assert_allclose(global_T_ego[:3, :3], Quaternion(ego["rotation"]).rotation_matrix, atol=1e-12)
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
    from bevkd_common.data.nuscenes.categories import DETECTION_CLASS

    utils = pytest.importorskip("nuscenes.eval.detection.utils")
    assert len(DETECTION_CLASS) == 14
    assert {name: utils.category_to_detection_name(name) for name in DETECTION_CLASS} == DETECTION_CLASS
    assert utils.category_to_detection_name("animal") is None


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("car", "vehicle.car"), ("Car", "vehicle.car"), ("traffic_cone", "movable_object.trafficcone"),
        ("pedestrian", "human.pedestrian.adult"), ("bus", "vehicle.bus.rigid"), ("object.truck", "vehicle.truck"),
        ("construction_vehicle", "vehicle.construction"),
    ],
)  # fmt: skip
def test_a_detection_class_under_another_name_is_refused(own_world, name, official):
    annotated = {record["instance_token"] for record in own_world.tables["sample_annotation"]}
    used = {r["category_token"] for r in own_world.tables["instance"] if r["token"] in annotated}
    # Another category keeps its name, so that the tables are not those of another data set altogether.
    renamed = next(r for r in own_world.tables["category"] if r["token"] in used and r["name"] == "animal")
    renamed["name"] = name
    own_world.write("category")
    with pytest.raises(
        UserError, match=rf"names the category '{name}' of \d+ annotations, in nuScenes it is '{official}'"
    ):
        build_index(own_world.root, own_world.version)


def test_other_categories_are_left_out_and_this_is_said(own_world, caplog):
    renamed = next(record for record in own_world.tables["category"] if record["name"] == "animal")
    build_index(own_world.root, own_world.version)
    assert "left out" not in caplog.text
    renamed["name"] = "vehicle.forklift"
    own_world.write("category")
    build_index(own_world.root, own_world.version)
    assert "boxes of 'vehicle.forklift' are left out, it is no category of nuScenes" in caplog.text


def test_counts_of_minus_one_are_of_another_tool(own_world):
    for record in own_world.tables["sample_annotation"]:
        record["num_lidar_pts"] = -1
    own_world.write("sample_annotation")
    with pytest.raises(
        UserError, match=r"has -1 as num_lidar_pts, .* in tables of another tool: write the number of points"
    ) as refusal:
        build_index(own_world.root, own_world.version)
    assert "unpack" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<!DOCTYPE html><html>", "scene.json is an HTML page"),
        ("version https://git-lfs.github.com/spec/v1", "scene.json is a Git-LFS pointer"),
    ],
)
def test_a_table_that_was_not_fetched_is_named(own_world, content, said):
    (own_world.root / own_world.version / "scene.json").write_text(content)
    with pytest.raises(UserError, match=said) as refusal:
        build_index(own_world.root, own_world.version)
    assert "unpack" not in str(refusal.value)


def test_official_splits_equal_the_devkits():
    from bevkd_common.data.nuscenes.tables import scene_names

    splits = pytest.importorskip("nuscenes.utils.splits").create_splits_scenes()
    sizes = {}
    for name in ("train", "val", "mini_train", "mini_val", "test"):
        ours = scene_names(Path(), "v1.0-trainval", name)
        assert ours == splits[name]
        sizes[name] = len(ours)
    assert sizes == {"train": 700, "val": 150, "mini_train": 8, "mini_val": 2, "test": 150}


def test_splits_choose_key_frames(index):
    assert index.split("small_train").tolist() == [0, 1, 2, 3, 4]
    assert index.split("small_val").tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            "nonsense",
            r"no split 'nonsense' in .*choose one of train, .*, mini_val, test, small_train, small_val",
        ),
        ("val", r"has 0 of the 150 scenes of split 'val', scene-0003 is missing; choose"),
    ],
)
def test_a_split_that_is_not_there(index, split, message):
    with pytest.raises(UserError, match=message):
        index.split(split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "splits.json is not JSON"),
        ("[]", "must map each split to a list of one or more scene names"),
        ('{"a": "scene-9001"}', "must map each split to a list of one or more scene names"),
        ('{"a": []}', "must map each split to a list of one or more scene names"),
        ('{"a": [9001]}', "must map each split to a list of one or more scene names"),
    ],
)
def test_damaged_splits(own_world, content, message):
    (own_world.root / own_world.version / "splits.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_index(own_world.root, own_world.version).split("a")


def test_missing_folders_and_tables(own_world, tmp_path):
    with pytest.raises(UserError, match=r"no data set at .*absent.*correct the path"):
        open_index(tmp_path / "absent", own_world.version)
    with pytest.raises(UserError, match=r"has no folder v1\.0-mini: it holds v1\.0-small"):
        open_index(own_world.root, "v1.0-mini")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it holds no version folder such as"):
        open_index(tmp_path / "empty", "v1.0-mini")
    table = own_world.root / own_world.version / "ego_pose.json"
    table.unlink()
    with pytest.raises(UserError, match=r"v1\.0-small lacks ego_pose\.json; unpack the metadata"):
        open_index(own_world.root, own_world.version)
    with pytest.raises(UserError, match=r"v1\.0-small lacks ego_pose\.json; unpack the metadata"):
        build_index(own_world.root, own_world.version)
    table.mkdir()
    with pytest.raises(UserError, match=r"ego_pose\.json cannot be read"):
        build_index(own_world.root, own_world.version)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"token": "a"}', r"sensor\.json is not JSON"),
        ('{"token": "a"}', r"sensor\.json is not a list of records with tokens"),
        ("[1]", r"sensor\.json is not a list of records with tokens"),
        ('[{"name": "a"}]', r"sensor\.json is not a list of records with tokens"),
        ('[{"token": "a"}]', r"record a in .*sensor\.json lacks `channel`"),
        ('[{"token": "a", "channel": 3}]', r"record a in .*sensor\.json has a channel that is not text"),
        ('[{"token": "a", "channel": null}]', r"record a in .*sensor\.json has a channel that is not text"),
        ('[{"token": "a", "channel": "b"}, {"token": "a", "channel": "c"}]', r"holds the token 'a' twice"),
        ("[" * 100_000, r"sensor\.json is not JSON"),
        (b"\xff\xfe[", r"sensor\.json is not JSON"),
    ],
)
def test_damaged_tables(own_world, content, message):
    (own_world.root / own_world.version / "sensor.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with pytest.raises(UserError, match=message):
        build_index(own_world.root, own_world.version)


def _change(table, row, **values):
    return lambda tables: tables[table][row].update(values)


def _no_height(tables):
    next(record for record in tables["sample_data"] if record["token"].startswith("CAM_FRONT-")).update(height=0)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("calibrated_sensor", _change("calibrated_sensor", 0, rotation=[0.9, 0.9, 0, 0]),
         r"rotation of rig-LIDAR_TOP in .*calibrated_sensor\.json is a quaternion of length 1\.27279"),
        ("calibrated_sensor", _change("calibrated_sensor", 2, translation=[0, 1]),
         r"rig-CAM_FRONT_RIGHT in .* has a translation that is not a list of 3 finite numbers"),
        ("calibrated_sensor", _change("calibrated_sensor", 2, translation=[0, "a", 1]),
         r"rig-CAM_FRONT_RIGHT in .* has a translation that is not a list of 3 finite numbers"),
        ("calibrated_sensor", _change("calibrated_sensor", 2, camera_intrinsic=[[9, 0, 0], [0, -9, 0], [0, 0, 1]]),
         r"camera_intrinsic of rig-CAM_FRONT_RIGHT in .*calibrated_sensor\.json has a focal length"),
        ("calibrated_sensor", _change("calibrated_sensor", 2, camera_intrinsic=[]),
         r"camera_intrinsic of rig-CAM_FRONT_RIGHT in .* has shape \(0,\), expected 3x3"),
        ("ego_pose", _change("ego_pose", 3, translation=[float("nan"), 0, 0]),
         r"pose-LIDAR_TOP-scene-9001-150 in .*ego_pose\.json has a translation that is not a list of 3 finite"),
        ("calibrated_sensor", _change("calibrated_sensor", 0, rotation=[0, 0, 0, 0]),
         r"rotation of rig-LIDAR_TOP in .*calibrated_sensor\.json is a quaternion of length 0"),
        ("calibrated_sensor", _change("calibrated_sensor", 0, rotation=[1e200, 0, 0, 0]),
         r"rig-LIDAR_TOP in .* has a rotation that is not a list of 4 finite numbers"),
        ("calibrated_sensor", _change("calibrated_sensor", 2, camera_intrinsic=[[10**400]]),
         r"camera_intrinsic of rig-CAM_FRONT_RIGHT in .*calibrated_sensor\.json is not a matrix of numbers"),
        ("calibrated_sensor", _change("calibrated_sensor", 2, camera_intrinsic=[[{}]]),
         r"camera_intrinsic of rig-CAM_FRONT_RIGHT in .*calibrated_sensor\.json is not a matrix of numbers"),
        ("ego_pose", _change("ego_pose", 3, rotation=[0, 0, 0, 0]),
         r"rotation of pose-LIDAR_TOP-scene-9001-150 in .*ego_pose\.json is a quaternion of length 0"),
        ("sample_annotation", _change("sample_annotation", 1, rotation=[0, 0, 0, 0]),
         r"rotation of car-scene-9001-1 in .*sample_annotation\.json is a quaternion of length 0"),
        ("sample_data", _no_height, r"the image CAM_FRONT-\S+ in .*sample_data\.json has the height 0"),
        ("scene", _change("scene", 0, name="\ud800"), r"scene\.json has a name that is not text"),
        ("scene", _change("scene", 0, token="x" * 10**6), r"scene\.json has no 'token-scene-9001"),
        ("sample_data", lambda tables: tables["sample_data"].pop(23),
         r"key frame scene-9001-key1 has no CAM_FRONT in .*sample_data\.json"),
        ("sample", lambda tables: tables["sample"].clear(), r"sample\.json holds no key frame"),
        ("sensor", lambda tables: tables["sensor"].pop(0),
         r"contradict each other: sensor\.json has no 'sensor-LIDAR_TOP'"),
        ("instance", lambda tables: tables["instance"].pop(0),
         r"contradict each other: instance\.json has no 'car-scene-9001'"),
        ("sample_annotation", _change("sample_annotation", 0, attribute_tokens=["att-vehicle.parked"] * 2),
         r"annotation car-scene-9001-0 in .* has more than one attribute"),
        ("sample_annotation", _change("sample_annotation", 1, size=[1.9, 0, 1.7]),
         r"annotation car-scene-9001-1 in .* has the size \[1\.9, 0\.0, 1\.7\]"),
        ("sample_annotation",
         lambda tables: [r.update(size=[4.6, 1.9, 1.7]) for r in tables["sample_annotation"] if 1.9 in r["size"]],
         r"the cars in .* are wider than long \(4\.60 m by 1\.90 m\); sizes must be width, length, height"),
        ("category", lambda tables: [record.update(name="thing") for record in tables["category"]],
         r"category\.json names none of the categories of the nuScenes detection task; it has thing"),
    ],
)  # fmt: skip
def test_tables_that_make_no_sense(own_world, table, change, message):
    change(own_world.tables)
    own_world.write(table)
    with pytest.raises(UserError, match=message):
        build_index(own_world.root, own_world.version)


def test_sweeps_never_cross_a_scene(own_world):
    """Even if the chain of `prev` does."""
    rows = {record["token"]: record for record in own_world.tables["sample_data"]}
    rows["LIDAR_TOP-scene-9002-0"]["prev"] = "LIDAR_TOP-scene-9001-1000"
    own_world.write("sample_data")
    sweeps = build_index(own_world.root, own_world.version).sweeps
    assert sweeps.count.tolist() == [1, 11, 11, 1, 11, 1, 11, 11]


def test_a_version_without_annotations_is_indexed(own_world):
    """As that of the test set."""
    own_world.tables["sample_annotation"].clear()
    own_world.write("sample_annotation")
    index = build_index(own_world.root, own_world.version)
    assert index.annotations.boxes.shape == (0, 9)
    assert index.annotations.offset.tolist() == [0] * 9
