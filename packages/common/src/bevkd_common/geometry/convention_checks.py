"""Conventions that are mistaken for ours: readings of given boxes, and the mistake that each reading repairs.

A box has four parts that go wrong independently of each other: its frame, its heading, its size and the height of
its centre. Each table below holds the readings of one part by a short name; `AS_IS` is the one without a mistake.
Arrays are NumPy's, [n] boxes in metres and radians; "LiDAR axes" are those of the box's key frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
AS_IS = "as is"


@dataclass(frozen=True)
class Finding:
    """A mistake that the evidence names.

    Attributes:
        name: Name of the reading that repairs it.
        sentence: The mistake and its evidence, in words.
    """

    name: str
    sentence: str


@dataclass(frozen=True, eq=False)
class KeyFramePoses:
    """Poses [4, 4] that a box of a key frame may have been moved with.

    Attributes:
        global_T_lidar: Of the LiDAR, the right one.
        global_T_ego: Of the ego at the time of the LiDAR.
        previous: Of the LiDAR at the key frame before, in the same scene; at the first one, `global_T_lidar`.
        following: Of the LiDAR at the key frame after; at the last one, `global_T_lidar`.
        first: Of the LiDAR at the first key frame of the scene.
    """

    global_T_lidar: Floats
    global_T_ego: Floats
    previous: Floats
    following: Floats
    first: Floats

    @property
    def lidar_T_ego(self) -> Floats:  # noqa: N802 - named like every matrix
        """The inverse of the LiDAR's mount."""
        return _inverse(self.global_T_lidar) @ self.global_T_ego

    @property
    def lidar_yaw(self) -> float:
        """Direction of the LiDAR's x axis in global axes."""
        return float(np.arctan2(self.global_T_lidar[1, 0], self.global_T_lidar[0, 0]))


@dataclass(frozen=True)
class FrameReading:
    """A frame that boxes may be in.

    Attributes:
        sentence: The mistake, in words; empty for none.
        lidar_T_given: From the poses to the matrix [4, 4] that moves the given boxes into LiDAR axes; it may mirror
            and scale.
    """

    sentence: str
    lidar_T_given: Callable[[KeyFramePoses], Floats]


@dataclass(frozen=True)
class YawReading:
    """A meaning of headings.

    Attributes:
        sentence: The mistake, in words; empty for none.
        repair: From the given yaws [n] to ours.
        in_given_axes: Whether `repair` takes the yaw in the axes of the given boxes, before they are moved;
            otherwise the yaw in LiDAR axes.
    """

    sentence: str
    repair: Callable[[Floats], Floats]
    in_given_axes: bool = False

    def yaw(self, heading: Floats, lidar_T_given: Floats) -> Floats:
        """Our yaw [n] in LiDAR axes.

        Args:
            heading: [n, 3] in the axes of the given boxes.
            lidar_T_given: [4, 4] moves the boxes to LiDAR axes.
        """
        if self.in_given_axes:
            repaired = self.repair(np.arctan2(heading[:, 1], heading[:, 0]))
            heading = np.stack([np.cos(repaired), np.sin(repaired), 0 * repaired], axis=-1)
        moved = heading @ lidar_T_given[:3, :3].T
        yaw = np.arctan2(moved[:, 1], moved[:, 0])
        return yaw if self.in_given_axes else self.repair(yaw)


@dataclass(frozen=True)
class SizeReading:
    """A meaning of sizes; `repair(size)` takes and returns [n, 3]: length, width, height."""

    sentence: str
    repair: Callable[[Floats], Floats]


@dataclass(frozen=True)
class HeightReading:
    """A place of the given centre in the box.

    Attributes:
        sentence: The mistake, in words; empty for none.
        raise_by: Share of the box's height from the given centre up to the gravity centre.
    """

    sentence: str
    raise_by: float


def _inverse(rigid: Floats) -> Floats:
    return np.linalg.inv(rigid)


def _scaled(factor: float) -> Floats:
    return np.diag([factor, factor, factor, 1.0])


def _flipped(axis: int) -> Floats:
    matrix = np.eye(4)
    matrix[axis, axis] = -1
    return matrix


