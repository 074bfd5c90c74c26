"""Mistakes in files of LiDAR points: axes, heights, units, columns and types of numbers.

Each table holds readings by a short name; `AS_IS` is the format of nuScenes: float32 rows of x, y, z, intensity and
ring, metres, x right, y forward, z up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bevkd_common.data.sensor_files import SWEEP_COLUMNS
from bevkd_common.geometry.convention_checks import AS_IS, KeyFramePoses

Floats = npt.NDArray[np.float64]

FARTHEST = 1e4
"""Metres beyond which a number is no coordinate of a point."""
ALTERNATING = 0.3
"""Difference of a decile of a coordinate between even and odd rows, as a share of the spread of the coordinate,
above which they are not both points."""


@dataclass(frozen=True)
class PointReading:
    """Axes that points may be in.

    Attributes:
        sentence: The mistake, in words; empty for none.
        lidar_T_points: From the poses of the key frame to the matrix [4, 4] that brings the points to LiDAR axes.
    """

    sentence: str
    lidar_T_points: Callable[[KeyFramePoses], Floats]


@dataclass(frozen=True)
class Layout:
    """A layout of a file of points.

    Attributes:
        sentence: The mistake, in words; empty for none.
        dtype: Type of every number, as NumPy writes it.
        columns: Numbers of a row.
        first: Column of x; y and z follow.
    """

    sentence: str
    dtype: str = "<f4"
    columns: int = SWEEP_COLUMNS
    first: int = 0

    def read(self, content: bytes) -> Floats | None:
        """The points [P, 3] of a file in this layout; None if it cannot be in this layout."""
        row = np.dtype(self.dtype).itemsize * self.columns
        if not content or len(content) % row:
            return None
        with np.errstate(all="ignore"):
            table = np.frombuffer(content, dtype=self.dtype).reshape(-1, self.columns)
            points = table[:, self.first : self.first + 3].astype(np.float64)
        if len(points) < 2 or not (np.abs(points) < FARTHEST).all():  # no NaN is smaller
            return None
        return None if self.columns == 3 and _alternate(points) else points


def _alternate(points: Floats) -> bool:
    """Whether every other row is something else, as where rows of six numbers are read as two of three."""
    deciles = np.linspace(0.1, 0.9, 9)
    even, odd = (np.quantile(half, deciles, axis=0) for half in (points[::2], points[1::2]))
    spread = np.maximum(even[-1] - even[0], odd[-1] - odd[0])
    return bool((np.abs(even - odd) > ALTERNATING * spread).any())


def _axes(rows: list[list[int]]) -> Callable[[KeyFramePoses], Floats]:
    matrix = np.eye(4)
    matrix[:3, :3] = rows
    return lambda poses: matrix


def _lowered(poses: KeyFramePoses) -> Floats:
    matrix = np.eye(4)
    matrix[2, 3] = poses.lidar_T_ego[2, 3]
    return matrix


POINTS: Mapping[str, PointReading] = {
    AS_IS: PointReading("", lambda poses: np.eye(4)),
    "points turned right": PointReading(
        "the LiDAR points are turned a quarter clockwise against the boxes, as with x forward and y left",
        _axes([[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    ),
    "points turned left": PointReading(
        "the LiDAR points are turned a quarter counter-clockwise against the boxes",
        _axes([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
    ),
    "points turned back": PointReading(
        "the LiDAR points are turned by half a turn against the boxes", _axes([[-1, 0, 0], [0, -1, 0], [0, 0, 1]])
    ),
    "points swapped": PointReading(
        "x and y of the LiDAR points are exchanged", _axes([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    ),
    "points camera axes": PointReading(
        "the LiDAR points are in the axes of a camera: x right, y down, z forward",
        _axes([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    ),
    "points z": PointReading(
        "z of the LiDAR points points down instead of up", _axes([[1, 0, 0], [0, 1, 0], [0, 0, -1]])
    ),
    "points height": PointReading(
        "z of the LiDAR points is measured from the ground instead of from the LiDAR", _lowered
    ),
    "points centimetres": PointReading(
        "the LiDAR points are in centimetres instead of metres", lambda poses: np.diag([0.01, 0.01, 0.01, 1.0])
    ),
}  # fmt: skip

_RIGHT = "instead of float32 with five columns"

LAYOUTS: Mapping[str, Layout] = {
    AS_IS: Layout(""),
    "3 columns": Layout(f"the files of LiDAR points have three columns of float32 {_RIGHT}", columns=3),
    "4 columns": Layout(f"the files of LiDAR points have four columns of float32 {_RIGHT}", columns=4),
    "6 columns": Layout(f"the files of LiDAR points have six columns of float32 {_RIGHT}", columns=6),
    "intensity first": Layout("the files of LiDAR points have one column before x, y and z", first=1),
    "two columns first": Layout("the files of LiDAR points have two columns before x, y and z", first=2),
    "float64": Layout(f"the files of LiDAR points are float64 {_RIGHT}", "<f8"),
    "float64, 4 columns": Layout(f"the files of LiDAR points are float64 with four columns {_RIGHT}", "<f8", 4),
    "float64, 3 columns": Layout(f"the files of LiDAR points are float64 with three columns {_RIGHT}", "<f8", 3),
    "float16": Layout(f"the files of LiDAR points are float16 {_RIGHT}", "<f2"),
    "float16, 4 columns": Layout(f"the files of LiDAR points are float16 with four columns {_RIGHT}", "<f2", 4),
    "big-endian": Layout("the files of LiDAR points are big-endian float32 instead of little-endian", ">f4"),
}  # fmt: skip
