"""Positions of windows, stripes and lamps on boxes, common to cameras and LiDAR.

All functions take, for K hits: the `Pattern` value of the box [K], the position in half sizes of the box (-1 to 1)
[K, 3], the position in metres relative to its centre [K, 3], and the face [K].
"""

import numpy as np

from .rigid import Booleans, Floats, Integers
from .shapes import Pattern
from .solids import FRONT, LEFT, REAR, RIGHT


def glazed(pattern: Integers, place: Floats, point: Floats, face: Integers) -> Booleans:
    """Returns whether hits are on a pane or windscreen of a bus or cab, or on a window of a house, [K]."""
    side = (face == LEFT) | (face == RIGHT)
    pane = side & (place[:, 2] > 0.05) & (place[:, 2] < 0.75) & (np.mod(point[:, 0], 1.5) < 1.2)
    screen = (face == FRONT) & (place[:, 2] > -0.1) & (place[:, 2] < 0.8) & (np.abs(place[:, 1]) < 0.88)
    along = np.where(side, point[:, 0], point[:, 1])
    window = (
        (side | (face == FRONT) | (face == REAR)) & (np.mod(along, 2.6) < 1.3) & (np.mod(point[:, 2], 3.0) > 1.4)
    )
    return ((pattern == Pattern.WINDOWS) & (pane | screen)) | ((pattern == Pattern.FACADE) & window)


def striped(pattern: Integers, place: Floats, point: Floats) -> Booleans:
    """Returns whether hits are on the reflective white stripes of cones, posts and barriers, [K]."""
    band = np.abs(place[:, 2] - 0.3) < 0.4
    diagonal = np.mod(point[:, 1] + point[:, 0] + 0.6 * point[:, 2], 0.5) < 0.25
    return ((pattern == Pattern.BANDS) & band) | ((pattern == Pattern.DIAGONALS) & diagonal)


def lamps(pattern: Integers, place: Floats) -> Booleans:
    """Returns whether hits are at the position of a lamp, if the face is the front or the rear, [K]."""
    beside = np.abs(place[:, 1]) > 0.55
    middle = np.abs(place[:, 2] - 0.05) < 0.4
    low = (place[:, 2] < -0.5) & (place[:, 2] > -0.85)
    return beside & (((pattern == Pattern.LIGHTS) & middle) | ((pattern == Pattern.WINDOWS) & low))
