"""Multimodal virtual points (MVP): points lifted from instance masks to the depth of the LiDAR points inside.

Source: MVP, arXiv 2111.06881, algorithm 1 and its released generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.data.frames import Floats, Ints
from bevkd_common.data.sensor_files import Points
from bevkd_common.data.virtual_points.instances import Instances
from bevkd_common.geometry.cameras import project
from bevkd_common.geometry.transforms import inverse_rigid, transform_points, transform_vectors

Labels = npt.NDArray[np.uint8]

PAINTED_CLOUD = "painted"
"""Name of the cloud of all points: as measured, painted, and virtual."""
POINTS_PER_INSTANCE = 50
"""Virtual points of each instance. Source: MVP, section 4.2, and its released generator."""

REFLECTANCE, FIRST_CLASS = 3, 4
SCORE = FIRST_CLASS + len(CLASSES)
TAG = SCORE + 1
SECONDS = TAG + 1
PAINTED_COLUMNS = ("x", "y", "z", "reflectance", *CLASSES, "score", "tag", "seconds")
"""Columns of a painted cloud; the seconds are those before the key frame."""
PAINTED_FEATURES = len(PAINTED_COLUMNS)
RAW, PAINTED, VIRTUAL = 1.0, 0.0, -1.0
"""Tags: a point as measured, the same once more with class and score, a virtual one."""


@dataclass(frozen=True, eq=False)
class View:
    """One image that is looked up for a sweep.

    Attributes:
        instances: What was found in it.
        intrinsics: [3, 3].
        lidar_T_cam: [4, 4], the camera at its own time to the sweep's axes at its own.
    """

    instances: Instances
    intrinsics: Floats
    lidar_T_cam: Floats


@dataclass(frozen=True, eq=False)
class VirtualPoints:
    """What the images add to one sweep, in its own axes.

    Attributes:
        virtual: [V, 3] float32 x, y, z.
        virtual_labels: [V] uint8 index into `CLASSES`.
        virtual_scores: [V] float32.
        painted: [R, 4] float32 x, y, z, intensity as stored: points of the sweep that lie in a mask.
        painted_labels: [R] uint8.
        painted_scores: [R] float32.
    """

    virtual: Points
    virtual_labels: Labels
    virtual_scores: Points
    painted: Points
    painted_labels: Labels
    painted_scores: Points


def lift(
    sweep: Points, views: Sequence[View], rng: np.random.Generator, count: int = POINTS_PER_INSTANCE
) -> VirtualPoints:
    """Virtual and painted points of a sweep.

    Of each instance in which a LiDAR point lies, `count` pixels are drawn without repetition; where it has fewer,
    the first that was drawn stands for the rest. A pixel takes the depth of the LiDAR point of the same instance
    that is nearest in the image. A LiDAR point in masks of several images is painted by the best of them, in
    several masks of one image by the first.

    Upstream: pixels are truncated coordinates there; here a pixel's centre has whole ones, as everywhere else.

    Args:
        sweep: [P, 5] x, y, z, intensity, ring.
        views: Images about the time of the sweep, at least one.
        rng: Draws the pixels.
        count: Virtual points of an instance.
    """
    xyz = torch.from_numpy(sweep[:, :3].astype(np.float64))
    labels = np.concatenate([view.instances.labels for view in views])
    scores = np.concatenate([view.instances.scores for view in views])
    clouds, hit_rows, hit_instances = [], [], []
    first = 0
    for view in views:
        hits = _hits(xyz, view)
        clouds.append(_virtual(hits, view, rng, count, first))
        hit_rows.append(hits.rows)
        hit_instances.append(hits.instances + first)
        first += len(view.instances)
    virtual = np.concatenate([points for points, _ in clouds])
    owner = np.concatenate([instances for _, instances in clouds])
    rows, painter = _best(np.concatenate(hit_rows), np.concatenate(hit_instances), scores)
    return VirtualPoints(
        virtual=virtual.astype(np.float32),
        virtual_labels=labels[owner].astype(np.uint8),
        virtual_scores=scores[owner].astype(np.float32),
        painted=sweep[rows, :4],
        painted_labels=labels[painter].astype(np.uint8),
        painted_scores=scores[painter].astype(np.float32),
    )


@dataclass(frozen=True, eq=False)
class _Hits:
    """LiDAR points in the masks of an image: rows of the sweep, instance, pixel [K, 2] and depth."""

    rows: Ints
    instances: Ints
    pixels: Floats
    depth: Floats


def _hits(xyz: torch.Tensor, view: View) -> _Hits:
    height, width = view.instances.size
    cam_T_lidar = inverse_rigid(torch.tensor(view.lidar_T_cam))
    pixels, depth = (t.numpy() for t in project(xyz, torch.tensor(view.intrinsics), cam_T_lidar))
    u, v = pixels.T
    with np.errstate(invalid="ignore"):
        inside = (depth > 0) & (u > -0.5) & (v > -0.5) & (u < width - 0.5) & (v < height - 0.5)
    rows = np.flatnonzero(inside)
    column, row = np.rint(pixels[rows]).astype(np.int64).T
    owner = view.instances.owner()[row * width + column]
    rows, owner = rows[owner >= 0], owner[owner >= 0]
    return _Hits(rows, owner, pixels[rows], depth[rows])


def _virtual(hits: _Hits, view: View, rng: np.random.Generator, count: int, first: int) -> tuple[Floats, Ints]:
    """Points [V, 3] in the sweep's axes, and the instance of each, counted from `first`."""
    found = view.instances
    with_depth = np.unique(hits.instances)
    if not len(with_depth):
        return np.zeros((0, 3)), with_depth
    drawn = [_draw(found.pixels[found.offset[i] : found.offset[i + 1]], rng, count) for i in with_depth]
    row, column = np.divmod(np.concatenate(drawn), found.size[1])
    owner = np.repeat(with_depth, count)
    # Instances are kept apart by a third coordinate, farther than any two pixels of an image.
    apart = float(sum(found.size))
    tree = cKDTree(np.column_stack([hits.pixels, hits.instances * apart]))
    _, nearest = tree.query(np.column_stack([column, row, owner * apart]))
    depth = torch.from_numpy(hits.depth[nearest])[:, None]
    upright = torch.from_numpy(np.column_stack([column, row, np.ones_like(row)]).astype(np.float64))
    rays = transform_vectors(torch.linalg.inv(torch.tensor(view.intrinsics)), upright)
    return transform_points(torch.tensor(view.lidar_T_cam), rays * depth).numpy(), owner + first


