"""A grid over a recipe: every stage that its points share is trained once, here or one stage a job elsewhere."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bevkd_common.config.reading.loading import dump
from bevkd_common.config.recipe import Recipe
from bevkd_common.data.dataset import Dataset
from bevkd_common.engine.checkpoint import write_atomically
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import Arm, baseline_arm, distilled_arm, teacher_arm
from bevkd_common.experiment.identity import arm_stage, pretraining_stage
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.record import CONFIG
from bevkd_common.experiment.run import PRETRAINING, Request, open_dataset, run_experiment, train_one
from bevkd_common.experiment.scoring import score
from bevkd_common.experiment.stages import STAGES, Stage
from bevkd_common.progress import Reporter, SilentReporter
from bevkd_common.report.statistics import Spread, spread


@dataclass(frozen=True)
class Point:
    """One recipe of the grid.

    Attributes:
        values: Key and value of each axis, as given.
        recipe: With them.
        out: Its run folder.
    """

    values: Mapping[str, str]
    recipe: Recipe
    out: Path


@dataclass(frozen=True)
class Job:
    """One stage to train.

    Attributes:
        stage: Name of its folder; equal stages of several points are one job.
        point: The first point that needs it.
        seed: Of the experiment.
        arm: "teacher", "pretraining", "baseline" or "distilled".
        parents: Jobs that must be done before.
        done: Whether it was trained before.
    """

    stage: str
    point: Point
    seed: int
    arm: str
    parents: tuple[str, ...]
    done: bool


def grid_points(
    load: Callable[[Sequence[str]], Recipe], grid: Mapping[str, Sequence[Any]], out: Path
) -> list[Point]:
    """Every combination of the values.

    Args:
        load: Makes the recipe from overrides `a.b=c`.
        grid: Dotted key to its values.
        out: Folder of the sweep; those of its points lie beside it.

    Raises:
        UserError: If an axis has no values, or a combination is no recipe.
    """
    for key, values in grid.items():
        if not values:
            raise UserError(f"--grid {key}: give it one value or more, as {key}=[1, 2]")
    points = []
    for number, values in enumerate(itertools.product(*grid.values()), start=1):
        chosen = {key: json.dumps(value) for key, value in zip(grid, values, strict=True)}
        recipe = load([f"{key}={value}" for key, value in chosen.items()])
        points.append(Point(chosen, recipe, out.with_name(f"{out.name}-{number:02d}")))
    return points


def sweep_jobs(
    points: Sequence[Point],
    seeds: Sequence[int],
    *,
    data_root: Path | None,
    reporter: Reporter,
    accelerator: Accelerator,
) -> dict[str, Job]:
    """The stages of all points and seeds, each once, parents first.

    Raises:
        UserError: If the data is missing.
    """
    jobs: dict[str, Job] = {}
    for point in points:
        for seed in seeds:
            dataset = open_dataset(
                point.recipe, seed, data_root=data_root, runs=point.out.parent, reporter=reporter
            )
            for job in _jobs_of(point, seed, dataset, reporter, accelerator):
                jobs.setdefault(job.stage, job)
    return jobs


def _jobs_of(
    point: Point, seed: int, dataset: Dataset, reporter: Reporter, accelerator: Accelerator
) -> Iterator[Job]:
    recipe = point.recipe
    root = point.out.parent
    lab = Laboratory(recipe, dataset, seed=seed, root=root, reporter=reporter, accelerator=accelerator)

    def job(arm: str, stage: Stage, *parents: Stage) -> Job:
        done = stage.trained is not None
        return Job(stage.folder.name, point, seed, arm, tuple(parent.folder.name for parent in parents), done)

    teacher = arm_stage(lab, teacher_arm(recipe), None)
    yield job("teacher", teacher)
    baseline = baseline_arm(recipe)
    first: tuple[Stage, ...] = ()
    if baseline.pretraining is not None:
        first = (pretraining_stage(lab, baseline.detector, baseline.pretraining),)
        yield job(PRETRAINING, first[0])
    yield job("baseline", arm_stage(lab, baseline, None), *first)
    yield job("distilled", arm_stage(lab, distilled_arm(recipe), teacher), teacher, *first)


def run_job(job: Job, *, data_root: Path | None, reporter: Reporter, accelerator: Accelerator) -> None:
    """Train and score the stage of one job, from where an interruption left it."""
    train_one(
        job.point.recipe,
        job.arm,
        runs=job.point.out.parent,
        data_root=data_root,
        seed=job.seed,
        reporter=reporter,
        accelerator=accelerator,
    )


def run_here(
    jobs: Mapping[str, Job], *, data_root: Path | None, reporter: Reporter, accelerator: Accelerator
) -> None:
    """All jobs, one after the other."""
    for number, job in enumerate(jobs.values(), start=1):
        reporter.say(f"job {number} of {len(jobs)}: {_title(job)}")
        run_job(job, data_root=data_root, reporter=reporter, accelerator=accelerator)


def run_commands(jobs: Mapping[str, Job], *, data_root: Path | None, gpus: int | None, reporter: Reporter) -> None:
    """All jobs, one after the other, each a command that starts its own processes.

    Raises:
        UserError: If a job fails; what it said stands above.
    """
    for number, job in enumerate(jobs.values(), start=1):
        reporter.say(f"job {number} of {len(jobs)}: {_title(job)}")
        if subprocess.run(_command(job, data_root, gpus), check=False).returncode:
            raise UserError(f"{_title(job)} failed; the same command goes on")


def run_on_ray(jobs: Mapping[str, Job], *, data_root: Path | None, gpus: int | None, reporter: Reporter) -> None:
    """One Ray task a job, on the cluster that `RAY_ADDRESS` names or on a new one on this machine.

    All nodes must see the folder of the runs, and have the same packages.

    Raises:
        UserError: If Ray is not installed, or a job fails.
    """
    # Jobs are processes of this very Python; Ray must not build an environment of its own under `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: uv pip install 'bevkd-common[ray]'") from None
    ray.init(log_to_driver=False, logging_level="error")
    try:
        import torch

        devices = (1 if torch.cuda.is_available() else 0) if gpus is None else gpus

        @ray.remote(num_cpus=1, num_gpus=devices)  # type: ignore[untyped-decorator]
        def task(command: list[str], folder: str, *parents: object) -> None:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])

        started: dict[str, Any] = {}
        for name, job in jobs.items():
            parents = [started[parent] for parent in job.parents]
            started[name] = task.remote(_command(job, data_root, gpus), str(Path.cwd()), *parents)
        with reporter.bar("jobs", len(jobs)) as bar:
            for number, (name, reference) in enumerate(started.items(), start=1):
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    reason = str(error.cause)
                    raise UserError(f"{_title(jobs[name])}: {reason}; the same command goes on") from None
                bar.update(number, note=_title(jobs[name]))
    finally:
        ray.shutdown()


def write_slurm(
    jobs: Mapping[str, Job], out: Path, *, data_root: Path | None, gpus: int | None, options: Sequence[str]
) -> Path:
    """A script that hands every job that is not done to Slurm, each after its parents; returns its path.

    Args:
        jobs: All jobs.
        out: Folder of the sweep.
        data_root: Of the data set.
        gpus: Processes of each job; None leaves it to the job.
        options: For `sbatch`, such as `--gpus=1`.
    """
    waiting = {name: job for name, job in jobs.items() if not job.done}
    number = {name: f"job{place}" for place, name in enumerate(waiting, start=1)}
    lines = [
        "#!/usr/bin/env bash",
        "# A job a stage; run the sweep's command again when they are done.",
        "set -eu",
    ]
    for name, job in waiting.items():
        parents = [f"${number[parent]}" for parent in job.parents if parent in number]
        after = f"--dependency=afterok:{':'.join(parents)} " if parents else ""
        script = shlex.quote(shlex.join(_command(job, data_root, gpus)))
        extra = f"{shlex.join(options)} " if options else ""
        lines.append(f"# {_title(job)}")
        lines.append(
            f"{number[name]}=$(sbatch --parsable --job-name={name} --requeue {extra}{after}--wrap {script})"
        )
    path = out / "submit.sh"
    write_atomically(path, "\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def submit(path: Path) -> bool:
    """Run the script where Slurm is; False where it is not."""
    if shutil.which("sbatch") is None:
        return False
    subprocess.run([str(path)], check=True)
    return True


def prepare_points(points: Sequence[Point]) -> None:
    """Write each point's recipe where its jobs find it."""
    for point in points:
        write_atomically(point.out / CONFIG, dump(point.recipe))


