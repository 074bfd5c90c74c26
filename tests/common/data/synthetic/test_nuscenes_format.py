"""The data set on disk, opened by the devkit and read file by file."""

import json
from collections import Counter

import numpy as np
import pytest
from bevkd_common.data.synthetic.kinds import ROAD_USERS, Motion
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter
from bevkd_common.data.synthetic.nuscenes.categories import (
    ATTRIBUTES,
    CATEGORIES,
    CATEGORY_OF,
    annotated,
    attribute_name,
)
from bevkd_common.data.synthetic.nuscenes.rig import LIDAR
from bevkd_common.data.synthetic.nuscenes.scene_names import scene_names
from bevkd_common.data.synthetic.nuscenes.tables import TABLES, visibility_bins
from bevkd_common.data.synthetic.recording import record
from bevkd_common.data.synthetic.scene import draw_scene
from bevkd_common.data.synthetic.writer import Folder
from bevkd_common.errors import UserError
from PIL import Image

SCENES, KEYFRAMES = 3, 3


@pytest.fixture(scope="module")
def tables(world):
    return {name: json.loads((world / "v1.0-synthetic" / f"{name}.json").read_text()) for name in TABLES}


@pytest.fixture(scope="module")
def by_token(tables):
    return {name: {row["token"]: row for row in rows} for name, rows in tables.items()}


def chain(rows, first):
    """Follows `next` from a row."""
    while first:
        yield rows[first]
        first = rows[first]["next"]


def test_the_thirteen_tables_have_their_rows(tables, by_token, config):
    assert len(TABLES) == 13
    counts = {name: len(rows) for name, rows in tables.items()}
    # LiDAR at 10 Hz and six cameras at 4 Hz, each with the frames of half a second before the first key frame.
    frames = SCENES * KEYFRAMES * (5 + 6 * 2)
    instances = sum(int(annotated(draw_scene(config, index)).sum()) for index in range(SCENES))
    assert counts == {
        "attribute": 8,
        "calibrated_sensor": SCENES * 7,
        "category": 23,
        "ego_pose": frames,
        "instance": instances,
        "log": SCENES,
        "map": SCENES,
        "sample": SCENES * KEYFRAMES,
        "sample_annotation": instances * KEYFRAMES,
        "sample_data": frames,
        "scene": SCENES,
        "sensor": 7,
        "visibility": 4,
    }
    assert all(len(by_token[name]) == counts[name] for name in TABLES)
    keys = {row["token"] for rows in tables.values() for row in rows} - {"1", "2", "3", "4"}
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_every_scene_has_calibrations_of_its_own(tables, by_token):
    scenes = {row["token"]: by_token["sample"][row["sample_token"]]["scene_token"] for row in tables["sample_data"]}
    users: dict[str, set[str]] = {}
    for row in tables["sample_data"]:
        users.setdefault(row["calibrated_sensor_token"], set()).add(scenes[row["token"]])
    assert len(users) == len(tables["calibrated_sensor"]) == 3 * 7
    assert all(len(scenes) == 1 for scenes in users.values())
    sensors = [(scene, by_token["calibrated_sensor"][key]["sensor_token"]) for key, (scene,) in users.items()]
    assert len(set(sensors)) == 3 * 7


def test_splits_are_those_the_devkit_reads(world, nuscenes):
    from nuscenes.utils.splits import get_scenes_of_split

    assert get_scenes_of_split("synthetic_train", nuscenes) == ["scene-0001", "scene-0002"]
    assert get_scenes_of_split("synthetic_val", nuscenes) == ["scene-0003"]


