"""Boxes of all objects of a scene as arrays, in the objects' frames and in the map frame."""

from dataclasses import dataclass

import numpy as np

from .kinds import KINDS
from .rigid import Floats, Integers
from .scene import Scene, Stream
from .shapes import FIXED_PAINTS, Paint

# Annotated boxes are slightly larger than the object, as annotators draw them: noisy LiDAR points of the object are
# inside, points of the ground are outside.
SIDE_MARGIN = 0.05
TOP_MARGIN = 0.04
GROUND_GAP = 0.03
BOTTOM_MARGIN = 0.01

FRONT, REAR, LEFT, RIGHT, TOP, BOTTOM = range(6)
FACE_NORMALS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=np.float64)


@dataclass(frozen=True)
class Solids:
    """P boxes in the frames of their owners (x forward, y left, z up, origin on the ground below the centre).

    Attributes:
        owner: Index of the object in the scene, [P].
        centre: Centres in metres, [P, 3].
        half: Half sizes in metres, [P, 3].
        colour: RGB in [0, 1] of the front, rear, left, right, top and bottom face, [P, 6, 3].
        pattern: `Pattern` value, [P].
        reflectivity: Share of LiDAR light reflected, [P].
        gradient: Change of the reflectivity per metre along x of the owner, [P].
    """

    owner: Integers
    centre: Floats
    half: Floats
    colour: Floats
    pattern: Integers
    reflectivity: Floats
    gradient: Floats

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.owner)

    def placed(self, owner_poses: Floats) -> "PlacedBoxes":
        """Returns the boxes in the map frame, given the poses (x, y, yaw) of the owners, [N, 3]."""
        pose = owner_poses[self.owner]
        cos, sin = np.cos(pose[:, 2]), np.sin(pose[:, 2])
        x, y, z = self.centre.T
        centre = np.stack([pose[:, 0] + cos * x - sin * y, pose[:, 1] + sin * x + cos * y, z], axis=-1)
        return PlacedBoxes(centre, self.half, pose[:, 2], cos, sin)


def upright_boxes(centre: Floats, half: Floats, yaw: Floats) -> "PlacedBoxes":
    """Returns boxes in the map frame from centres [P, 3], half sizes [P, 3] and headings [P]."""
    return PlacedBoxes(centre, half, yaw, np.cos(yaw), np.sin(yaw))


@dataclass(frozen=True)
class PlacedBoxes:
    """P upright boxes in the map frame: centre and half sizes [P, 3], heading and its cosine and sine [P]."""

    centre: Floats
    half: Floats
    yaw: Floats
    cos: Floats
    sin: Floats

    def joined(self, other: "PlacedBoxes") -> "PlacedBoxes":
        """Returns these boxes followed by others."""
        return PlacedBoxes(
            np.concatenate([self.centre, other.centre]),
            np.concatenate([self.half, other.half]),
            np.concatenate([self.yaw, other.yaw]),
            np.concatenate([self.cos, other.cos]),
            np.concatenate([self.sin, other.sin]),
        )

    def corners(self) -> Floats:
        """Returns the eight corners of each box, [P, 8, 3]."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
        local = signs * self.half[:, None]
        cos, sin = self.cos[:, None], self.sin[:, None]
        rotated = np.stack(
            [cos * local[..., 0] - sin * local[..., 1], sin * local[..., 0] + cos * local[..., 1], local[..., 2]],
            axis=-1,
        )
        return rotated + self.centre[:, None]

    def to_local(self, box: Integers, offset: Floats) -> Floats:
        """Rotates vectors [K, 3] from the map frame into the frames of the given boxes [K]."""
        cos, sin = self.cos[box], self.sin[box]
        return np.stack(
            [cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0], offset[:, 2]],
            axis=-1,
        )


def annotation_boxes(scene: Scene, seconds: float) -> Floats:
    """Returns the annotation boxes of all objects at a time, in the map frame.

    Returns:
        Centre x, y, z, length, width, height, yaw, [N, 7].
    """
    poses = scene.arcs.poses(seconds)
    z = GROUND_GAP + scene.sizes[:, 2] / 2
    return np.column_stack([poses[:, 0], poses[:, 1], z, scene.sizes, poses[:, 2]])


def build_solids(scene: Scene) -> Solids:
    """Returns the boxes of all objects of a scene with randomly drawn colours."""
    rng = scene.random(Stream.APPEARANCE)
    rows: list[tuple[int, Floats, Floats, Floats, int, float, float]] = []
    for owner, name in enumerate(scene.kinds):
        kind, size = KINDS[name], scene.sizes[owner]
        jitter = rng.normal(0, 0.035, (2, 3))
        primary = np.array(kind.primary[int(rng.integers(len(kind.primary)))]) + jitter[0]
        secondary = np.array(kind.secondary[int(rng.integers(len(kind.secondary)))]) + jitter[1]
        shine = kind.reflectivity * float(np.exp(rng.normal(0, 0.25)))
        gradient = 0.5 * shine / (size[0] / 2) if kind.headed else 0.0
        physical = size - np.array([2 * SIDE_MARGIN, 2 * SIDE_MARGIN, TOP_MARGIN + BOTTOM_MARGIN])
        for part in kind.parts:
            x0, x1, y0, y1, z0, z1 = part.limits
            centre = np.array([x0 + x1, y0 + y1, z0 + z1]) / 2 * physical
            centre[2] += GROUND_GAP + BOTTOM_MARGIN
            half = np.array([x1 - x0, y1 - y0, z1 - z0]) / 2 * physical
            if part.paint is Paint.PRIMARY:
                colour, light = primary, shine
            elif part.paint is Paint.SECONDARY:
                colour, light = secondary, 0.8 * shine
            else:
                fixed, light = FIXED_PAINTS[part.paint]
                colour = np.array(fixed)
            faces = np.repeat(np.clip(colour, 0.02, 1.0)[None], 6, axis=0)
            if kind.headed:
                faces[FRONT] = np.clip(faces[FRONT] * 1.35 + 0.06, 0, 1)
                faces[REAR] *= 0.55
            rows.append((owner, centre, half, faces, int(part.pattern), light, gradient))
    return Solids(
        owner=np.array([row[0] for row in rows], dtype=np.int64),
        centre=np.array([row[1] for row in rows]).reshape(-1, 3),
        half=np.array([row[2] for row in rows]).reshape(-1, 3),
        colour=np.array([row[3] for row in rows]).reshape(-1, 6, 3),
        pattern=np.array([row[4] for row in rows], dtype=np.int64),
        reflectivity=np.array([row[5] for row in rows]),
        gradient=np.array([row[6] for row in rows]),
    )
