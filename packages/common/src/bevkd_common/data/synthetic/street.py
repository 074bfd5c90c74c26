"""The street: a curved main road, perhaps a side street, and where on them things belong.

Positions are (s, d): metres along the ego's lane and metres to the left of it. The map's frame is x, y in
metres; the ego's lane starts at the ego's pose at time zero.
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
    """What lies at a spot."""

    VERGE = 0
    PAVEMENT = 1
    ASPHALT = 2
    MARKING = 3


@dataclass(frozen=True)
class Street:
    """Geometry of one scene's roads.

    Attributes:
        origin: x and y at (0, 0), metres from the map's corner.
        yaw: heading of the ego's lane at s = 0.
        curvature: of the ego's lane, 1/m, positive to the left.
        lanes: (d, direction) of each driving lane; direction is 1 along the ego's, -1 against it.
        curbs: (d, direction) of each parking lane.
        edges: d of the right and of the left border of the carriageway, parking lanes included.
        crossing: s at which a side street crosses at a right angle, or None.
    """

    origin: float
    yaw: float
    curvature: float
    lanes: tuple[tuple[float, int], ...]
    curbs: tuple[tuple[float, int], ...]
    edges: tuple[float, float]
    crossing: float | None

    def pose(self, s: float, d: float) -> tuple[float, float, float]:
        """Map position and lane heading (x, y, yaw) at (s, d)."""
        turn = self.curvature * s
        chord = s * np.sinc(turn / (2 * np.pi))
        yaw = self.yaw + turn
        x = self.origin + chord * np.cos(self.yaw + turn / 2) - d * np.sin(yaw)
        y = self.origin + chord * np.sin(self.yaw + turn / 2) + d * np.cos(yaw)
        return float(x), float(y), float(yaw)

    def coordinates(self, xy: Floats) -> tuple[Floats, Floats]:
        """(s, d) of map positions [..., 2]; the inverse of `pose`."""
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
        """Positions along and across the side street [..., 2], measured from the ego's lane; needs a crossing."""
        if self.crossing is None:
            raise ValueError("this street has no side street")
        x0, y0, yaw = self.pose(self.crossing, 0.0)
        x, y = xy[..., 0] - x0, xy[..., 1] - y0
        return -x * np.sin(yaw) + y * np.cos(yaw), x * np.cos(yaw) + y * np.sin(yaw)

    def ground(self, xy: Floats) -> Integers:
        """`Ground` value at map positions [..., 2]."""
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
        """Dashes between lanes, a full line between directions and along the parking lanes."""
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
    """Draws the lanes, the bend and the side street of a scene; traffic keeps to the right.

    Args:
        rng: source of randomness.
        way: metres of road to either side of the origin that the scene may use; bends are wide enough that the
            road does not come back to itself.
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
