"""Shapes of objects: a few boxes each, with colours and patterns.

Box limits are shares of the object's length (x, forward), width (y, left) and height (z, up). The range of x and y
is -0.5 to 0.5, that of z is 0 to 1.
"""

from dataclasses import dataclass
from enum import IntEnum, auto

Colour = tuple[float, float, float]


class Paint(IntEnum):
    """Colour of a part. Each object draws its own primary and secondary colour."""

    PRIMARY = 0
    SECONDARY = auto()
    GLASS = auto()
    TYRE = auto()
    METAL = auto()
    SKIN = auto()
    BARK = auto()


# RGB in [0, 1] and share of LiDAR light reflected.
FIXED_PAINTS: dict[Paint, tuple[Colour, float]] = {
    Paint.GLASS: ((0.12, 0.16, 0.20), 0.06),
    Paint.TYRE: ((0.06, 0.06, 0.06), 0.05),
    Paint.METAL: ((0.45, 0.46, 0.48), 0.35),
    Paint.SKIN: ((0.72, 0.52, 0.42), 0.30),
    Paint.BARK: ((0.30, 0.22, 0.15), 0.20),
}


class Pattern(IntEnum):
    """Pattern on top of the colour of a part."""

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
    """One box of an object."""

    limits: tuple[float, float, float, float, float, float]  # x0, x1, y0, y1, z0, z1
    paint: Paint
    pattern: Pattern = Pattern.PLAIN


