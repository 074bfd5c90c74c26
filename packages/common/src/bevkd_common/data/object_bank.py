"""Objects cut out of the training split, to be pasted into other key frames of it (GT-database sampling)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevkd_common.data.array_file import ArrayFileError, keep_arrays, map_arrays
from bevkd_common.data.nuscenes.index import Floats, Ints
from bevkd_common.data.sensor_files import Points
from bevkd_common.geometry.boxes import BOX_CHANNELS, Boxes, points_in_boxes
from bevkd_common.geometry.iou import bev_intersection

_log = logging.getLogger(__name__)

FORMAT = 1
"""Raise it when what is cut out changes; older files are then made anew."""

Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ObjectBank:
    """[K] objects; each stands where it stood, in the LiDAR axes of its own key frame.

    Attributes:
        boxes: [K, 9], as in `Boxes`.
        label: [K].
        offset: [K + 1]; object k has the points `offset[k]` to `offset[k + 1]`.
        points: [Q, F] float32 x, y, z in the same axes, then what the cloud has that they were cut out of.
    """

    boxes: Floats
    label: Ints
    offset: Ints
    points: Points

    def points_of(self, rows: Ints) -> Points:
        """The points of some objects, one after the other."""
        parts = [self.points[self.offset[row] : self.offset[row + 1]] for row in rows]
        return np.concatenate([self.points[:0], *parts])


def cut_out(points: Points, boxes: Floats, labels: Ints, least: int, counted: Booleans | None = None) -> ObjectBank:
    """The objects of one key frame that hold at least `least` points.

    Args:
        points: [P, F] of the key frame and its sweeps, in its LiDAR axes.
        boxes: [M, 9] in the same axes.
        labels: [M].
        least: Points.
        counted: [P] which points count for `least`; the others are cut out with them. None counts all.
    """
    inside = points_in_boxes(torch.from_numpy(points[:, :3]), Boxes(torch.from_numpy(boxes).float())).numpy()
    enough = inside if counted is None else inside & counted
    kept = np.flatnonzero(enough.sum(axis=1) >= least)
    parts = [points[inside[row]] for row in kept]
    offset = np.cumsum([0, *map(len, parts)])
    return ObjectBank(boxes[kept], labels[kept], offset, np.concatenate([points[:0], *parts]))


def join(banks: Iterable[ObjectBank], features: int) -> ObjectBank:
    """All objects of some banks in their order; their points have `features` columns."""
    no_points = np.zeros((0, features), np.float32)
    parts = [
        ObjectBank(np.zeros((0, BOX_CHANNELS)), np.zeros(0, np.int64), np.zeros(1, np.int64), no_points),
        *banks,
    ]
    sizes = np.concatenate([np.diff(part.offset) for part in parts])
    return ObjectBank(
        boxes=np.concatenate([part.boxes for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        offset=np.concatenate([[0], sizes.cumsum()]),
        points=np.concatenate([part.points for part in parts]),
    )


def open_bank(places: Sequence[Path], about: Mapping[str, Any], make: Callable[[], ObjectBank]) -> ObjectBank:
    """The bank from the first of `places` that holds it, else made and kept in the first that can be written.

    Args:
        places: Files.
        about: What the bank was made of.
        make: Cuts the objects out, which takes long.
    """
    about = {"format": FORMAT, **about}
    names = [field.name for field in fields(ObjectBank)]
    for path in places:
        try:
            file = map_arrays(path)
        except ArrayFileError:
            continue
        if file.about == about and file.arrays.keys() == set(names):
            return ObjectBank(**file.arrays)
    bank = make()
    if not keep_arrays(places, about, {name: getattr(bank, name) for name in names}):
        kept = " or ".join(map(str, places))
        _log.warning("the cut-out objects cannot be kept in %s; they will be cut out each time", kept)
    return bank


@dataclass(frozen=True, eq=False)
class Paster:
    """Draws objects for a key frame.

    Attributes:
        bank: Where they come from.
        wanted: How many of each label a key frame shall hold.
        rows_of: Objects of each label in `wanted`.
    """

    bank: ObjectBank
    wanted: Mapping[int, int]
    rows_of: Mapping[int, Ints]

    @classmethod
    def of(cls, bank: ObjectBank, wanted: Mapping[int, int]) -> Paster:
        """For a bank and numbers of objects by label."""
        return cls(bank, wanted, {label: np.flatnonzero(bank.label == label) for label in wanted})

    def draw(self, boxes: Floats, labels: Ints, rng: np.random.Generator) -> Ints:
        """Rows of the objects to paste into a key frame with these boxes.

        Class by class as many are drawn as the key frame lacks, without repeating one, and those that overlap with
        what is there, seen from above, are left out.

        Upstream: mmdetection3d 1.4 deals objects from a shuffled pack that runs through the epoch, which depends on
        the loader's processes; here each sample draws on its own. Of two drawn objects that overlap it leaves out
        the first, here the second is.

        Args:
            boxes: [M, 9] of the key frame, in the same axes as the bank's.
            labels: [M].
            rng: Of this sample.
        """
        standing, accepted = boxes, []
        for label, wanted in self.wanted.items():
            lacking = min(wanted - int((labels == label).sum()), len(self.rows_of[label]))
            if lacking <= 0:
                continue
            for row in rng.choice(self.rows_of[label], lacking, replace=False):
                box = self.bank.boxes[row : row + 1]
                if len(standing) and (bev_intersection(_boxes(box), _boxes(standing)) > 0).any():
                    continue
                standing = np.concatenate([standing, box])
                accepted.append(int(row))
        return np.array(accepted, dtype=np.int64)


def _boxes(rows: Floats) -> Boxes:
    return Boxes(torch.tensor(rows))
