"""A run that is there: its recipe, its arms, and the laboratories that can open its stages again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from bevkd_common.config.loading import load_recipe
from bevkd_common.config.recipe import Recipe
from bevkd_common.engine.checkpoint import write_atomically
from bevkd_common.engine.progress import Reporter
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import Arm, teacher_arm
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.record import RunFolder
from bevkd_common.experiment.run import Request, open_dataset, score_line, student_arms
from bevkd_common.experiment.stages import STAGES


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


def score_again(
    folder: RunFolder, reporter: Reporter, accelerator: Accelerator, *, submissions: Path | None = None
) -> None:
    """Evaluate every model of a run, whatever scores are there.

    Args:
        folder: The run.
        reporter: Where scores are said.
        accelerator: Device.
        submissions: Folder for the official submission of each model and seed; None writes none.

    Raises:
        UserError: If the run or its data is incomplete, or the data set has no official submission.
    """
    run = open_run(folder, reporter, accelerator)
    for seed, lab in run.laboratories.items():
        for arm in run.arms:
            stage = run.stages[seed][arm.name]
            reporter.say(score_line(arm, lab.score(arm, stage, again=True)))
            if submissions is not None:
                submission = lab.submission(arm, stage)
                if submission is None:
                    raise UserError(f"{lab.dataset.name} has no official submission: leave out --submission")
                path = submissions / f"{arm.name}-seed{seed}.json"
                write_atomically(path, json.dumps(submission))
                reporter.say(f"submission: {path}")