_WHEELS = (
    Part((0.22, 0.40, -0.5, 0.5, 0.0, 0.24), Paint.TYRE),
    Part((-0.40, -0.22, -0.5, 0.5, 0.0, 0.24), Paint.TYRE),
)
_LOW_WHEELS = (
    Part((0.26, 0.40, -0.48, 0.48, 0.0, 0.17), Paint.TYRE),
    Part((-0.42, -0.22, -0.48, 0.48, 0.0, 0.17), Paint.TYRE),
)
CAR = (
    Part((-0.5, 0.5, -0.5, 0.5, 0.16, 0.60), Paint.PRIMARY, Pattern.LIGHTS),
    Part((-0.42, 0.20, -0.44, 0.44, 0.60, 0.92), Paint.GLASS),
    Part((-0.38, 0.14, -0.43, 0.43, 0.92, 1.0), Paint.PRIMARY),
    *_WHEELS,
)
TRUCK = (
    Part((0.22, 0.5, -0.46, 0.46, 0.14, 0.80), Paint.PRIMARY, Pattern.WINDOWS),
    Part((-0.5, 0.18, -0.5, 0.5, 0.26, 1.0), Paint.SECONDARY, Pattern.PANELS),
    Part((-0.5, 0.22, -0.40, 0.40, 0.16, 0.26), Paint.METAL),
    *_LOW_WHEELS,
)
BUS = (Part((-0.5, 0.5, -0.5, 0.5, 0.10, 1.0), Paint.PRIMARY, Pattern.WINDOWS), *_LOW_WHEELS)
TRAILER = (
    Part((-0.5, 0.42, -0.5, 0.5, 0.30, 1.0), Paint.SECONDARY, Pattern.PANELS),
    Part((-0.42, -0.16, -0.48, 0.48, 0.0, 0.22), Paint.TYRE),
    Part((-0.5, 0.5, -0.14, 0.14, 0.22, 0.30), Paint.METAL),
    Part((0.24, 0.28, -0.4, 0.4, 0.0, 0.30), Paint.METAL),
)
EXCAVATOR = (
    Part((-0.5, 0.08, -0.46, 0.46, 0.28, 0.58), Paint.PRIMARY, Pattern.LIGHTS),
    Part((-0.20, 0.06, -0.46, 0.10, 0.58, 1.0), Paint.GLASS),
    Part((-0.44, 0.14, -0.5, -0.28, 0.0, 0.28), Paint.TYRE),
    Part((-0.44, 0.14, 0.28, 0.5, 0.0, 0.28), Paint.TYRE),
    Part((0.06, 0.44, -0.10, 0.10, 0.62, 0.76), Paint.PRIMARY),
    Part((0.36, 0.44, -0.10, 0.10, 0.20, 0.62), Paint.PRIMARY),
    Part((0.30, 0.5, -0.34, 0.34, 0.02, 0.24), Paint.METAL),
)
LOADER = (
    Part((-0.5, 0.12, -0.38, 0.38, 0.24, 0.58), Paint.PRIMARY, Pattern.LIGHTS),
    Part((-0.22, 0.06, -0.32, 0.32, 0.58, 1.0), Paint.GLASS),
    Part((-0.42, -0.20, -0.5, 0.5, 0.0, 0.42), Paint.TYRE),
    Part((0.04, 0.24, -0.5, 0.5, 0.0, 0.42), Paint.TYRE),
    Part((0.12, 0.38, -0.28, 0.28, 0.26, 0.38), Paint.PRIMARY),
    Part((0.36, 0.5, -0.5, 0.5, 0.02, 0.36), Paint.METAL),
)
MOTORCYCLE = (
    Part((-0.5, -0.22, -0.12, 0.12, 0.0, 0.42), Paint.TYRE),
    Part((0.22, 0.5, -0.12, 0.12, 0.0, 0.42), Paint.TYRE),
    Part((-0.42, 0.32, -0.22, 0.22, 0.22, 0.72), Paint.PRIMARY, Pattern.LIGHTS),
    Part((0.18, 0.28, -0.5, 0.5, 0.72, 1.0), Paint.METAL),
)
MOTORCYCLIST = (
    Part((-0.5, -0.22, -0.12, 0.12, 0.0, 0.34), Paint.TYRE),
    Part((0.22, 0.5, -0.12, 0.12, 0.0, 0.34), Paint.TYRE),
    Part((-0.42, 0.32, -0.24, 0.24, 0.16, 0.50), Paint.PRIMARY, Pattern.LIGHTS),
    Part((-0.22, 0.10, -0.5, 0.5, 0.46, 0.84), Paint.SECONDARY),
    Part((-0.14, 0.10, -0.20, 0.20, 0.84, 1.0), Paint.PRIMARY),
)
BICYCLE = (
    Part((-0.5, -0.14, -0.08, 0.08, 0.0, 0.56), Paint.TYRE),
    Part((0.14, 0.5, -0.08, 0.08, 0.0, 0.56), Paint.TYRE),
    Part((-0.30, 0.30, -0.10, 0.10, 0.36, 0.66), Paint.PRIMARY),
    Part((0.18, 0.26, -0.5, 0.5, 0.84, 1.0), Paint.METAL),
    Part((-0.22, -0.06, -0.18, 0.18, 0.72, 0.84), Paint.TYRE),
)
CYCLIST = (
    Part((-0.5, -0.14, -0.08, 0.08, 0.0, 0.36), Paint.TYRE),
    Part((0.14, 0.5, -0.08, 0.08, 0.0, 0.36), Paint.TYRE),
    Part((-0.30, 0.30, -0.10, 0.10, 0.22, 0.42), Paint.PRIMARY),
    Part((-0.18, 0.06, -0.28, 0.28, 0.34, 0.56), Paint.TYRE),
    Part((-0.20, 0.12, -0.5, 0.5, 0.56, 0.86), Paint.SECONDARY),
    Part((-0.06, 0.12, -0.18, 0.18, 0.86, 1.0), Paint.SKIN),
)
PERSON = (
    Part((-0.22, 0.26, -0.34, -0.04, 0.0, 0.48), Paint.SECONDARY),
    Part((-0.34, 0.14, 0.04, 0.34, 0.0, 0.48), Paint.SECONDARY),
    Part((-0.28, 0.5, -0.5, 0.5, 0.46, 0.86), Paint.PRIMARY),
    Part((-0.5, -0.28, -0.30, 0.30, 0.55, 0.82), Paint.TYRE),
    Part((-0.14, 0.24, -0.20, 0.20, 0.86, 1.0), Paint.SKIN),
)
CONE = (
    Part((-0.5, 0.5, -0.5, 0.5, 0.0, 0.07), Paint.TYRE),
    Part((-0.36, 0.36, -0.36, 0.36, 0.07, 0.42), Paint.PRIMARY, Pattern.BANDS),
    Part((-0.24, 0.24, -0.24, 0.24, 0.42, 0.74), Paint.PRIMARY, Pattern.BANDS),
    Part((-0.12, 0.12, -0.12, 0.12, 0.74, 1.0), Paint.PRIMARY),
)
FENCE_BARRIER = (
    Part((-0.16, 0.16, -0.5, 0.5, 0.52, 1.0), Paint.PRIMARY, Pattern.DIAGONALS),
    Part((-0.16, 0.16, -0.5, 0.5, 0.22, 0.40), Paint.PRIMARY, Pattern.DIAGONALS),
    Part((-0.5, 0.5, -0.44, -0.36, 0.0, 0.60), Paint.METAL),
    Part((-0.5, 0.5, 0.36, 0.44, 0.0, 0.60), Paint.METAL),
)
JERSEY_BARRIER = (
    Part((-0.5, 0.5, -0.5, 0.5, 0.0, 0.34), Paint.PRIMARY),
    Part((-0.28, 0.28, -0.5, 0.5, 0.34, 1.0), Paint.PRIMARY, Pattern.DIAGONALS),
)
TREE = (
    Part((-0.06, 0.06, -0.06, 0.06, 0.0, 0.42), Paint.BARK),
    Part((-0.5, 0.5, -0.5, 0.5, 0.40, 0.80), Paint.PRIMARY, Pattern.FOLIAGE),
    Part((-0.32, 0.32, -0.32, 0.32, 0.80, 1.0), Paint.PRIMARY, Pattern.FOLIAGE),
)
SIGN = (
    Part((-0.5, 0.5, -0.12, 0.12, 0.0, 0.72), Paint.METAL),
    Part((-0.4, 0.4, -0.5, 0.5, 0.70, 1.0), Paint.PRIMARY),
)


def block(pattern: Pattern = Pattern.PLAIN) -> tuple[Part, ...]:
    """Returns the shape of an object that is a single box."""
    return (Part((-0.5, 0.5, -0.5, 0.5, 0.0, 1.0), Paint.PRIMARY, pattern),)
