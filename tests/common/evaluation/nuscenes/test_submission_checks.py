"""Submissions in a wrong convention are named; weak detectors are not accused of one."""

import math

import numpy as np
import pytest
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.nuscenes.poses import key_frame_poses
from bevkd_common.data.synthetic import ensure_world
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter
from bevkd_common.evaluation.nuscenes.global_boxes import NO_ATTRIBUTE, Cuboids, DetectionArrays
from bevkd_common.evaluation.nuscenes.submission_checks import convention_findings, unknown_velocities

ROWS = range(40)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    config = WorldConfig(
        seed=2, train_scenes=7, val_scenes=1, image_size=(16, 32), lidar_azimuths=180,
        camera_rate=2.0, lidar_rate=2.0,
    )  # fmt: skip
    return open_index(ensure_world(NuScenesWriter(config), tmp_path_factory.mktemp("worlds")), "v1.0-synthetic")


class Given:
    """Predictions of one key frame, in LiDAR axes until `to_global`."""

    def __init__(self, index, row, rng, noise):
        rows = index.annotations.rows(row)
        known = index.annotations.label[rows] >= 0
        boxes = np.nan_to_num(index.annotations.boxes[rows][known])
        boxes = boxes + rng.normal(size=boxes.shape) * [noise, noise, noise, 0.1, 0.05, 0.05, 0.1, 0.2, 0.2]
        self.poses = key_frame_poses(index, row)
        self.token = index.key_frames.token[row].decode()
        self.labels = index.annotations.label[rows][known]
        self.center, self.size, self.yaw, self.velocity = (
            boxes[:, :3], np.abs(boxes[:, 3:6]) + 0.05, boxes[:, 6], boxes[:, 7:9]
        )  # fmt: skip
        self.scores = rng.uniform(0.3, 1.0, len(boxes))
        self.matrix = self.poses.global_T_lidar

    def to_global(self):
        turn = self.matrix[:3, :3].T
        heading = np.stack([np.cos(self.yaw), np.sin(self.yaw), 0 * self.yaw], axis=-1) @ turn
        self.lidar_velocity = self.velocity
        self.velocity = (np.pad(self.velocity, ((0, 0), (0, 1))) @ turn)[:, :2]
        self.center = self.center @ turn + self.matrix[:3, 3]
        self.yaw = np.arctan2(heading[:, 1], heading[:, 0])
        self.turn()

    def turn(self):
        half = self.yaw / 2
        self.rotation = np.stack([np.cos(half), 0 * half, 0 * half, np.sin(half)], axis=-1)

    def arrays(self):
        length, width, height = self.size.T.copy()
        cuboids = Cuboids(self.center, length, width, height, self.rotation)
        attributes = np.full(len(self.labels), NO_ATTRIBUTE)
        return DetectionArrays(cuboids, self.labels, self.velocity, attributes, self.scores)


def findings(index, before=None, after=None, *, rows=ROWS, noise=0.2):
    rng = np.random.default_rng(0)
    predictions = {}
    for row in rows:
        given = Given(index, row, rng, noise)
        if before is not None:
            before(given)
        given.to_global()
        if after is not None:
            after(given)
        predictions[given.token] = given.arrays()
    return convention_findings(index, rows, predictions)


def named(*arguments, **keywords):
    return [finding.name for finding in findings(*arguments, **keywords)]


def put(**values):
    """A change of attributes: `name=function(given)`."""

    def change(given):
        for name, value in values.items():
            setattr(given, name, value(given))

    return change


def yawed(function):
    def change(given):
        given.yaw = function(given.yaw)
        given.turn()

    return change


def mirror(axis):
    def change(given):
        sign = np.ones(3)
        sign[axis] = -1
        given.center, given.velocity = given.center * sign, given.velocity * sign[:2]
        given.yaw = np.arctan2(sign[1] * np.sin(given.yaw), sign[0] * np.cos(given.yaw))
        given.turn()

    return change


def in_axes(matrix):
    """Velocities that were turned by `matrix` instead of to global axes."""
    return put(
        velocity=lambda given: (np.pad(given.lidar_velocity, ((0, 0), (0, 1))) @ matrix(given.poses)[:3, :3].T)[
            :, :2
        ]
    )


def ego_T_lidar(poses):  # noqa: N802 - named like every matrix
    return np.linalg.inv(poses.lidar_T_ego)


