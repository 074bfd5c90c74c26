"""Where on a box the windows, stripes and lamps are; cameras and LiDAR agree on it.

All functions take, for K entry points of rays: the `Pattern` value of the box, the place on it as a share of its
half sizes (-1 to 1) [K, 3], the point in metres from its middle [K, 3], and the face.
"""

import numpy as np

from .rigid import Booleans, Floats, Integers
from .shapes import Pattern
from .solids import FRONT, LEFT, REAR, RIGHT


def glazed(pattern: Integers, place: Floats, point: Floats, face: Integers) -> Booleans:
    """Panes and windscreens of buses and cabs, windows of houses."""
    side = (face == LEFT) | (face == RIGHT)
    pane = side & (place[:, 2] > 0.05) & (place[:, 2] < 0.75) & (np.mod(point[:, 0], 1.5) < 1.2)
    screen = (face == FRONT) & (place[:, 2] > -0.1) & (place[:, 2] < 0.8) & (np.abs(place[:, 1]) < 0.88)
    along = np.where(side, point[:, 0], point[:, 1])
    window = (
        (side | (face == FRONT) | (face == REAR)) & (np.mod(along, 2.6) < 1.3) & (np.mod(point[:, 2], 3.0) > 1.4)
    )
    return ((pattern == Pattern.WINDOWS) & (pane | screen)) | ((pattern == Pattern.FACADE) & window)


def striped(pattern: Integers, place: Floats, point: Floats) -> Booleans:
    """White sheeting of cones, posts and barriers, which also reflects the laser well."""
    band = np.abs(place[:, 2] - 0.3) < 0.4
    diagonal = np.mod(point[:, 1] + point[:, 0] + 0.6 * point[:, 2], 0.5) < 0.25
    return ((pattern == Pattern.BANDS) & band) | ((pattern == Pattern.DIAGONALS) & diagonal)


def lamps(pattern: Integers, place: Floats) -> Booleans:
    """Lamps at both sides of a front or a rear; the face says which."""
    beside = np.abs(place[:, 1]) > 0.55
    middle = np.abs(place[:, 2] - 0.05) < 0.4
    low = (place[:, 2] < -0.5) & (place[:, 2] > -0.85)
    return beside & (((pattern == Pattern.LIGHTS) & middle) | ((pattern == Pattern.WINDOWS) & low))
