"""Scoring the stages of one seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError, model_validator

from bevkd_common.config.model import Config
from bevkd_common.config.records import Record, first_problem, read_record
from bevkd_common.data.dataset import Dataset, SampleSource
from bevkd_common.engine.checkpoint import write_atomically
from bevkd_common.engine.evaluate import DROPPED, evaluate
from bevkd_common.engine.train import AUTOCAST
from bevkd_common.errors import UserError
from bevkd_common.evaluation.evaluator import Evaluator, Submission
from bevkd_common.evaluation.results import Results, show
from bevkd_common.experiment.arms import Arm
from bevkd_common.experiment.build import build_evaluator, build_submission
from bevkd_common.experiment.identity import evaluation_fingerprint
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.stages import stage_weights

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule

WEIGHT_KINDS = ("raw", "ema")
WeightKind = Literal["raw", "ema"]
SCORE_AGAIN = "delete it and run the same command again, the model is scored again"


class _ScoresRecord(Record):
    """The content of results.json."""

    evaluation: str
    primary: WeightKind
    results: dict[WeightKind, dict[str, Any]]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> _ScoresRecord:
        if self.primary not in self.results:
            raise ValueError(f"there are no results of the {self.primary} weights")
        return self


@dataclass(frozen=True)
class Scores:
    """The scores of a stage.

    Attributes:
        primary: The weights that the arm is judged by: "ema" where an average is kept, else "raw".
        results: By kind of weights.
        notes: What was read otherwise than asked for, see `SampleSource.notes`, and boxes that were dropped.
    """

    primary: str
    results: Mapping[str, Results]
    notes: tuple[str, ...] = ()


def score(lab: Laboratory, arm: Arm, folder: Path, *, again: bool = False) -> Scores:
    """Evaluate every kind of weights that a stage keeps, or read the scores that are there.

    Args:
        lab: The seed.
        arm: What the stage trained.
        folder: Of the stage.
        again: Whether to evaluate although there are scores.
    """
    if not again and (scores := kept_scores(lab, folder)) is not None:
        return scores
    with lab.alone(folder):
        return (None if again else kept_scores(lab, folder)) or _score(lab, arm, folder)


def submission(lab: Laboratory, arm: Arm, folder: Path, config: Config, dataset: Dataset) -> object:
    """The official submission of the weights that an arm is judged by.

    Args:
        lab: The seed.
        arm: What the stage trained.
        folder: Of the stage.
        config: Of `dataset`.
        dataset: The evaluated split of this one, which may be another than the laboratory's.

    Raises:
        UserError: If the data set has no official submission.
    """
    collected = build_submission(config, dataset, "val")
    _run(lab, arm, lab.detector(arm.detector, folder), None, dataset, collected)
    return collected.content()


def score_line(arm: Arm, scores: Scores) -> str:
    """The headline of one arm as a line of text."""
    results = scores.results[scores.primary]
    numbers = [
        f"{name} {show(metric.value, metric.unit)}"
        for name, metric in results.headline.items()
        if metric.value is not None
    ]
    return f"{arm.title}: {', '.join(numbers)}"


def kept_scores(lab: Laboratory, folder: Path) -> Scores | None:
    """The scores that a stage keeps; None where there are none of the present evaluation."""
    path = folder / "results.json"
    if not path.is_file():
        return None
    saved = read_record(path, _ScoresRecord, SCORE_AGAIN)
    if saved.evaluation != evaluation_fingerprint(lab):
        return None
    try:
        read = {kind: Results.of_this_version(value) for kind, value in saved.results.items()}
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({first_problem(error)}): {SCORE_AGAIN}") from None
    results: dict[str, Results] = {kind: result for kind, result in read.items() if result is not None}
    if len(results) < len(read):
        return None
    return Scores(saved.primary, results, saved.notes)


def _score(lab: Laboratory, arm: Arm, folder: Path) -> Scores:
    weights = stage_weights(folder)
    results: dict[str, Results] = {}
    notes: tuple[str, ...] = ()
    for kind in (kind for kind in WEIGHT_KINDS if kind in weights):
        results[kind], notes = _evaluate(lab, arm, folder, kind)
    primary = "ema" if "ema" in results else "raw"
    if lab.accelerator.is_main_process:
        dumped = {kind: value.model_dump(mode="json") for kind, value in results.items()}
        about = {"evaluation": evaluation_fingerprint(lab), "primary": primary}
        content = {**about, "results": dumped, **({"notes": notes} if notes else {})}
        write_atomically(folder / "results.json", json.dumps(content, indent=1) + "\n")
    lab.accelerator.wait_for_everyone()
    return Scores(primary, results, notes)


def _evaluate(lab: Laboratory, arm: Arm, folder: Path, kind: str) -> tuple[Results, tuple[str, ...]]:
    """The scores, and what the report says about the samples and the boxes."""
    evaluator = build_evaluator(lab.recipe.dataset, lab.dataset, "val")
    detector = lab.detector(arm.detector, folder, kind)
    source, dropped = _run(lab, arm, detector, kind, lab.dataset, evaluator)
    results = evaluator.compute(detector.needs)
    if results.groups is not None and lab.accelerator.is_main_process:
        evaluator.evidence().save(evidence_file(folder, kind))
    notes = (*source.notes, f"{dropped} {DROPPED}") if dropped else tuple(source.notes)
    return results, notes


def evidence_file(folder: Path, kind: str) -> Path:
    """Where a stage keeps the `Evidence` of one kind of weights."""
    return folder / f"evidence-{kind}.npz"


def _run(
    lab: Laboratory,
    arm: Arm,
    detector: DetectorModule,
    kind: str | None,
    dataset: Dataset,
    evaluator: Evaluator | Submission,
) -> tuple[SampleSource, int]:
    """What was read, and the number of predicted boxes that were dropped."""
    source = dataset.source("val", detector.needs.at_test)
    dropped = evaluate(
        detector,
        source,
        evaluator,
        batch=lab.recipe.evaluation.batch,
        workers=lab.recipe.evaluation.workers,
        accelerator=lab.accelerator,
        precision=AUTOCAST[arm.training.precision],
        title=f"scoring {arm.title}, seed {lab.seed}" + (f" ({kind})" if kind == "ema" else ""),
        reporter=lab.reporter,
    )
    return source, dropped
