"""From a run folder to the input of its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from bevkd_common.config.methods import departures, kinds_of, paper, published, title
from bevkd_common.config.reading.loading import diff, dump
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.recipes import Choice, catalogue
from bevkd_common.data.dataset import Dataset
from bevkd_common.data.samples import Batch, collate
from bevkd_common.distill.panels import Panel
from bevkd_common.engine.evaluate import usable
from bevkd_common.engine.metrics_log import read_metrics
from bevkd_common.engine.tasks import HEAD
from bevkd_common.errors import UserError
from bevkd_common.evaluation.evaluator import Evaluator
from bevkd_common.experiment.arms import Arm
from bevkd_common.experiment.build import build_evaluator, build_pretraining, data_needs
from bevkd_common.experiment.finished import FinishedRun, open_run
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.record import RunFolder
from bevkd_common.experiment.scenes import scene_of
from bevkd_common.experiment.scoring import Scores, evidence_file, score
from bevkd_common.experiment.stages import read_trained
from bevkd_common.progress import Reporter
from bevkd_common.report import inputs

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule

PICTURED_SAMPLES = 2


def report_input(folder: RunFolder, reporter: Reporter, accelerator: Accelerator) -> inputs.ReportInput:
    """Content of the report of a run; models without scores of this version are evaluated first.

    Raises:
        UserError: If the run or one of its stages is incomplete.
    """
    run = open_run(folder, reporter, accelerator)
    if not any(arm.role == "distilled" for arm in run.arms):
        raise UserError(f"{folder.path} is not finished: run it again, finished stages are reused")
    seed, lab = next(iter(run.laboratories.items()))
    evaluator = build_evaluator(run.recipe.dataset, lab.dataset, "val")
    arms = [_arm(arm, run, evaluator) for arm in run.arms]
    panels, scenes = _pictures(lab, run.arms, run.stages[seed])
    data = {f"data, seed {seed}": fingerprint for seed, fingerprint in run.data.items()}
    return inputs.ReportInput(
        run=folder.path.name,
        method=title(run.recipe.method),
        paper=paper(run.recipe.method),
        dataset=_data_sentence(run.recipe, lab.dataset),
        synthetic=lab.dataset.synthetic,
        classes=lab.dataset.classes,
        arms=arms,
        published=published(kinds_of(run.recipe.method), run.recipe.selects.teacher, run.recipe.selects.student),
        plan=run.plan,
        departures=_departures(run.recipe, lab.dataset.classes),
        warnings=[*_changes(run.recipe), *_warnings(arms, evaluator)],
        recipe=dump(run.recipe),
        environment=folder.read_environment() | data,
        panels=panels,
        scenes=scenes,
        bootstrap=run.recipe.evaluation.bootstrap,
    )


def _data_sentence(recipe: Recipe, dataset: Dataset) -> str:
    return dataset.description(data_needs(recipe.teacher, recipe.student))


def _departures(recipe: Recipe, classes: tuple[str, ...]) -> list[str]:
    found = departures(recipe.method, recipe.student)
    if recipe.student_pretraining is not None:
        learned = build_pretraining(recipe.student, classes, seed=0).summary
        found.append(
            f"In every arm the student starts from weights that have learned {learned}, on the same training split;"
            " this replaces the pretrained weights of published students."
        )
    return found


HARMLESS = ("checkpoints.", "trackers", "evaluation.workers", "seeds", "world_seeds")
"""Prefixes of keys that change no number, or only numbers that the report shows itself."""

SHOWN = 12
"""Number of changed settings that a warning lists; the others are counted."""


def _changes(recipe: Recipe) -> list[str]:
    """Differences from the shipped recipe of the same pair and data, where there is one."""
    selects = recipe.selects
    try:
        pair = catalogue().find(teacher=selects.teacher, student=selects.student, dataset=selects.dataset)
        shipped = Choice(kinds_of(recipe.method), pair)
        original = shipped.load()
    except UserError:
        return []
    found = [change for change in diff(original, recipe) if not change.key.startswith(HARMLESS)]
    batches = [
        f"Batch changed: {change.key} is {change.after}, in the shipped recipe {change.before}; the learning rate"
        " was not scaled."
        for change in found
        if change.key.endswith("_training.batch")
    ]
    if not found:
        return []
    settings = ", ".join(f"{change.key} = {json.dumps(change.after)}" for change in found[:SHOWN])
    settings += f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return [*batches, f"Settings differ from {shipped.name}: {settings}."]


def _arm(arm: Arm, run: FinishedRun, evaluator: Evaluator) -> inputs.ArmReport:
    runs = {}
    parameters = 0
    for seed, stages in run.stages.items():
        path = stages[arm.name]
        trained = read_trained(path / "trained.json")
        scores = score(run.laboratories[seed], arm, path)
        results = scores.results[scores.primary]
        evidence = evidence_file(path, scores.primary)
        runs[seed] = inputs.ArmRun(
            results=results,
            other_results={kind: value for kind, value in scores.results.items() if kind != scores.primary},
            evidence=None if results.groups is None else evaluator.load_evidence(evidence),
            curve=read_metrics(path / "metrics.jsonl"),
            steps=trained["steps"],
            seconds=trained["seconds"],
            run_id=path.name,
            notes=_notes(trained, scores),
        )
        parameters = trained["parameters"]
    return inputs.ArmReport(arm.name, arm.title, arm.role, arm.summary, parameters, runs)


def _notes(trained: Mapping[str, Any], scores: Scores) -> list[str]:
    found = []
    if skipped := trained.get("skipped"):
        found.append(f"{skipped} damaged samples were skipped in training.")
    if (beside := trained.get("side_by_side", 1)) > 1:
        threads = trained["threads"]
        found.append(f"its seconds were measured with {threads} threads, up to {beside} stages side by side.")
    found += [f"{note} in training." for note in trained.get("notes", ())]
    found += [f"{note} in evaluation." for note in scores.notes]
    return found


def _warnings(arms: list[inputs.ArmReport], evaluator: Evaluator) -> list[str]:
    return [
        f"{arm.title}, seed {seed}: {sentence}"
        for arm in arms
        for seed, run in arm.runs.items()
        for sentence in (*evaluator.findings(run.results), *run.notes)
    ]


@torch.no_grad()
def _pictures(
    lab: Laboratory, arms: Sequence[Arm], stages: Mapping[str, Path]
) -> tuple[list[Panel], list[inputs.Scene]]:
    shown = [arm for arm in arms if arm.role != "control"]
    detectors = {arm.name: lab.detector(arm.detector, stages[arm.name]) for arm in shown}
    needs = next(iter(detectors.values())).needs
    for detector in detectors.values():
        needs |= detector.needs
    source = lab.dataset.source("val", needs)
    device = lab.accelerator.device
    scenes = []
    for picture in range(PICTURED_SAMPLES):
        sample = source.load((2 * picture + 1) * len(source) // (2 * PICTURED_SAMPLES), seed=None)
        batch = collate([sample]).to(device)
        found = {
            name: usable(detector.decode(detector(batch, HEAD), batch)[0]) for name, detector in detectors.items()
        }
        scenes.append(scene_of(batch, found, lab.dataset.cameras, _extent(detectors["teacher"], batch)))
        if not picture:
            panels = _panels(lab, shown, stages, detectors, batch)
    return panels, scenes


def _panels(
    lab: Laboratory,
    arms: Sequence[Arm],
    stages: Mapping[str, Path],
    detectors: Mapping[str, DetectorModule],
    batch: Batch,
) -> list[Panel]:
    arm = next(arm for arm in arms if arm.role == "distilled")
    assert arm.method is not None
    teacher, student = detectors["teacher"], detectors[arm.name]
    method = lab.method(arm.method, stages[arm.name], teacher, student)
    seen = teacher(batch, method.teacher_taps)
    outputs = student(batch, HEAD | method.student_taps)
    return method.explain(seen, outputs, student.targets(outputs, batch), batch)


def _extent(detector: DetectorModule, batch: Batch) -> tuple[float, float, float, float]:
    """x0, x1, y0, y1 of the first grid among the detector's taps, or of the points of a detector without one."""
    head_first = sorted(detector.taps, key=lambda name: name != "head")
    grids = (detector.taps[name].ground for name in head_first)
    if (grid := next((grid for grid in grids if grid is not None), None)) is not None:
        x0, y0, x1, y1 = grid.extent
        return x0, x1, y0, y1
    ground = torch.cat([cloud.points[:, :2] for cloud in batch.clouds.values()])
    (x0, y0), (x1, y1) = ground.amin(dim=0).tolist(), ground.amax(dim=0).tolist()
    return x0, x1, y0, y1
