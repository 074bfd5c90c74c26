"""Names what is wrong where boxes, points and motion of a nuScenes folder do not agree.

Boxes and points are written independently of each other. A reading under which the boxes hold as many points as the
tables count, and moving objects point where they go, names the mistake. Every decision follows
`bevkd_common.geometry.evidence`, so that few boxes decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevkd_common.data.nuscenes.box_evidence import ALL, COUNTED, PLAIN, SINGLE, AnnotatedSweep, Ints, explained
from bevkd_common.data.nuscenes.point_readings import LAYOUTS, POINTS
from bevkd_common.geometry.boxes import Boxes, points_in_boxes
from bevkd_common.geometry.convention_checks import (
    AS_IS,
    FRAMES,
    HEIGHTS,
    NEVER_MOVED,
    OLD_CONVENTION,
    OLD_SENTENCE,
    QUATERNION,
    QUATERNION_SENTENCE,
    SIZES,
    YAWS,
    Finding,
    FrameReading,
    frames_of,
    one_convention,
    pairs_of_frames,
    scalar_first,
    side_unknown,
    upright,
)
from bevkd_common.geometry.evidence import FEWEST, Booleans, beats, decided

LEAST = 0.6
"""Share of the observations that a reading must explain."""
SOUND = 0.8
"""Share of the boxes with the counted points from which on frames and points are right."""
SEARCHED = 12
"""Key frames on which all readings are tried where no single mistake in the boxes is named."""
PROMISING = 0.3
"""Share of the boxes of a few key frames that a reading must explain to be tried on all."""
STEADY = 0.5
"""Logarithm of the proportion above which the tables count in another unit; it may spread by half of it."""

STANDING = 0.2
"""Speed in m/s below which an object must be in the same place in every sweep."""
RING = 2.0
"""Metres around a standing object in which points are compared with those inside."""
SEEN = 10
"""Points of the newest sweep that a standing object must have."""
DISPLACED = 0.75
"""An object is out of place if the share of its points inside falls below this times that of the newest sweep."""

SHARED = {
    "lidar axes": "the boxes are in LiDAR axes instead of global axes, or the LiDAR points are in global axes",
    "mirrored y": "y of the boxes, or of the LiDAR points, has the wrong sign",
    "mirrored x": "left and right of the boxes, or of the LiDAR points, are mirrored: x in LiDAR axes has the wrong"
    " sign",
    "ego pose": "the LiDAR points are in the axes of the ego instead of those of the LiDAR, or the boxes were moved"
    " with the pose of the ego instead of that of the LiDAR",
    "lidar pose": "the boxes were moved from ego axes to global axes with the pose of the LiDAR instead of that of"
    " the ego, or the mount of the LiDAR was applied to its points twice",
}
"""Mistakes of the boxes that cannot be distinguished from mistakes of the points."""

ALL_FRAMES: Mapping[str, FrameReading] = {**FRAMES, **pairs_of_frames()}


class Whole(NamedTuple):
    """A reading of everything: names of `LAYOUTS`, `ALL_FRAMES` and `POINTS`, and of the parts of a box."""

    layout: str = AS_IS
    frame: str = AS_IS
    points: str = AS_IS
    yaw: str = AS_IS
    size: str = AS_IS
    height: str = AS_IS

    @property
    def mistakes(self) -> list[str]:
        """Names of the parts that are not as they are; a pair of frames is two."""
        return [name for part in self if part != AS_IS for name in frames_of(part)]


AS_THEY_ARE = Whole()
SENTENCES = {
    name: reading.sentence
    for table in (LAYOUTS, ALL_FRAMES, POINTS, YAWS, SIZES, HEIGHTS)
    for name, reading in table.items()
} | SHARED | {OLD_CONVENTION: OLD_SENTENCE}  # fmt: skip


@dataclass
class Plausibility:
    """What is known after some key frames.

    Attributes:
        sweeps: Annotations and points of the key frames.
        standing: [2, n] share of the points at standing objects that lie inside: newest sweep, older ones.
    """

    sweeps: list[AnnotatedSweep] = field(default_factory=list)
    standing: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def add(self, sweep: AnnotatedSweep, boxes: Boxes | None = None, points: Tensor | None = None) -> None:
        """Take one key frame.

        Args:
            sweep: Its annotations, and the points of its own sweep.
            boxes: [M, 9] in LiDAR axes.
            points: [P, 5] of several sweeps in LiDAR axes; the last column is the age of each in seconds.
        """
        self.sweeps.append(sweep)
        if boxes is not None and points is not None:
            self.standing.append(_standing(boxes, points))

    @property
    def points_inside(self) -> int:
        """Points of the newest sweeps that lie in boxes, each box on its own."""
        plain = [
            sweep.held((PLAIN,), FRAMES[AS_IS], POINTS[AS_IS], np.ones(len(sweep.counted), dtype=np.bool_))
            for sweep in self.sweeps
        ]
        return sum(int(held.sum()) for held in plain)

    @property
    def counts(self) -> tuple[int, int] | None:
        """Boxes that hold about as many points as the tables count, and compared boxes; None without counts."""
        found = [self._agrees(sweep) for sweep in self.sweeps if sweep.compared.any()]
        return (sum(int(a.sum()) for a in found), sum(len(a) for a in found)) if found else None

    @staticmethod
    def _agrees(sweep: AnnotatedSweep) -> Booleans:
        return explained([sweep], (PLAIN,))[PLAIN][: int(sweep.compared.sum())]

    @property
    def heading(self) -> float | None:
        """Share of the moving objects that point where they go; None where there are few."""
        ahead = [sweep.headed(FRAMES[AS_IS])[AS_IS] for sweep in self.sweeps]
        joined = np.concatenate(ahead) if ahead else np.zeros(0)
        return float(joined.mean()) if len(joined) >= FEWEST else None

    @property
    def displaced(self) -> Booleans:
        """Which of the standing objects are out of place in older sweeps."""
        newest, older = np.concatenate(self.standing, axis=1) if self.standing else np.zeros((2, 0))
        return np.asarray(older < DISPLACED * newest)

    def findings(self) -> list[Finding]:
        """One for each thing that does not agree."""
        if not self.sweeps:
            return []
        sweeps, found = self._upright()
        found += self._conventions(sweeps)
        # Boxes that are out of place themselves say nothing about sweeps.
        if not found:
            found += self._ego_motion()
        return found

    def _upright(self) -> tuple[list[AnnotatedSweep], list[Finding]]:
        """The key frames with quaternions in our order, and what was wrong with them."""
        rotation = np.concatenate([sweep.rotation for sweep in self.sweeps])
        stands = {AS_IS: upright(rotation), QUATERNION: upright(scalar_first(rotation))}
        if decided(stands, LEAST) != QUATERNION:
            return self.sweeps, []
        sentence = (
            f"{QUATERNION_SENTENCE}: read so, {stands[QUATERNION].sum()} of {len(rotation)} boxes stand upright, as"
            f" they are {stands[AS_IS].sum()}"
        )
        return [sweep.reordered() for sweep in self.sweeps], [Finding(QUATERNION, sentence)]

    def _conventions(self, sweeps: Sequence[AnnotatedSweep]) -> list[Finding]:
        """Mistakes of boxes or points that repair what the boxes hold and where they point."""
        single = {Whole(AS_IS, AS_IS, AS_IS, *r): agrees for r, agrees in explained(sweeps, SINGLE).items()}
        boxes = sum(int(sweep.compared.sum()) for sweep in sweeps)
        chosen = decided(single, LEAST)
        if chosen is not None and single[chosen][:boxes].sum() >= SOUND * boxes:
            return _named(chosen, chosen.mistakes, single)
        if self.counts is None:
            return self._empty(sweeps)
        agreeing, compared = self.counts
        if compared < FEWEST or agreeing >= SOUND * compared:
            return []
        if found := _searched(_few(sweeps)):
            return found
        return [] if _other_unit(sweeps) else self._unrelated(sweeps)

    def _empty(self, sweeps: Sequence[AnnotatedSweep]) -> list[Finding]:
        """Say that boxes hold no points where the tables count none either."""
        boxes = sum(len(sweep.counted) for sweep in sweeps)
        if boxes < FEWEST or self.points_inside:
            return []
        return [
            Finding(
                "no points",
                f"no LiDAR point lies in any of {boxes} boxes: boxes and points are in different axes, or do not"
                " belong together",
            )
        ]

    def _unrelated(self, sweeps: Sequence[AnnotatedSweep]) -> list[Finding]:
        """Say that the tables count other points."""
        agreeing, compared = self.counts or (0, 0)
        if agreeing >= compared / 2:
            return []
        return [
            Finding(
                "other points",
                f"the tables count {_counted(sweeps).sum()} LiDAR points in {compared} boxes, and"
                f" {_held(sweeps).sum()} are found there; {agreeing} of the boxes hold as many as counted: tables"
                " and LiDAR files do not belong together, or are in a convention that is not recognised",
            )
        ]

    def _ego_motion(self) -> list[Finding]:
        """Say that older sweeps are out of place.

        An object that stands must keep its points inside its box, as a share of those inside and within `RING`
        metres around it, however far the ego was. Few do by chance; where most of at least `FEWEST` objects do not,
        the sweeps were moved wrongly.
        """
        displaced = self.displaced
        moved = {AS_IS: ~displaced, "ego-motion": displaced}
        if len(displaced) < FEWEST or displaced.mean() <= 0.5 or not beats(displaced, np.zeros_like(displaced)):
            return []
        return [
            Finding(
                "ego-motion",
                f"in older LiDAR sweeps {moved['ego-motion'].sum()} of {len(displaced)} standing objects are out of"
                " place: the ego-motion between sweeps is wrong",
            )
        ]


def _other_unit(sweeps: Sequence[AnnotatedSweep]) -> bool:
    """Whether the tables count in another unit, such as points of several sweeps, in a steady proportion."""
    counted, held = _counted(sweeps), _held(sweeps)
    seen = held >= COUNTED
    if seen.sum() < max(FEWEST, SOUND * len(held)):
        return False
    ratio = np.log(counted[seen] / held[seen])
    return bool(np.median(ratio) > STEADY and np.median(np.abs(ratio - np.median(ratio))) < STEADY / 2)


def _counted(sweeps: Sequence[AnnotatedSweep]) -> Ints:
    return np.concatenate([sweep.counted[sweep.compared] for sweep in sweeps])


def _held(sweeps: Sequence[AnnotatedSweep]) -> Ints:
    return np.concatenate(
        [sweep.held((PLAIN,), FRAMES[AS_IS], POINTS[AS_IS], sweep.compared)[0] for sweep in sweeps]
    )


def _few(sweeps: Sequence[AnnotatedSweep]) -> list[AnnotatedSweep]:
    rows = np.unique(np.linspace(0, len(sweeps) - 1, min(SEARCHED, len(sweeps))).round().astype(np.int64))
    return [sweeps[row] for row in rows.tolist()]


def _searched(sweeps: Sequence[AnnotatedSweep]) -> list[Finding]:
    """Mistakes of files and frames, and several mistakes at once; the first search that finds any ends it.

    A mistake of the best reading is named if that reading `beats` every other one without this mistake that needs
    no more mistakes: two mistakes can always be replaced by three that cancel out.
    """
    others = [name for name in LAYOUTS if name != AS_IS]
    boxes = sum(int(sweep.compared.sum()) for sweep in sweeps)
    for layouts, frames, points, readings in (
        (LAYOUTS, (AS_IS,), (AS_IS,), (PLAIN,)),
        ((AS_IS,), (AS_IS,), POINTS, ALL),
        ((AS_IS,), FRAMES, (AS_IS,), ALL),
        ((AS_IS,), ALL_FRAMES, POINTS, (PLAIN,)),
        (others, (AS_IS,), (AS_IS,), ALL),
        (others, FRAMES, (AS_IS,), (PLAIN,)),
        (others, (AS_IS,), POINTS, (PLAIN,)),
    ):
        # Velocities are differences of positions: in a wrong frame they mean nothing.
        motion = tuple(frames) == (AS_IS,)
        found = {AS_THEY_ARE: explained(sweeps, (PLAIN,), motion=motion)[PLAIN]}
        for layout, frame, axes in product(layouts, frames, points):
            given = sweeps if layout == AS_IS else [sweep.read_as(LAYOUTS[layout]) for sweep in sweeps]
            meaning = (ALL_FRAMES[frame], POINTS[axes])
            never_moved = bool(set(frames_of(frame)) & set(NEVER_MOVED))
            kept = [r for r in readings if not (never_moved and YAWS[r.yaw].in_given_axes)]
            # What explains little of a few key frames loses to any reading that may be named.
            first = [sweep for sweep in given[:: SEARCHED // 2] if sweep.compared.any()]
            tried = explained(first, kept, *meaning, motion=False).values()
            if not first or max(float(agrees.mean()) for agrees in tried) < PROMISING:
                continue
            for reading, agrees in explained(given, kept, *meaning, motion=motion).items():
                found[Whole(layout, frame, axes, *reading)] = agrees
        # Of equally good readings, the one of fewest mistakes.
        best = min(found, key=lambda whole: (-int(found[whole].sum()), len(whole.mistakes)))
        if min(found[best].mean(), found[best][:boxes].mean()) >= LEAST:
            rivals = {w: other for w, other in found.items() if len(w.mistakes) <= len(best.mistakes)}
            mistakes = [
                name
                for name in best.mistakes
                if all(beats(found[best], other) for whole, other in rivals.items() if name not in whole.mistakes)
            ]
            if mistakes:
                return _named(best, mistakes, found)
    return []


def _named(whole: Whole, mistakes: Sequence[str], found: Mapping[Whole, Booleans]) -> list[Finding]:
    after, before = found[whole], found[AS_THEY_ARE]
    old = one_convention(mistakes)
    names = [name for name in mistakes if name not in old] + ([OLD_CONVENTION] if old else [])
    evidence = (
        f"read so, {after.sum()} of {len(after)} boxes and motions agree with the LiDAR points, as they are"
        f" {before.sum()}"
    )
    findings = [Finding(name, f"{SENTENCES[name]}: {evidence}") for name in names]
    return [side_unknown(finding, frames_of(whole.frame)) for finding in findings]


def _standing(boxes: Boxes, points: Tensor) -> npt.NDArray[np.float64]:
    """[2, n] share of the points at each standing object that lie inside: newest sweep, older ones."""
    newest = points[:, 4] == 0
    standing = boxes[boxes.velocity.norm(dim=-1) < STANDING]
    if newest.all() or not len(standing):
        return np.zeros((2, 0))
    # Above the ground, and around.
    above = torch.tensor([0.0, 0.0, 0.2])
    raised = Boxes.from_parts(standing.centers + above, standing.size, standing.yaw, standing.velocity)
    around = torch.tensor([2 * RING, 2 * RING, 0.0])
    ring = Boxes.from_parts(raised.centers, raised.size + around, raised.yaw, raised.velocity)
    inside, near = points_in_boxes(points[:, :3], raised), points_in_boxes(points[:, :3], ring)
    counts = [[(part & when).sum(dim=1) for when in (newest, ~newest)] for part in (inside, near)]
    seen = (counts[0][0] >= SEEN) & (counts[1][1] >= SEEN)
    shares = [inner[seen].double() / outer[seen].double() for inner, outer in zip(*counts, strict=True)]
    return torch.stack(shares).numpy()