def _draw(pixels: Ints, rng: np.random.Generator, count: int) -> Ints:
    drawn = rng.choice(pixels, min(count, len(pixels)), replace=False)
    return np.pad(drawn, (0, count - len(drawn)), constant_values=drawn[0])


def _best(rows: Ints, instances: Ints, scores: Floats) -> tuple[Ints, Ints]:
    """Each LiDAR point once, in order, with the instance of the highest score."""
    order = np.lexsort((-scores[instances], rows))
    rows, instances = rows[order], instances[order]
    kept = np.flatnonzero(np.diff(rows, prepend=-1))
    return rows[kept], instances[kept]


def painted_cloud(sweep: Points, made: VirtualPoints) -> Points:
    """A sweep with its painted and virtual points, [P + R + V, PAINTED_FEATURES] in its own axes, all of now.

    Points as measured have ones in the columns of classes and score; virtual ones a reflectance of -1.

    Upstream: the released loader leaves the ring of previous sweeps in the first class column, where the key frame
    has ones; here both have ones.

    Args:
        sweep: [P, 5] x, y, z, intensity, ring.
        made: Of this sweep.
    """
    raw = np.ones((len(sweep), PAINTED_FEATURES), np.float32)
    raw[:, :FIRST_CLASS] = sweep[:, :FIRST_CLASS]
    raw[:, TAG] = RAW
    painted = _labelled(made.painted, made.painted_labels, made.painted_scores, PAINTED)
    reflectance = np.full((len(made.virtual), 1), -1, np.float32)
    virtual = np.concatenate([made.virtual, reflectance], axis=1)
    virtual = _labelled(virtual, made.virtual_labels, made.virtual_scores, VIRTUAL)
    cloud = np.concatenate([raw, painted, virtual])
    cloud[:, SECONDS] = 0
    return cloud


def _labelled(points: Points, labels: Labels, scores: Points, tag: float) -> Points:
    rows = np.zeros((len(points), PAINTED_FEATURES), np.float32)
    rows[:, :FIRST_CLASS] = points
    rows[np.arange(len(points)), FIRST_CLASS + labels.astype(np.int64)] = 1
    rows[:, SCORE] = scores
    rows[:, TAG] = tag
    return rows


def plain_points(cloud: Points) -> Points:
    """Of a painted cloud the points as measured, [P, 5] x, y, z, intensity, seconds."""
    return cloud[cloud[:, TAG] == RAW][:, [0, 1, 2, REFLECTANCE, SECONDS]]


def nothing_lifted() -> VirtualPoints:
    """Of a sweep for which there are no virtual points."""
    labels, scores = np.zeros(0, np.uint8), np.zeros(0, np.float32)
    return VirtualPoints(np.zeros((0, 3), np.float32), labels, scores, np.zeros((0, 4), np.float32), labels, scores)