FRAMES: Mapping[str, FrameReading] = {
    AS_IS: FrameReading("", lambda poses: _inverse(poses.global_T_lidar)),
    "lidar axes": FrameReading("the boxes are in LiDAR axes instead of global axes", lambda poses: np.eye(4)),
    "ego axes": FrameReading(
        "the boxes are in the axes of the ego instead of global axes", lambda poses: poses.lidar_T_ego
    ),
    "previous pose": FrameReading(
        "the boxes were moved to global axes with the pose of the previous key frame",
        lambda poses: _inverse(poses.previous),
    ),
    "following pose": FrameReading(
        "the boxes were moved to global axes with the pose of the following key frame",
        lambda poses: _inverse(poses.following),
    ),
    "first pose": FrameReading(
        "the boxes were moved to global axes with the pose of the first key frame of the scene",
        lambda poses: _inverse(poses.first),
    ),
    "ego pose": FrameReading(
        "the boxes were moved from LiDAR axes to global axes with the pose of the ego instead of that of the LiDAR",
        lambda poses: _inverse(poses.global_T_ego),
    ),
    "lidar pose": FrameReading(
        "the boxes were moved from ego axes to global axes with the pose of the LiDAR instead of that of the ego",
        lambda poses: poses.lidar_T_ego @ _inverse(poses.global_T_lidar),
    ),
    "mirrored y": FrameReading(
        "y of the boxes in LiDAR axes has the wrong sign",
        lambda poses: _flipped(1) @ _inverse(poses.global_T_lidar)
    ),
    "mirrored x": FrameReading(
        "left and right are mirrored: x of the boxes in LiDAR axes, or y in ego axes, has the wrong sign",
        lambda poses: _flipped(0) @ _inverse(poses.global_T_lidar),
    ),
    "mirrored global y": FrameReading(
        "y of the boxes in global axes has the wrong sign",
        lambda poses: _inverse(poses.global_T_lidar) @ _flipped(1)
    ),
    "centimetres": FrameReading(
        "the positions of the boxes are in centimetres instead of metres",
        lambda poses: _inverse(poses.global_T_lidar) @ _scaled(0.01),
    ),
    "centimetres before": FrameReading(
        "the positions of the boxes in LiDAR axes are in centimetres instead of metres",
        lambda poses: _scaled(0.01) @ _inverse(poses.global_T_lidar),
    ),
}  # fmt: skip

LOCAL_FRAMES: Mapping[str, Floats] = {
    "mirrored y": _flipped(1), "mirrored x": _flipped(0), "centimetres before": _scaled(0.01)
}  # fmt: skip
"""Mistakes in LiDAR axes, which can be made before any other of `FRAMES`."""


def frames_of(name: str) -> tuple[str, ...]:
    """The names of `FRAMES` in the name of a reading; one that `pairs_of_frames` made has two."""
    return tuple(name.split(" + "))


def pairs_of_frames() -> dict[str, FrameReading]:
    """Readings with one mistake in LiDAR axes and another of the frame, such as mirrored and never moved."""
    pairs = {}
    for local, matrix in LOCAL_FRAMES.items():
        for name, reading in FRAMES.items():
            if name in (AS_IS, "centimetres", *LOCAL_FRAMES):
                continue
            sentence = f"{FRAMES[local].sentence}, and {reading.sentence}"
            pairs[f"{local} + {name}"] = FrameReading(sentence, _before(matrix, reading))
    for name, sentence, matrix in (("mirrored y", "", _flipped(1)), ("mirrored x", "", _flipped(0))):
        sentence = f"{FRAMES[name].sentence}, and {FRAMES['centimetres'].sentence}"
        pairs[f"{name} + centimetres"] = FrameReading(sentence, _before(matrix, FRAMES["centimetres"]))
    return pairs


def _before(local: Floats, reading: FrameReading) -> Callable[[KeyFramePoses], Floats]:
    return lambda poses: local @ reading.lidar_T_given(poses)


def _degrees(yaw: Floats) -> Floats:
    return np.degrees(wrapped(yaw))


