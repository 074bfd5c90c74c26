"""Scores of a submission that any tool wrote, and the convention that its boxes may be in by mistake."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch

from bevkd_common.config.wording import shorten
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.nuscenes.tables import only_version
from bevkd_common.errors import UserError
from bevkd_common.evaluation.evaluator import ScoredFile
from bevkd_common.evaluation.nuscenes.metric import (
    AVERAGE_PRECISION,
    ERRORS_BY_CLASS,
    DetectionArrays,
    NuScenesEvaluator,
)
from bevkd_common.evaluation.nuscenes.score_checks import findings
from bevkd_common.evaluation.nuscenes.split import cuboids, truth_arrays
from bevkd_common.evaluation.nuscenes.submission import read_submission
from bevkd_common.evaluation.results import Results
from bevkd_common.geometry.convention_checks import GLOBAL_CONVENTION_CHECKS, ConventionCheck
from bevkd_common.geometry.conventions import DevkitBoxes, from_devkit, to_devkit
from bevkd_common.progress import Reporter

RESCORED = 200
"""Samples on which other conventions are tried."""
BETTER = 0.02
"""By how much another convention must raise the score, a number from 0 to 1, to be named."""

_DEVKIT_ERRORS = {
    "ATE": "trans_err", "ASE": "scale_err", "AOE": "orient_err", "AVE": "vel_err", "AAE": "attr_err"
}  # fmt: skip

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoredSubmission:
    """What a submission scores.

    Attributes:
        results: Of the whole split.
        findings: One sentence for each likely mistake outside the model.
    """

    results: Results
    findings: list[str]


def score_submission(
    index: NuScenesIndex, split: str, path: Path, progress: Callable[[int, int], None] | None = None
) -> ScoredSubmission:
    """Read, check and score a submission; where another convention would score clearly better, name it.

    Args:
        index: Of the version with the split's annotations.
        split: An official one, or one of `splits.json`.
        path: The submission.
        progress: Called with the samples done and all samples.

    Raises:
        UserError: If the file is no submission of this split.
    """
    rows, predictions = _read(index, split, path)
    results = _score(index, rows, predictions, progress)
    few = rows[np.unique(np.linspace(0, len(rows) - 1, min(RESCORED, len(rows))).round().astype(np.int64))]
    return ScoredSubmission(results, [*findings(results), *_conventions(index, few, predictions)])


def score_file(
    path: Path, root: Path, *, version: str | None, split: str, engine: str, reporter: Reporter
) -> ScoredFile:
    """Score a submission for the command line.

    Args:
        path: The submission.
        root: Folder of the data set.
        version: Version folder; None takes the only one.
        split: The split that it was made for.
        engine: "ours", or "devkit" for nuscenes-devkit's own scores.
        reporter: Where progress goes.

    Raises:
        UserError: If the engine is unknown or not installed, or the file is no submission of this split.
    """
    if engine not in ("ours", "devkit"):
        raise UserError(f"--engine {engine}: choose ours or devkit")
    chosen = version or only_version(root)
    with reporter.bar(f"index of {chosen}", 1) as bar:
        index = open_index(root, chosen, bar.update, allow_missing=True)
    if engine == "devkit":
        return ScoredFile(devkit_headline(index, split, path))
    with reporter.bar("samples scored", 1) as bar:
        scored = score_submission(index, split, path, bar.update)
    precision = scored.results.table(AVERAGE_PRECISION)
    rows = zip(precision.rows, precision.values, strict=True)
    headline = scored.results.headline
    return ScoredFile(
        headline={name: metric.value for name, metric in headline.items() if metric.value is not None},
        results=scored.results,
        findings=scored.findings,
        columns=("class", *(f"AP {column}" for column in precision.columns)),
        rows=[(name, *("" if value is None else f"{value:.3f}" for value in values)) for name, values in rows],
    )


def _read(index: NuScenesIndex, split: str, path: Path) -> tuple[Rows, Mapping[str, DetectionArrays]]:
    """Key frames of a split, and the predictions of a submission of it."""
    rows = index.split(split)
    tokens = [token.decode() for token in index.key_frames.token[rows].tolist()]
    return rows, read_submission(path, tokens).predictions


def devkit_headline(index: NuScenesIndex, split: str, path: Path) -> dict[str, float]:
    """The headline scores of a submission by nuscenes-devkit itself, after our own checks; it prints nothing.

    Args:
        index: Of the version with the split's annotations.
        split: An official one, or one of `splits.json`.
        path: The submission.

    Raises:
        UserError: If nuscenes-devkit is not installed or fails, or the file is no submission of this split.
    """
    try:
        from nuscenes import NuScenes
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.detection.evaluate import DetectionEval
    except ImportError:
        raise UserError("nuscenes-devkit is not installed: install it, or choose --engine ours") from None
    _read(index, split, path)
    reading = f"the tables in {index.root / index.version}"
    # The devkit prints progress, and its errors are of any type.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            config = config_factory("detection_cvpr_2019")
            tables = NuScenes(index.version, str(index.root), verbose=False)
            reading = str(path)
            evaluation = DetectionEval(tables, config, str(path), split, folder, verbose=False)
            metrics = evaluation.evaluate()[0].serialize()
        except Exception as error:
            why = shorten(f"{type(error).__name__}: {error}", 160)
            raise UserError(f"nuscenes-devkit cannot use {reading} ({why}): choose --engine ours") from None
    errors = {f"m{name}": metrics["tp_errors"][key] for name, key in _DEVKIT_ERRORS.items()}
    return {"mAP": metrics["mean_ap"], "NDS": metrics["nd_score"]} | errors


def _score(
    index: NuScenesIndex,
    rows: Iterable[int],
    predictions: Mapping[str, DetectionArrays],
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    metric = NuScenesEvaluator()
    chosen = list(rows)
    for done, row in enumerate(chosen, start=1):
        token = index.key_frames.token[row].decode()
        metric.update(token, predictions[token], truth_arrays(index, row))
        if progress is not None:
            progress(done, len(chosen))
    return metric.compute()


def _conventions(index: NuScenesIndex, rows: Rows, predictions: Mapping[str, DetectionArrays]) -> list[str]:
    """The convention, if any, in which the predictions of some samples score clearly better than as they are."""
    poses = {
        index.key_frames.token[row].decode(): torch.tensor(index.key_frames.global_T_lidar[row]) for row in rows
    }
    as_is = _quality(_score(index, rows, predictions))
    scores = {}
    for name, check in GLOBAL_CONVENTION_CHECKS.items():
        repaired = {token: _repaired(predictions[token], check, pose) for token, pose in poses.items()}
        scores[name] = _quality(_score(index, rows, repaired))
    best = max(scores, key=lambda name: scores[name])
    if scores[best] < as_is + BETTER:
        return []
    return [
        f"{GLOBAL_CONVENTION_CHECKS[best].sentence}: read so, {len(rows)} samples score {scores[best]:.3f}"
        f" instead of {as_is:.3f}"
    ]


def _quality(results: Results) -> float:
    """Like the NDS, over the classes that were found at all: a detector of cars must not be judged by its cones."""
    precision, errors = results.table(AVERAGE_PRECISION), results.table(ERRORS_BY_CLASS)
    found = [name for name in precision.rows if (precision.at(name, "mean") or 0.0) > 0]
    if not found:
        return 0.0
    average = fmean(precision.at(name, "mean") or 0.0 for name in found)
    goodness = []
    for kind in errors.columns:
        known = [error for error in (errors.at(name, kind) for name in found) if error is not None]
        goodness.append(max(0.0, 1.0 - fmean(known)) if known else 0.0)
    return (5 * average + sum(goodness)) / 10


def _repaired(
    predictions: DetectionArrays, check: ConventionCheck, global_T_lidar: torch.Tensor
) -> DetectionArrays:
    given = predictions.cuboids
    boxes = from_devkit(
        DevkitBoxes(
            translation=torch.from_numpy(given.translation),
            size=torch.from_numpy(np.stack([given.width, given.length, given.height], axis=-1)),
            rotation=torch.from_numpy(given.rotation / np.linalg.norm(given.rotation, axis=1, keepdims=True)),
            velocity=torch.from_numpy(np.pad(predictions.velocity, ((0, 0), (0, 1)))),
        ),
        global_T_lidar,
    )
    moved = to_devkit(check.repair(boxes, global_T_lidar), global_T_lidar)
    return DetectionArrays(
        cuboids=cuboids(moved.translation.numpy(), moved.size.numpy(), moved.rotation.numpy()),
        labels=predictions.labels,
        velocity=moved.velocity[:, :2].numpy(),
        attributes=predictions.attributes,
        scores=predictions.scores,
    )
