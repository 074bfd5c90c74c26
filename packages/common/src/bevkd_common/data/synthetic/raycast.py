"""Ray casting against boxes, for cameras and LiDAR.

The rays of a sensor form a grid of rows and columns. Each box is tested only against a rectangular window of that
grid. The (box, ray) pairs of all windows are tested at once, without a Python loop.
"""

from dataclasses import dataclass

import numpy as np

from .rigid import Booleans, Floats, Integers
from .solids import PlacedBoxes

TINY = 1e-30


@dataclass(frozen=True)
class Windows:
    """Windows of the ray grid that contain all rays that can hit each box. Columns wrap around.

    Attributes:
        row: First row, [P].
        rows: Number of rows, 0 for a box out of view, [P].
        column: First column, [P].
        columns: Number of columns, 0 for a box out of view, [P].
    """

    row: Integers
    rows: Integers
    column: Integers
    columns: Integers

    def pairs(self, width: int) -> tuple[Integers, Integers]:
        """Returns the box and the ray of all pairs. The index of a ray is row * width + column."""
        counts = self.rows * self.columns
        box = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(box)) - np.repeat(np.cumsum(counts) - counts, counts)
        row, column = np.divmod(within, self.columns[box])
        return box, (self.row[box] + row) * width + (self.column[box] + column) % width


@dataclass(frozen=True)
class Hits:
    """Entry points of K rays into the nearest box.

    Attributes:
        ray: Indices of the rays that hit a box, ascending, [K].
        box: Index of the nearest box, [K].
        distance: Distance in units of the ray's direction, [K].
        face: Index of the face in the order front, rear, left, right, top, bottom, [K].
        point: Entry point relative to the centre of the box, in its frame, in metres, [K, 3].
    """

    ray: Integers
    box: Integers
    distance: Floats
    face: Integers
    point: Floats

    def __getitem__(self, chosen: Booleans) -> "Hits":
        """Returns the hits selected by a mask."""
        return Hits(
            self.ray[chosen], self.box[chosen], self.distance[chosen], self.face[chosen], self.point[chosen]
        )


def cast(
    origin: Floats, directions: Floats, boxes: PlacedBoxes, box: Integers, ray: Integers
) -> tuple[Hits, Integers, Integers]:
    """Finds the nearest box of each ray among the given (box, ray) pairs with the slab test.

    Args:
        origin: Common origin of the rays in the map frame, outside all boxes, [3].
        directions: Directions of the rays in the map frame, of any length, [R, 3].
        boxes: The boxes.
        box: Box of each pair.
        ray: Ray of each pair.

    Returns:
        The nearest hits, and the box and the ray of all pairs that intersect, including occluded ones.
    """
    starts = boxes.to_local(np.arange(len(boxes.centre)), origin - boxes.centre)
    x, y, z = np.take(directions.T, ray, axis=1)
    cos, sin = boxes.cos[box], boxes.sin[box]
    direction = (cos * x + sin * y, cos * y - sin * x, z)
    enters, leaves = [], []
    for axis in range(3):
        # A ray parallel to a face never intersects its plane; dividing by zero could give 0 / 0.
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
    # A ray in direction +x enters through the rear face, and so on.
    forward = np.take_along_axis(local, axis[:, None], axis=1)[:, 0] > 0
    hits = Hits(
        ray=met_ray[seen],
        box=met_box[seen],
        distance=distance[seen],
        face=2 * axis + forward,
        point=starts[met_box[seen]] + distance[seen, None] * local,
    )
    return hits, met_box, met_ray
