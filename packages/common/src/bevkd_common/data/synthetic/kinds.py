"""Kinds of objects: their size, appearance, position on the street and speed.

Sizes are typical of the nuScenes annotations. Shares and speeds are chosen so that each of the ten nuScenes
detection classes is frequent enough to be learnt and evaluated.
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
    """Motion of an object; it does not change during a scene."""

    MOVING = auto()
    STOPPED = auto()  # in a lane, with the engine running
    PARKED = auto()  # or standing or lying


class Zone(Enum):
    """Zones of the street. Each has its own distribution of positions, headings and motions."""

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
    """One kind of object.

    Attributes:
        name: Name, unique among all kinds. Writers map it to the categories of their format.
        size: Mean length, width and height in metres.
        parts: Boxes that make up an object.
        zones: Zones in which objects are placed, with their relative frequencies.
        primary: Colours from which an object draws the colour of its parts with `Paint.PRIMARY`.
        secondary: Colours from which an object draws the colour of its parts with `Paint.SECONDARY`.
        speeds: Smallest and largest speed in m/s, in zones of moving objects.
        reflectivity: Mean share of LiDAR light that primary parts reflect.
        spread: Relative standard deviation of each dimension.
        headed: Whether the front is bright and the rear dark, for cameras and LiDAR.
    """

    name: str
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

_ROAD_USERS = (
    Kind("car", (4.62, 1.95, 1.70), CAR, TRAFFIC, PAINTS, GREYS, (2.5, 9), 0.35, 0.06),
    Kind("truck", (6.9, 2.5, 2.85), TRUCK, HAULAGE, CABS, CARGO, (2, 7), 0.40, 0.09),
    Kind(
        "trailer",
        (11.6, 2.85, 3.80),
        TRAILER,
        {Zone.TOWED: 0.5, Zone.CURB: 0.2, Zone.LOT: 0.3},
        GREYS,
        TARPAULINS,
        (2, 7),
        0.38,
        0.08,
    ),
    Kind("rigid_bus", (10.9, 2.92, 3.4), BUS, BUS_LINE, LIVERIES, GREYS, (2, 7), 0.45, 0.05),
    Kind("bendy_bus", (9.2, 2.88, 3.3), BUS, BUS_LINE, LIVERIES, GREYS, (2, 7), 0.45, 0.04),
    Kind("excavator", (6.2, 2.6, 3.1), EXCAVATOR, MACHINERY, MACHINES, GREYS, (0.8, 2.5), 0.5),
    Kind("loader", (6.6, 2.7, 3.2), LOADER, MACHINERY, MACHINES, GREYS, (0.8, 3), 0.5),
    Kind("motorcycle", (2.1, 0.8, 1.22), MOTORCYCLE, {Zone.CURB: 0.4, Zone.PAVEMENT: 0.6}, PAINTS),
    Kind("motorcyclist", (2.15, 0.8, 1.7), MOTORCYCLIST, RIDERS, PAINTS, CLOTHES, (2.5, 8)),
    Kind(
        "bicycle",
        (1.72, 0.58, 1.1),
        BICYCLE,
        {Zone.PAVEMENT: 0.8, Zone.LOT: 0.2},
        PAINTS,
        reflectivity=0.2,
    ),
    Kind("cyclist", (1.75, 0.62, 1.72), CYCLIST, RIDERS, PAINTS, CLOTHES, (1.8, 5), 0.22),
    Kind("adult", (0.72, 0.68, 1.77), PERSON, WALKERS, CLOTHES, TROUSERS, (0.7, 1.7), 0.22),
    Kind("child", (0.52, 0.5, 1.36), PERSON, WALKERS, CLOTHES, TROUSERS, (0.7, 1.8), 0.22),
    Kind(
        "construction_worker",
        (0.74, 0.72, 1.78),
        PERSON,
        WORKERS,
        SAFETY_VESTS,
        TROUSERS,
        (0.6, 1.4),
        0.55,
    ),
    Kind(
        "police_officer",
        (0.74, 0.72, 1.8),
        PERSON,
        WALKERS,
        UNIFORMS,
        TROUSERS,
        (0.7, 1.6),
    ),
    Kind(
        "traffic_cone",
        (0.42, 0.42, 1.02),
        CONE,
        WORKS,
        CONES,
        reflectivity=0.6,
        spread=0.09,
        headed=False,
    ),
    Kind(
        "fence_barrier",
        (0.52, 2.45, 1.02),
        FENCE_BARRIER,
        WORKS,
        BARRIERS,
        reflectivity=0.5,
        headed=False,
    ),
    Kind(
        "jersey_barrier",
        (0.58, 2.55, 0.94),
        JERSEY_BARRIER,
        WORKS,
        BARRIERS,
        reflectivity=0.45,
        headed=False,
    ),
)


def _clutter(
    name: str,
    size: tuple[float, float, float],
    parts: tuple[Part, ...],
    zones: Zones,
    colours: tuple[Colour, ...],
    reflectivity: float = 0.3,
    spread: float = 0.12,
) -> Kind:
    return Kind(name, size, parts, zones, colours, GREYS, (0, 0), reflectivity, spread, headed=False)


# Many of these objects are about as large as road users, so that detectors confuse them.
_CLUTTER = (
    _clutter("bin", (0.62, 0.6, 1.1), block(), FURNITURE, BINS),
    _clutter("debris", (0.7, 0.6, 0.35), block(), ANYWHERE, RUBBLE),
    _clutter("building", (16, 10, 9), block(Pattern.FACADE), HOUSES, WALLS, spread=0.25),
    _clutter("wall", (9, 0.35, 1.9), block(Pattern.PANELS), HOUSES, WALLS, spread=0.2),
    _clutter("container", (6.1, 2.44, 2.6), block(Pattern.PANELS), GARDEN, STEEL, 0.38, 0.05),
    _clutter("shed", (4, 2.2, 2.3), block(), GARDEN, WALLS, spread=0.15),
    _clutter("kiosk", (2.2, 1.8, 2.5), block(), ANYWHERE, ((0.3, 0.35, 0.5), (0.6, 0.55, 0.4))),
    _clutter("tree", (3.2, 3.2, 5.5), TREE, {Zone.PAVEMENT: 0.3, Zone.LOT: 0.7}, GREENS, 0.25, 0.18),
    _clutter("bush", (1, 0.9, 1.1), block(Pattern.FOLIAGE), GARDEN, GREENS, 0.25, 0.25),
    _clutter("hedge", (0.6, 2.6, 1), block(Pattern.FOLIAGE), ANYWHERE, GREENS, 0.28, 0.2),
    _clutter("pole", (0.22, 0.22, 5.5), block(), FURNITURE, GREYS, 0.4, 0.15),
    _clutter("post", (0.26, 0.26, 0.95), block(Pattern.BANDS), FURNITURE, POSTS, 0.4),
    _clutter("hydrant", (0.36, 0.36, 0.85), block(), FURNITURE, HYDRANTS, 0.4),
    _clutter("cabinet", (0.55, 0.8, 1.45), block(), ANYWHERE, WALLS, spread=0.15),
    _clutter("sign", (0.14, 0.7, 2.3), SIGN, FURNITURE, SIGNS, 0.9),
)

ROAD_USERS: dict[str, Kind] = {kind.name: kind for kind in _ROAD_USERS}
CLUTTER: dict[str, Kind] = {kind.name: kind for kind in _CLUTTER}
KINDS: dict[str, Kind] = ROAD_USERS | CLUTTER

# Kinds of each class of `ObjectCounts`, with their shares. Objects are placed in this order: trailers need a truck,
# and large objects need room.
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
