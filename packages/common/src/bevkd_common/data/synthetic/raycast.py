"""Casting the rays of a sensor against boxes, for cameras and LiDAR alike.

A sensor's rays form a grid of rows and columns. Each box is tested only against the rays of the rectangle of
that grid which it can touch, all boxes at once: (box, ray) pairs are listed, tested and reduced without a loop.
"""

from dataclasses import dataclass

import numpy as np

from .rigid import Floats, Integers
from .solids import PlacedBoxes


@dataclass(frozen=True)
class Windows:
    """For each box the rows and columns of the ray grid that it can touch; columns wrap around.

    All [P]; the end is exclusive, a box out of sight has no rows or no columns.
    """

    row: Integers
    rows: Integers
    column: Integers
    columns: Integers

    def pairs(self, width: int) -> tuple[Integers, Integers]:
        """All (box, ray) pairs; a ray's index is row * width + column."""
        counts = self.rows * self.columns
        box = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(box)) - np.repeat(np.cumsum(counts) - counts, counts)
        row = self.row[box] + within // self.columns[box]
        column = (self.column[box] + within % self.columns[box]) % width
        return box, row * width + column


@dataclass(frozen=True)
class Hits:
    """Where rays enter boxes.

    Attributes:
        ray: rays that hit anything, ascending, [K].
        box: the nearest box of each, [K].
        distance: in units of the ray's direction, [K].
        face: 0 to 5 in the order front, rear, left, right, top, bottom, [K].
        point: entry point in the frame of the box, [K, 3].
        all_ray, all_box: every (ray, box) that meet, hidden ones included.
    """

    ray: Integers
    box: Integers
    distance: Floats
    face: Integers
    point: Floats
    all_ray: Integers
    all_box: Integers


def cast(origin: Floats, directions: Floats, boxes: PlacedBoxes, box: Integers, ray: Integers) -> Hits:
    """Finds the nearest box of each ray, among the given (box, ray) pairs.

    Args:
        origin: common start of the rays in the map's frame, [3]; outside every box.
        directions: [R, 3], map frame, any length.
        boxes: the boxes.
        box: box of each pair, [K].
        ray: ray of each pair, [K].
    """
    starts = boxes.to_local(np.arange(len(boxes.centre)), origin - boxes.centre)
    start, half = starts[box], boxes.half[box]
    direction = boxes.to_local(box, directions[ray])
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1.0 / direction
        middle, reach = -start * scale, half * np.abs(scale)
    enter, leave = middle - reach, middle + reach
    nearest, farthest = enter.max(axis=1), leave.min(axis=1)
    met = np.flatnonzero((nearest <= farthest) & (nearest > 0))
    ray, box, distance = ray[met], box[met], nearest[met]
    first = np.full(len(directions), np.inf)
    np.minimum.at(first, ray, distance)
    winner = np.full(len(directions), -1)
    at_front = np.flatnonzero(distance == first[ray])
    winner[ray[at_front]] = at_front
    seen = winner[winner >= 0]
    axis = enter[met[seen]].argmax(axis=1)
    towards = direction[met[seen], axis] > 0
    return Hits(
        ray=ray[seen],
        box=box[seen],
        distance=distance[seen],
        face=2 * axis + towards,
        point=start[met[seen]] + distance[seen, None] * direction[met[seen]],
        all_ray=ray,
        all_box=box,
    )
