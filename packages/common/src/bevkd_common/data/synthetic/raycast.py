"""Casting the rays of a sensor against boxes, for cameras and LiDAR alike.

A sensor's rays form a grid of rows and columns. Each box is tested only against the rays of the rectangle of
that grid which it can touch, all boxes at once: (box, ray) pairs are listed, tested and reduced without a loop.
"""

from dataclasses import dataclass

import numpy as np

from .rigid import Booleans, Floats, Integers
from .solids import PlacedBoxes

TINY = 1e-30


@dataclass(frozen=True)
class Windows:
    """For each box the rows and columns of the ray grid that it can touch; columns wrap around.

    All [P]: the first row and the number of rows, the first column and the number of columns. A box out of sight
    has no rows or no columns.
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
        row, column = np.divmod(within, self.columns[box])
        return box, (self.row[box] + row) * width + (self.column[box] + column) % width


@dataclass(frozen=True)
class Hits:
    """Where K rays enter the nearest box.

    Attributes:
        ray: rays that hit anything, ascending, [K].
        box: the nearest box of each, [K].
        distance: in units of the ray's direction, [K].
        face: 0 to 5 in the order front, rear, left, right, top, bottom, [K].
        point: entry point from the middle of the box in its frame, [K, 3] metres.
    """

    ray: Integers
    box: Integers
    distance: Floats
    face: Integers
    point: Floats

    def __getitem__(self, chosen: Booleans) -> "Hits":
        """The hits of a mask."""
        return Hits(
            self.ray[chosen], self.box[chosen], self.distance[chosen], self.face[chosen], self.point[chosen]
        )


def cast(
    origin: Floats, directions: Floats, boxes: PlacedBoxes, box: Integers, ray: Integers
) -> tuple[Hits, Integers, Integers]:
    """Finds the nearest box of each ray among the given (box, ray) pairs, by the slab test.

    Args:
        origin: common start of the rays in the map's frame, [3]; outside every box.
        directions: [R, 3], map frame, any length.
        boxes: the boxes.
        box: box of each pair.
        ray: ray of each pair.

    Returns:
        The nearest hits, and (box, ray) of all pairs that meet, hidden ones included.
    """
    starts = boxes.to_local(np.arange(len(boxes.centre)), origin - boxes.centre)
    x, y, z = np.take(directions.T, ray, axis=1)
    cos, sin = boxes.cos[box], boxes.sin[box]
    direction = (cos * x + sin * y, cos * y - sin * x, z)
    enters, leaves = [], []
    for axis in range(3):
        # A ray along a face never reaches the planes beside it, but 0 / 0 would say nothing.
        scale = 1.0 / np.where(direction[axis] == 0, TINY, direction[axis])
        middle, reach = -starts[box, axis] * scale, boxes.half[box, axis] * np.abs(scale)
        enters.append(middle - reach)
        leaves.append(middle + reach)
    nearest = np.maximum(np.maximum(enters[0], enters[1]), enters[2])
    met = np.flatnonzero((nearest > 0) & (nearest <= np.minimum(np.minimum(leaves[0], leaves[1]), leaves[2])))
    met_box, met_ray, distance = box[met], ray[met], nearest[met]

    first = np.full(len(directions), np.inf)
    np.minimum.at(first, met_ray, distance)
    at_front = np.flatnonzero(distance == first[met_ray])
    winner = np.full(len(directions), -1)
    winner[met_ray[at_front]] = at_front
    seen = winner[winner >= 0]
    pair = met[seen]
    axis = np.stack([enter[pair] for enter in enters]).argmax(axis=0)
    local = np.stack([component[pair] for component in direction], axis=-1)
    # A ray that runs along +x enters through the rear, and so on.
    forward = np.take_along_axis(local, axis[:, None], axis=1)[:, 0] > 0
    hits = Hits(
        ray=met_ray[seen],
        box=met_box[seen],
        distance=distance[seen],
        face=2 * axis + forward,
        point=starts[met_box[seen]] + distance[seen, None] * local,
    )
    return hits, met_box, met_ray