HALF_HEIGHT = np.array([0, 0, 0.5])
BEFORE = {
    "lidar axes": put(matrix=lambda given: np.eye(4)),
    "ego axes": put(matrix=lambda given: ego_T_lidar(given.poses)),
    "previous pose": put(matrix=lambda given: given.poses.previous),
    "following pose": put(matrix=lambda given: given.poses.following),
    "first pose": put(matrix=lambda given: given.poses.first),
    "ego pose": put(matrix=lambda given: given.poses.global_T_ego),
    "lidar pose": put(matrix=lambda given: given.poses.global_T_lidar @ ego_T_lidar(given.poses)),
    "mirrored y": mirror(1),
    "mirrored x": mirror(0),
    "centimetres before": put(center=lambda given: 100 * given.center),
    "heading": yawed(lambda yaw: yaw + math.pi),
    "quarter left": yawed(lambda yaw: yaw + math.pi / 2),
    "quarter right": yawed(lambda yaw: yaw - math.pi / 2),
    "yaw": yawed(lambda yaw: -yaw),
    "old yaw": yawed(lambda yaw: -yaw - math.pi / 2),
    "radians": yawed(lambda yaw: np.radians((yaw + math.pi) % (2 * math.pi) - math.pi)),
    "random yaw": yawed(np.degrees),
    "sizes": put(size=lambda given: given.size[:, [1, 0, 2]]),
    "size centimetres": put(size=lambda given: 100 * given.size),
    "bottom": put(center=lambda given: given.center - given.size * HALF_HEIGHT),
    "top": put(center=lambda given: given.center + given.size * HALF_HEIGHT),
    "velocity halved": put(velocity=lambda given: given.velocity / 2),
    "velocity km/h": put(velocity=lambda given: 3.6 * given.velocity),
    "velocity centimetres": put(velocity=lambda given: 100 * given.velocity),
}
AFTER = {
    "mirrored global y": mirror(1),
    "centimetres": put(center=lambda given: 100 * given.center),
    "global yaw": yawed(lambda yaw: -yaw),
    "global radians": yawed(np.radians),
    "quaternion": put(rotation=lambda given: np.roll(given.rotation, -1, axis=1)),
    "velocity lidar axes": in_axes(lambda poses: np.eye(4)),
    "velocity ego axes": in_axes(ego_T_lidar),
}


def test_a_sound_submission_is_not_accused(index):
    assert named(index) == []
    assert named(index, noise=0.5) == []


@pytest.mark.parametrize("name", BEFORE)
def test_mistakes_in_lidar_axes_are_named(index, name):
    assert len(BEFORE) == 24
    assert named(index, BEFORE[name]) == [name]


@pytest.mark.parametrize("name", AFTER)
def test_mistakes_in_global_axes_are_named(index, name):
    assert len(AFTER) == 7
    assert named(index, None, AFTER[name]) == [name]


def test_two_mistakes_are_both_named(index):
    def both(given):
        BEFORE["quarter left"](given)
        BEFORE["lidar axes"](given)

    assert named(index, both) == ["lidar axes", "quarter left"]
    assert named(index, BEFORE["velocity halved"], AFTER["quaternion"]) == ["quaternion", "velocity halved"]
    assert named(index, BEFORE["velocity halved"], halved_in_lidar_axes) == [
        "velocity lidar axes + velocity halved"
    ]


def halved_in_lidar_axes(given):
    given.velocity = given.lidar_velocity


def test_the_sentence_has_the_evidence(index):
    (finding,) = findings(index, BEFORE["bottom"])
    assert finding.sentence.startswith(
        "the centres of the boxes are at the bottom instead of half a height up: read so, "
    )
    assert finding.sentence.endswith(" heights agree, as they are 37")


WEAK = {
    "one frame, no velocities": put(velocity=lambda given: 0 * given.velocity),
    "velocities shrunk as by regression": put(
        velocity=lambda given: given.velocity * np.random.default_rng(1).uniform(0, 1, (len(given.labels), 1))
    ),
    "a third points backwards": put(
        yaw=lambda given: given.yaw + math.pi * (np.random.default_rng(2).random(len(given.labels)) < 0.35)
    ),
    "front and rear alike": put(
        yaw=lambda given: given.yaw + math.pi * (np.random.default_rng(3).random(len(given.labels)) < 0.5)
    ),
    "one yaw for all": put(yaw=lambda given: 0 * given.yaw),
    "one size for all": put(size=lambda given: 0 * given.size + [4.0, 1.8, 1.6]),
    "one height for all": put(center=lambda given: given.center * [1, 1, 0] - [0, 0, 1.0]),
    "no idea where": put(
        center=lambda given: np.random.default_rng(4).uniform(-40, 40, given.center.shape) * [1, 1, 0.02]
    ),
}


@pytest.mark.parametrize("name", WEAK)
def test_a_weak_detector_is_not_accused(index, name):
    assert named(index, WEAK[name]) == []


def only(given, keep):
    for name in ("center", "size", "yaw", "velocity", "scores", "labels"):
        setattr(given, name, getattr(given, name)[keep])


def test_few_matches_decide_nothing(index):
    for change in BEFORE.values():

        def few(given, change=change):
            change(given)
            only(given, slice(20))

        assert named(index, few, rows=(2,)) == []
    for change in AFTER.values():
        assert named(index, lambda given: only(given, slice(20)), change, rows=(2,)) == []


def test_nothing_predicted_proves_nothing(index):
    def none(given):
        only(given, slice(0))

    assert named(index, none) == []


def test_unknown_velocities_are_counted():
    size = np.ones(4)
    rotation = np.tile([1.0, 0, 0, 0], (4, 1))
    cuboids = Cuboids(np.zeros((4, 3)), size, size, size, rotation)
    labels = np.array([CLASSES.index(name) for name in ("car", "traffic_cone", "bus", "barrier")])
    velocity = np.array([[np.nan, 0], [np.nan, np.nan], [1, 1], [np.nan, np.nan]])
    boxes = DetectionArrays(cuboids, labels, velocity, np.full(4, NO_ATTRIBUTE), size)
    (finding,) = unknown_velocities({"a": boxes, "b": boxes})
    assert finding.sentence.startswith("2 of 4 boxes have a velocity of NaN")
    assert unknown_velocities({"a": boxes.take(np.array([False, True, True, True]))}) == []
