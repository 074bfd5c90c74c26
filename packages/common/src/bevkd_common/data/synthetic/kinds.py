"""What the world is made of: the shape, size and look of each kind of thing.

A kind is a few boxes. Box limits are shares of the thing's length (x, forward), width (y, left) and height
(z, up): x and y run from -0.5 to 0.5, z from 0 to 1. Sizes are typical of the nuScenes annotations.
"""

from dataclasses import dataclass
from enum import IntEnum, auto

Colour = tuple[float, float, float]


class Paint(IntEnum):
    """Which colour a part takes; the first two are drawn anew for every instance."""

    PRIMARY = 0
    SECONDARY = auto()
    GLASS = auto()
    TYRE = auto()
    METAL = auto()
    SKIN = auto()
    WHITE = auto()
    BARK = auto()


# Colour in [0, 1] and share of the laser light that comes back.
FIXED_PAINTS: dict[Paint, tuple[Colour, float]] = {
    Paint.GLASS: ((0.12, 0.16, 0.20), 0.06),
    Paint.TYRE: ((0.06, 0.06, 0.06), 0.05),
    Paint.METAL: ((0.45, 0.46, 0.48), 0.35),
    Paint.SKIN: ((0.72, 0.52, 0.42), 0.30),
    Paint.WHITE: ((0.90, 0.90, 0.88), 0.60),
    Paint.BARK: ((0.30, 0.22, 0.15), 0.20),
}


class Pattern(IntEnum):
    """What is painted over the plain colour of a part."""

    PLAIN = 0
    LIGHTS = auto()  # white lamps in front, red ones behind
    WINDOWS = auto()  # a band of windows on the sides, a windscreen, lamps
    BANDS = auto()  # level white bands
    DIAGONALS = auto()  # slanted white stripes
    FACADE = auto()  # rows of dark windows in metres
    FOLIAGE = auto()  # strong speckle
    PANELS = auto()  # upright ribs in metres


@dataclass(frozen=True)
class Part:
    """One box of a kind."""

    limits: tuple[float, float, float, float, float, float]  # x0, x1, y0, y1, z0, z1
    paint: Paint
    pattern: Pattern = Pattern.PLAIN


@dataclass(frozen=True)
class Kind:
    """One kind of thing.

    `category` is its nuScenes category, or None for what nobody annotates. `headed` things have a bright front
    and a dark rear for cameras and LiDAR alike.
    """

    category: str | None
    size: tuple[float, float, float]  # length, width, height in metres
    parts: tuple[Part, ...]
    primary: tuple[Colour, ...]
    secondary: tuple[Colour, ...] = ((0.5, 0.5, 0.5),)
    reflectivity: float = 0.3
    spread: float = 0.07  # relative standard deviation of each dimension
    headed: bool = True


