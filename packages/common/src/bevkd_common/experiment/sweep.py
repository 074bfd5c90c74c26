"""A grid over a recipe: every stage that its points share is trained once, here or one stage a job elsewhere."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bevkd_common.config.reading.loading import dump
from bevkd_common.config.recipe import Recipe
from bevkd_common.engine.checkpoint import write_atomically
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import Arm, baseline_arm, distilled_arm, teacher_arm
from bevkd_common.experiment.capacity import Capacity, expected_memory
from bevkd_common.experiment.execution import open_laboratory, train_job
from bevkd_common.experiment.graph import Job
from bevkd_common.experiment.identity import identify
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.record import CONFIG
from bevkd_common.experiment.request import Request, requested_stages
from bevkd_common.experiment.run import run_experiment
from bevkd_common.experiment.scoring import score
from bevkd_common.experiment.side_by_side import run_side_by_side
from bevkd_common.experiment.stages import STAGES
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
    """The stages of all points and seeds by the name of their folders, each once, parents first.

    Raises:
        UserError: If the data is missing.
    """
    jobs: dict[str, Job] = {}
    for point, seed in itertools.product(points, seeds):
        root = point.out.parent
        lab = open_laboratory(point.recipe, seed, root, data_root, reporter, accelerator)
        graph = requested_stages(point.recipe, Request(point.out, data_root, (seed,)))
        found = identify(lab, graph)
        for name, node in graph.items():
            stage = found[name]
            job = Job(
                key=stage.folder.name,
                title=_title(name, seed, point),
                parents=tuple(found[parent].folder.name for parent in node.parents),
                recipe=point.out / CONFIG,
                out=point.out,
                data_root=data_root,
                arm=name,
                seed=seed,
                memory=expected_memory(root, stage.kind),
                done=stage.trained is not None,
            )
            jobs.setdefault(job.key, job)
    return jobs


def run_here(jobs: Mapping[str, Job], machine: Capacity, reporter: Reporter) -> None:
    """All jobs on this machine: side by side, or one after the other in this process."""
    if machine.jobs > 1:
        run_side_by_side(jobs, partial(train_job, machine), machine, reporter)
        return
    for number, job in enumerate(jobs.values(), start=1):
        reporter.say(f"job {number} of {len(jobs)}: {job.title}")
        train_job(machine, job, reporter)


def run_commands(jobs: Mapping[str, Job], *, gpus: int | None, reporter: Reporter) -> None:
    """All jobs, one after the other, each a command that starts its own processes.

    Raises:
        UserError: If a job fails; what it said stands above.
    """
    for number, job in enumerate(jobs.values(), start=1):
        reporter.say(f"job {number} of {len(jobs)}: {job.title}")
        if subprocess.run(job.command(gpus), check=False).returncode:
            raise UserError(f"{job.title} failed; the same command goes on")


def run_on_ray(jobs: Mapping[str, Job], *, gpus: int | None, reporter: Reporter) -> None:
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
            started[name] = task.remote(job.command(gpus), str(Path.cwd()), *parents)
        with reporter.bar("jobs", len(jobs)) as bar:
            for number, (name, reference) in enumerate(started.items(), start=1):
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    reason = str(error.cause)
                    raise UserError(f"{jobs[name].title}: {reason}; the same command goes on") from None
                bar.update(number, note=jobs[name].title)
    finally:
        ray.shutdown()


def write_slurm(jobs: Mapping[str, Job], out: Path, *, gpus: int | None, options: Sequence[str]) -> Path:
    """A script that hands every job that is not done to Slurm, each after its parents; returns its path.

    Args:
        jobs: All jobs.
        out: Folder of the sweep.
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
        script = shlex.quote(shlex.join(job.command(gpus)))
        extra = f"{shlex.join(options)} " if options else ""
        lines.append(f"# {job.title}")
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


def _title(name: str, seed: int, point: Point) -> str:
    values = ", ".join(f"{key} {value}" for key, value in point.values.items())
    return f"{name}, seed {seed} ({values})"


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
            lab = open_laboratory(point.recipe, seed, folder.root, data_root, SilentReporter(), accelerator)
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