def _command(job: Job, data_root: Path | None, gpus: int | None) -> list[str]:
    recipe = job.point.out / CONFIG
    command = [sys.executable, "-m", "bevkd", "train", "--from", str(recipe), "--arm", job.arm]
    command += ["--seed", str(job.seed), "--out", str(job.point.out)]
    command += ["--data-root", str(data_root)] if data_root else []
    return command + ([] if gpus is None else ["--gpus", str(gpus)])


def _title(job: Job) -> str:
    values = ", ".join(f"{key} {value}" for key, value in job.point.values.items())
    return f"{job.arm}, seed {job.seed} ({values})"


COLUMNS = {"teacher": "teacher", "baseline": "student alone", "distilled": "distilled", "gain": "gain"}
"""Spreads of a `Row`, with their titles."""


@dataclass(frozen=True)
class Row:
    """What one point scored, over the seeds.

    Attributes:
        values: Of the grid.
        teacher: Main metric of the teacher.
        baseline: Of the student alone.
        distilled: Of the distilled student.
        gain: Their differences, seed by seed.
    """

    values: Mapping[str, str]
    teacher: Spread
    baseline: Spread
    distilled: Spread
    gain: Spread


def collect(
    points: Sequence[Point],
    seeds: Sequence[int],
    *,
    data_root: Path | None,
    reporter: Reporter,
    accelerator: Accelerator,
) -> tuple[str, list[Row]]:
    """Name of the main metric, and a row a point; every point becomes a run of its own."""
    rows = []
    metric = ""
    for point in points:
        request = Request(out=point.out, data_root=data_root, seeds=tuple(seeds))
        folder = run_experiment(point.recipe, request, SilentReporter(), accelerator)
        scores: dict[str, dict[int, float]] = {"teacher": {}, "baseline": {}, "distilled": {}}
        for seed in seeds:
            dataset = open_dataset(
                point.recipe, seed, data_root=data_root, runs=point.out.parent, reporter=SilentReporter()
            )
            lab = Laboratory(
                point.recipe, dataset, seed=seed, root=folder.root, reporter=reporter, accelerator=accelerator
            )
            for arm in (teacher_arm(point.recipe), baseline_arm(point.recipe), distilled_arm(point.recipe)):
                metric, scores[arm.name][seed] = _main_score(lab, arm, folder.read()["stages"][str(seed)][arm.name])
        gain = {seed: scores["distilled"][seed] - scores["baseline"][seed] for seed in seeds}
        spreads = {column: spread(values) for column, values in (scores | {"gain": gain}).items()}
        rows.append(Row(point.values, **spreads))
    return metric, rows


