"""Counts LiDAR points in annotated boxes by every reading of the boxes and of the points.

The tables give the number of points of the key frame's own sweep in each box. Boxes in a wrong convention, or
points in wrong axes, give other numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bevkd_common.data.nuscenes.point_readings import POINTS, Layout, PointReading
from bevkd_common.geometry.convention_checks import (
    AS_IS,
    FRAMES,
    HEIGHTS,
    SAME_YAW,
    SIZES,
    YAWS,
    FrameReading,
    KeyFramePoses,
    heading_of,
    scalar_first,
    wrapped,
)
from bevkd_common.geometry.evidence import Booleans

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOVING = 2.0
"""Speed in m/s above which a heading must agree with the motion."""
COUNTED = 5
"""Points that the tables must count in a box for it to be compared."""
SAME_COUNT, SAME_SHARE = 2, 0.2
"""Counts agree within the sum of the first and the second times the count of the tables."""
FARTHEST = 30.0
"""Metres from the centre of a box beyond which no point is counted in it, of whatever size it is read."""
MOST = 0.9
"""Share of the most points by any reading that a box must hold, where the tables count none."""


class BoxReading(NamedTuple):
    """One reading of each part of the boxes: names of `YAWS`, `SIZES` and `HEIGHTS`."""

    yaw: str = AS_IS
    size: str = AS_IS
    height: str = AS_IS

    @property
    def mistakes(self) -> list[str]:
        """Names of the parts that are not as they are."""
        return [name for name in self if name != AS_IS]


PLAIN = BoxReading()
SINGLE = (
    PLAIN,
    *(BoxReading(yaw=name) for name in YAWS if name != AS_IS),
    *(BoxReading(size=name) for name in SIZES if name != AS_IS),
    *(BoxReading(height=name) for name in HEIGHTS if name != AS_IS),
)
"""Readings with at most one mistake in the parts of a box."""
ALL = tuple(
    sorted(
        (BoxReading(yaw, size, height) for yaw in YAWS for size in SIZES for height in HEIGHTS),
        key=lambda reading: len(reading.mistakes),
    )
)
"""All readings of the parts of a box, those of fewest mistakes first."""


@dataclass(frozen=True, eq=False)
class AnnotatedSweep:
    """A key frame's annotations as the tables have them, n of them, and the points of its own sweep.

    Attributes:
        center: [n, 3] in global axes.
        rotation: [n, 4] quaternions as written.
        size: [n, 3] length, width, height.
        velocity: [n, 2] m/s in global axes; NaN is unknown.
        counted: [n] LiDAR points that the tables count.
        poses: Of the key frame.
        points: [P, 3] in their own axes; None if the file cannot be read in the layout of nuScenes.
        content: Bytes of the file of points.
    """

    center: Floats
    rotation: Floats
    size: Floats
    velocity: Floats
    counted: Ints
    poses: KeyFramePoses
    points: Floats | None
    content: bytes = b""

    def reordered(self) -> AnnotatedSweep:
        """The same with quaternions x, y, z, w read as such."""
        return replace(self, rotation=scalar_first(self.rotation))

    def read_as(self, layout: Layout) -> AnnotatedSweep:
        """The same with the file of points read in another layout."""
        return replace(self, points=layout.read(self.content))

    @cached_property
    def compared(self) -> Booleans:
        """[n] whether the tables count enough points for the box to be compared."""
        return self.counted >= COUNTED

    @cached_property
    def moving(self) -> Booleans:
        """[n] whether the object moves."""
        return np.linalg.norm(self.velocity, axis=1) > MOVING  # NaN does not

    def held(
        self, readings: Sequence[BoxReading], frame: FrameReading, points: PointReading, chosen: Booleans
    ) -> Ints:
        """Points in each of the `chosen` boxes, [readings, boxes]."""
        box_matrix, point_matrix = frame.lidar_T_given(self.poses), points.lidar_T_points(self.poses)
        given = np.zeros((0, 3)) if self.points is None else self.points
        moved = given @ point_matrix[:3, :3].T + point_matrix[:3, 3]
        centers = self.center[chosen] @ box_matrix[:3, :3].T + box_matrix[:3, 3]
        sizes, heading = self.size[chosen], heading_of(self.rotation)[chosen]
        parts = [list(dict.fromkeys(names)) for names in zip(*readings, strict=True)]
        turns = np.stack([YAWS[name].yaw(heading, box_matrix) for name in parts[0]])
        meant = np.stack([SIZES[name].repair(sizes) for name in parts[1]])
        raised = np.array([HEIGHTS[name].raise_by for name in parts[2]])
        reach = np.minimum(np.linalg.norm(meant[..., :2], axis=2).max(axis=0, initial=0.0) / 2, FARTHEST)
        found = np.zeros((*map(len, parts), len(centers)), dtype=np.int64)
        for row, center in enumerate(centers):
            # One axis after the other: most points fail at the first.
            near = moved[np.abs(moved[:, 0] - center[0]) < reach[row]]
            near = near[np.abs(near[:, 1] - center[1]) < reach[row]] - center
            if len(near):
                found[..., row] = _inside(near, turns[:, row], meant[:, row], raised)
        places = [
            [names.index(name) for name in column]
            for names, column in zip(parts, zip(*readings, strict=True), strict=True)
        ]
        return np.asarray(found[tuple(places)])

    def headed(self, frame: FrameReading) -> dict[str, Booleans]:
        """By name of `YAWS`, which of the moving objects point where they go."""
        matrix = frame.lidar_T_given(self.poses)
        velocity = np.pad(self.velocity[self.moving], ((0, 0), (0, 1))) @ matrix[:3, :3].T
        heading, direction = heading_of(self.rotation)[self.moving], np.arctan2(velocity[:, 1], velocity[:, 0])
        return {
            name: np.abs(wrapped(reading.yaw(heading, matrix) - direction)) < SAME_YAW
            for name, reading in YAWS.items()
        }


def explained(
    sweeps: Sequence[AnnotatedSweep],
    readings: Sequence[BoxReading],
    frame: FrameReading = FRAMES[AS_IS],
    points: PointReading = POINTS[AS_IS],
    *,
    motion: bool = True,
) -> dict[BoxReading, Booleans]:
    """What each reading of the boxes explains: [boxes with counted points, then moving objects].

    A box is explained if it holds about as many points as the tables count, and a moving object if its heading is
    that of its velocity. Where the tables count no points at all, a box is explained that holds about the most
    points of all readings, and heights are not compared: a box that is too low holds points of the ground. Without
    `motion` there are only boxes: velocities are differences of positions, which may be in a wrong frame.
    """
    if any(sweep.compared.any() for sweep in sweeps):
        held = [sweep.held(readings, frame, points, sweep.compared) for sweep in sweeps]
        counted = np.concatenate([sweep.counted[sweep.compared] for sweep in sweeps])
        agrees = np.abs(_joined(held) - counted) <= SAME_COUNT + SAME_SHARE * counted
    else:
        everything = [np.ones(len(sweep.counted), dtype=np.bool_) for sweep in sweeps]
        held = [
            sweep.held(readings, frame, points, all_of) for sweep, all_of in zip(sweeps, everything, strict=True)
        ]
        agrees = _holds_most(_joined(held), readings)
    if not motion:
        return dict(zip(readings, agrees, strict=True))
    headed = [sweep.headed(frame) for sweep in sweeps]
    ahead = {name: np.concatenate([part[name] for part in headed]) for name in YAWS}
    return {
        reading: np.concatenate([row, ahead[reading.yaw]]) for reading, row in zip(readings, agrees, strict=True)
    }


def _joined(held: Iterable[Ints]) -> Ints:
    return np.concatenate(list(held), axis=1)


def _holds_most(held: Ints, readings: Sequence[BoxReading]) -> Booleans:
    plain_height = np.array([reading.height == AS_IS for reading in readings])
    most = held[plain_height].max(axis=0, initial=0)
    used = most >= COUNTED
    return np.asarray((held >= MOST * most) & plain_height[:, None])[:, used]


def _inside(near: Floats, turns: Floats, sizes: Floats, raised: Floats) -> Ints:
    """Number of points in one box by each yaw, size and height, [Y, S, H].

    Args:
        near: [k, 3] points relative to the given centre.
        turns: [Y] yaws.
        sizes: [S, 3] lengths, widths and heights.
        raised: [H] see `HeightReading`.
    """
    x, y, z = near.T
    cos, sin = np.cos(turns)[:, None], np.sin(turns)[:, None]
    ahead, left = np.abs(x * cos + y * sin), np.abs(y * cos - x * sin)  # [Y, k]
    counts = np.empty((len(turns), len(sizes), len(raised)), dtype=np.int64)
    for column, (length, width, height) in enumerate(sizes):
        flat = (ahead < length / 2) & (left < width / 2)
        level = np.abs(z - raised[:, None] * height) < height / 2  # [H, k]
        counts[:, column] = flat.astype(np.float32) @ level.T.astype(np.float32)
    return counts
