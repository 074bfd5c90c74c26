"""Where things stand or drive: drawn by zone of the street, kept only if nothing ever touches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from .kinds import KINDS
from .motion import Arcs, rectangles_overlap, single
from .rigid import Floats
from .street import LANE_WIDTH, SIDE_STREET_WIDTH, SIDEWALK_WIDTH, Street

CLEARANCE = 0.2  # metres kept free around everything
ATTEMPTS = 40
EGO_SIZE = (4.1, 1.75)
EGO_CENTRE = 1.35  # metres from the rear axle to the middle of the car


class Motion(Enum):
    """What a thing does; it lasts for the whole scene."""

    MOVING = auto()
    STOPPED = auto()  # in a lane, about to go on
    PARKED = auto()  # or standing, or lying


class Zone(Enum):
    """Parts of the street with their own rules for position, heading and speed."""

    LANE = auto()
    QUEUE = auto()
    TOWED = auto()
    SIDE_STREET = auto()
    CURB = auto()
    LOT = auto()
    SIDEWALK = auto()
    CROSSWALK = auto()
    PAVEMENT = auto()
    ROADWORKS = auto()
    FACADES = auto()


MOTION: Mapping[Zone, Motion] = {
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

_CAR_ZONES = {Zone.LANE: 0.38, Zone.QUEUE: 0.08, Zone.CURB: 0.28, Zone.LOT: 0.14, Zone.SIDE_STREET: 0.12}
_MACHINE_ZONES = {Zone.LANE: 0.25, Zone.CURB: 0.2, Zone.LOT: 0.55}
_RIDER_ZONES = {Zone.LANE: 0.7, Zone.SIDE_STREET: 0.15, Zone.QUEUE: 0.15}
_PERSON_ZONES = {Zone.SIDEWALK: 0.45, Zone.CROSSWALK: 0.2, Zone.PAVEMENT: 0.35}
_SMALL_ZONES = {Zone.PAVEMENT: 0.6, Zone.LOT: 0.4}
_FURNITURE_ZONES = {Zone.PAVEMENT: 1.0}

ZONES: Mapping[str, Mapping[Zone, float]] = {
    "car": _CAR_ZONES,
    "truck": {Zone.LANE: 0.45, Zone.CURB: 0.3, Zone.LOT: 0.15, Zone.SIDE_STREET: 0.1},
    "excavator": _MACHINE_ZONES,
    "loader": _MACHINE_ZONES,
    "rigid_bus": {Zone.LANE: 0.45, Zone.QUEUE: 0.2, Zone.CURB: 0.35},
    "bendy_bus": {Zone.LANE: 0.5, Zone.QUEUE: 0.2, Zone.CURB: 0.3},
    "trailer": {Zone.TOWED: 0.5, Zone.CURB: 0.2, Zone.LOT: 0.3},
    "motorcycle": {Zone.CURB: 0.4, Zone.PAVEMENT: 0.6},
    "motorcyclist": _RIDER_ZONES,
    "bicycle": {Zone.PAVEMENT: 0.8, Zone.LOT: 0.2},
    "cyclist": _RIDER_ZONES,
    "adult": _PERSON_ZONES,
    "child": _PERSON_ZONES,
    "construction_worker": {Zone.PAVEMENT: 0.4, Zone.SIDEWALK: 0.3, Zone.CROSSWALK: 0.3},
    "police_officer": _PERSON_ZONES,
    "traffic_cone": {Zone.ROADWORKS: 0.75, Zone.PAVEMENT: 0.25},
    "fence_barrier": {Zone.ROADWORKS: 0.8, Zone.PAVEMENT: 0.2},
    "jersey_barrier": {Zone.ROADWORKS: 0.8, Zone.PAVEMENT: 0.2},
    "bin": _FURNITURE_ZONES,
    "debris": {Zone.LOT: 0.5, Zone.ROADWORKS: 0.5},
    "building": {Zone.FACADES: 1.0},
    "wall": {Zone.FACADES: 1.0},
    "container": {Zone.LOT: 1.0},
    "shed": {Zone.LOT: 1.0},
    "kiosk": _SMALL_ZONES,
    "tree": {Zone.PAVEMENT: 0.3, Zone.LOT: 0.7},
    "bush": {Zone.LOT: 1.0},
    "hedge": _SMALL_ZONES,
    "pole": _FURNITURE_ZONES,
    "post": _FURNITURE_ZONES,
    "hydrant": _FURNITURE_ZONES,
    "cabinet": _SMALL_ZONES,
    "sign": _FURNITURE_ZONES,
}

SPEEDS: Mapping[str, tuple[float, float]] = {
    "car": (2.5, 9.0),
    "truck": (2.0, 7.0),
    "excavator": (0.8, 2.5),
    "loader": (0.8, 3.0),
    "rigid_bus": (2.0, 7.0),
    "bendy_bus": (2.0, 7.0),
    "motorcyclist": (2.5, 8.0),
    "cyclist": (1.8, 5.0),
    "adult": (0.7, 1.7),
    "child": (0.7, 1.8),
    "construction_worker": (0.6, 1.4),
    "police_officer": (0.7, 1.6),
}


@dataclass
class Crowd:
    """Everything placed so far, with its track over the scene's time grid."""

    street: Street
    ego: Arcs
    times: Floats
    kinds: list[str] = field(default_factory=list)
    sizes: list[tuple[float, float, float]] = field(default_factory=list)
    arcs: list[Arcs] = field(default_factory=list)
    motions: list[Motion] = field(default_factory=list)
    towing: set[int] = field(default_factory=set)
    _tracks: list[Floats] = field(default_factory=list)
    _halves: list[Floats] = field(default_factory=list)

    def __post_init__(self) -> None:
        track = self.ego.poses(self.times)[:, 0].copy()
        track[:, 0] += EGO_CENTRE * np.cos(track[:, 2])
        track[:, 1] += EGO_CENTRE * np.sin(track[:, 2])
        # Nothing comes nearer to the ego than a metre in front and behind, half a metre at its sides.
        self._tracks.append(track)
        self._halves.append(np.array([EGO_SIZE[0] / 2 + 1.0, EGO_SIZE[1] / 2 + 0.5]))

    def is_free(self, arc: Arcs, size: tuple[float, float, float], on_pavement: bool) -> bool:
        """Whether a mover would touch nothing at any time; what stands must also leave the side street free."""
        track = arc.poses(self.times)[:, 0]
        half = np.array([size[0] / 2 + CLEARANCE, size[1] / 2 + CLEARANCE])
        if on_pavement and self._blocks_side_street(track[0], half):
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
        return bool(rectangles_overlap(pose, half, side_street, np.array([60.0, SIDE_STREET_WIDTH / 2])))

    def add(self, kind: str, size: tuple[float, float, float], arc: Arcs, motion: Motion) -> None:
        """Puts a thing down for good."""
        self.kinds.append(kind)
        self.sizes.append(size)
        self.arcs.append(arc)
        self.motions.append(motion)
        self._tracks.append(arc.poses(self.times)[:, 0])
        self._halves.append(np.array([size[0] / 2, size[1] / 2]))