YAWS: Mapping[str, YawReading] = {
    AS_IS: YawReading("", lambda yaw: yaw),
    "heading": YawReading("the boxes point backwards", lambda yaw: yaw + math.pi),
    "quarter left": YawReading("the boxes are turned a quarter counter-clockwise", lambda yaw: yaw - math.pi / 2),
    "quarter right": YawReading("the boxes are turned a quarter clockwise", lambda yaw: yaw + math.pi / 2),
    "yaw": YawReading("the yaw of the boxes runs clockwise instead of counter-clockwise", lambda yaw: -yaw),
    "global yaw": YawReading(
        "the yaw of the boxes runs clockwise instead of counter-clockwise, in global axes",
        lambda yaw: -yaw,
        in_given_axes=True,
    ),
    "old yaw": YawReading(
        "the yaw of the boxes is that of mmdetection3d before 1.0, -yaw - pi/2, with length before width",
        lambda yaw: -yaw - math.pi / 2,
    ),
    "radians": YawReading("the yaw of the boxes was taken for degrees, it is in radians", _degrees),
    "global radians": YawReading(
        "the yaw of the boxes in global axes was taken for degrees, it is in radians", _degrees, in_given_axes=True
    ),
}
NEVER_MOVED = ("lidar axes", "ego axes")
"""Frames of boxes that are not in global axes: readings of yaw in given axes have no meaning there."""

SIZES: Mapping[str, SizeReading] = {
    AS_IS: SizeReading("", lambda size: size),
    "sizes": SizeReading("width and length of the boxes are swapped", lambda size: size[:, [1, 0, 2]]),
    "size centimetres": SizeReading(
        "the sizes of the boxes are in centimetres instead of metres", lambda size: size / 100
    ),
}

HEIGHTS: Mapping[str, HeightReading] = {
    AS_IS: HeightReading("", 0.0),
    "bottom": HeightReading("the centres of the boxes are at the bottom instead of half a height up", 0.5),
    "top": HeightReading("the centres of the boxes are at the top, half a height too high", -0.5),
}

OLD_CONVENTION = "old mmdetection3d"
OLD_SENTENCE = "the boxes are in the convention of mmdetection3d before 1.0: width before length, yaw -yaw - pi/2"

QUATERNION = "quaternion"
QUATERNION_SENTENCE = "the rotations are quaternions x, y, z, w instead of w, x, y, z"

QUARTER = "quarter"
"""Name of a finding of boxes that are turned a quarter to a side that is not determined."""

SAME_YAW = 0.35
"""Radians by which a heading may differ to agree."""
UPRIGHT = 0.9
"""Cosine of the tilt of a box above which it stands upright."""


def one_convention(named: Collection[str]) -> frozenset[str]:
    """The names among some that together are the old convention of mmdetection3d: both of them, or none."""
    old = frozenset({"sizes", "old yaw"})
    return old if old <= set(named) else frozenset()


def side_unknown(finding: Finding, frames: Collection[str]) -> Finding:
    """A finding about headings as it may be said beside mistakes of the frame.

    In mirrored axes it depends on the order of two mistakes whether boxes are turned left or right.
    """
    mirrored = any(name.startswith("mirrored") for name in frames)
    if not mirrored or finding.name not in ("quarter left", "quarter right"):
        return finding
    _, colon, evidence = finding.sentence.partition(":")
    return Finding(QUARTER, f"the boxes are turned a quarter, besides{colon}{evidence}")


def wrapped(angle: Floats) -> Floats:
    """Angles in [-π, π)."""
    return np.asarray((angle + math.pi) % (2 * math.pi) - math.pi)


def upright(rotation: Floats) -> npt.NDArray[np.bool_]:
    """Which boxes stand upright: [n] from quaternions w, x, y, z [n, 4] of any length."""
    square = rotation**2
    return np.asarray(square[:, 0] + square[:, 3] - square[:, 1] - square[:, 2] > UPRIGHT * square.sum(axis=1))


def scalar_first(rotation: Floats) -> Floats:
    """Quaternions [n, 4] x, y, z, w as w, x, y, z."""
    return rotation[:, [3, 0, 1, 2]]


def heading_of(rotation: Floats) -> Floats:
    """The direction [n, 3] of the length of a box, from quaternions w, x, y, z [n, 4] of any length but 0."""
    w, x, y, z = rotation.T
    direction = np.stack([w * w + x * x - y * y - z * z, 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=-1)
    return np.asarray(direction / (rotation**2).sum(axis=1, keepdims=True))
