"""Names the convention of a submission that the metric does not expect, from its matches with the annotations.

The frame of the boxes is decided first: in which frame the best predictions lie at annotated boxes of their class.
Predictions that match there are then compared with their annotations in heading, size, height and velocity, each on
its own. Every decision follows `bevkd_common.geometry.evidence.decided`: a reading is named if it explains most of
the observations, and decisively more than the boxes as they are and than each other reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.nuscenes.poses import key_frame_poses
from bevkd_common.evaluation.nuscenes.global_boxes import DetectionArrays
from bevkd_common.geometry.convention_checks import (
    AS_IS,
    FRAMES,
    HEIGHTS,
    NEVER_MOVED,
    OLD_CONVENTION,
    OLD_SENTENCE,
    QUATERNION,
    QUATERNION_SENTENCE,
    SAME_YAW,
    SIZES,
    YAWS,
    Finding,
    FrameReading,
    KeyFramePoses,
    frames_of,
    heading_of,
    one_convention,
    pairs_of_frames,
    scalar_first,
    side_unknown,
    upright,
)
from bevkd_common.geometry.evidence import Booleans, decided

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NEAR = 1.0
"""Metres in the plane within which a prediction lies at an annotated box."""
MATCHED = 2.0
"""Metres in the plane within which a prediction is compared with an annotated box."""
LEAST_NEAR = 0.3
"""Share of the best predictions that must lie at annotated boxes in the named frame."""
LEAST = 0.6
"""Share of the matches that a reading of heading, size, height or velocity must explain."""
NOTHING_NEAR = 0.1
"""Share of the best predictions below which boxes are not compared with annotations."""
SIZE_RATIO = 1.35
"""Factor by which length and width may differ to agree."""
MOVING = 2.0
"""Speed in m/s above which velocities are compared."""
VELOCITY_ERROR, VELOCITY_SHARE = 0.2, 0.25
"""A velocity agrees within the sum of the first, in m/s, and the second times the speed."""
SCATTERED = 100
"""Matches from which on headings are compared with chance."""

BARRIER, CONE = CLASSES.index("barrier"), CLASSES.index("traffic_cone")

RANDOM_YAW = "random yaw"
NO_NUMBER = "velocity NaN"

_AXES = {
    "velocity lidar axes": "the velocities are in LiDAR axes instead of global axes, they were not rotated",
    "velocity ego axes": "the velocities are in the axes of the ego instead of global axes, they were not rotated",
}
_SCALES = {
    "velocity halved": (2.0, "the velocities are half of what they must be"),
    "velocity km/h": (1 / 3.6, "the velocities are in km/h instead of m/s"),
    "velocity centimetres": (0.01, "the velocities are in cm/s instead of m/s"),
}


@dataclass(frozen=True, eq=False)
class _Sample:
    """The predictions of a key frame as given, and its annotated boxes in LiDAR axes, G of them."""

    given: DetectionArrays
    truth: Floats  # [G, 9]
    labels: Ints  # [G]
    poses: KeyFramePoses


@dataclass(frozen=True, eq=False)
class _Matches:
    """M predictions and the annotated box of each, in LiDAR axes.

    Attributes:
        labels: [M] class.
        center: [M, 3] of the predictions.
        given_yaw: [M] of the predictions, in the axes of the file.
        yaw: [M] by its reading, moved with the boxes.
        unmoved_yaw: [M] as if only the centres were in the named frame.
        size: [M, 3] length, width, height.
        velocity: [M, 2] by its reading.
        truth: [M, 9] the annotated boxes.
    """

    labels: Ints
    center: Floats
    given_yaw: Floats
    yaw: Mapping[str, Floats]
    unmoved_yaw: Floats
    size: Floats
    velocity: Mapping[str, Floats]
    truth: Floats


def convention_findings(
    index: NuScenesIndex, rows: Iterable[int], predictions: Mapping[str, DetectionArrays]
) -> list[Finding]:
    """The mistakes that some samples of a submission prove.

    Args:
        index: Of the version with the split's annotations.
        rows: Key frames to look at.
        predictions: By token of the sample, in global axes as given.
    """
    samples = [_sample(index, row, predictions) for row in rows]
    found = []
    if turned := _quaternions(samples):
        found.append(turned)
        samples = [_reordered(sample) for sample in samples]
    frame, finding = _frame(samples)
    if frame is None:
        return found
    name, reading = frame
    matches = _matched(samples, name, reading)
    found += finding
    found += [side_unknown(heading, frames_of(name)) for heading in _headings(matches)]
    found += _sizes(matches)
    found += _heights(matches)
    found += _velocities(matches)
    return _merged(found)


def unknown_velocities(predictions: Mapping[str, DetectionArrays]) -> list[Finding]:
    """Say how many velocities are NaN: the metric leaves them out, which makes mAVE look better than it is."""
    total = unknown = 0
    for boxes in predictions.values():
        measured = ~np.isin(boxes.labels, (BARRIER, CONE))
        total += int(measured.sum())
        unknown += int((np.isnan(boxes.velocity).any(axis=1) & measured).sum())
    if not unknown:
        return []
    return [
        Finding(
            NO_NUMBER,
            f"{unknown} of {total} boxes have a velocity of NaN: the official metric leaves them out of mAVE, and"
            " counts them as exact where they lead the ranking; mAVE and NDS are not comparable, give every box a"
            " velocity",
        )
    ]


def _sample(index: NuScenesIndex, row: int, predictions: Mapping[str, DetectionArrays]) -> _Sample:
    annotations = index.annotations
    rows = annotations.rows(row)
    known = annotations.label[rows] >= 0
    return _Sample(
        given=predictions[index.key_frames.token[row].decode()],
        truth=annotations.boxes[rows][known],
        labels=annotations.label[rows][known],
        poses=key_frame_poses(index, row),
    )


def _quaternions(samples: Sequence[_Sample]) -> Finding | None:
    rotation = np.concatenate([sample.given.cuboids.rotation for sample in samples])
    explained = {AS_IS: upright(rotation), QUATERNION: upright(scalar_first(rotation))}
    if decided(explained, LEAST) != QUATERNION:
        return None
    return _finding(QUATERNION, QUATERNION_SENTENCE, explained, "boxes stand upright")


def _reordered(sample: _Sample) -> _Sample:
    given = sample.given
    cuboids = given.cuboids
    moved = type(cuboids)(
        cuboids.translation, cuboids.length, cuboids.width, cuboids.height, scalar_first(cuboids.rotation)
    )
    boxes = DetectionArrays(moved, given.labels, given.velocity, given.attributes, given.scores)
    return _Sample(boxes, sample.truth, sample.labels, sample.poses)


def _frame(samples: Sequence[_Sample]) -> tuple[tuple[str, FrameReading] | None, list[Finding]]:
    """The frame that the boxes are compared in, none if they match nowhere; and the mistake that it repairs."""
    best = [_best(sample) for sample in samples]
    readings = dict(FRAMES)
    explained = {name: _near(best, reading) for name, reading in readings.items()}
    named = decided(explained, LEAST_NEAR)
    if named is None and _share(explained[AS_IS]) < LEAST_NEAR:
        pairs = pairs_of_frames()
        readings |= pairs
        explained |= {name: _near(best, reading) for name, reading in pairs.items()}
        named = decided(explained, LEAST_NEAR)
    if named is not None and named != AS_IS:
        finding = _finding(named, readings[named].sentence, explained, "predictions lie at annotated boxes")
        return (named, readings[named]), [finding]
    if _share(explained[AS_IS]) < NOTHING_NEAR:
        return None, []
    return (AS_IS, readings[AS_IS]), []


def _share(explained: Booleans) -> float:
    return float(explained.mean()) if len(explained) else 0.0


def _best(sample: _Sample) -> _Sample:
    """The sample with as many predictions as annotated boxes, those of the highest scores."""
    order = np.argsort(-sample.given.scores, kind="stable")
    keep = np.zeros(len(order), dtype=np.bool_)
    keep[order[: len(sample.labels)]] = True
    return _Sample(sample.given.take(keep), sample.truth, sample.labels, sample.poses)


def _near(samples: Sequence[_Sample], reading: FrameReading) -> Booleans:
    """Which predictions lie at an annotated box of their class."""
    return np.concatenate([(_distances(sample, _moved(sample, reading)) < NEAR).any(axis=1) for sample in samples])


def _moved(sample: _Sample, reading: FrameReading) -> Floats:
    matrix = reading.lidar_T_given(sample.poses)
    return sample.given.cuboids.translation @ matrix[:3, :3].T + matrix[:3, 3]


def _distances(sample: _Sample, center: Floats) -> Floats:
    offset = center[:, None, :2] - sample.truth[None, :, :2]
    same = sample.given.labels[:, None] == sample.labels
    return np.where(same, np.sqrt((offset**2).sum(axis=-1)), np.inf)


def _matched(samples: Sequence[_Sample], name: str, reading: FrameReading) -> _Matches:
    parts = [_matches_of(sample, name, reading) for sample in samples]
    joined = {
        column: np.concatenate([getattr(part, column) for part in parts])
        for column in ("labels", "center", "given_yaw", "unmoved_yaw", "size", "truth")
    }
    yaw, velocity = (
        {
            name: np.concatenate([getattr(part, column)[name] for part in parts])
            for name in getattr(parts[0], column)
        }
        for column in ("yaw", "velocity")
    )
    return _Matches(yaw=yaw, velocity=velocity, **joined)


def _matches_of(sample: _Sample, name: str, reading: FrameReading) -> _Matches:
    center = _moved(sample, reading)
    distance = _distances(sample, center)
    pairs = []
    for row in np.argsort(-sample.given.scores, kind="stable").tolist():
        if distance.shape[1] and distance[row].min() < MATCHED:
            column = int(distance[row].argmin())
            pairs.append((row, column))
            distance[:, column] = np.inf
    ours, theirs = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    given, cuboids, poses = sample.given, sample.given.cuboids, sample.poses
    direction = heading_of(cuboids.rotation[ours])
    upright_velocity = np.pad(given.velocity[ours], ((0, 0), (0, 1)))
    matrices = {
        AS_IS: FRAMES[AS_IS].lidar_T_given(poses),
        "moved": _without_scale(reading.lidar_T_given(poses)),
        "velocity lidar axes": np.eye(4),
        "velocity ego axes": poses.lidar_T_ego,
    }
    # Moved with the boxes, they are what they must be in this frame.
    for part, axes in (("lidar axes", "velocity lidar axes"), ("ego axes", "velocity ego axes")):
        if name == part:
            del matrices[axes]
    if name == AS_IS:
        del matrices["moved"]
    velocity = {key: (upright_velocity @ matrix[:3, :3].T)[:, :2] for key, matrix in matrices.items()}
    return _Matches(
        labels=given.labels[ours],
        center=center[ours],
        given_yaw=np.arctan2(direction[:, 1], direction[:, 0]),
        yaw={
            key: meaning.yaw(direction, reading.lidar_T_given(poses))
            for key, meaning in YAWS.items()
            if not (meaning.in_given_axes and set(frames_of(name)) & set(NEVER_MOVED))
        },
        unmoved_yaw=YAWS[AS_IS].yaw(direction, matrices[AS_IS]),
        size=np.stack([cuboids.length, cuboids.width, cuboids.height], axis=-1)[ours],
        velocity=velocity,
        truth=sample.truth[theirs],
    )


def _without_scale(matrix: Floats) -> Floats:
    scale = np.cbrt(abs(np.linalg.det(matrix[:3, :3])))
    unscaled = matrix.copy()
    unscaled[:3, :3] /= scale
    return unscaled


def _headings(matches: _Matches) -> list[Finding]:
    """The heading by another reading, or headings that have nothing to do with those of the annotations."""
    known = matches.labels != CONE
    period = np.where(matches.labels[known] == BARRIER, np.pi, 2 * np.pi)
    true = matches.truth[known, 6]

    def agree(yaw: Floats) -> Booleans:
        return np.abs((yaw - true + period / 2) % period - period / 2) < SAME_YAW

    yaw, given = matches.yaw[AS_IS][known], matches.given_yaw[known]
    explained = {name: agree(values[known]) for name, values in matches.yaw.items()}
    # Where only the centres are in another frame, the headings are right as given.
    explained[AS_IS] = explained[AS_IS] | agree(matches.unmoved_yaw[known])
    named = decided(explained, LEAST)
    if named is not None:
        return [] if named == AS_IS else [_finding(named, YAWS[named].sentence, explained, "headings agree")]
    if len(yaw) >= SCATTERED and _scattered(given) and _scattered(yaw - true) and _scattered(yaw + true):
        return [
            Finding(
                RANDOM_YAW,
                f"the headings of {len(yaw)} matched boxes are spread over all directions, independently of the"
                " annotated ones: either they were not learned, or degrees were taken for radians",
            )
        ]
    return []


def _scattered(angle: Floats) -> bool:
    """Whether angles [n] are spread like chance, for whole, half and quarter turns alike."""
    resultants = [abs(np.exp(1j * times * angle).mean()) for times in (1, 2, 4)]
    return bool(max(resultants) < 3 / np.sqrt(len(angle)))


def _sizes(matches: _Matches) -> list[Finding]:
    true = matches.truth[:, 3:5]
    limit = np.log(SIZE_RATIO)

    def agree(size: Floats) -> Booleans:
        return np.asarray((np.abs(np.log(size[:, :2] / true)) < limit).all(axis=1))

    explained = {name: agree(reading.repair(matches.size)) for name, reading in SIZES.items()}
    named = decided(explained, LEAST)
    if named is None or named == AS_IS:
        return []
    return [_finding(named, SIZES[named].sentence, explained, "sizes agree")]


def _heights(matches: _Matches) -> list[Finding]:
    height = matches.truth[:, 5]
    offset = matches.center[:, 2] - matches.truth[:, 2]
    explained = {name: np.abs(offset + reading.raise_by * height) < height / 4 for name, reading in HEIGHTS.items()}
    named = decided(explained, LEAST)
    if named is None or named == AS_IS:
        return []
    return [_finding(named, HEIGHTS[named].sentence, explained, "heights agree")]


def _velocities(matches: _Matches) -> list[Finding]:
    speed = np.linalg.norm(matches.truth[:, 7:9], axis=1)
    given = matches.velocity.get(AS_IS, np.zeros((0, 2)))
    moving = (speed > MOVING) & np.isfinite(given).all(axis=1)  # an unknown speed is not above any
    true, allowed = matches.truth[moving, 7:9], VELOCITY_ERROR + VELOCITY_SHARE * speed[moving]
    right, sentences = np.zeros(len(true), np.bool_), {}
    explained: dict[str, Booleans] = {}
    for axes, velocity in matches.velocity.items():
        for scale, (factor, sentence) in {"": (1.0, ""), **_SCALES}.items():
            agrees = np.linalg.norm(factor * velocity[moving] - true, axis=1) < allowed
            named = [part for part in (axes if axes in _AXES else "", scale) if part]
            if not named:
                right |= agrees
                continue
            key = " + ".join(named)
            explained[key] = agrees | explained.get(key, np.zeros(len(true), np.bool_))
            sentences[key] = ", and ".join(part for part in (_AXES.get(axes, ""), sentence) if part)
    explained = {AS_IS: right, **explained}
    named_reading = decided(explained, LEAST)
    if named_reading is None or named_reading == AS_IS:
        return []
    return [_finding(named_reading, sentences[named_reading], explained, "velocities of moving objects agree")]


def _finding(name: str, sentence: str, explained: Mapping[str, Booleans], what: str) -> Finding:
    after, before, total = int(explained[name].sum()), int(explained[AS_IS].sum()), len(explained[name])
    return Finding(name, f"{sentence}: read so, {after} of {total} {what}, as they are {before}")


def _merged(found: Sequence[Finding]) -> list[Finding]:
    """The findings, with the parts of one known convention as one."""
    parts = one_convention([finding.name for finding in found])
    kept = [finding for finding in found if finding.name not in parts]
    if parts:
        evidence = "; ".join(f.sentence.rpartition(": read so, ")[2] for f in found if f.name in parts)
        kept.append(Finding(OLD_CONVENTION, f"{OLD_SENTENCE}: read so, {evidence}"))
    return kept
