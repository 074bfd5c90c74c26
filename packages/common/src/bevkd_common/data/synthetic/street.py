"""The street: a curved main road and an optional side street.

Street coordinates are (s, d): metres along the ego lane and metres to its left. Map coordinates are x, y in metres.
The origin of the street coordinates is the ego pose at time 0.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .rigid import Booleans, Floats, Integers

LANE_WIDTH = 3.5
CURB_WIDTH = 2.8
SIDEWALK_WIDTH = 3.2
SIDE_STREET_WIDTH = 7.4
MARKING_WIDTH = 0.2
TIGHTEST_BEND = 45.0  # metres
MAP_MARGIN = 20.0  # metres of map beyond the road's ends


class Ground(IntEnum):
    """Type of ground."""

    VERGE = 0
    PAVEMENT = 1
    ASPHALT = 2
    MARKING = 3


@dataclass(frozen=True)
class Street:
    """Geometry of the roads of one scene.

    Attributes:
        origin: Map x and y of (s, d) = (0, 0), in metres.
        yaw: Heading of the ego lane at s = 0.
        curvature: Curvature of the ego lane in 1/m, positive to the left.
        lanes: d and direction of each driving lane; the direction is 1 along the ego lane, -1 against it.
        curbs: d and direction of each parking lane.
        edges: d of the right and of the left edge of the roadway, including parking lanes.
        crossing: s of a side street that crosses at a right angle, or None.
    """

    origin: float
    yaw: float
    curvature: float
    lanes: tuple[tuple[float, int], ...]
    curbs: tuple[tuple[float, int], ...]
    edges: tuple[float, float]
    crossing: float | None

    def pose(self, s: float, d: float) -> tuple[float, float, float]:
        """Returns map position and lane heading (x, y, yaw) at (s, d)."""
        turn = self.curvature * s
        chord = s * np.sinc(turn / (2 * np.pi))
        yaw = self.yaw + turn
        x = self.origin + chord * np.cos(self.yaw + turn / 2) - d * np.sin(yaw)
        y = self.origin + chord * np.sin(self.yaw + turn / 2) + d * np.cos(yaw)
        return float(x), float(y), float(yaw)

    def coordinates(self, xy: Floats) -> tuple[Floats, Floats]:
        """Returns (s, d) of map positions [..., 2]; the inverse of `pose`."""
        x, y = xy[..., 0] - self.origin, xy[..., 1] - self.origin
        along = x * np.cos(self.yaw) + y * np.sin(self.yaw)
        across = y * np.cos(self.yaw) - x * np.sin(self.yaw)
        if self.curvature == 0:
            return along, across
        radius = 1 / self.curvature
        side = np.sign(radius)
        d = radius - side * np.hypot(along, radius - across)
        return radius * np.arctan2(side * along, side * (radius - across)), d

    def side_coordinates(self, xy: Floats) -> tuple[Floats, Floats]:
        """Returns the coordinates along and across the side street of map positions [..., 2].

        Their origin is the crossing with the ego lane.

        Raises:
            ValueError: If there is no side street.
        """
        if self.crossing is None:
            raise ValueError("this street has no side street")
        x0, y0, yaw = self.pose(self.crossing, 0.0)
        x, y = xy[..., 0] - x0, xy[..., 1] - y0
        return -x * np.sin(yaw) + y * np.cos(yaw), x * np.cos(yaw) + y * np.sin(yaw)

    def ground(self, xy: Floats) -> Integers:
        """Returns the `Ground` value at map positions [..., 2]."""
        s, d = self.coordinates(xy)
        right, left = self.edges
        cover = np.full(s.shape, int(Ground.VERGE))
        cover[(d > right - SIDEWALK_WIDTH) & (d < left + SIDEWALK_WIDTH)] = Ground.PAVEMENT
        road = (d > right) & (d < left)
        cover[road] = Ground.ASPHALT
        cover[road & self._marked(s, d)] = Ground.MARKING
        if self.crossing is not None:
            along, across = self.side_coordinates(xy)
            beside = np.abs(across) < SIDE_STREET_WIDTH / 2
            cover[(np.abs(across) < SIDE_STREET_WIDTH / 2 + SIDEWALK_WIDTH) & (cover == Ground.VERGE)] = (
                Ground.PAVEMENT
            )
            cover[beside] = Ground.ASPHALT
            cover[beside & ~road & (np.abs(across) < MARKING_WIDTH / 2) & (along % 6 < 3)] = Ground.MARKING
        return cover

    def _marked(self, s: Floats, d: Floats) -> Booleans:
        """Returns whether positions are on a lane marking.

        Markings between lanes of the same direction are dashed, all others are solid.
        """
        marked = np.zeros(s.shape, dtype=np.bool_)
        for lane, direction in self.lanes:
            for border in (lane - LANE_WIDTH / 2, lane + LANE_WIDTH / 2):
                same_direction = any(
                    other != lane and way == direction and abs(other - border) < LANE_WIDTH
                    for other, way in self.lanes
                )
                line = np.abs(d - border) < MARKING_WIDTH / 2
                marked |= line & (s % 6 < 3) if same_direction else line
        return marked


def draw_street(rng: np.random.Generator, way: float) -> Street:
    """Draws the street of a scene, with right-hand traffic.

    Args:
        rng: Random generator.
        way: Metres of road used on each side of the origin. The radius of bends is large enough that the road does
            not intersect itself.
    """
    tightest = max(TIGHTEST_BEND, way / 2)
    bend, sign = rng.random(), float(rng.choice((-1, 1)))
    if bend < 0.3:
        curvature = 0.0
    elif bend < 0.6:
        curvature = sign / rng.uniform(3.5 * tightest, 9 * tightest)
    else:
        curvature = sign / rng.uniform(tightest, 2.7 * tightest)
    second_right, second_left = rng.random(2) < 0.35
    lanes = [(0.0, 1), (LANE_WIDTH, -1)]
    right, left = -LANE_WIDTH / 2, 1.5 * LANE_WIDTH
    if second_right:
        lanes.append((-LANE_WIDTH, 1))
        right -= LANE_WIDTH
    if second_left:
        lanes.append((2 * LANE_WIDTH, -1))
        left += LANE_WIDTH
    return Street(
        origin=way + MAP_MARGIN,
        yaw=float(rng.uniform(-np.pi, np.pi)),
        curvature=curvature,
        lanes=tuple(lanes),
        curbs=((right - CURB_WIDTH / 2, 1), (left + CURB_WIDTH / 2, -1)),
        edges=(right - CURB_WIDTH, left + CURB_WIDTH),
        crossing=float(rng.uniform(4, 22)) if rng.random() < 0.5 else None,
    )
