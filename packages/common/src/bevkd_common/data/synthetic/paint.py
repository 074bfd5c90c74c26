"""Colours: of the sky, of the ground, and of the faces of boxes with their patterns."""

import numpy as np

from .kinds import Pattern
from .raycast import Hits
from .rigid import Floats, Integers
from .scene import Light, Scene
from .solids import FACE_NORMALS, FRONT, REAR, PlacedBoxes, Solids
from .street import Ground

MARKING_COLOUR = np.array([0.85, 0.85, 0.82])
HEADLAMP, REAR_LAMP = np.array([1.0, 0.97, 0.80]), np.array([0.85, 0.05, 0.05])
WINDOW = np.array([0.10, 0.13, 0.17])
STRIPE = np.array([0.92, 0.92, 0.90])
SHADOW_DEPTH = 0.45


def speckle(a: Floats, b: Floats) -> Floats:
    """A fixed pseudo-random value in [0, 1) for each pair of numbers."""
    value = np.sin(a * 12.9898 + b * 78.233) * 43758.5453
    return value - np.floor(value)


def sky_colour(light: Light, directions: Floats) -> Floats:
    """Sky seen along directions [K, 3] of the map's frame, with streaks of cloud; RGB [K, 3]."""
    height = np.clip(directions[:, 2] / np.linalg.norm(directions, axis=1), 0, 1)
    share = np.sqrt(height)[:, None]
    angle = np.arctan2(directions[:, 1], directions[:, 0])
    cloud = 0.04 * np.sin(9 * angle + 14 * height) * np.sin(4 * angle - 31 * height)
    return light.horizon + share * (light.zenith - light.horizon) + cloud[:, None]


def ground_colour(scene: Scene, xy: Floats) -> Floats:
    """Road, pavement and verge at map positions [K, 2], lit, with texture; RGB [K, 3]."""
    light = scene.light
    palette = np.empty((len(Ground), 3))
    palette[Ground.VERGE], palette[Ground.PAVEMENT] = light.verge, light.pavement
    palette[Ground.ASPHALT], palette[Ground.MARKING] = light.asphalt, MARKING_COLOUR
    cover = scene.street.ground(xy)
    fine = speckle(np.floor(xy[:, 0] * 6), np.floor(xy[:, 1] * 6))
    coarse = speckle(np.floor(xy[:, 0] / 1.7), np.floor(xy[:, 1] / 1.7))
    strength = np.array([0.45, 0.20, 0.16, 0.10])[cover]
    texture = 1 + strength * (0.6 * fine + 0.4 * coarse - 0.5)
    lit = light.ambient + (1 - light.ambient) * light.sun[2]
    return palette[cover] * (texture * lit)[:, None]


def box_colour(light: Light, solids: Solids, boxes: PlacedBoxes, hits: Hits) -> Floats:
    """Colour at the entry points of rays into boxes, lit and patterned; RGB [K, 3]."""
    box, face = hits.box, hits.face
    colour = solids.colour[box, face]
    place = hits.point / solids.half[box]
    for pattern, painter in _PAINTERS.items():
        chosen = np.flatnonzero(solids.pattern[box] == pattern)
        if len(chosen):
            colour[chosen] = painter(colour[chosen], place[chosen], hits.point[chosen], face[chosen])
    grain = speckle(np.floor(hits.point[:, 0] * 7) + box, np.floor((hits.point[:, 1] + 2 * hits.point[:, 2]) * 7))
    normal = FACE_NORMALS[face]
    towards_sun = (
        boxes.cos[box] * normal[:, 0] - boxes.sin[box] * normal[:, 1],
        boxes.sin[box] * normal[:, 0] + boxes.cos[box] * normal[:, 1],
        normal[:, 2],
    )
    lambert = np.clip(sum(n * s for n, s in zip(towards_sun, light.sun, strict=True)), 0, None)
    # Lower parts get less of the sky's light.
    lit = light.ambient * (0.85 + 0.15 * place[:, 2]) + (1 - light.ambient) * lambert
    return colour * (lit * (0.92 + 0.16 * grain))[:, None]


def _lights(colour: Floats, place: Floats, point: Floats, face: Integers) -> Floats:
    lamp = (np.abs(place[:, 1]) > 0.55) & (np.abs(place[:, 2] - 0.05) < 0.4)
    colour = np.where(((face == FRONT) & lamp)[:, None], HEADLAMP, colour)
    return np.where(((face == REAR) & lamp)[:, None], REAR_LAMP, colour)


def _windows(colour: Floats, place: Floats, point: Floats, face: Integers) -> Floats:
    side = (face == 2) | (face == 3)
    pane = side & (place[:, 2] > 0.05) & (place[:, 2] < 0.75) & (np.mod(point[:, 0], 1.5) < 1.2)
    screen = (face == FRONT) & (place[:, 2] > -0.1) & (place[:, 2] < 0.8) & (np.abs(place[:, 1]) < 0.88)
    colour = np.where((pane | screen)[:, None], WINDOW, colour)
    lamp = (np.abs(place[:, 1]) > 0.6) & (place[:, 2] < -0.5) & (place[:, 2] > -0.85)
    colour = np.where(((face == FRONT) & lamp)[:, None], HEADLAMP, colour)
    return np.where(((face == REAR) & lamp)[:, None], REAR_LAMP, colour)


def _bands(colour: Floats, place: Floats, point: Floats, face: Integers) -> Floats:
    return np.where((np.abs(place[:, 2] - 0.3) < 0.4)[:, None], STRIPE, colour)


def _diagonals(colour: Floats, place: Floats, point: Floats, face: Integers) -> Floats:
    white = np.mod(point[:, 1] + point[:, 0] + 0.6 * point[:, 2], 0.5) < 0.25
    return np.where(white[:, None], STRIPE, colour)


def _facade(colour: Floats, place: Floats, point: Floats, face: Integers) -> Floats:
    along = np.where(face < 2, point[:, 1], point[:, 0])
    window = (np.mod(along, 2.6) < 1.3) & (np.mod(point[:, 2], 3.0) > 1.4) & (face < 4)
    return np.where(window[:, None], WINDOW * 1.6, colour)


def _foliage(colour: Floats, place: Floats, point: Floats, face: Integers) -> Floats:
    leaves = speckle(np.floor(point[:, 0] * 5) + 3 * np.floor(point[:, 1] * 5), np.floor(point[:, 2] * 5))
    return colour * (0.5 + leaves)[:, None]


def _panels(colour: Floats, place: Floats, point: Floats, face: Integers) -> Floats:
    along = np.where(face < 2, point[:, 1], point[:, 0])
    return colour * np.where(np.mod(along, 0.9) < 0.12, 0.72, 1.0)[:, None]


_PAINTERS = {
    Pattern.LIGHTS: _lights,
    Pattern.WINDOWS: _windows,
    Pattern.BANDS: _bands,
    Pattern.DIAGONALS: _diagonals,
    Pattern.FACADE: _facade,
    Pattern.FOLIAGE: _foliage,
    Pattern.PANELS: _panels,
}
