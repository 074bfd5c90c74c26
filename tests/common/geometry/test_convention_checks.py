"""Every reading undoes its mistake."""

import math

import numpy as np
import pytest
from bevkd_common.geometry.convention_checks import (
    AS_IS,
    FRAMES,
    HEIGHTS,
    SIZES,
    YAWS,
    Finding,
    KeyFramePoses,
    frames_of,
    heading_of,
    one_convention,
    pairs_of_frames,
    scalar_first,
    side_unknown,
    upright,
    wrapped,
)


def pose(yaw, x, y, z=0.0):
    matrix = np.eye(4)
    matrix[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    matrix[:3, 3] = x, y, z
    return matrix


MOUNT = pose(-math.pi / 2, 0.94, 0.0, 1.84)
EGO = pose(0.7, 600.0, 1600.0, 1.0)
POSES = KeyFramePoses(
    global_T_lidar=EGO @ MOUNT,
    global_T_ego=EGO,
    previous=pose(0.6, 597.0, 1598.0) @ MOUNT,
    following=pose(0.8, 603.0, 1603.0) @ MOUNT,
    first=pose(0.5, 590.0, 1590.0) @ MOUNT,
)
POINT = np.array([7.0, 12.0, -0.5, 1.0])
MIRROR_X, MIRROR_Y = np.diag([-1.0, 1, 1, 1]), np.diag([1.0, -1, 1, 1])
HUNDRED = np.diag([100.0, 100, 100, 1])

# From the right point in LiDAR axes to the one that stands in the file.
WRITTEN = {
    AS_IS: EGO @ MOUNT,
    "lidar axes": np.eye(4),
    "ego axes": MOUNT,
    "previous pose": POSES.previous,
    "following pose": POSES.following,
    "first pose": POSES.first,
    "ego pose": EGO,
    "lidar pose": EGO @ MOUNT @ MOUNT,
    "mirrored y": EGO @ MOUNT @ MIRROR_Y,
    "mirrored x": EGO @ MOUNT @ MIRROR_X,
    "mirrored global y": MIRROR_Y @ EGO @ MOUNT,
    "centimetres": HUNDRED @ EGO @ MOUNT,
    "centimetres before": EGO @ MOUNT @ HUNDRED,
}


def test_every_frame_is_undone():
    assert WRITTEN.keys() == FRAMES.keys()
    assert len(FRAMES) == 13
    for name, matrix in WRITTEN.items():
        found = FRAMES[name].lidar_T_given(POSES) @ matrix @ POINT
        assert found == pytest.approx(POINT, abs=1e-8), name
        if name != AS_IS:
            assert np.abs(FRAMES[AS_IS].lidar_T_given(POSES) @ matrix @ POINT - POINT).max() > 1.0, name


def test_two_mistakes_of_the_frame_are_undone():
    pairs = pairs_of_frames()
    assert len(pairs) == 3 * 8 + 2
    written = MIRROR_Y @ POINT
    assert pairs["mirrored y + lidar axes"].lidar_T_given(POSES) @ written == pytest.approx(POINT)
    written = POSES.previous @ HUNDRED @ POINT
    found = pairs["centimetres before + previous pose"].lidar_T_given(POSES) @ written
    assert found == pytest.approx(POINT, abs=1e-8)
    written = HUNDRED @ EGO @ MOUNT @ MIRROR_X @ POINT
    assert pairs["mirrored x + centimetres"].lidar_T_given(POSES) @ written == pytest.approx(POINT, abs=1e-8)
    assert frames_of("mirrored x + centimetres") == ("mirrored x", "centimetres")
    assert pairs["mirrored y + lidar axes"].sentence == (
        "y of the boxes in LiDAR axes has the wrong sign, and the boxes are in LiDAR axes instead of global axes"
    )


LIDAR_YAW = 0.7 - math.pi / 2

# From the right yaw in LiDAR axes to the one that stands in the file, also in LiDAR axes.
MISTAKEN_YAWS = {
    AS_IS: lambda yaw: yaw,
    "heading": lambda yaw: yaw + math.pi,
    "quarter left": lambda yaw: yaw + math.pi / 2,
    "quarter right": lambda yaw: yaw - math.pi / 2,
    "yaw": lambda yaw: -yaw,
    "global yaw": lambda yaw: -(yaw + LIDAR_YAW) - LIDAR_YAW,
    "old yaw": lambda yaw: -yaw - math.pi / 2,
    "radians": lambda yaw: math.radians(yaw),
    "global radians": lambda yaw: math.radians(yaw + LIDAR_YAW) - LIDAR_YAW,
}


@pytest.mark.parametrize("yaw", [0.0, 0.4, -1.9, 2.2])
def test_every_yaw_is_undone(yaw):
    assert MISTAKEN_YAWS.keys() == YAWS.keys()
    assert POSES.lidar_yaw == pytest.approx(LIDAR_YAW)
    for name, mistaken in MISTAKEN_YAWS.items():
        given = mistaken(yaw) + LIDAR_YAW
        heading = np.array([[math.cos(given), math.sin(given), 0.0]])
        found = YAWS[name].yaw(heading, FRAMES[AS_IS].lidar_T_given(POSES))
        assert wrapped(found - yaw) == pytest.approx(0, abs=1e-9), name


def test_yaws_in_global_axes_are_undone_before_boxes_are_moved():
    """Clockwise in global axes, and moved with the pose of another key frame."""
    given = -(0.4 + 0.6 - math.pi / 2)
    heading = np.array([[math.cos(given), math.sin(given), 0.0]])
    assert YAWS["global yaw"].yaw(heading, FRAMES["previous pose"].lidar_T_given(POSES)) == pytest.approx(0.4)


def test_sizes_and_heights_are_undone():
    size = np.array([[4.6, 1.9, 1.7]])
    written = {AS_IS: size, "sizes": size[:, [1, 0, 2]], "size centimetres": 100 * size}
    assert written.keys() == SIZES.keys()
    for name, mistaken in written.items():
        assert SIZES[name].repair(mistaken) == pytest.approx(size), name
    assert {name: reading.raise_by for name, reading in HEIGHTS.items()} == {AS_IS: 0.0, "bottom": 0.5, "top": -0.5}


def test_quaternions():
    half, tilted = [0.0, 0.0, 0.0, 1.0], [math.cos(0.3), math.sin(0.3), 0.0, 0.0]
    turned = [2 * math.cos(0.6), 0.0, 0.0, 2 * math.sin(0.6)]
    assert upright(np.array([half, tilted, turned])).tolist() == [True, False, True]
    assert heading_of(np.array([half, turned])) == pytest.approx(
        np.array([[-1, 0, 0], [math.cos(1.2), math.sin(1.2), 0]])
    )
    assert scalar_first(np.array([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[4.0, 1.0, 2.0, 3.0]]


def test_two_findings_of_the_old_convention_are_one():
    assert one_convention(["sizes", "old yaw", "bottom"]) == {"sizes", "old yaw"}
    assert one_convention(["sizes", "bottom"]) == frozenset()


def test_in_mirrored_axes_the_side_of_a_quarter_is_not_said():
    left = Finding("quarter left", "the boxes are turned a quarter counter-clockwise: read so, 5 of 6")
    assert side_unknown(left, ("previous pose",)) == left
    assert side_unknown(left, ("mirrored x", "lidar axes")) == Finding(
        "quarter", "the boxes are turned a quarter, besides: read so, 5 of 6"
    )
    backwards = Finding("heading", "the boxes point backwards: read so, 5 of 6")
    assert side_unknown(backwards, ("mirrored x",)) == backwards
