"""A run that is there: its recipe, its arms, and the laboratories that can open its stages again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from bevkd_common.config.model import Config
from bevkd_common.config.reading.loading import load_recipe
from bevkd_common.config.recipe import Recipe
from bevkd_common.data.dataset import Dataset
from bevkd_common.engine.checkpoint import write_atomically
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import Arm, teacher_arm
from bevkd_common.experiment.build import build_dataset, dataset_spec
from bevkd_common.experiment.execution import open_dataset
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.record import RunFolder
from bevkd_common.experiment.request import Request, student_arms
from bevkd_common.experiment.scoring import score, score_line, submission
from bevkd_common.experiment.stages import STAGES
from bevkd_common.progress import Reporter


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder says, with the means to look at its models.

    Attributes:
        folder: The run.
        recipe: Resolved.
        plan: As it was printed.
        data: Fingerprint of the data by seed.
        arms: The teacher first.
        stages: Folder of each arm's stage, by seed and name of the arm.
        laboratories: By seed.
    """

    folder: RunFolder
    recipe: Recipe
    plan: list[str]
    data: Mapping[int, str]
    arms: list[Arm]
    stages: Mapping[int, Mapping[str, Path]]
    laboratories: Mapping[int, Laboratory]


def open_run(folder: RunFolder, reporter: Reporter, accelerator: Accelerator) -> FinishedRun:
    """Open a run.

    Raises:
        UserError: If it is no run, or its data is missing.
    """
    record = folder.read()
    recipe = load_recipe(folder.path / "config.yaml")
    seeds = tuple(int(seed) for seed in record["stages"])
    if not seeds:
        raise UserError(f"{folder.path} is not finished: run it again, finished stages are reused")
    data_root = Path(record["data_root"]) if record["data_root"] else None
    request = Request(
        out=folder.path,
        data_root=data_root,
        seeds=seeds,
        controls=record["controls"],
        ablations=tuple(record["ablations"]),
        baseline=record["baseline"],
    )
    laboratories = {}
    for seed in seeds:
        dataset = open_dataset(recipe, seed, data_root=data_root, runs=folder.root, reporter=reporter)
        laboratories[seed] = Laboratory(
            recipe, dataset, seed=seed, root=folder.root, reporter=reporter, accelerator=accelerator
        )
    stages = {
        int(seed): {name: folder.root / STAGES / stage for name, stage in stages.items()}
        for seed, stages in record["stages"].items()
    }
    # A run that was interrupted has some of its arms; what all seeds have can be shown.
    arms = [
        arm
        for arm in (teacher_arm(recipe), *student_arms(recipe, request))
        if all(arm.name in stages[seed] for seed in seeds)
    ]
    data = {int(seed): fingerprint for seed, fingerprint in record["data"].items()}
    return FinishedRun(folder, recipe, record["plan"], data, arms, stages, laboratories)


def score_again(folder: RunFolder, reporter: Reporter, accelerator: Accelerator) -> None:
    """Evaluate every model of a run, whatever scores are there.

    Raises:
        UserError: If the run or its data is incomplete.
    """
    run = open_run(folder, reporter, accelerator)
    for seed, lab in run.laboratories.items():
        for arm in run.arms:
            reporter.say(score_line(arm, score(lab, arm, run.stages[seed][arm.name], again=True)))


@dataclass(frozen=True)
class OtherSplit:
    """Data for a submission that a run was not made with, such as a test split.

    Attributes:
        split: As the data set names it.
        version: Of the data set; None keeps the run's.
        data_root: Its folder; None keeps the run's.
    """

    split: str
    version: str | None = None
    data_root: Path | None = None


def write_submissions(
    folder: RunFolder, reporter: Reporter, accelerator: Accelerator, out: Path, other: OtherSplit | None = None
) -> None:
    """Write the official submission of every model of a run.

    Args:
        folder: The run.
        reporter: Where files are named.
        accelerator: Device.
        out: Folder for the files, one a model and seed.
        other: What is submitted in place of the run's validation split.

    Raises:
        UserError: If the run or the data is incomplete, or the data set has no such submission.
    """
    run = open_run(folder, reporter, accelerator)
    for seed, lab in run.laboratories.items():
        config, dataset = run.recipe.dataset_for(seed), lab.dataset
        if other is not None:
            config, dataset = _open_other(folder, config, other, reporter)
        for arm in run.arms:
            content = submission(lab, arm, run.stages[seed][arm.name], config, dataset)
            path = out / f"{arm.name}-seed{seed}.json"
            if accelerator.is_main_process:
                write_atomically(path, json.dumps(content))
            reporter.say(f"submission: {path}")


def _open_other(folder: RunFolder, config: Config, other: OtherSplit, reporter: Reporter) -> tuple[Config, Dataset]:
    keys = dataset_spec(config).split_keys
    if keys is None:
        raise UserError(f"{dataset_spec(config).kind} data have no split {other.split!r}: leave out --split")
    version, split = keys
    changes = {split: other.split} | ({version: other.version} if other.version else {})
    chosen = config.model_copy(update=changes)
    root = other.data_root or Path(folder.read()["data_root"])
    return chosen, build_dataset(chosen, data_root=root, runs=folder.root, reporter=reporter)