def test_frames_follow_each_other_with_their_own_times_and_poses(tables, by_token, config, world):
    channels = {
        row["token"]: by_token["sensor"][row["sensor_token"]]["channel"] for row in tables["calibrated_sensor"]
    }
    firsts = [row for row in tables["sample_data"] if not row["prev"]]
    assert len(firsts) == SCENES * 7
    for first in firsts:
        frames = list(chain(by_token["sample_data"], first["token"]))
        channel = channels[first["calibrated_sensor_token"]]
        assert {frame["calibrated_sensor_token"] for frame in frames} == {first["calibrated_sensor_token"]}
        rate = config.lidar_rate if channel == LIDAR else config.camera_rate
        assert len(frames) == KEYFRAMES * rate / config.keyframe_rate
        times = np.array([frame["timestamp"] for frame in frames])
        np.testing.assert_allclose(np.diff(times) / 1e6, 1 / rate, atol=0.0065)
        assert frames[-1]["is_key_frame"]
        assert sum(frame["is_key_frame"] for frame in frames) == KEYFRAMES
        for frame in frames:
            key_time = by_token["sample"][frame["sample_token"]]["timestamp"]
            lag = (key_time - frame["timestamp"]) / 1e6
            # A key frame is its sample; any other frame belongs to the sample that follows.
            limits = (-0.007, 0.055) if frame["is_key_frame"] else (0.05, 0.55)
            assert limits[0] <= lag <= limits[1]
            if channel == LIDAR and frame["is_key_frame"]:
                assert lag == 0
            folder = "samples" if frame["is_key_frame"] else "sweeps"
            assert frame["filename"].startswith(f"{folder}/{channel}/")
            assert f"__{channel}__{frame['timestamp']}." in frame["filename"]
            assert (world / frame["filename"]).is_file()
    assert len(list((world / "sweeps" / LIDAR).iterdir())) == SCENES * KEYFRAMES * 4


def test_ego_poses_are_those_of_the_can_bus(tables, by_token, world):
    checked = 0
    scene_of = {row["token"]: by_token["scene"][row["scene_token"]]["name"] for row in tables["sample"]}
    poses = {
        name: json.loads((world / "can_bus" / f"{name}_pose.json").read_text()) for name in set(scene_of.values())
    }
    for frame in tables["sample_data"]:
        pose, rows = by_token["ego_pose"][frame["ego_pose_token"]], poses[scene_of[frame["sample_token"]]]
        assert pose["timestamp"] == frame["timestamp"]
        times = np.array([row["utime"] for row in rows])
        for axis in range(3):
            track = np.array([row["pos"][axis] for row in rows])
            assert pose["translation"][axis] == pytest.approx(np.interp(frame["timestamp"], times, track), abs=2e-3)
        nearest = rows[int(np.abs(times - frame["timestamp"]).argmin())]
        assert abs(np.dot(nearest["orientation"], pose["rotation"])) == pytest.approx(1, abs=1e-4)
        checked += 1
    assert checked == SCENES * KEYFRAMES * 17


def test_annotations_follow_their_instances(tables, by_token):
    for instance in tables["instance"]:
        rows = list(chain(by_token["sample_annotation"], instance["first_annotation_token"]))
        assert len(rows) == instance["nbr_annotations"] == KEYFRAMES
        assert rows[-1]["token"] == instance["last_annotation_token"]
        assert len({tuple(row["size"]) for row in rows}) == 1
        times = [by_token["sample"][row["sample_token"]]["timestamp"] for row in rows]
        assert times == sorted(times)
    car = next(row["token"] for row in tables["category"] if row["name"] == "vehicle.car")
    cars = {row["token"] for row in tables["instance"] if row["category_token"] == car}
    sizes = [row["size"] for row in tables["sample_annotation"] if row["instance_token"] in cars]
    # Width, length, height.
    np.testing.assert_allclose(np.mean(sizes, axis=0), [1.95, 4.62, 1.70], rtol=0.08)


def test_lidar_counts_are_exact(nuscenes):
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    checked, hit = 0, 0
    for sample in nuscenes.sample:
        path, boxes, _ = nuscenes.get_sample_data(sample["data"][LIDAR])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            count = points_in_box(box, points).sum()
            assert nuscenes.get("sample_annotation", box.token)["num_lidar_pts"] == count
            checked, hit = checked + 1, hit + (count > 0)
    assert checked == len(nuscenes.sample_annotation)
    assert hit > 0.5 * checked


