"""The kinds of things in the world: how large, what they look like, where they belong and how they move.

Sizes are typical of the nuScenes annotations; shares and speeds are chosen so that all ten detection classes
are seen often enough to be learnt and measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from .shapes import (
    BICYCLE,
    BUS,
    CAR,
    CONE,
    CYCLIST,
    EXCAVATOR,
    FENCE_BARRIER,
    JERSEY_BARRIER,
    LOADER,
    MOTORCYCLE,
    MOTORCYCLIST,
    PERSON,
    SIGN,
    TRAILER,
    TREE,
    TRUCK,
    Colour,
    Part,
    Pattern,
    block,
)


class Motion(Enum):
    """What a thing does; it lasts for the whole scene."""

    MOVING = auto()
    STOPPED = auto()  # in a lane, about to go on
    PARKED = auto()  # or standing, or lying


class Zone(Enum):
    """Parts of the street with their own rules for position, heading and motion."""

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


Zones = Mapping[Zone, float]  # relative frequencies

TRAFFIC: Zones = {Zone.LANE: 0.38, Zone.QUEUE: 0.08, Zone.CURB: 0.28, Zone.LOT: 0.14, Zone.SIDE_STREET: 0.12}
HAULAGE: Zones = {Zone.LANE: 0.55, Zone.CURB: 0.20, Zone.LOT: 0.15, Zone.SIDE_STREET: 0.10}
BUS_LINE: Zones = {Zone.LANE: 0.50, Zone.QUEUE: 0.25, Zone.CURB: 0.25}
MACHINERY: Zones = {Zone.LANE: 0.25, Zone.CURB: 0.20, Zone.LOT: 0.55}
RIDERS: Zones = {Zone.LANE: 0.70, Zone.SIDE_STREET: 0.15, Zone.QUEUE: 0.15}
WALKERS: Zones = {Zone.SIDEWALK: 0.45, Zone.CROSSWALK: 0.20, Zone.PAVEMENT: 0.35}
WORKERS: Zones = {Zone.SIDEWALK: 0.30, Zone.CROSSWALK: 0.30, Zone.PAVEMENT: 0.40}
WORKS: Zones = {Zone.ROADWORKS: 0.78, Zone.PAVEMENT: 0.22}
FURNITURE: Zones = {Zone.PAVEMENT: 1.0}
GARDEN: Zones = {Zone.LOT: 1.0}
ANYWHERE: Zones = {Zone.PAVEMENT: 0.35, Zone.LOT: 0.65}
HOUSES: Zones = {Zone.FACADES: 1.0}


@dataclass(frozen=True)
class Kind:
    """One kind of thing.

    Attributes:
        category: nuScenes category, or None for what nobody annotates.
        size: mean length, width and height in metres.
        parts: its boxes.
        zones: where it is found.
        primary: colours of which an instance draws one for parts painted PRIMARY.
        secondary: the same for SECONDARY.
        speeds: slowest and fastest in m/s, where a zone lets it move.
        reflectivity: mean share of the laser light returned by the parts with drawn colours.
        spread: relative standard deviation of each dimension.
        headed: whether it has a bright front and a dark rear, for cameras and LiDAR alike.
    """

    category: str | None
    size: tuple[float, float, float]
    parts: tuple[Part, ...]
    zones: Zones
    primary: tuple[Colour, ...]
    secondary: tuple[Colour, ...] = ((0.5, 0.5, 0.5),)
    speeds: tuple[float, float] = (0.0, 0.0)
    reflectivity: float = 0.3
    spread: float = 0.07
    headed: bool = True


GREYS: tuple[Colour, ...] = ((0.41, 0.42, 0.43),)
PAINTS: tuple[Colour, ...] = (
    (0.75, 0.75, 0.77),
    (0.88, 0.88, 0.88),
    (0.13, 0.13, 0.15),
    (0.60, 0.10, 0.10),
    (0.12, 0.22, 0.55),
    (0.40, 0.42, 0.45),
    (0.10, 0.35, 0.25),
)
CABS: tuple[Colour, ...] = ((0.15, 0.25, 0.60), (0.65, 0.12, 0.10), (0.85, 0.85, 0.85), (0.10, 0.40, 0.30))
CARGO: tuple[Colour, ...] = ((0.80, 0.80, 0.78), (0.55, 0.57, 0.60), (0.70, 0.62, 0.50))
TARPAULINS: tuple[Colour, ...] = (
    (0.78, 0.78, 0.80),
    (0.30, 0.38, 0.50),
    (0.50, 0.28, 0.22),
    (0.62, 0.60, 0.40),
)
LIVERIES: tuple[Colour, ...] = (
    (0.80, 0.15, 0.12),
    (0.10, 0.45, 0.65),
    (0.85, 0.80, 0.70),
    (0.12, 0.50, 0.30),
    (0.75, 0.55, 0.10),
    (0.70, 0.20, 0.40),
)
CLOTHES: tuple[Colour, ...] = (
    (0.15, 0.20, 0.45),
    (0.60, 0.12, 0.12),
    (0.25, 0.25, 0.25),
    (0.70, 0.65, 0.55),
    (0.10, 0.40, 0.30),
    (0.50, 0.20, 0.50),
)
TROUSERS: tuple[Colour, ...] = ((0.12, 0.14, 0.22), (0.20, 0.18, 0.15), (0.35, 0.33, 0.30))
SAFETY_VESTS: tuple[Colour, ...] = ((0.85, 0.85, 0.10), (0.95, 0.45, 0.05))
UNIFORMS: tuple[Colour, ...] = ((0.08, 0.10, 0.30),)
MACHINES: tuple[Colour, ...] = ((0.90, 0.68, 0.08), (0.88, 0.55, 0.06))
CONES: tuple[Colour, ...] = ((0.95, 0.36, 0.05), (0.90, 0.28, 0.08))
BARRIERS: tuple[Colour, ...] = ((0.80, 0.14, 0.11), (0.88, 0.42, 0.09))
BINS: tuple[Colour, ...] = ((0.12, 0.30, 0.16), (0.20, 0.22, 0.26), (0.25, 0.30, 0.50))
RUBBLE: tuple[Colour, ...] = ((0.35, 0.28, 0.20), (0.55, 0.50, 0.42))
WALLS: tuple[Colour, ...] = ((0.55, 0.48, 0.42), (0.62, 0.60, 0.56), (0.48, 0.30, 0.25), (0.40, 0.42, 0.45))
STEEL: tuple[Colour, ...] = ((0.45, 0.20, 0.15), (0.15, 0.30, 0.45), (0.30, 0.40, 0.25))
GREENS: tuple[Colour, ...] = ((0.16, 0.32, 0.12), (0.22, 0.36, 0.14), (0.30, 0.34, 0.12))
POSTS: tuple[Colour, ...] = ((0.30, 0.30, 0.32), (0.60, 0.15, 0.12))
HYDRANTS: tuple[Colour, ...] = ((0.75, 0.15, 0.10), (0.80, 0.65, 0.15))
SIGNS: tuple[Colour, ...] = ((0.80, 0.12, 0.10), (0.10, 0.25, 0.65), (0.92, 0.80, 0.15))

ROAD_USERS: dict[str, Kind] = {
    "car": Kind("vehicle.car", (4.62, 1.95, 1.70), CAR, TRAFFIC, PAINTS, GREYS, (2.5, 9), 0.35, 0.06),
    "truck": Kind("vehicle.truck", (6.9, 2.5, 2.85), TRUCK, HAULAGE, CABS, CARGO, (2, 7), 0.40, 0.09),
    "trailer": Kind(
        "vehicle.trailer",
        (11.6, 2.85, 3.80),
        TRAILER,
        {Zone.TOWED: 0.5, Zone.CURB: 0.2, Zone.LOT: 0.3},
        GREYS,
        TARPAULINS,
        (2, 7),
        0.38,
        0.08,
    ),
    "rigid_bus": Kind("vehicle.bus.rigid", (10.9, 2.92, 3.4), BUS, BUS_LINE, LIVERIES, GREYS, (2, 7), 0.45, 0.05),
    "bendy_bus": Kind("vehicle.bus.bendy", (9.2, 2.88, 3.3), BUS, BUS_LINE, LIVERIES, GREYS, (2, 7), 0.45, 0.04),
    "excavator": Kind(
        "vehicle.construction", (6.2, 2.6, 3.1), EXCAVATOR, MACHINERY, MACHINES, GREYS, (0.8, 2.5), 0.5
    ),
    "loader": Kind("vehicle.construction", (6.6, 2.7, 3.2), LOADER, MACHINERY, MACHINES, GREYS, (0.8, 3), 0.5),
    "motorcycle": Kind(
        "vehicle.motorcycle", (2.1, 0.8, 1.22), MOTORCYCLE, {Zone.CURB: 0.4, Zone.PAVEMENT: 0.6}, PAINTS
    ),
    "motorcyclist": Kind("vehicle.motorcycle", (2.15, 0.8, 1.7), MOTORCYCLIST, RIDERS, PAINTS, CLOTHES, (2.5, 8)),
    "bicycle": Kind(
        "vehicle.bicycle",
        (1.72, 0.58, 1.1),
        BICYCLE,
        {Zone.PAVEMENT: 0.8, Zone.LOT: 0.2},
        PAINTS,
        reflectivity=0.2,
    ),
    "cyclist": Kind("vehicle.bicycle", (1.75, 0.62, 1.72), CYCLIST, RIDERS, PAINTS, CLOTHES, (1.8, 5), 0.22),
    "adult": Kind(
        "human.pedestrian.adult", (0.72, 0.68, 1.77), PERSON, WALKERS, CLOTHES, TROUSERS, (0.7, 1.7), 0.22
    ),
    "child": Kind(
        "human.pedestrian.child", (0.52, 0.5, 1.36), PERSON, WALKERS, CLOTHES, TROUSERS, (0.7, 1.8), 0.22
    ),
    "construction_worker": Kind(
        "human.pedestrian.construction_worker",
        (0.74, 0.72, 1.78),
        PERSON,
        WORKERS,
        SAFETY_VESTS,
        TROUSERS,
        (0.6, 1.4),
        0.55,
    ),
    "police_officer": Kind(
        "human.pedestrian.police_officer",
        (0.74, 0.72, 1.8),
        PERSON,
        WALKERS,
        UNIFORMS,
        TROUSERS,
        (0.7, 1.6),
    ),
    "traffic_cone": Kind(
        "movable_object.trafficcone",
        (0.42, 0.42, 1.02),
        CONE,
        WORKS,
        CONES,
        reflectivity=0.6,
        spread=0.09,
        headed=False,
    ),
    "fence_barrier": Kind(
        "movable_object.barrier",
        (0.52, 2.45, 1.02),
        FENCE_BARRIER,
        WORKS,
        BARRIERS,
        reflectivity=0.5,
        headed=False,
    ),
    "jersey_barrier": Kind(
        "movable_object.barrier",
        (0.58, 2.55, 0.94),
        JERSEY_BARRIER,
        WORKS,
        BARRIERS,
        reflectivity=0.45,
        headed=False,
    ),
}


def _clutter(
    size: tuple[float, float, float],
    parts: tuple[Part, ...],
    zones: Zones,
    colours: tuple[Colour, ...],
    reflectivity: float = 0.3,
    spread: float = 0.12,
    category: str | None = None,
) -> Kind:
    return Kind(category, size, parts, zones, colours, GREYS, (0, 0), reflectivity, spread, headed=False)


# Much of it is about as large as a road user and so mistaken for one. The first two are annotated in categories
# that are no detection class.
CLUTTER: dict[str, Kind] = {
    "bin": _clutter((0.62, 0.6, 1.1), block(), FURNITURE, BINS, category="movable_object.pushable_pullable"),
    "debris": _clutter((0.7, 0.6, 0.35), block(), ANYWHERE, RUBBLE, category="movable_object.debris"),
    "building": _clutter((16, 10, 9), block(Pattern.FACADE), HOUSES, WALLS, spread=0.25),
    "wall": _clutter((9, 0.35, 1.9), block(Pattern.PANELS), HOUSES, WALLS, spread=0.2),
    "container": _clutter((6.1, 2.44, 2.6), block(Pattern.PANELS), GARDEN, STEEL, 0.38, 0.05),
    "shed": _clutter((4, 2.2, 2.3), block(), GARDEN, WALLS, spread=0.15),
    "kiosk": _clutter((2.2, 1.8, 2.5), block(), ANYWHERE, ((0.3, 0.35, 0.5), (0.6, 0.55, 0.4))),
    "tree": _clutter((3.2, 3.2, 5.5), TREE, {Zone.PAVEMENT: 0.3, Zone.LOT: 0.7}, GREENS, 0.25, 0.18),
    "bush": _clutter((1, 0.9, 1.1), block(Pattern.FOLIAGE), GARDEN, GREENS, 0.25, 0.25),
    "hedge": _clutter((0.6, 2.6, 1), block(Pattern.FOLIAGE), ANYWHERE, GREENS, 0.28, 0.2),
    "pole": _clutter((0.22, 0.22, 5.5), block(), FURNITURE, GREYS, 0.4, 0.15),
    "post": _clutter((0.26, 0.26, 0.95), block(Pattern.BANDS), FURNITURE, POSTS, 0.4),
    "hydrant": _clutter((0.36, 0.36, 0.85), block(), FURNITURE, HYDRANTS, 0.4),
    "cabinet": _clutter((0.55, 0.8, 1.45), block(), ANYWHERE, WALLS, spread=0.15),
    "sign": _clutter((0.14, 0.7, 2.3), SIGN, FURNITURE, SIGNS, 0.9),
}

KINDS: dict[str, Kind] = ROAD_USERS | CLUTTER

# Which kinds make up a detection class, and in which proportion. Kinds are placed in this order, the large ones
# first: a trailer needs its truck, and room is scarce.
CLASS_KINDS: dict[str, dict[str, float]] = {
    "truck": {"truck": 1.0},
    "trailer": {"trailer": 1.0},
    "bus": {"rigid_bus": 0.65, "bendy_bus": 0.35},
    "construction_vehicle": {"excavator": 0.5, "loader": 0.5},
    "car": {"car": 1.0},
    "motorcycle": {"motorcyclist": 0.55, "motorcycle": 0.45},
    "bicycle": {"cyclist": 0.6, "bicycle": 0.4},
    "barrier": {"fence_barrier": 0.5, "jersey_barrier": 0.5},
    "pedestrian": {"adult": 0.6, "child": 0.12, "construction_worker": 0.18, "police_officer": 0.1},
    "traffic_cone": {"traffic_cone": 1.0},
}
CLUTTER_SHARES: dict[str, float] = {
    "bin": 0.04,
    "debris": 0.03,
    "building": 0.22,
    "wall": 0.06,
    "container": 0.03,
    "shed": 0.05,
    "kiosk": 0.02,
    "tree": 0.15,
    "bush": 0.06,
    "hedge": 0.05,
    "pole": 0.10,
    "post": 0.05,
    "hydrant": 0.04,
    "cabinet": 0.05,
    "sign": 0.05,
}
