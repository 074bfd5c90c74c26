"""Mistakes in boxes and in files of points, for `diagnosis.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from bevkd_common.data.nuscenes.point_readings import LAYOUTS, POINTS
from bevkd_common.geometry.convention_checks import AS_IS, OLD_CONVENTION, QUARTER, QUATERNION, KeyFramePoses

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Boxes:
    """Boxes on their way to a file: in LiDAR axes, then in global axes."""

    center: Floats  # [n, 3]
    size: Floats  # [n, 3] length, width, height
    yaw: Floats  # [n]
    velocity: Floats  # [n, 2]
    poses: KeyFramePoses
    global_T_boxes: Floats  # [4, 4], by which they are moved to global axes
    rotation: Floats | None = None  # [n, 4] w, x, y, z, once they were moved
    lidar_velocity: Floats | None = None

    def moved(self) -> Boxes:
        """In global axes."""
        matrix = self.global_T_boxes
        heading = np.stack([np.cos(self.yaw), np.sin(self.yaw), 0 * self.yaw], axis=-1) @ matrix[:3, :3].T
        velocity = np.pad(self.velocity, ((0, 0), (0, 1))) @ matrix[:3, :3].T
        yaw = np.arctan2(heading[:, 1], heading[:, 0])
        return replace(
            self, center=self.center @ matrix[:3, :3].T + matrix[:3, 3], yaw=yaw, velocity=velocity[:, :2],
            rotation=_quaternion(yaw), lidar_velocity=self.velocity,
        )  # fmt: skip


def _quaternion(yaw: Floats) -> Floats:
    return np.stack([np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)], axis=-1)


@dataclass(frozen=True)
class Fault:
    """A mistake in boxes.

    Attributes:
        finding: Name of the finding that is right.
        part: The part of a box that it changes; two faults of one part are not combined.
        apply: Changes the boxes.
        when: "before" they are moved to global axes, or "after".
    """

    finding: str
    part: str
    apply: Callable[[Boxes], None]
    when: str = "before"


def _set(**changes: Callable[[Boxes], Any]) -> Callable[[Boxes], None]:
    def apply(boxes: Boxes) -> None:
        new = {name: change(boxes) for name, change in changes.items()}
        for name, value in new.items():
            setattr(boxes, name, value)

    return apply


def _mirrored(axis: int) -> Callable[[Boxes], None]:
    sign = np.array([-1.0, 1.0]) if axis == 0 else np.array([1.0, -1.0])

    def apply(boxes: Boxes) -> None:
        boxes.center = boxes.center * np.append(sign, 1.0)
        boxes.velocity = boxes.velocity * sign
        boxes.yaw = np.arctan2(sign[1] * np.sin(boxes.yaw), sign[0] * np.cos(boxes.yaw))

    return apply


def _rotated(boxes: Boxes, yaw: Floats) -> None:
    boxes.yaw, boxes.rotation = yaw, _quaternion(yaw)


def _global_mirror(boxes: Boxes) -> None:
    sign = np.array([1.0, -1.0])
    boxes.center, boxes.velocity = boxes.center * [1, -1, 1], boxes.velocity * sign
    assert boxes.rotation is not None
    boxes.rotation = boxes.rotation * [1, 1, 1, -1]


def _ego_boxes(boxes: Boxes) -> None:
    """To ego axes: afterwards, `lidar_T_ego` is moved with as if it were the LiDAR's."""
    matrix = np.linalg.inv(boxes.poses.lidar_T_ego)
    boxes.center = boxes.center @ matrix[:3, :3].T + matrix[:3, 3]
    turn = np.arctan2(matrix[1, 0], matrix[0, 0])
    boxes.yaw = boxes.yaw + turn
    boxes.velocity = (np.pad(boxes.velocity, ((0, 0), (0, 1))) @ matrix[:3, :3].T)[:, :2]


FRAME_FAULTS = (
    Fault("lidar axes", "frame", _set(global_T_boxes=lambda b: np.eye(4))),
    Fault("ego axes", "frame", _set(global_T_boxes=lambda b: np.linalg.inv(b.poses.lidar_T_ego))),
    Fault("previous pose", "frame", _set(global_T_boxes=lambda b: b.poses.previous)),
    Fault("following pose", "frame", _set(global_T_boxes=lambda b: b.poses.following)),
    Fault("first pose", "frame", _set(global_T_boxes=lambda b: b.poses.first)),
    Fault("ego pose", "frame", _set(global_T_boxes=lambda b: b.poses.global_T_ego)),
    Fault(
        "lidar pose", "frame",
        _set(global_T_boxes=lambda b: b.poses.global_T_lidar @ np.linalg.inv(b.poses.lidar_T_ego)),
    ),
    Fault("mirrored y", "mirror", _mirrored(1)),
    Fault("mirrored x", "mirror", _mirrored(0)),
    Fault("mirrored global y", "frame", _global_mirror, "after"),
    Fault("centimetres", "frame", _set(center=lambda b: 100 * b.center), "after"),
    Fault("centimetres before", "unit", _set(center=lambda b: 100 * b.center)),
)  # fmt: skip
BOX_FAULTS = (
    Fault("heading", "yaw", _set(yaw=lambda b: b.yaw + np.pi)),
    Fault("quarter left", "yaw", _set(yaw=lambda b: b.yaw + np.pi / 2)),
    Fault("quarter right", "yaw", _set(yaw=lambda b: b.yaw - np.pi / 2)),
    Fault("yaw", "yaw", _set(yaw=lambda b: -b.yaw)),
    Fault("global yaw", "yaw", lambda b: _rotated(b, -b.yaw), "after"),
    Fault("old yaw", "yaw", _set(yaw=lambda b: -b.yaw - np.pi / 2)),
    Fault("radians", "yaw", _set(yaw=lambda b: np.radians((b.yaw + np.pi) % (2 * np.pi) - np.pi))),
    Fault("global radians", "yaw", lambda b: _rotated(b, np.radians(b.yaw)), "after"),
    Fault(QUATERNION, "quaternion", _set(rotation=lambda b: np.roll(b.rotation, -1, axis=1)), "after"),
    Fault("bottom", "height", _set(center=lambda b: b.center - b.size * [0, 0, 0.5])),
    Fault("top", "height", _set(center=lambda b: b.center + b.size * [0, 0, 0.5])),
    Fault("sizes", "size", _set(size=lambda b: b.size[:, [1, 0, 2]])),
    Fault("size centimetres", "size", _set(size=lambda b: 100 * b.size)),
)
VELOCITY_FAULTS = (
    Fault("velocity lidar axes", "axes", _set(velocity=lambda b: b.lidar_velocity), "after"),
    Fault(
        "velocity ego axes", "axes",
        _set(velocity=lambda b: (np.pad(b.lidar_velocity, ((0, 0), (0, 1))) @ b.poses.lidar_T_ego[:3, :3])[:, :2]),
        "after",
    ),
    Fault("velocity halved", "speed", _set(velocity=lambda b: b.velocity / 2)),
    Fault("velocity km/h", "speed", _set(velocity=lambda b: 3.6 * b.velocity)),
    Fault("velocity centimetres", "speed", _set(velocity=lambda b: 100 * b.velocity)),
)  # fmt: skip
DEGREES = Fault("random yaw", "yaw", _set(yaw=lambda b: np.degrees(b.yaw)))

