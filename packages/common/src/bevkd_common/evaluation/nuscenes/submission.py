"""The official nuScenes detection submission: one JSON object with every sample of the split as a key."""

import json
import reprlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.model import Config
from bevkd_common.config.wording import shorten
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.global_boxes import (
    ATTRIBUTES,
    MAX_BOXES_PER_SAMPLE,
    NO_ATTRIBUTE,
    Cuboids,
    DetectionArrays,
    FloatArray,
    IntArray,
)
from bevkd_common.evaluation.nuscenes.other_results import not_json, other_task
from bevkd_common.files import parse_json, replaced_when_complete, start_of

MOVING_SPEED = 0.2
"""Metres per second; a faster box is moving."""

# Class -> attribute while moving, attribute while still.
DEFAULT_ATTRIBUTES = {
    "car": ("vehicle.moving", "vehicle.parked"),
    "truck": ("vehicle.moving", "vehicle.parked"),
    "construction_vehicle": ("vehicle.moving", "vehicle.parked"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "trailer": ("vehicle.moving", "vehicle.parked"),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
}


class SubmissionMeta(Config):
    """Inputs that a submission declares to use."""

    use_camera: bool
    use_lidar: bool
    use_radar: bool
    use_map: bool
    use_external: bool


@dataclass(frozen=True, eq=False)
class Submission:
    """A submission as read; predictions by sample token, in the order of the file."""

    meta: SubmissionMeta
    predictions: dict[str, DetectionArrays]


def default_attributes(labels: IntArray, velocity: FloatArray) -> IntArray:
    """Guess attributes [K] from class and speed, for detectors that predict none.

    Args:
        labels: [K] index into `CLASSES`.
        velocity: [K, 2] m/s; unknown (NaN) counts as still.

    Source: the rule of mmdetection3d 1.4 and BEVDepth.
    """
    table = np.full((2, len(CLASSES)), NO_ATTRIBUTE)
    for name, (moving, still) in DEFAULT_ATTRIBUTES.items():
        table[:, CLASSES.index(name)] = ATTRIBUTES.index(still), ATTRIBUTES.index(moving)
    moves = np.hypot(velocity[:, 0], velocity[:, 1]) > MOVING_SPEED
    return table[moves.astype(np.int64), labels]


def submission_boxes(token: str, predictions: DetectionArrays) -> list[dict[str, Any]]:
    """Return the predictions of one sample (global frame) as the JSON-ready boxes of a submission."""
    cuboids = predictions.cuboids
    columns = zip(
        cuboids.translation.tolist(),
        np.stack([cuboids.width, cuboids.length, cuboids.height], axis=-1).tolist(),
        cuboids.rotation.tolist(),
        predictions.velocity.tolist(),
        predictions.labels.tolist(),
        predictions.scores.tolist(),
        predictions.attributes.tolist(),
        strict=True,
    )
    return [
        {
            "sample_token": token,
            "translation": translation,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": CLASSES[label],
            "detection_score": score,
            "attribute_name": "" if attribute == NO_ATTRIBUTE else ATTRIBUTES[attribute],
        }
        for translation, size, rotation, velocity, label, score, attribute in columns
    ]


def write_submission(
    path: Path,
    samples: Iterable[tuple[str, DetectionArrays]],
    sample_tokens: Collection[str],
    meta: SubmissionMeta,
) -> None:
    """Write a submission, sample by sample, so that memory does not grow with the split.

    Args:
        path: the JSON file.
        samples: token and predictions (global frame) of each sample.
        sample_tokens: all samples of the split.
        meta: what the model used.

    Raises:
        UserError: The samples are not those of the split, or predictions break the rules.
    """
    seen: set[str] = set()
    with replaced_when_complete(path) as partial, partial.open("w", encoding="utf-8") as stream:
        stream.write(f'{{"meta": {meta.model_dump_json()}, "results": {{')
        for token, predictions in samples:
            where = f"{path}: sample {token}"
            if token in seen:
                raise UserError(f"{where} comes twice; give each sample once.")
            _check(where, predictions)
            if np.isnan(predictions.velocity).any():
                raise UserError(
                    f"{where}: velocity must be a number, JSON has no NaN; write 0 where it is unknown."
                )
            boxes = json.dumps(submission_boxes(token, predictions), allow_nan=False)
            stream.write(f"{',' if seen else ''}\n{json.dumps(token)}: {boxes}")
            seen.add(token)
        _check_complete(path, seen, sample_tokens)
        stream.write("\n}}\n")


def read_submission(path: Path, sample_tokens: Collection[str]) -> Submission:
    """Read and validate a submission.

    Args:
        path: the JSON file.
        sample_tokens: all samples of the split.

    Raises:
        UserError: If the file is invalid; the message names the file, the sample and the field.
    """
    try:
        content = parse_json(path.read_bytes(), unique=True)
    except (OSError, ValueError) as error:
        if (known := not_json(start_of(path))) is not None:
            raise UserError(f"{path} {known}.") from error
        raise UserError(f"{path} cannot be read as JSON ({error}).") from error
    if (task := other_task(content)) is not None:
        raise UserError(f"{path} holds {task}; the detection metric scores results of 3D detection.")
    if not isinstance(content, dict) or not {"meta", "results"} <= content.keys():
        raise UserError(f"{path} must hold one JSON object with the fields 'meta' and 'results'.")
    flags, results = content["meta"], content["results"]
    names = set(SubmissionMeta.model_fields)
    if not isinstance(flags, dict) or any(type(flags.get(name)) is not bool for name in names):
        raise UserError(f"{path}: field 'meta' must set {', '.join(sorted(names))} to true or false.")
    if not isinstance(results, dict):
        raise UserError(f"{path}: field 'results' must map sample tokens to lists of boxes.")
    _check_complete(path, results.keys(), sample_tokens)
    predictions = {token: _from_json(f"{path}: sample {token}", token, boxes) for token, boxes in results.items()}
    return Submission(SubmissionMeta(**{name: flags[name] for name in names}), predictions)


def _check_complete(path: Path, found: Collection[str], wanted: Collection[str]) -> None:
    missing, foreign = set(wanted) - set(found), set(found) - set(wanted)
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} samples of the split, such as {shorten(min(missing))}; a sample without "
            "predictions needs an empty list."
        )
    if foreign:
        example = shorten(min(foreign))
        raise UserError(f"{path} has {len(foreign)} samples that are not in the split, such as {example}.")


