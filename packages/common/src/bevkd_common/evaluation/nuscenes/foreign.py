"""Scores of a submission that any tool wrote, and the convention that its boxes may be in by mistake."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from bevkd_common.config.wording import shorten
from bevkd_common.data.nuscenes.index import Ints, NuScenesIndex
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.nuscenes.tables import only_version
from bevkd_common.errors import UserError
from bevkd_common.evaluation.evaluator import ScoredFile
from bevkd_common.evaluation.nuscenes.metric import AVERAGE_PRECISION, DetectionArrays, NuScenesEvaluator
from bevkd_common.evaluation.nuscenes.score_checks import findings
from bevkd_common.evaluation.nuscenes.split import truth_arrays
from bevkd_common.evaluation.nuscenes.submission import read_submission
from bevkd_common.evaluation.nuscenes.submission_checks import convention_findings, unknown_velocities
from bevkd_common.evaluation.results import Results
from bevkd_common.progress import Reporter

LOOKED_AT = 200
"""Samples on which other conventions are tried."""

_DEVKIT_ERRORS = {
    "ATE": "trans_err", "ASE": "scale_err", "AOE": "orient_err", "AVE": "vel_err", "AAE": "attr_err"
}  # fmt: skip


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
    """Read, check and score a submission, and name the conventions that it confuses.

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
    few = rows[np.unique(np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).round().astype(np.int64))]
    named = convention_findings(index, few.tolist(), predictions)
    # A mistake that is named explains the scores; general advice about them would only add wrong causes.
    said = [finding.sentence for finding in named] or findings(results)
    return ScoredSubmission(results, said + [finding.sentence for finding in unknown_velocities(predictions)])


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


def _read(index: NuScenesIndex, split: str, path: Path) -> tuple[Ints, Mapping[str, DetectionArrays]]:
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
