"""Boxes, points and sweeps that do not agree are named, and sound ones are not accused."""

import math

import numpy as np
import pytest
import torch
from bevkd_common.data.nuscenes.box_evidence import AnnotatedSweep
from bevkd_common.data.nuscenes.plausibility import Plausibility
from bevkd_common.data.nuscenes.point_readings import LAYOUTS, POINTS
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.convention_checks import FRAMES, HEIGHTS, SIZES, YAWS, KeyFramePoses

MOUNT = np.array([[0.0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1]])
CARS, POINTS_OF_EACH, FRAMES_OF_SCENE = 14, 60, 8
SIZE_OF_CAR, SIZE_OF_BUS = (4.6, 1.9, 1.7), (11.0, 2.9, 3.6)


def ego_pose(step):
    yaw = 0.4 + 0.05 * step
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    pose[:3, 3] = 500 + 4.0 * step, 900 + 2.0 * step, 1.0
    return pose


def poses(step):
    lidar = [ego_pose(s) @ MOUNT for s in (step, max(step - 1, 0), step + 1, 0)]
    return KeyFramePoses(lidar[0], ego_pose(step), lidar[1], lidar[2], lidar[3])


def quaternion(yaw):
    return np.stack([np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)], axis=-1)


def move(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


class Street:
    """A key frame: cars and buses, most driving where they point, with points inside; all in LiDAR axes."""

    def __init__(self, step, moving=0.6):
        rng = np.random.default_rng(step)
        self.poses = poses(step)
        self.center = rng.uniform([-30, -30, -2.5], [30, 30, 1.0], (CARS, 3))
        self.size = np.where(rng.random((CARS, 1)) < 0.7, SIZE_OF_CAR, SIZE_OF_BUS)
        self.yaw = rng.uniform(-math.pi, math.pi, CARS)
        self.speed = 6.0 * (rng.random(CARS) < moving)
        unit = rng.uniform(-0.48, 0.48, (CARS, POINTS_OF_EACH, 3))
        unit[..., 0] = np.sign(unit[..., 0]) * 0.45  # front and rear
        local = unit * self.size[:, None]
        cos, sin = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        xy = np.stack([local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos], -1)
        inside = np.concatenate([xy, local[..., 2:]], axis=-1) + self.center[:, None]
        around = rng.uniform([-40, -40, -1.9], [40, 40, 2], (600, 3))
        self.points = np.concatenate([inside.reshape(-1, 3), around])
        self.counted = np.full(CARS, POINTS_OF_EACH)

    def sweep(self, *, global_T_boxes=None, layout="<f4", columns=5, content=None):
        """As the tables and the file have it."""
        lidar, file = self.poses.global_T_lidar, np.zeros((len(self.points), columns))
        file[:, :3] = self.points
        content = file.astype(layout).tobytes() if content is None else content
        yaw = self.yaw + self.poses.lidar_yaw
        return AnnotatedSweep(
            center=move(lidar if global_T_boxes is None else global_T_boxes, self.center),
            rotation=quaternion(yaw),
            size=self.size,
            velocity=self.speed[:, None] * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1),
            counted=self.counted,
            poses=self.poses,
            points=LAYOUTS["as is"].read(content),
            content=content,
        )


def streets(change=None, **kwargs):
    made = [Street(step, **kwargs) for step in range(FRAMES_OF_SCENE)]
    for street in made if change else ():
        change(street)
    return made


def named(sweeps):
    return [finding.name for finding in Plausibility(list(sweeps)).findings()]


def parts(**changes):
    """Sweeps whose columns were changed: `column=function(sweep)`."""
    sweeps = [street.sweep() for street in streets()]
    return [
        AnnotatedSweep(
            **{
                name: changes[name](sweep) if name in changes else getattr(sweep, name)
                for name in sweep.__dataclass_fields__
            }
        )
        for sweep in sweeps
    ]


def turned(change):
    """Rotations whose yaw in LiDAR axes is `change(yaw, lidar_yaw)`."""

    def rotation(sweep):
        lidar_yaw = sweep.poses.lidar_yaw
        yaw = 2 * np.arctan2(sweep.rotation[:, 3], sweep.rotation[:, 0]) - lidar_yaw
        return quaternion(change(turn(yaw), lidar_yaw) + lidar_yaw)

    return rotation


def turn(yaw):
    return (yaw + math.pi) % (2 * math.pi) - math.pi