def _main_score(lab: Laboratory, arm: Arm, stage: str) -> tuple[str, float]:
    scores = score(lab, arm, lab.root / STAGES / stage)
    results = scores.results[scores.primary]
    return results.primary, results.score


def write_table(metric: str, rows: Sequence[Row], out: Path, name: str = "sweep") -> list[tuple[str, ...]]:
    """Write `<name>.json` and `<name>.md` into a folder; returns the lines of the table."""
    keys = list(rows[0].values)
    lines = [
        (*(row.values[key] for key in keys), *(_with_deviation(getattr(row, column)) for column in COLUMNS))
        for row in rows
    ]
    heading = (*keys, *(f"{metric}, {title}" for title in COLUMNS.values()))
    text = [
        f"| {' | '.join(heading)} |",
        f"|{'---|' * len(heading)}",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]
    write_atomically(out / f"{name}.md", "\n".join(text) + "\n")
    content = {
        "metric": metric,
        "points": [
            {"values": row.values} | {column: getattr(row, column).values for column in COLUMNS} for row in rows
        ],
    }
    write_atomically(out / f"{name}.json", json.dumps(content, indent=1) + "\n")
    return lines


def _with_deviation(values: Spread) -> str:
    deviation = "" if values.deviation is None else f" ± {values.deviation:.4f}"
    return f"{values.mean:.4f}{deviation}"
