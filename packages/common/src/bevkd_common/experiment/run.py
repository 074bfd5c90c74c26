"""The whole experiment: data, teacher, arms, scores, report; for every seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bevkd_common.config.methods import ablations, kinds_of, published_ablations
from bevkd_common.config.plugins import MethodSpec, installed
from bevkd_common.config.reading.loading import dump
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.wording import one_of
from bevkd_common.data.dataset import Dataset, VirtualPointDataset
from bevkd_common.engine.trackers import check_trackers
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
from bevkd_common.experiment.build import build_dataset, check_data_root, method_spec, reads_virtual_points
from bevkd_common.experiment.identity import arm_stage
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.plan import plan_lines
from bevkd_common.experiment.record import CONFIG, RunFolder, environment
from bevkd_common.experiment.scoring import score, score_line
from bevkd_common.experiment.stages import Stage
from bevkd_common.experiment.training import adopt, pretrain, train_arm
from bevkd_common.progress import Reporter

PRETRAINING = "pretraining"


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


def repeated(config: Path) -> Request | None:
    """What the run was asked for whose resolved recipe this is; None where the file is not that of a run."""
    folder = RunFolder(config.parent)
    if config.name != CONFIG or not (config.parent / "run.json").is_file():
        return None
    record = folder.read()
    return Request(
        out=config.parent,
        data_root=Path(record["data_root"]) if record["data_root"] else None,
        seeds=tuple(int(seed) for seed in record["seeds"]),
        controls=record["controls"],
        ablations=tuple(record["ablations"]),
        baseline=record["baseline"],
    )


def run_experiment(recipe: Recipe, request: Request, reporter: Reporter, accelerator: Accelerator) -> RunFolder:
    """Run, or finish, an experiment and record which stage is which arm.

    Raises:
        UserError: If the recipe does not fit together, the data is missing, or the run's name is taken.
    """
    check_data_root(recipe.dataset, request.data_root)
    arms = student_arms(recipe, request)
    lines = plan_lines(recipe, arms, request.seeds, accelerator.num_processes)
    for line in lines:
        reporter.say(line)
    check_trackers(recipe.trackers)
    spec = method_spec(recipe.method)
    folder = RunFolder(request.out)
    if accelerator.is_main_process:
        folder.open(dump(recipe), restart=request.restart)
        folder.write_environment(environment(accelerator.device, installed(MethodSpec).origin[spec.kind]))
    accelerator.wait_for_everyone()
    record: dict[str, Any] = {
        "method": spec.kind,
        "data_root": str(request.data_root) if request.data_root else None,
        "plan": lines,
        "controls": request.controls,
        "ablations": list(request.ablations),
        "baseline": request.baseline,
        "seeds": list(request.seeds),
        "data": {},
        "stages": {},
    }
    for seed in request.seeds:
        lab = _laboratory(recipe, seed, folder.root, request.data_root, reporter, accelerator)
        record["data"][str(seed)] = lab.dataset.fingerprint
        record["stages"][str(seed)] = {}
        for name, stage in run_seed(lab, recipe, arms):
            record["stages"][str(seed)][name] = stage.folder.name
            if accelerator.is_main_process:
                folder.write(record)
    return folder


def _laboratory(
    recipe: Recipe, seed: int, runs: Path, data_root: Path | None, reporter: Reporter, accelerator: Accelerator
) -> Laboratory:
    with accelerator.main_process_first():
        dataset = open_dataset(recipe, seed, data_root=data_root, runs=runs, reporter=reporter)
    return Laboratory(recipe, dataset, seed=seed, root=runs, reporter=reporter, accelerator=accelerator)


def train_one(
    recipe: Recipe,
    name: str,
    *,
    runs: Path,
    data_root: Path | None,
    seed: int,
    reporter: Reporter,
    accelerator: Accelerator,
) -> Path:
    """Train and score one arm, and the teacher if it needs one; returns the folder of its stage.

    "pretraining" trains what the student learns first.

    Raises:
        UserError: If there is no arm of that name.
    """
    if name == PRETRAINING and recipe.student_pretraining is not None:
        arm = baseline_arm(recipe)
        stage = pretrain(_laboratory(recipe, seed, runs, data_root, reporter, accelerator), arm)
        assert stage is not None
        return stage.folder
    choices = {arm.name: arm for arm in (teacher_arm(recipe), baseline_arm(recipe), distilled_arm(recipe))}
    if name not in choices:
        first = [PRETRAINING] if recipe.student_pretraining is not None else []
        raise UserError(f"no arm is called `{name}`: choose from {', '.join([*first, *choices])}")
    arm = choices[name]
    lab = _laboratory(recipe, seed, runs, data_root, reporter, accelerator)
    if arm.role == "baseline":
        return _one(lab, arm, None).folder
    teacher = _teacher(lab, recipe)
    return teacher.folder if arm.role == "teacher" else _one(lab, arm, teacher).folder


def student_arms(recipe: Recipe, request: Request) -> list[Arm]:
    """The arms after the teacher, in the order they are trained.

    Raises:
        UserError: If an ablation is not known, or the baseline is left out from which an arm takes its pace.
    """
    arms = [baseline_arm(recipe)] if request.baseline else []
    arms.append(distilled_arm(recipe))
    if request.controls:
        arms += [control_arm(recipe, control) for control in recipe.controls]
    kinds = kinds_of(recipe.method)
    choices = ablations(kinds)
    paper = published_ablations(kinds) if request.ablations else {}
    for name in request.ablations:
        if name not in choices:
            raise UserError(f"{'+'.join(kinds)} has no ablation `{name}`: choose from {', '.join(sorted(choices))}")
        arms.append(ablation_arm(recipe, name, choices[name], paper.get(name)))
    if not request.baseline and (paced := [arm.name for arm in arms if arm.as_long_as is not None]):
        raise UserError(f"{one_of(paced)} takes its pace from the baseline: leave out --no-baseline")
    return arms


def open_dataset(recipe: Recipe, seed: int, *, data_root: Path | None, runs: Path, reporter: Reporter) -> Dataset:
    """The data of one experiment seed; a made world takes the recipe's world seed at the same position.

    Virtual points are made with it where a detector of the recipe reads them and the data set can make them.
    """
    dataset = build_dataset(recipe.dataset_for(seed), data_root=data_root, runs=runs, reporter=reporter)
    if isinstance(dataset, VirtualPointDataset) and reads_virtual_points(recipe):
        with reporter.bar("virtual points", 1) as bar:
            dataset.make_virtual_points(bar.update)
    return dataset


def run_seed(lab: Laboratory, recipe: Recipe, arms: Sequence[Arm]) -> Iterator[tuple[str, Stage]]:
    """Train and score the teacher and every arm of one seed; what the student learns first precedes its arms."""
    teacher = _teacher(lab, recipe)
    yield "teacher", teacher
    first = pretrain(lab, baseline_arm(recipe))
    if first is not None:
        yield PRETRAINING, first
    seconds: dict[str, float] = {}
    for arm in arms:
        stage = _one(lab, fixed_length(arm, seconds), teacher)
        assert stage.trained is not None
        # The pace, not the clock: another program on the machine must not shorten or stretch an arm of equal time.
        seconds[arm.name] = stage.trained["steps"] * stage.trained["step_s"]
        yield arm.name, stage


def _teacher(lab: Laboratory, recipe: Recipe) -> Stage:
    if recipe.teacher_checkpoint is None and recipe.teacher_training is not None:
        return _one(lab, teacher_arm(recipe), None)
    arm = teacher_arm(recipe)
    stage = arm_stage(lab, arm, None)
    adopt(lab, arm, stage, recipe.teacher_checkpoint)
    lab.reporter.say(score_line(arm, score(lab, arm, stage.folder)))
    return stage


def _one(lab: Laboratory, arm: Arm, teacher: Stage | None) -> Stage:
    parent = teacher if arm.method is not None else None
    stage = arm_stage(lab, arm, parent)
    train_arm(lab, arm, stage, parent)
    lab.reporter.say(score_line(arm, score(lab, arm, stage.folder)))
    return stage