def place(crowd: Crowd, kind: str, rng: np.random.Generator) -> bool:
    """Tries to add one thing of a kind; False if the street has no room for it."""
    spread = KINDS[kind].spread
    scale = np.exp(rng.normal(0, spread * 0.7) + rng.normal(0, spread * 0.7, 3))
    length, width, height = (float(v) for v in np.clip(scale, 0.7, 1.4) * KINDS[kind].size)
    size = (length, width, height)
    zones = dict(ZONES[kind])
    if crowd.street.crossing is None:
        zones.pop(Zone.SIDE_STREET, None)
    names = list(zones)
    weights = np.array([zones[zone] for zone in names])
    for _ in range(ATTEMPTS):
        zone = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        arc = _draw_arc(crowd, zone, kind, size, rng)
        on_pavement = zone in (Zone.LOT, Zone.PAVEMENT, Zone.CURB, Zone.FACADES, Zone.ROADWORKS)
        if arc is not None and crowd.is_free(arc, size, on_pavement):
            crowd.add(kind, size, arc, MOTION[zone])
            return True
    return False


def _draw_arc(
    crowd: Crowd, zone: Zone, kind: str, size: tuple[float, float, float], rng: np.random.Generator
) -> Arcs | None:
    """Draws position, heading and motion for a zone, near where the ego is at some moment of the scene."""
    if zone is Zone.TOWED:
        return _behind_a_truck(crowd, size)
    street, moment = crowd.street, float(rng.choice(crowd.times))
    ego_s = float(street.coordinates(crowd.ego.poses(moment)[0, :2])[0])
    if zone is Zone.FACADES:
        s = ego_s + rng.uniform(-60, 60)
    elif rng.random() < 0.85:
        s = ego_s + rng.uniform(-22, 22)
    else:
        s = ego_s + rng.choice((-1, 1)) * rng.uniform(22, 45)
    if zone is Zone.SIDE_STREET:
        return _on_side_street(crowd, kind, moment, rng)
    side = int(rng.choice((-1, 1)))
    edge = street.edges[0] if side < 0 else street.edges[1]
    if zone in (Zone.LANE, Zone.QUEUE):
        lane, direction = street.lanes[int(rng.integers(len(street.lanes)))]
        d = lane + rng.normal(0, 0.2)
        turn, speed_range = (0.0 if direction > 0 else np.pi), SPEEDS[kind]
        if zone is Zone.QUEUE:
            return _still(street, s, d, turn, moment)
        return _moving(crowd, s, d, turn, direction, speed_range, moment, rng)
    if zone is Zone.CURB:
        lane, direction = street.curbs[int(rng.integers(len(street.curbs)))]
        turn = (0.0 if direction > 0 else np.pi) + rng.normal(0, 0.04)
        return _still(street, s, lane + rng.normal(0, 0.15), turn, moment)
    if zone is Zone.SIDEWALK:
        direction = int(rng.choice((-1, 1)))
        d = edge + side * rng.uniform(0.6, SIDEWALK_WIDTH - 0.4)
        turn = 0.0 if direction > 0 else np.pi
        return _moving(crowd, s, d, turn, direction, SPEEDS[kind], moment, rng)
    if zone is Zone.CROSSWALK:
        d = rng.uniform(street.edges[0], street.edges[1])
        turn = side * np.pi / 2 + rng.normal(0, 0.2)
        return _moving(crowd, s, d, turn, 0, SPEEDS[kind], moment, rng)
    return _standing(street, zone, s, side, edge, size, moment, rng)


