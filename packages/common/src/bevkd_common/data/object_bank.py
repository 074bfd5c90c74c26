"""Objects cut out of the training split, to be pasted into other key frames of it (GT-database sampling)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevkd_common.data.array_file import ArrayFileError, keep_arrays, map_arrays
from bevkd_common.data.frames import Booleans, Floats, Ints, Points
from bevkd_common.geometry.boxes import BOX_CHANNELS, Boxes, points_in_boxes
from bevkd_common.geometry.iou import bev_intersection

_log = logging.getLogger(__name__)

FORMAT = 2
"""Raise it when what is cut out changes; older files are then made anew."""


@dataclass(frozen=True, eq=False)
class ObjectBank:
    """[K] objects; each stands where it stood, in the LiDAR axes of its own key frame.

    Attributes:
        boxes: [K, 9], as in `Boxes`.
        label: [K].
        offset: By name of a point cloud, [K + 1]; object k has the points `offset[k]` to `offset[k + 1]`.
        points: By name of a point cloud, [Q, F] float32 in the same axes, with the columns of the cloud.
    """

    boxes: Floats
    label: Ints
    offset: Mapping[str, Ints]
    points: Mapping[str, Points]

    def points_of(self, cloud: str, rows: Ints) -> Points:
        """The points of some objects in one cloud, one object after the other."""
        points, offset = self.points[cloud], self.offset[cloud]
        parts = [points[offset[row] : offset[row + 1]] for row in rows]
        return np.concatenate([points[:0], *parts])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays by name, as they are kept in a file."""
        named: dict[str, npt.NDArray[Any]] = {"boxes": self.boxes, "label": self.label}
        for cloud, points in self.points.items():
            named |= {f"offset.{cloud}": self.offset[cloud], f"points.{cloud}": points}
        return named

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> ObjectBank:
        """A bank from what `arrays` returned.

        Raises:
            KeyError: If an array is missing.
        """
        clouds = [name.removeprefix("points.") for name in arrays if name.startswith("points.")]
        return cls(
            arrays["boxes"],
            arrays["label"],
            {cloud: arrays[f"offset.{cloud}"] for cloud in clouds},
            {cloud: arrays[f"points.{cloud}"] for cloud in clouds},
        )


def cut_out(
    clouds: Mapping[str, Points],
    boxes: Floats,
    labels: Ints,
    least: Ints,
    counted: Mapping[str, Booleans],
) -> ObjectBank:
    """The objects of one key frame that hold enough points.

    Args:
        clouds: By name, [P, F] points of the key frame and its sweeps, in its LiDAR axes.
        boxes: [M, 9] in the same axes.
        labels: [M].
        least: [M] points that each must hold in every cloud.
        counted: By name, [P] which points count for `least`; the others are cut out with them.
    """
    volumes = Boxes(torch.from_numpy(boxes).float())
    xyz = {name: torch.from_numpy(points[:, :3]) for name, points in clouds.items()}
    inside = {name: points_in_boxes(found, volumes).numpy() for name, found in xyz.items()}
    enough = [(held & counted[name]).sum(axis=1) >= least for name, held in inside.items()]
    kept = np.flatnonzero(np.all(enough, axis=0))
    parts = {name: [points[inside[name][row]] for row in kept] for name, points in clouds.items()}
    return ObjectBank(
        boxes[kept],
        labels[kept],
        {name: np.cumsum([0, *map(len, found)]) for name, found in parts.items()},
        {name: np.concatenate([clouds[name][:0], *found]) for name, found in parts.items()},
    )


def join(banks: Iterable[ObjectBank], features: Mapping[str, int]) -> ObjectBank:
    """All objects of some banks in their order; `features` are the columns of each cloud by name."""
    nothing = ObjectBank(
        np.zeros((0, BOX_CHANNELS)),
        np.zeros(0, np.int64),
        {name: np.zeros(1, np.int64) for name in features},
        {name: np.zeros((0, columns), np.float32) for name, columns in features.items()},
    )
    parts = [nothing, *banks]
    sizes = {name: np.concatenate([np.diff(part.offset[name]) for part in parts]) for name in features}
    return ObjectBank(
        boxes=np.concatenate([part.boxes for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        offset={name: np.concatenate([[0], found.cumsum()]) for name, found in sizes.items()},
        points={name: np.concatenate([part.points[name] for part in parts]) for name in features},
    )


def open_bank(places: Sequence[Path], about: Mapping[str, Any], make: Callable[[], ObjectBank]) -> ObjectBank:
    """The bank from the first of `places` that holds it, else made and kept in the first that can be written.

    Args:
        places: Files.
        about: What the bank was made of.
        make: Cuts the objects out, which takes long.
    """
    about = {"format": FORMAT, **about}
    for path in places:
        try:
            file = map_arrays(path)
        except ArrayFileError:
            continue
        if file.about == about:
            return ObjectBank.from_arrays(file.arrays)
    bank = make()
    if not keep_arrays(places, about, bank.arrays()):
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