HALF_HEIGHT = np.array([0, 0, 0.5])
WRONG_BOXES = {
    "heading": {"rotation": turned(lambda yaw, _: yaw + math.pi)},
    "quarter left": {"rotation": turned(lambda yaw, _: yaw + math.pi / 2)},
    "quarter right": {"rotation": turned(lambda yaw, _: yaw - math.pi / 2)},
    "yaw": {"rotation": turned(lambda yaw, _: -yaw)},
    "global yaw": {"rotation": turned(lambda yaw, lidar_yaw: -yaw - 2 * lidar_yaw)},
    "old yaw": {"rotation": turned(lambda yaw, _: -yaw - math.pi / 2)},
    "radians": {"rotation": turned(lambda yaw, _: np.radians(yaw))},
    "global radians": {"rotation": turned(lambda yaw, lidar_yaw: np.radians(turn(yaw + lidar_yaw)) - lidar_yaw)},
    "sizes": {"size": lambda sweep: sweep.size[:, [1, 0, 2]]},
    "size centimetres": {"size": lambda sweep: 100 * sweep.size},
    "bottom": {"center": lambda sweep: sweep.center - sweep.size * HALF_HEIGHT},
    "top": {"center": lambda sweep: sweep.center + sweep.size * HALF_HEIGHT},
    "quaternion": {"rotation": lambda sweep: np.roll(sweep.rotation, -1, axis=1)},
}


def test_sound_data_is_not_accused():
    found = Plausibility([street.sweep() for street in streets()])
    assert found.findings() == []
    assert found.counts == (108, FRAMES_OF_SCENE * CARS)  # four stand in others
    assert found.heading == 1.0
    assert found.points_inside >= FRAMES_OF_SCENE * CARS * POINTS_OF_EACH


@pytest.mark.parametrize("name", WRONG_BOXES)
def test_boxes_in_a_wrong_convention_are_named(name):
    assert WRONG_BOXES.keys() | {"as is"} == {*YAWS, *SIZES, *HEIGHTS, "quaternion"}
    assert named(parts(**WRONG_BOXES[name])) == [name]


def test_the_old_convention_is_one_finding():
    changes = WRONG_BOXES["sizes"] | WRONG_BOXES["old yaw"]
    assert named(parts(**changes)) == ["old mmdetection3d"]


def test_two_mistakes_are_both_named():
    changes = WRONG_BOXES["bottom"] | WRONG_BOXES["quarter left"]
    assert sorted(named(parts(**changes))) == ["bottom", "quarter left"]


MIRROR_Y, MIRROR_X = np.diag([1.0, -1, 1, 1]), np.diag([-1.0, 1, 1, 1])
WRONG_FRAMES = {
    "lidar axes": lambda poses: np.eye(4),
    "ego axes": lambda poses: MOUNT,
    "previous pose": lambda poses: poses.previous,
    "following pose": lambda poses: poses.following,
    "first pose": lambda poses: poses.first,
    "ego pose": lambda poses: poses.global_T_ego,
    "lidar pose": lambda poses: poses.global_T_lidar @ MOUNT,
    "mirrored y": lambda poses: poses.global_T_lidar @ MIRROR_Y,
    "mirrored x": lambda poses: poses.global_T_lidar @ MIRROR_X,
    "mirrored global y": lambda poses: MIRROR_Y @ poses.global_T_lidar,
    "centimetres": lambda poses: np.diag([100.0, 100, 100, 1]) @ poses.global_T_lidar,
    "centimetres before": lambda poses: poses.global_T_lidar @ np.diag([100.0, 100, 100, 1]),
}


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_boxes_in_a_wrong_frame_are_named(name):
    assert WRONG_FRAMES.keys() | {"as is"} == FRAMES.keys()
    sweeps = []
    for street in streets():
        matrix = WRONG_FRAMES[name](street.poses)
        sweep = street.sweep(global_T_boxes=matrix)
        heading = np.stack([np.cos(street.yaw), np.sin(street.yaw), 0 * street.yaw], axis=-1) @ matrix[:3, :3].T
        rotation = quaternion(np.arctan2(heading[:, 1], heading[:, 0]))
        sweeps.append(AnnotatedSweep(**{**fields(sweep), "rotation": rotation}))
    assert named(sweeps) == [name]


def fields(sweep):
    return {name: getattr(sweep, name) for name in sweep.__dataclass_fields__}


WRONG_POINTS = {
    "points turned right": lambda x, y, z: (y, -x, z),
    "points turned left": lambda x, y, z: (-y, x, z),
    "points turned back": lambda x, y, z: (-x, -y, z),
    "points swapped": lambda x, y, z: (y, x, z),
    "points camera axes": lambda x, y, z: (x, -z, y),
    "points z": lambda x, y, z: (x, y, -z),
    "points height": lambda x, y, z: (x, y, z + 1.84),
    "points centimetres": lambda x, y, z: (100 * x, 100 * y, 100 * z),
}


@pytest.mark.parametrize("name", WRONG_POINTS)
def test_points_in_wrong_axes_are_named(name):
    assert WRONG_POINTS.keys() | {"as is"} == POINTS.keys()

    def change(street):
        street.points = np.stack(WRONG_POINTS[name](*street.points.T), axis=-1)

    assert named(street.sweep() for street in streets(change)) == [name]