def _standing(
    street: Street,
    zone: Zone,
    s: float,
    side: int,
    edge: float,
    size: tuple[float, float, float],
    moment: float,
    rng: np.random.Generator,
) -> Arcs:
    any_turn = rng.uniform(-np.pi, np.pi)
    if zone is Zone.ROADWORKS:
        borders = [d + sign * LANE_WIDTH / 2 for d, _ in street.lanes for sign in (-1, 1)]
        d = float(rng.choice(borders)) + rng.normal(0, 0.15)
        # A barrier's length is its thin side: turned by a right angle it lies along the lane.
        turn = rng.choice((-1, 1)) * np.pi / 2 + rng.normal(0, 0.15)
        return _still(street, s, d, turn, moment)
    if zone is Zone.PAVEMENT:
        return _still(street, s, edge + side * rng.uniform(0.3, SIDEWALK_WIDTH + 0.8), any_turn, moment)
    inner = abs(edge) + SIDEWALK_WIDTH
    if zone is Zone.LOT:
        square = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.12)
        turn = any_turn if rng.random() < 0.4 else square
        first = inner + 0.5 + 0.5 * max(size[0], size[1])
        return _still(street, s, side * rng.uniform(first, max(first + 2, 21.0)), turn, moment)
    turn = (0.0 if side > 0 else np.pi) + rng.normal(0, 0.03)
    return _still(street, s, side * (inner + size[1] / 2 + rng.uniform(2, 20)), turn, moment)


def _still(street: Street, s: float, d: float, turn: float, moment: float) -> Arcs:
    x, y, yaw = street.pose(s, d)
    return single(x, y, yaw + turn, 0.0, 0.0, 0.0, moment)


def _moving(
    crowd: Crowd,
    s: float,
    d: float,
    turn: float,
    direction: int,
    speeds: tuple[float, float],
    moment: float,
    rng: np.random.Generator,
) -> Arcs:
    """A mover along the street (direction 1 or -1) or straight across it (0)."""
    street = crowd.street
    x, y, yaw = street.pose(s, d)
    speed = rng.uniform(*speeds)
    # At most half of the speed is gained or lost over the scene, so that nobody rolls backwards.
    limit = 0.5 * speed / (crowd.times[-1] - crowd.times[0])
    curvature = direction * street.curvature / (1 - street.curvature * d)
    return single(x, y, yaw + turn, speed, rng.uniform(-limit, limit), curvature, moment)


def _on_side_street(crowd: Crowd, kind: str, moment: float, rng: np.random.Generator) -> Arcs:
    street = crowd.street
    if street.crossing is None:
        raise ValueError("this street has no side street")
    x, y, yaw = street.pose(street.crossing, 0.0)
    direction = int(rng.choice((-1, 1)))
    heading = yaw + direction * np.pi / 2
    along = rng.uniform(-24, 24)
    # The right-hand lane of whichever way it drives.
    x += along * np.cos(heading) + SIDE_STREET_WIDTH / 4 * np.sin(heading)
    y += along * np.sin(heading) - SIDE_STREET_WIDTH / 4 * np.cos(heading)
    speed = rng.uniform(*SPEEDS[kind])
    return single(x, y, heading, speed, 0.0, 0.0, moment)


def _behind_a_truck(crowd: Crowd, size: tuple[float, float, float]) -> Arcs | None:
    """A trailer's motion behind the first moving truck that pulls none yet."""
    for index, kind in enumerate(crowd.kinds):
        if kind == "truck" and crowd.motions[index] is Motion.MOVING and index not in crowd.towing:
            crowd.towing.add(index)
            truck = crowd.arcs[index]
            gap = (crowd.sizes[index][0] + size[0]) / 2 + 0.6
            turn = -gap * float(truck.curvature[0])
            chord = -gap * float(np.sinc(turn / (2 * np.pi)))
            direction = float(truck.yaw[0]) + turn / 2
            return single(
                float(truck.x[0]) + chord * np.cos(direction),
                float(truck.y[0]) + chord * np.sin(direction),
                float(truck.yaw[0]) + turn,
                float(truck.speed[0]),
                float(truck.acceleration[0]),
                float(truck.curvature[0]),
                float(truck.reference[0]),
            )
    return None