SUBMISSION_FAULTS = (*FRAME_FAULTS, *BOX_FAULTS, DEGREES, *VELOCITY_FAULTS)
TABLE_FAULTS = (*FRAME_FAULTS, *BOX_FAULTS)


def faulty(boxes: Boxes, faults: Sequence[Fault]) -> Boxes:
    """The boxes in global axes, with faults."""
    boxes = replace(boxes)
    for fault in faults:
        if fault.when == "before":
            fault.apply(boxes)
    boxes = boxes.moved()
    for fault in faults:
        if fault.when == "after":
            fault.apply(boxes)
    return boxes


def pairs(faults: Sequence[Fault]) -> Iterator[tuple[Fault, ...]]:
    """Each fault alone, then all pairs of faults that exist side by side."""
    yield from ((fault,) for fault in faults)
    for first, second in combinations(faults, 2):
        if _combine(first, second):
            yield first, second


def _combine(first: Fault, second: Fault) -> bool:
    parts = {first.part, second.part}
    units = {"mirror", "unit", "frame"}
    if len(parts) == 1 or {first.finding, second.finding} == {"centimetres", "centimetres before"}:
        return False
    # Scaled or mirrored in LiDAR axes and then moved otherwise is two faults; scaled or mirrored twice is not.
    if parts == {"mirror", "unit"}:
        return False
    if parts == {"unit", "frame"} and {first.finding, second.finding} & {"centimetres"}:
        return False
    # The axes of a velocity are those of its boxes unless it was moved apart from them.
    return not ("axes" in parts and parts & units)


def expected(faults: Sequence[Fault]) -> set[str]:
    """Names of the findings that are right."""
    names = {fault.finding for fault in faults}
    if names == {"sizes", "old yaw"}:
        return {OLD_CONVENTION}
    if names & {"mirrored y", "mirrored x", "mirrored global y"} and names & {"quarter left", "quarter right"}:
        return names - {"quarter left", "quarter right"} | {QUARTER}
    if names & {"lidar axes", "ego axes"}:  # the axes of the file, whatever they were taken for
        names = {{"global yaw": "yaw", "global radians": "radians"}.get(name, name) for name in names}
    return names


def verdict(faults: Sequence[Fault], found: Sequence[str]) -> str:
    """Whether all, one or none of the faults is named, or a wrong one.

    "Other points" names none: it reads "not together, or in a convention that is not recognised".
    """
    found = [name for name in found if name != "other points"]
    names = {part for name in found for part in name.split(" + ")}
    if not names <= expected(faults) | {fault.finding for fault in faults if fault.part == "size"}:
        return "wrong"
    if not names:
        return "none"
    return "all" if names == expected(faults) else "one"


@dataclass(frozen=True)
class FileFault:
    """A mistake in files of points: from the points [P, 5] of a key frame to the bytes of the file."""

    finding: str
    write: Callable[[Floats, KeyFramePoses], bytes]
    part: str = "points"


def _with_points(name: str) -> Callable[[Floats, KeyFramePoses], bytes]:
    def write(points: Floats, poses: KeyFramePoses) -> bytes:
        matrix = np.linalg.inv(POINTS[name].lidar_T_points(poses))
        moved = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
        return np.concatenate([moved, points[:, 3:]], axis=1).astype("<f4").tobytes()

    return write


def _in_layout(name: str) -> Callable[[Floats, KeyFramePoses], bytes]:
    layout = LAYOUTS[name]

    def write(points: Floats, poses: KeyFramePoses) -> bytes:
        rows = np.zeros((len(points), max(layout.columns, layout.first + 3)))
        rows[:, : layout.first] = points[:, 3 : 3 + layout.first]
        rest = min(rows.shape[1] - layout.first, points.shape[1])
        rows[:, layout.first : layout.first + rest] = points[:, :rest]
        return rows.astype(layout.dtype).tobytes()

    return write


FILE_FAULTS = (
    *(FileFault(name, _with_points(name)) for name in POINTS if name != AS_IS),
    *(FileFault(name, _in_layout(name), "layout") for name in LAYOUTS if name != AS_IS),
)