CAR_PAINTS: tuple[Colour, ...] = (
    (0.75, 0.75, 0.77),
    (0.88, 0.88, 0.88),
    (0.13, 0.13, 0.15),
    (0.60, 0.10, 0.10),
    (0.12, 0.22, 0.55),
    (0.40, 0.42, 0.45),
    (0.10, 0.35, 0.25),
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
MACHINE_YELLOW: tuple[Colour, ...] = ((0.90, 0.68, 0.08), (0.88, 0.55, 0.06))
WALLS: tuple[Colour, ...] = ((0.55, 0.48, 0.42), (0.62, 0.60, 0.56), (0.48, 0.30, 0.25), (0.40, 0.42, 0.45))
GREENS: tuple[Colour, ...] = ((0.16, 0.32, 0.12), (0.22, 0.36, 0.14), (0.30, 0.34, 0.12))

_WHEELS = (
    Part((0.22, 0.40, -0.5, 0.5, 0.0, 0.24), Paint.TYRE),
    Part((-0.40, -0.22, -0.5, 0.5, 0.0, 0.24), Paint.TYRE),
)
_LOW_WHEELS = (
    Part((0.26, 0.40, -0.48, 0.48, 0.0, 0.17), Paint.TYRE),
    Part((-0.42, -0.22, -0.48, 0.48, 0.0, 0.17), Paint.TYRE),
)
_CAR = (
    Part((-0.5, 0.5, -0.5, 0.5, 0.16, 0.60), Paint.PRIMARY, Pattern.LIGHTS),
    Part((-0.42, 0.20, -0.44, 0.44, 0.60, 0.92), Paint.GLASS),
    Part((-0.38, 0.14, -0.43, 0.43, 0.92, 1.0), Paint.PRIMARY),
    *_WHEELS,
)
_TRUCK = (
    Part((0.22, 0.5, -0.46, 0.46, 0.14, 0.80), Paint.PRIMARY, Pattern.WINDOWS),
    Part((-0.5, 0.18, -0.5, 0.5, 0.26, 1.0), Paint.SECONDARY, Pattern.PANELS),
    Part((-0.5, 0.22, -0.40, 0.40, 0.16, 0.26), Paint.METAL),
    *_LOW_WHEELS,
)
_BUS = (Part((-0.5, 0.5, -0.5, 0.5, 0.10, 1.0), Paint.PRIMARY, Pattern.WINDOWS), *_LOW_WHEELS)
_TRAILER = (
    Part((-0.5, 0.42, -0.5, 0.5, 0.30, 1.0), Paint.SECONDARY, Pattern.PANELS),
    Part((-0.42, -0.16, -0.48, 0.48, 0.0, 0.22), Paint.TYRE),
    Part((-0.5, 0.5, -0.14, 0.14, 0.22, 0.30), Paint.METAL),
    Part((0.24, 0.28, -0.4, 0.4, 0.0, 0.30), Paint.METAL),
)
_EXCAVATOR = (
    Part((-0.5, 0.08, -0.46, 0.46, 0.28, 0.58), Paint.PRIMARY, Pattern.LIGHTS),
    Part((-0.20, 0.06, -0.46, 0.10, 0.58, 1.0), Paint.GLASS),
    Part((-0.44, 0.14, -0.5, -0.28, 0.0, 0.28), Paint.TYRE),
    Part((-0.44, 0.14, 0.28, 0.5, 0.0, 0.28), Paint.TYRE),
    Part((0.06, 0.44, -0.10, 0.10, 0.62, 0.76), Paint.PRIMARY),
    Part((0.36, 0.44, -0.10, 0.10, 0.20, 0.62), Paint.PRIMARY),
    Part((0.30, 0.5, -0.34, 0.34, 0.02, 0.24), Paint.METAL),
)
_LOADER = (
    Part((-0.5, 0.12, -0.38, 0.38, 0.24, 0.58), Paint.PRIMARY, Pattern.LIGHTS),
    Part((-0.22, 0.06, -0.32, 0.32, 0.58, 1.0), Paint.GLASS),
    Part((-0.42, -0.20, -0.5, 0.5, 0.0, 0.42), Paint.TYRE),
    Part((0.04, 0.24, -0.5, 0.5, 0.0, 0.42), Paint.TYRE),
    Part((0.12, 0.38, -0.28, 0.28, 0.26, 0.38), Paint.PRIMARY),
    Part((0.36, 0.5, -0.5, 0.5, 0.02, 0.36), Paint.METAL),
)
_MOTORCYCLE = (
    Part((-0.5, -0.22, -0.12, 0.12, 0.0, 0.42), Paint.TYRE),
    Part((0.22, 0.5, -0.12, 0.12, 0.0, 0.42), Paint.TYRE),
    Part((-0.42, 0.32, -0.22, 0.22, 0.22, 0.72), Paint.PRIMARY, Pattern.LIGHTS),
    Part((0.18, 0.28, -0.5, 0.5, 0.72, 1.0), Paint.METAL),
)
_MOTORCYCLIST = (
    Part((-0.5, -0.22, -0.12, 0.12, 0.0, 0.34), Paint.TYRE),
    Part((0.22, 0.5, -0.12, 0.12, 0.0, 0.34), Paint.TYRE),
    Part((-0.42, 0.32, -0.24, 0.24, 0.16, 0.50), Paint.PRIMARY, Pattern.LIGHTS),
    Part((-0.22, 0.10, -0.5, 0.5, 0.46, 0.84), Paint.SECONDARY),
    Part((-0.14, 0.10, -0.20, 0.20, 0.84, 1.0), Paint.PRIMARY),
)
_BICYCLE = (
    Part((-0.5, -0.14, -0.08, 0.08, 0.0, 0.56), Paint.TYRE),
    Part((0.14, 0.5, -0.08, 0.08, 0.0, 0.56), Paint.TYRE),
    Part((-0.30, 0.30, -0.10, 0.10, 0.36, 0.66), Paint.PRIMARY),
    Part((0.18, 0.26, -0.5, 0.5, 0.84, 1.0), Paint.METAL),
    Part((-0.22, -0.06, -0.18, 0.18, 0.72, 0.84), Paint.TYRE),
)
_CYCLIST = (
    Part((-0.5, -0.14, -0.08, 0.08, 0.0, 0.36), Paint.TYRE),
    Part((0.14, 0.5, -0.08, 0.08, 0.0, 0.36), Paint.TYRE),
    Part((-0.30, 0.30, -0.10, 0.10, 0.22, 0.42), Paint.PRIMARY),
    Part((-0.18, 0.06, -0.28, 0.28, 0.34, 0.56), Paint.TYRE),
    Part((-0.20, 0.12, -0.5, 0.5, 0.56, 0.86), Paint.SECONDARY),
    Part((-0.06, 0.12, -0.18, 0.18, 0.86, 1.0), Paint.SKIN),
)
_PERSON = (
    Part((-0.22, 0.26, -0.34, -0.04, 0.0, 0.48), Paint.SECONDARY),
    Part((-0.34, 0.14, 0.04, 0.34, 0.0, 0.48), Paint.SECONDARY),
    Part((-0.28, 0.5, -0.5, 0.5, 0.46, 0.86), Paint.PRIMARY),
    Part((-0.5, -0.28, -0.30, 0.30, 0.55, 0.82), Paint.TYRE),
    Part((-0.14, 0.24, -0.20, 0.20, 0.86, 1.0), Paint.SKIN),
)
_CONE = (
    Part((-0.5, 0.5, -0.5, 0.5, 0.0, 0.07), Paint.TYRE),
    Part((-0.36, 0.36, -0.36, 0.36, 0.07, 0.42), Paint.PRIMARY, Pattern.BANDS),
    Part((-0.24, 0.24, -0.24, 0.24, 0.42, 0.74), Paint.PRIMARY, Pattern.BANDS),
    Part((-0.12, 0.12, -0.12, 0.12, 0.74, 1.0), Paint.PRIMARY),
)
_FENCE_BARRIER = (
    Part((-0.16, 0.16, -0.5, 0.5, 0.52, 1.0), Paint.PRIMARY, Pattern.DIAGONALS),
    Part((-0.16, 0.16, -0.5, 0.5, 0.22, 0.40), Paint.PRIMARY, Pattern.DIAGONALS),
    Part((-0.5, 0.5, -0.44, -0.36, 0.0, 0.60), Paint.METAL),
    Part((-0.5, 0.5, 0.36, 0.44, 0.0, 0.60), Paint.METAL),
)
_JERSEY_BARRIER = (
    Part((-0.5, 0.5, -0.5, 0.5, 0.0, 0.34), Paint.PRIMARY),
    Part((-0.28, 0.28, -0.5, 0.5, 0.34, 1.0), Paint.PRIMARY, Pattern.DIAGONALS),
)
_BLOCK = (Part((-0.5, 0.5, -0.5, 0.5, 0.0, 1.0), Paint.PRIMARY),)

KINDS: dict[str, Kind] = {
    "car": Kind("vehicle.car", (4.62, 1.95, 1.70), _CAR, CAR_PAINTS, reflectivity=0.35, spread=0.06),
    "truck": Kind(
        "vehicle.truck",
        (6.90, 2.50, 2.85),
        _TRUCK,
        ((0.15, 0.25, 0.60), (0.65, 0.12, 0.10), (0.85, 0.85, 0.85), (0.10, 0.40, 0.30)),
        ((0.80, 0.80, 0.78), (0.55, 0.57, 0.60), (0.70, 0.62, 0.50)),
        reflectivity=0.40,
        spread=0.09,
    ),
    "excavator": Kind("vehicle.construction", (6.20, 2.60, 3.10), _EXCAVATOR, MACHINE_YELLOW, reflectivity=0.5),
    "loader": Kind("vehicle.construction", (6.60, 2.70, 3.20), _LOADER, MACHINE_YELLOW, reflectivity=0.5),
    "rigid_bus": Kind(
        "vehicle.bus.rigid",
        (10.9, 2.92, 3.40),
        _BUS,
        ((0.80, 0.15, 0.12), (0.10, 0.45, 0.65), (0.85, 0.80, 0.70), (0.12, 0.50, 0.30)),
        reflectivity=0.45,
        spread=0.05,
    ),
    "bendy_bus": Kind(
        "vehicle.bus.bendy",
        (9.2, 2.88, 3.30),
        _BUS,
        ((0.75, 0.55, 0.10), (0.70, 0.20, 0.40)),
        reflectivity=0.45,
        spread=0.04,
    ),
    "trailer": Kind(
        "vehicle.trailer",
        (11.6, 2.85, 3.80),
        _TRAILER,
        ((0.5, 0.5, 0.5),),
        ((0.78, 0.78, 0.80), (0.30, 0.38, 0.50), (0.50, 0.28, 0.22), (0.62, 0.60, 0.40)),
        reflectivity=0.38,
        spread=0.08,
    ),
    "motorcycle": Kind(
        "vehicle.motorcycle", (2.10, 0.80, 1.22), _MOTORCYCLE, CAR_PAINTS, reflectivity=0.30, spread=0.06
    ),
    "motorcyclist": Kind(
        "vehicle.motorcycle", (2.15, 0.80, 1.70), _MOTORCYCLIST, CAR_PAINTS, CLOTHES, reflectivity=0.30, spread=0.06
    ),
    "bicycle": Kind("vehicle.bicycle", (1.72, 0.58, 1.10), _BICYCLE, CAR_PAINTS, reflectivity=0.20, spread=0.06),
    "cyclist": Kind(
        "vehicle.bicycle", (1.75, 0.62, 1.72), _CYCLIST, CAR_PAINTS, CLOTHES, reflectivity=0.22, spread=0.06
    ),
    "adult": Kind(
        "human.pedestrian.adult", (0.72, 0.68, 1.77), _PERSON, CLOTHES, TROUSERS, reflectivity=0.22, spread=0.07
    ),
    "child": Kind(
        "human.pedestrian.child", (0.52, 0.50, 1.36), _PERSON, CLOTHES, TROUSERS, reflectivity=0.22, spread=0.07
    ),
    "construction_worker": Kind(
        "human.pedestrian.construction_worker",
        (0.74, 0.72, 1.78),
        _PERSON,
        ((0.85, 0.85, 0.10), (0.95, 0.45, 0.05)),
        TROUSERS,
        reflectivity=0.55,
        spread=0.05,
    ),
    "police_officer": Kind(
        "human.pedestrian.police_officer",
        (0.74, 0.72, 1.80),
        _PERSON,
        ((0.08, 0.10, 0.30),),
        TROUSERS,
        reflectivity=0.30,
        spread=0.05,
    ),
    "traffic_cone": Kind(
        "movable_object.trafficcone",
        (0.42, 0.42, 1.02),
        _CONE,
        ((0.95, 0.36, 0.05), (0.90, 0.28, 0.08)),
        reflectivity=0.75,
        spread=0.09,
        headed=False,
    ),
    "fence_barrier": Kind(
        "movable_object.barrier",
        (0.52, 2.45, 1.02),
        _FENCE_BARRIER,
        ((0.80, 0.12, 0.10), (0.90, 0.40, 0.08)),
        reflectivity=0.60,
        headed=False,
    ),
    "jersey_barrier": Kind(
        "movable_object.barrier",
        (0.58, 2.55, 0.94),
        _JERSEY_BARRIER,
        ((0.80, 0.18, 0.12), (0.85, 0.45, 0.10)),
        reflectivity=0.50,
        headed=False,
    ),
    "bin": Kind(
        "movable_object.pushable_pullable",
        (0.62, 0.60, 1.10),
        _BLOCK,
        ((0.12, 0.30, 0.16), (0.20, 0.22, 0.26), (0.25, 0.30, 0.50)),
        headed=False,
    ),
    "debris": Kind(
        "movable_object.debris", (0.70, 0.60, 0.35), _BLOCK, ((0.35, 0.28, 0.20), (0.55, 0.50, 0.42)), headed=False
    ),
    "building": Kind(
        None,
        (16.0, 10.0, 9.0),
        (Part((-0.5, 0.5, -0.5, 0.5, 0.0, 1.0), Paint.PRIMARY, Pattern.FACADE),),
        WALLS,
        reflectivity=0.30,
        spread=0.25,
        headed=False,
    ),
    "wall": Kind(
        None,
        (9.0, 0.35, 1.9),
        (Part((-0.5, 0.5, -0.5, 0.5, 0.0, 1.0), Paint.PRIMARY, Pattern.PANELS),),
        WALLS,
        spread=0.2,
        headed=False,
    ),
    "container": Kind(
        None,
        (6.1, 2.44, 2.6),
        (Part((-0.5, 0.5, -0.5, 0.5, 0.0, 1.0), Paint.PRIMARY, Pattern.PANELS),),
        ((0.45, 0.20, 0.15), (0.15, 0.30, 0.45), (0.30, 0.40, 0.25)),
        reflectivity=0.38,
        spread=0.05,
        headed=False,
    ),
    "shed": Kind(None, (4.0, 2.2, 2.3), _BLOCK, WALLS, spread=0.15, headed=False),
    "kiosk": Kind(
        None, (2.2, 1.8, 2.5), _BLOCK, ((0.30, 0.35, 0.50), (0.60, 0.55, 0.40)), spread=0.1, headed=False
    ),
    "tree": Kind(
        None,
        (3.2, 3.2, 5.5),
        (
            Part((-0.06, 0.06, -0.06, 0.06, 0.0, 0.42), Paint.BARK),
            Part((-0.5, 0.5, -0.5, 0.5, 0.40, 0.80), Paint.PRIMARY, Pattern.FOLIAGE),
            Part((-0.32, 0.32, -0.32, 0.32, 0.80, 1.0), Paint.PRIMARY, Pattern.FOLIAGE),
        ),
        GREENS,
        reflectivity=0.25,
        spread=0.18,
        headed=False,
    ),
    "bush": Kind(
        None,
        (1.0, 0.9, 1.1),
        (Part((-0.5, 0.5, -0.5, 0.5, 0.0, 1.0), Paint.PRIMARY, Pattern.FOLIAGE),),
        GREENS,
        reflectivity=0.25,
        spread=0.25,
        headed=False,
    ),
    "hedge": Kind(
        None,
        (0.6, 2.6, 1.0),
        (Part((-0.5, 0.5, -0.5, 0.5, 0.0, 1.0), Paint.PRIMARY, Pattern.FOLIAGE),),
        GREENS,
        reflectivity=0.28,
        spread=0.2,
        headed=False,
    ),
    "pole": Kind(
        None, (0.22, 0.22, 5.5), _BLOCK, ((0.40, 0.41, 0.42),), reflectivity=0.4, spread=0.15, headed=False
    ),
    "post": Kind(
        None,
        (0.26, 0.26, 0.95),
        (Part((-0.5, 0.5, -0.5, 0.5, 0.0, 1.0), Paint.PRIMARY, Pattern.BANDS),),
        ((0.30, 0.30, 0.32), (0.60, 0.15, 0.12)),
        reflectivity=0.5,
        spread=0.12,
        headed=False,
    ),
    "hydrant": Kind(
        None, (0.36, 0.36, 0.85), _BLOCK, ((0.75, 0.15, 0.10), (0.80, 0.65, 0.15)), reflectivity=0.4, headed=False
    ),
    "cabinet": Kind(
        None, (0.55, 0.80, 1.45), _BLOCK, ((0.45, 0.48, 0.42), (0.58, 0.56, 0.52)), spread=0.15, headed=False
    ),
    "sign": Kind(
        None,
        (0.14, 0.70, 2.30),
        (
            Part((-0.5, 0.5, -0.07, 0.07, 0.0, 0.72), Paint.METAL),
            Part((-0.4, 0.4, -0.5, 0.5, 0.70, 1.0), Paint.PRIMARY),
        ),
        ((0.80, 0.12, 0.10), (0.10, 0.25, 0.65), (0.92, 0.80, 0.15)),
        reflectivity=0.9,
        headed=False,
    ),
}

# Which kinds make up a detection class, and in which proportion.
CLASS_KINDS: dict[str, dict[str, float]] = {
    "car": {"car": 1.0},
    "truck": {"truck": 1.0},
    "construction_vehicle": {"excavator": 0.5, "loader": 0.5},
    "bus": {"rigid_bus": 0.65, "bendy_bus": 0.35},
    "trailer": {"trailer": 1.0},
    "barrier": {"fence_barrier": 0.5, "jersey_barrier": 0.5},
    "motorcycle": {"motorcyclist": 0.55, "motorcycle": 0.45},
    "bicycle": {"cyclist": 0.6, "bicycle": 0.4},
    "pedestrian": {"adult": 0.6, "child": 0.12, "construction_worker": 0.18, "police_officer": 0.1},
    "traffic_cone": {"traffic_cone": 1.0},
}

# What fills the street besides: annotated but ignored categories first, then what nobody annotates.
CLUTTER_SHARES: dict[str, float] = {
    "bin": 0.04,
    "debris": 0.03,
    "building": 0.22,
    "wall": 0.06,
    "container": 0.03,
    "shed": 0.05,
    "kiosk": 0.03,
    "tree": 0.15,
    "bush": 0.06,
    "hedge": 0.05,
    "pole": 0.09,
    "post": 0.05,
    "hydrant": 0.04,
    "cabinet": 0.05,
    "sign": 0.05,
}
