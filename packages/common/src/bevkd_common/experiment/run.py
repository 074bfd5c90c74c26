"""The whole experiment: data, teacher, arms, scores, report; for every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bevkd_common.config.loading import dump
from bevkd_common.config.recipe import Recipe
from bevkd_common.data.dataset import Dataset
from bevkd_common.engine.progress import Reporter
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import (
    Arm,
    ablation_arm,
    baseline_arm,
    control_arm,
    distilled_arm,
    fixed_length,
    teacher_arm,
)
from bevkd_common.experiment.build import build_dataset, method_spec
from bevkd_common.experiment.laboratory import Laboratory, Scores
from bevkd_common.experiment.plan import plan_lines
from bevkd_common.experiment.record import RunFolder, environment
from bevkd_common.experiment.stages import Stage


@dataclass(frozen=True)
class Request:
    """What is to be run, beside the recipe.

    Attributes:
        out: The run's folder; stages live beside it in `.stages`.
        data_root: Folder of the data set; None where the data can be made.
        seeds: Experiment seeds, taken from the recipe's.
        controls: Whether to train the recipe's controls too.
        ablations: Names of the method's ablations to train too.
        baseline: Whether to train the student alone.
        restart: Whether to throw away what an earlier run of this name did.
    """

    out: Path
    data_root: Path | None
    seeds: tuple[int, ...]
    controls: bool = False
    ablations: tuple[str, ...] = ()
    baseline: bool = True
    restart: bool = False


def run_experiment(recipe: Recipe, request: Request, reporter: Reporter, accelerator: Accelerator) -> RunFolder:
    """Run, or finish, an experiment and record which stage is which arm.

    Raises:
        UserError: If the recipe does not fit together, the data is missing, or the run's name is taken.
    """
    arms = student_arms(recipe, request)
    lines = plan_lines(recipe, arms, request.seeds, accelerator.num_processes)
    for line in lines:
        reporter.say(line)
    folder = RunFolder(request.out)
    folder.open(dump(recipe), restart=request.restart)
    folder.write_environment(environment(accelerator.device, method_spec(recipe.method).recipes.split(".")[0]))
    record: dict[str, Any] = {
        "method": method_spec(recipe.method).kind,
        "data_root": str(request.data_root) if request.data_root else None,
        "plan": lines,
        "controls": request.controls,
        "ablations": list(request.ablations),
        "baseline": request.baseline,
        "data": {},
        "stages": {},
    }
    for seed in request.seeds:
        dataset = open_dataset(recipe, seed, data_root=request.data_root, runs=folder.root, reporter=reporter)
        lab = Laboratory(recipe, dataset, seed=seed, root=folder.root, reporter=reporter, accelerator=accelerator)
        record["data"][str(seed)] = dataset.fingerprint
        record["stages"][str(seed)] = {}
        for name, stage in run_seed(lab, recipe, arms):
            record["stages"][str(seed)][name] = stage.folder.name
            folder.write(record)
    return folder


def student_arms(recipe: Recipe, request: Request) -> list[Arm]:
    """The arms after the teacher, in the order they are trained."""
    arms = [baseline_arm(recipe)] if request.baseline else []
    arms.append(distilled_arm(recipe))
    spec = method_spec(recipe.method)
    if request.controls:
        arms += [control_arm(recipe, control) for control in recipe.controls]
    for name in request.ablations:
        if name not in spec.ablations:
            raise UserError(
                f"{spec.kind} has no ablation `{name}`: choose from {', '.join(sorted(spec.ablations))}"
            )
        arms.append(ablation_arm(recipe, name, spec.ablations[name]))
    return arms


def open_dataset(recipe: Recipe, seed: int, *, data_root: Path | None, runs: Path, reporter: Reporter) -> Dataset:
    """The data of one experiment seed; a made world takes the recipe's world seed at the same position."""
    return build_dataset(recipe.dataset_for(seed), data_root=data_root, runs=runs, reporter=reporter)


def run_seed(lab: Laboratory, recipe: Recipe, arms: Sequence[Arm]) -> list[tuple[str, Stage]]:
    """Train and score the teacher and every arm of one seed."""
    teacher = teacher_arm(recipe)
    teacher_stage = lab.stage(teacher, None)
    if recipe.teacher_checkpoint is None:
        lab.train(teacher, teacher_stage, None)
    else:
        lab.adopt(teacher, teacher_stage, recipe.teacher_checkpoint)
    lab.reporter.say(_score_line(teacher, lab.score(teacher, teacher_stage)))
    stages = [(teacher.name, teacher_stage)]
    seconds: dict[str, float] = {}
    for arm in arms:
        arm = fixed_length(arm, seconds)
        parent = teacher_stage if arm.method is not None else None
        stage = lab.stage(arm, parent)
        seconds[arm.name] = lab.train(arm, stage, parent)["seconds"]
        lab.reporter.say(_score_line(arm, lab.score(arm, stage)))
        stages.append((arm.name, stage))
    return stages


def _score_line(arm: Arm, scores: Scores) -> str:
    results = scores.results[scores.primary]
    return f"{arm.title}: " + ", ".join(f"{name} {metric.value:.3f}" for name, metric in results.headline.items())