def test_masks_name_the_annotated_instances(world, tables, by_token):
    images = [row for row in tables["sample_data"] if row["fileformat"] == "jpg"]
    mapping = {
        row["name"]: json.loads((world / "masks" / f"{row['name']}.json").read_text()) for row in tables["scene"]
    }
    assert {token for names in mapping.values() for token in names.values()} == set(by_token["instance"])
    seen = Counter()
    for row in images:
        mask = np.array(Image.open(world / "masks" / row["filename"].replace(".jpg", ".png")))
        assert mask.shape == (row["height"], row["width"]) == (64, 176)
        assert mask.dtype == np.uint8
        scene = by_token["scene"][by_token["sample"][row["sample_token"]]["scene_token"]]["name"]
        numbers = set(np.unique(mask).tolist()) - {0}
        assert {str(number) for number in numbers} <= set(mapping[scene])
        seen.update((scene, number) for number in numbers)
    assert len(images) == SCENES * KEYFRAMES * 12
    assert len(seen) > 0.8 * len(tables["instance"])


def test_visibility_is_what_the_masks_show(world, tables, by_token):
    bins = Counter(row["visibility_token"] for row in tables["sample_annotation"])
    assert set(bins) == {"1", "2", "3", "4"}
    shown = set()
    for row in tables["sample_data"]:
        if row["fileformat"] == "jpg" and row["is_key_frame"]:
            mask = np.array(Image.open(world / "masks" / row["filename"].replace(".jpg", ".png")))
            scene = by_token["scene"][by_token["sample"][row["sample_token"]]["scene_token"]]["name"]
            names = json.loads((world / "masks" / f"{scene}.json").read_text())
            shown |= {(row["sample_token"], names[str(number)]) for number in np.unique(mask) if number}
    for row in tables["sample_annotation"]:
        if row["visibility_token"] != "1":
            assert (row["sample_token"], row["instance_token"]) in shown


def test_visibility_bins_by_hand():
    visible, covered = np.array([0, 0, 39, 40, 60, 79, 80, 100]), np.array([0, 50] + 6 * [100])
    assert visibility_bins(visible, covered).tolist() == [1, 1, 1, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("kind", "category", "motion", "attribute"),
    [
        ("car", "vehicle.car", Motion.MOVING, "vehicle.moving"),
        ("rigid_bus", "vehicle.bus.rigid", Motion.STOPPED, "vehicle.stopped"),
        ("trailer", "vehicle.trailer", Motion.PARKED, "vehicle.parked"),
        ("cyclist", "vehicle.bicycle", Motion.STOPPED, "cycle.with_rider"),
        ("motorcycle", "vehicle.motorcycle", Motion.PARKED, "cycle.without_rider"),
        ("adult", "human.pedestrian.adult", Motion.MOVING, "pedestrian.moving"),
        ("child", "human.pedestrian.child", Motion.PARKED, "pedestrian.standing"),
        ("traffic_cone", "movable_object.trafficcone", Motion.PARKED, ""),
        ("bin", "movable_object.pushable_pullable", Motion.PARKED, ""),
    ],
)
def test_categories_and_attributes(kind, category, motion, attribute):
    assert CATEGORY_OF[kind] == category
    assert attribute_name(kind, motion) == attribute


def test_every_road_user_and_two_kinds_of_clutter_have_a_category():
    assert set(CATEGORY_OF) == {*ROAD_USERS, "bin", "debris"}
    assert set(CATEGORY_OF.values()) <= set(CATEGORIES)
    attributes = {attribute_name(kind, motion) for kind in CATEGORY_OF for motion in Motion}
    assert attributes - {""} == set(ATTRIBUTES) - {"pedestrian.sitting_lying_down"}


def test_scene_names_skip_the_numbers_without_can_bus():
    names = scene_names(310)
    assert names[:2] == ["scene-0001", "scene-0002"]
    assert len(names) == len(set(names)) == 310
    # The devkit has no CAN-bus data of the 21 scenes 161-168, 170-176 and 309-314.
    assert names[-1] == f"scene-{310 + 21:04d}"
    assert not {"scene-0161", "scene-0176", "scene-0312"} & set(names)
    assert "scene-0169" in names


def test_more_instances_than_mask_numbers_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr("bevkd_common.data.synthetic.nuscenes.writer.MOST_INSTANCES", 12)
    writer = NuScenesWriter(config)
    recording = record(config, draw_scene(config, 0), writer.rig(0))
    with pytest.raises(UserError, match=r"scene-0001 would have .* a mask has only 12 numbers: lower the counts"):
        writer.write_scene(recording, Folder(tmp_path))
    assert list(tmp_path.iterdir()) == []
