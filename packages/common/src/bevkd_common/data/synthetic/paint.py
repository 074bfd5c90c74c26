"""Colours of the sky, of the ground and of the faces of boxes."""

import numpy as np

from .patterns import glazed, lamps, striped
from .raycast import Hits
from .rigid import Floats
from .scene import Light, Scene
from .shapes import Pattern
from .solids import FACE_NORMALS, FRONT, REAR, PlacedBoxes, Solids
from .street import Ground

MARKING_COLOUR = np.array([0.85, 0.85, 0.82])
HEADLAMP, REAR_LAMP = np.array([1.0, 0.97, 0.80]), np.array([0.85, 0.05, 0.05])
PANE, SHEETING = np.array([0.12, 0.15, 0.20]), np.array([0.92, 0.92, 0.90])
# Strength of the texture of each kind of ground.
GROUND_TEXTURE = {Ground.VERGE: 0.45, Ground.PAVEMENT: 0.20, Ground.ASPHALT: 0.16, Ground.MARKING: 0.10}


def speckle(a: Floats, b: Floats) -> Floats:
    """Returns a pseudo-random value in [0, 1) that is a function of a pair of numbers."""
    value = np.sin(a * 12.9898 + b * 78.233) * 43758.5453
    return value - np.floor(value)


def sky_colour(light: Light, directions: Floats) -> Floats:
    """Returns the colour of the sky with clouds in directions [K, 3] of the map frame, RGB [K, 3]."""
    height = np.clip(directions[:, 2] / np.linalg.norm(directions, axis=1), 0, 1)
    angle = np.arctan2(directions[:, 1], directions[:, 0])
    cloud = 0.04 * np.sin(9 * angle + 14 * height) * np.sin(4 * angle - 31 * height)
    return light.horizon + np.sqrt(height)[:, None] * (light.zenith - light.horizon) + cloud[:, None]


def ground_colour(scene: Scene, xy: Floats) -> Floats:
    """Returns the colour of the lit and textured ground at map positions [K, 2], RGB [K, 3]."""
    light = scene.light
    palette = np.empty((len(Ground), 3))
    palette[Ground.VERGE], palette[Ground.PAVEMENT] = light.verge, light.pavement
    palette[Ground.ASPHALT], palette[Ground.MARKING] = light.asphalt, MARKING_COLOUR
    cover = scene.street.ground(xy)
    fine = speckle(np.floor(xy[:, 0] * 6), np.floor(xy[:, 1] * 6))
    coarse = speckle(np.floor(xy[:, 0] / 1.7), np.floor(xy[:, 1] / 1.7))
    strength = np.array([GROUND_TEXTURE[ground] for ground in Ground])[cover]
    texture = 1 + strength * (0.6 * fine + 0.4 * coarse - 0.5)
    lit = light.ambient + (1 - light.ambient) * light.sun[2]
    return palette[cover] * (texture * lit)[:, None]


def box_colour(light: Light, solids: Solids, boxes: PlacedBoxes, hits: Hits) -> Floats:
    """Returns the colour of lit and patterned boxes at the hits, RGB [K, 3]."""
    box, face, point = hits.box, hits.face, hits.point
    colour, pattern = solids.colour[box, face], solids.pattern[box]
    place = point / solids.half[box]
    lamp = lamps(pattern, place)
    colour[glazed(pattern, place, point, face)] = PANE
    colour[striped(pattern, place, point)] = SHEETING
    colour[lamp & (face == FRONT)] = HEADLAMP
    colour[lamp & (face == REAR)] = REAR_LAMP

    cell = np.floor(point * 7)
    grain = 0.92 + 0.16 * speckle(cell[:, 0] + 3.7 * cell[:, 1] + box, cell[:, 2])
    foliage = pattern == Pattern.FOLIAGE
    leaf = np.floor(point[foliage] * 5)
    grain[foliage] = 0.5 + speckle(leaf[:, 0] + 3.7 * leaf[:, 1], leaf[:, 2])
    along = np.where(face <= REAR, point[:, 1], point[:, 0])
    grain[(pattern == Pattern.PANELS) & (np.mod(along, 0.9) < 0.12)] *= 0.72
    # Lower parts receive less light from the sky.
    sky = light.ambient * (0.85 + 0.15 * place[:, 2])
    lit = sky + (1 - light.ambient) * _facing_sun(light, boxes)[box, face]
    return colour * (lit * grain)[:, None]


def _facing_sun(light: Light, boxes: PlacedBoxes) -> Floats:
    """Returns the cosine between each face normal and the sun, 0 for faces in the shade, [P, 6]."""
    x, y, z = FACE_NORMALS.T
    cos, sin = boxes.cos[:, None], boxes.sin[:, None]
    cosine = (cos * x - sin * y) * light.sun[0] + (sin * x + cos * y) * light.sun[1] + z * light.sun[2]
    return np.maximum(cosine, 0)