def written(street, name):
    """The file of points in another layout, intensity and ring of a usual size."""
    rng = np.random.default_rng(0)
    rest = np.stack([rng.uniform(0, 255, len(street.points)), np.arange(len(street.points)) % 32], axis=-1)
    rows = np.concatenate([street.points, rest, np.zeros((len(rest), 1))], axis=1)
    columns = {
        "3 columns": ("<f4", [0, 1, 2]), "4 columns": ("<f4", [0, 1, 2, 3]), "6 columns": ("<f4", range(6)),
        "intensity first": ("<f4", [3, 0, 1, 2, 4]), "two columns first": ("<f4", [3, 4, 0, 1, 2]),
        "float64": ("<f8", range(5)),
        "float64, 4 columns": ("<f8", range(4)), "float64, 3 columns": ("<f8", range(3)),
        "float16": ("<f2", range(5)), "float16, 4 columns": ("<f2", range(4)), "big-endian": (">f4", range(5)),
    }  # fmt: skip
    assert columns.keys() | {"as is"} == LAYOUTS.keys()
    dtype, chosen = columns[name]
    return rows[:, list(chosen)].astype(dtype).tobytes()


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "as is"])
def test_files_in_a_wrong_layout_are_named(name):
    assert named(street.sweep(content=written(street, name)) for street in streets()) == [name]


def test_few_boxes_decide_nothing():
    for changes in WRONG_BOXES.values():
        assert named(parts(**changes)[:1]) == []


def test_boxes_without_the_counted_points_are_not_sound():
    def elsewhere(street):
        street.points = street.points + np.array([0.0, 0.0, 30.0])

    (finding,) = Plausibility([street.sweep() for street in streets(elsewhere)]).findings()
    assert finding.name == "other points"
    assert "the tables count 6720 LiDAR points in 112 boxes, and 0 are found there" in finding.sentence


def test_counts_of_several_sweeps_are_no_mistake():
    rng = np.random.default_rng(5)

    def ten_times(street):
        few = rng.integers(1, POINTS_OF_EACH, CARS)
        street.counted = 10 * few
        kept = np.concatenate([np.arange(POINTS_OF_EACH) < count for count in few])
        street.points = street.points[: CARS * POINTS_OF_EACH][kept]

    assert named(street.sweep() for street in streets(ten_times)) == []


def without_counts(street):
    street.counted = np.zeros(CARS, dtype=np.int64)


def test_without_counts_the_most_points_decide():
    assert named(street.sweep() for street in streets(without_counts)) == []
    for name in ("quarter left", "yaw", "heading"):
        sweeps = [
            AnnotatedSweep(**{**fields(sweep), "counted": np.zeros(CARS, dtype=np.int64)})
            for sweep in parts(**WRONG_BOXES[name])
        ]
        assert named(sweeps) == [name]


def test_no_point_in_any_box_is_said_without_counts_too():
    def elsewhere(street):
        without_counts(street)
        street.points = street.points + np.array([0.0, 0.0, 30.0])

    assert named(street.sweep() for street in streets(elsewhere)) == ["no points"]
    assert named([street.sweep() for street in streets(elsewhere)][:2]) == []


def with_older_sweeps(shift, count=FRAMES_OF_SCENE, closer=1.0):
    """Standing cars; in older sweeps their points are moved by `shift` metres, and there are fewer."""
    found = Plausibility()
    for street in streets(moving=0.0)[:count]:
        points = torch.from_numpy(street.points).float()
        older = points[:: round(1 / closer)] + torch.tensor([shift, 0.0, 0.0])
        clouds = [
            torch.cat([cloud, torch.zeros(len(cloud), 1), torch.full((len(cloud), 1), age)], dim=1)
            for cloud, age in ((points, 0.0), (older, 0.05))
        ]
        columns = (torch.from_numpy(part).float() for part in (street.center, street.size, street.yaw))
        boxes = Boxes.from_parts(*columns, torch.zeros(CARS, 2))
        found.add(street.sweep(), boxes, torch.cat(clouds))
    return found


def test_sweeps_that_are_out_of_place_are_named():
    assert [finding.name for finding in with_older_sweeps(1.5).findings()] == ["ego-motion"]
    assert with_older_sweeps(0.05).findings() == []
    # Two key frames decide nothing.
    assert with_older_sweeps(1.5, count=2).findings() == []


def test_an_approach_is_no_wrong_ego_motion():
    """Farther away, an object has fewer points in each older sweep."""
    found = with_older_sweeps(0.0, closer=0.25)
    assert found.findings() == []
    assert len(found.displaced) > 80


def test_nothing_is_found_in_nothing():
    found = Plausibility()
    assert found.findings() == []
    assert found.heading is None
    assert found.counts is None
    assert not len(found.displaced)
