"""Placement of objects on the street.

Positions and trajectories are drawn by zone and rejected if an object would collide with another one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from .kinds import KINDS, Motion, Zone
from .motion import Arcs, rectangles_overlap, single
from .rigid import Floats
from .street import LANE_WIDTH, SIDE_STREET_WIDTH, SIDEWALK_WIDTH, Street

Size: TypeAlias = tuple[float, float, float]

CLEARANCE = 0.2  # metres between objects
ATTEMPTS = 40  # for each object
EGO_SIZE = (4.1, 1.75)
EGO_CENTRE = 1.35  # metres from the rear axle to the centre of the vehicle
# Maximum distance along the street from the ego vehicle in metres: of most objects, of the others, of houses.
NEAR, FAR, HOUSES = 22.0, 45.0, 60.0
NEAR_SHARE = 0.87
TOW_BAR = 0.6  # metres between a truck and its trailer

MOTIONS: Mapping[Zone, Motion] = {
    Zone.LANE: Motion.MOVING,
    Zone.QUEUE: Motion.STOPPED,
    Zone.TOWED: Motion.MOVING,
    Zone.SIDE_STREET: Motion.MOVING,
    Zone.CURB: Motion.PARKED,
    Zone.LOT: Motion.PARKED,
    Zone.SIDEWALK: Motion.MOVING,
    Zone.CROSSWALK: Motion.MOVING,
    Zone.PAVEMENT: Motion.PARKED,
    Zone.ROADWORKS: Motion.PARKED,
    Zone.FACADES: Motion.PARKED,
}


@dataclass(frozen=True)
class PlacedObject:
    """One placed object."""

    kind: str
    size: Size
    arc: Arcs
    motion: Motion


@dataclass
class Crowd:
    """The objects placed so far, with their poses at the times of a scene.

    Attributes:
        street: The street.
        ego: Trajectory of the ego vehicle.
        times: Times at which collisions are checked.
        objects: The objects.
        towing: Indices of the trucks with a trailer.
    """

    street: Street
    ego: Arcs
    times: Floats
    objects: list[PlacedObject] = field(default_factory=list)
    towing: set[int] = field(default_factory=set)
    _tracks: list[Floats] = field(default_factory=list)
    _halves: list[Floats] = field(default_factory=list)

    def __post_init__(self) -> None:
        track = self.ego.poses(self.times)[:, 0]
        track[:, 0] += EGO_CENTRE * np.cos(track[:, 2])
        track[:, 1] += EGO_CENTRE * np.sin(track[:, 2])
        # One metre in front of and behind the ego vehicle and half a metre at its sides stay free.
        self._tracks.append(track)
        self._halves.append(np.array([EGO_SIZE[0] / 2 + 1.0, EGO_SIZE[1] / 2 + 0.5]))

    def is_free(self, arc: Arcs, size: Size, standing: bool) -> bool:
        """Returns whether an object would never collide. Standing objects must not block the side street."""
        track = arc.poses(self.times)[:, 0]
        half = np.array([size[0] / 2 + CLEARANCE, size[1] / 2 + CLEARANCE])
        if standing and self._blocks_side_street(track[0], half):
            return False
        tracks, halves = np.stack(self._tracks), np.stack(self._halves)
        reach = np.hypot(*half) + np.hypot(halves[:, 0], halves[:, 1])
        gap = np.hypot(tracks[..., 0] - track[:, 0], tracks[..., 1] - track[:, 1])
        other, time = np.nonzero(gap < reach[:, None])
        return not rectangles_overlap(track[time], half, tracks[other, time], halves[other]).any()

    def _blocks_side_street(self, pose: Floats, half: Floats) -> bool:
        if self.street.crossing is None:
            return False
        x, y, yaw = self.street.pose(self.street.crossing, 0.0)
        side_street = np.array([x, y, yaw + np.pi / 2])
        return bool(rectangles_overlap(pose, half, side_street, np.array([HOUSES, SIDE_STREET_WIDTH / 2])))

    def add(self, placed: PlacedObject) -> None:
        """Adds an object."""
        self.objects.append(placed)
        self._tracks.append(placed.arc.poses(self.times)[:, 0])
        self._halves.append(np.array(placed.size[:2]) / 2)


@dataclass(frozen=True)
class Draft:
    """A candidate position of an object.

    Attributes:
        crowd: The objects placed before.
        kind: Kind of the object.
        size: Its length, width and height.
        moment: Time at which it is at `s`.
        s: Metres along the street.
        side: Side of the street, -1 for right, 1 for left.
        rng: Random generator.
    """

    crowd: Crowd
    kind: str
    size: Size
    moment: float
    s: float
    side: int
    rng: np.random.Generator

    @property
    def street(self) -> Street:
        """The street."""
        return self.crowd.street

    @property
    def edge(self) -> float:
        """Edge of the roadway on the side of the object."""
        return self.street.edges[0 if self.side < 0 else 1]

    def still(self, d: float, turn: float) -> Arcs:
        """Returns a trajectory that stands at d, with a heading relative to that of the lane."""
        x, y, yaw = self.street.pose(self.s, d)
        return single(x, y, yaw + turn, 0.0, 0.0, 0.0, self.moment)

    def moving(self, d: float, turn: float, direction: int) -> Arcs:
        """Returns a trajectory along the street (direction 1), against it (-1) or straight across it (0)."""
        x, y, yaw = self.street.pose(self.s, d)
        speed = self.rng.uniform(*KINDS[self.kind].speeds)
        # The speed changes by at most one half during the scene, so that it stays positive.
        limit = 0.5 * speed / (self.crowd.times[-1] - self.crowd.times[0])
        curvature = direction * self.street.curvature / (1 - self.street.curvature * d)
        return single(x, y, yaw + turn, speed, self.rng.uniform(-limit, limit), curvature, self.moment)


def place(crowd: Crowd, kind: str, rng: np.random.Generator) -> bool:
    """Adds one object of a kind if there is room. Returns whether it was added."""
    size = _draw_size(kind, rng)
    zones = [
        zone for zone in KINDS[kind].zones if zone is not Zone.SIDE_STREET or crowd.street.crossing is not None
    ]
    weights = np.array([KINDS[kind].zones[zone] for zone in zones])
    for _ in range(ATTEMPTS):
        zone = zones[int(rng.choice(len(zones), p=weights / weights.sum()))]
        moment = float(rng.choice(crowd.times))
        ego_s = float(crowd.street.coordinates(crowd.ego.poses(moment)[0, :2])[0])
        s = ego_s + _draw_reach(zone, rng)
        draft = Draft(crowd, kind, size, moment, s, int(rng.choice((-1, 1))), rng)
        arc, motion = _PLACES[zone](draft), MOTIONS[zone]
        if arc is not None and crowd.is_free(arc, size, motion is Motion.PARKED):
            crowd.add(PlacedObject(kind, size, arc, motion))
            return True
    return False


def _draw_size(kind: str, rng: np.random.Generator) -> Size:
    # Half of the variance is common to all dimensions.
    spread = KINDS[kind].spread / np.sqrt(2)
    scale = np.clip(np.exp(rng.normal(0, spread) + rng.normal(0, spread, 3)), 0.7, 1.4)
    length, width, height = (float(value) for value in scale * KINDS[kind].size)
    return length, width, height


def _draw_reach(zone: Zone, rng: np.random.Generator) -> float:
    if zone is Zone.FACADES:
        return float(rng.uniform(-HOUSES, HOUSES))
    if rng.random() < NEAR_SHARE:
        return float(rng.uniform(-NEAR, NEAR))
    return float(rng.choice((-1, 1)) * rng.uniform(NEAR, FAR))


def _in_lane(draft: Draft) -> Arcs:
    lane, direction = draft.street.lanes[int(draft.rng.integers(len(draft.street.lanes)))]
    return draft.moving(lane + draft.rng.normal(0, 0.2), 0.0 if direction > 0 else np.pi, direction)


def _in_queue(draft: Draft) -> Arcs:
    lane, direction = draft.street.lanes[int(draft.rng.integers(len(draft.street.lanes)))]
    return draft.still(lane + draft.rng.normal(0, 0.2), 0.0 if direction > 0 else np.pi)


def _at_curb(draft: Draft) -> Arcs:
    lane, direction = draft.street.curbs[int(draft.rng.integers(len(draft.street.curbs)))]
    turn = 0.0 if direction > 0 else np.pi
    return draft.still(lane + draft.rng.normal(0, 0.15), turn + draft.rng.normal(0, 0.04))


def _on_sidewalk(draft: Draft) -> Arcs:
    direction = int(draft.rng.choice((-1, 1)))
    d = draft.edge + draft.side * draft.rng.uniform(0.6, SIDEWALK_WIDTH - 0.4)
    return draft.moving(d, 0.0 if direction > 0 else np.pi, direction)


def _on_crosswalk(draft: Draft) -> Arcs:
    d = draft.rng.uniform(*draft.street.edges)
    return draft.moving(d, draft.side * np.pi / 2 + draft.rng.normal(0, 0.2), 0)


def _on_pavement(draft: Draft) -> Arcs:
    d = draft.edge + draft.side * draft.rng.uniform(0.3, SIDEWALK_WIDTH + 0.8)
    return draft.still(d, draft.rng.uniform(-np.pi, np.pi))


def _at_roadworks(draft: Draft) -> Arcs:
    lane, _ = draft.street.lanes[int(draft.rng.integers(len(draft.street.lanes)))]
    d = lane + draft.side * LANE_WIDTH / 2 + draft.rng.normal(0, 0.15)
    # The length of a barrier is its thin side. Turned by 90 degrees, it stands along the lane.
    return draft.still(d, draft.rng.choice((-1, 1)) * np.pi / 2 + draft.rng.normal(0, 0.15))


def _on_lot(draft: Draft) -> Arcs:
    first = abs(draft.edge) + SIDEWALK_WIDTH + 0.5 + max(draft.size[:2]) / 2
    turn = draft.rng.integers(4) * np.pi / 2 + draft.rng.normal(0, 0.12)
    if draft.rng.random() < 0.4:
        turn = draft.rng.uniform(-np.pi, np.pi)
    return draft.still(draft.side * draft.rng.uniform(first, max(first + 2, 21.0)), turn)


def _among_houses(draft: Draft) -> Arcs:
    d = draft.side * (abs(draft.edge) + SIDEWALK_WIDTH + draft.size[1] / 2 + draft.rng.uniform(8, 24))
    return draft.still(d, (0.0 if draft.side > 0 else np.pi) + draft.rng.normal(0, 0.03))


def _on_side_street(draft: Draft) -> Arcs:
    if draft.street.crossing is None:
        raise ValueError("this street has no side street")
    x, y, yaw = draft.street.pose(draft.street.crossing, 0.0)
    heading = yaw + draft.side * np.pi / 2
    along = draft.rng.uniform(-NEAR, NEAR)
    # The right-hand lane.
    x += along * np.cos(heading) + SIDE_STREET_WIDTH / 4 * np.sin(heading)
    y += along * np.sin(heading) - SIDE_STREET_WIDTH / 4 * np.cos(heading)
    return single(x, y, heading, draft.rng.uniform(*KINDS[draft.kind].speeds), 0.0, 0.0, draft.moment)


def _behind_a_truck(draft: Draft) -> Arcs | None:
    """Returns the trajectory of a trailer behind a moving truck without one, or None if there is no such truck."""
    crowd = draft.crowd
    for index, truck in enumerate(crowd.objects):
        if truck.kind == "truck" and truck.motion is Motion.MOVING and index not in crowd.towing:
            crowd.towing.add(index)
            arc, back = truck.arc, -((truck.size[0] + draft.size[0]) / 2 + TOW_BAR)
            x, y, yaw = arc.along(back)[0]
            return single(x, y, yaw, arc.speed[0], arc.acceleration[0], arc.curvature[0], arc.reference[0])
    return None


_PLACES: Mapping[Zone, Callable[[Draft], Arcs | None]] = {
    Zone.LANE: _in_lane,
    Zone.QUEUE: _in_queue,
    Zone.TOWED: _behind_a_truck,
    Zone.SIDE_STREET: _on_side_street,
    Zone.CURB: _at_curb,
    Zone.LOT: _on_lot,
    Zone.SIDEWALK: _on_sidewalk,
    Zone.CROSSWALK: _on_crosswalk,
    Zone.PAVEMENT: _on_pavement,
    Zone.ROADWORKS: _at_roadworks,
    Zone.FACADES: _among_houses,
}