def _check(where: str, predictions: DetectionArrays) -> None:
    if len(predictions) > MAX_BOXES_PER_SAMPLE:
        raise UserError(f"{where} has {len(predictions)} boxes, more than the {MAX_BOXES_PER_SAMPLE} allowed.")
    predictions.check(where)


def _from_json(where: str, token: str, boxes: Any) -> DetectionArrays:
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise UserError(f"{where} must hold a list of boxes, each an object.")
    if any(box.get("sample_token") != token for box in boxes):
        raise UserError(f"{where}: field 'sample_token' must repeat the token of the sample in every box.")
    width, length, height = _numbers(where, boxes, "size", 3).T
    predictions = DetectionArrays(
        cuboids=Cuboids(
            translation=_numbers(where, boxes, "translation", 3),
            length=length,
            width=width,
            height=height,
            rotation=_numbers(where, boxes, "rotation", 4),
        ),
        labels=_indices(where, boxes, "detection_name", {name: i for i, name in enumerate(CLASSES)}),
        velocity=_numbers(where, boxes, "velocity", 2),
        attributes=_indices(
            where, boxes, "attribute_name", {"": NO_ATTRIBUTE} | {name: i for i, name in enumerate(ATTRIBUTES)}
        ),
        scores=_numbers(where, boxes, "detection_score"),
    )
    _check(where, predictions)
    return predictions


def _numbers(where: str, boxes: list[dict[str, Any]], field: str, width: int | None = None) -> FloatArray:
    """Return the field of K boxes as [K] or [K, width]."""
    column = np.zeros((len(boxes), width or 1))
    for row, box in enumerate(boxes):
        value = box.get(field)
        numbers: Any = value if width else [value]
        fits = isinstance(numbers, list) and len(numbers) == (width or 1)
        # Not isinstance: bool is a subclass of int in Python, but not a number in JSON.
        if not fits or not all(type(number) in (int, float) for number in numbers):
            kind = f"a list of {width} numbers" if width else "a number"
            raise UserError(f"{where}: field '{field}' of box {row} must be {kind}, not {reprlib.repr(value)}.")
        try:
            column[row] = numbers
        except OverflowError:
            raise UserError(f"{where}: field '{field}' of box {row} holds a number too large to use.") from None
    return column if width else column[:, 0]


def _indices(where: str, boxes: list[dict[str, Any]], field: str, names: dict[str, int]) -> IntArray:
    indices = np.zeros(len(boxes), np.int64)
    for row, box in enumerate(boxes):
        name = box.get(field)
        if not isinstance(name, str) or name not in names:
            raise UserError(
                f"{where}: field '{field}' of box {row} is {reprlib.repr(name)}, not one of "
                f"{', '.join(map(repr, names))}."
            )
        indices[row] = names[name]
    return indices
