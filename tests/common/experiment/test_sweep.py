"""Grids over the toy recipe: what is shared, what is written, and what comes of an interruption."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest
from bevkd_common.errors import UserError
from bevkd_common.experiment import sweep
from bevkd_common.experiment.capacity import Capacity
from bevkd_common.experiment.stages import STAGES

GRID = {"method.weight": [0.5, 2.0], "student_training.optimizer.lr": [0.01, 0.05]}
SEEDS = (0, 1)
FIRST = (
    "student={kind: toy_pretrainable, channels: 4}",
    "student_pretraining={steps: 2, batch: 2, optimizer: {lr: 0.01}}",
)


@pytest.fixture
def points(make_recipe, tmp_path):
    found = sweep.grid_points(lambda values: make_recipe(*FIRST, *values), GRID, tmp_path / "runs" / "grid")
    sweep.prepare_points(found)
    return found


@pytest.fixture
def make_jobs(points, reporter, accelerator):
    def make():
        return sweep.sweep_jobs(points, SEEDS, data_root=None, reporter=reporter, accelerator=accelerator)

    return make


@pytest.fixture
def collect(points, reporter, accelerator):
    def call():
        return sweep.collect(points, SEEDS, data_root=None, reporter=reporter, accelerator=accelerator)

    return call


def test_every_combination_is_a_point(points, tmp_path):
    assert [tuple(point.values.values()) for point in points] == [
        ("0.5", "0.01"), ("0.5", "0.05"), ("2.0", "0.01"), ("2.0", "0.05"),
    ]  # fmt: skip
    assert [point.recipe.method.weight for point in points] == [0.5, 0.5, 2.0, 2.0]
    assert [point.recipe.student_training.optimizer.lr for point in points] == [0.01, 0.05, 0.01, 0.05]
    assert [point.out.name for point in points] == ["grid-01", "grid-02", "grid-03", "grid-04"]
    with pytest.raises(UserError, match=r"--grid method\.weight: give it one value or more"):
        sweep.grid_points(lambda values: None, {"method.weight": []}, tmp_path)


def test_what_points_share_is_one_job_and_parents_come_first(make_jobs):
    jobs = make_jobs()
    # A teacher and a first training a seed; the student alone depends on its learning rate.
    assert Counter(job.arm for job in jobs.values()) == {
        "teacher": 2, "pretraining": 2, "baseline": 4, "distilled": 8,
    }  # fmt: skip
    seen = set()
    for name, job in jobs.items():
        assert set(job.parents) <= seen
        assert len(job.parents) == {"teacher": 0, "pretraining": 0, "baseline": 1, "distilled": 2}[job.arm]
        seen.add(name)


def test_a_sweep_survives_an_interruption_with_the_same_table(
    make_jobs, collect, points, reporter, accelerator, tmp_path, monkeypatch
):
    jobs = make_jobs()
    ran = []
    original = sweep.train_job

    def interrupted(machine, job, reporter):
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(job.key)
        original(machine, job, reporter)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train_job", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep.run_here(jobs, Capacity(), reporter)
    left = {name: job for name, job in make_jobs().items() if not job.done}
    assert len(left) == len(jobs) - 5
    assert not set(left) & set(ran)
    sweep.run_here(left, Capacity(), reporter)
    assert all(job.done for job in make_jobs().values())
    stages = {path.name for path in (tmp_path / "runs" / STAGES).iterdir()}
    assert stages == set(jobs)

    metric, rows = collect()
    assert metric == "AP"
    assert {path.name for path in (tmp_path / "runs" / STAGES).iterdir()} == stages
    out = tmp_path / "runs" / "grid"
    lines = sweep.write_table(metric, rows, out)
    assert len(lines) == 4
    kept = json.loads((out / "sweep.json").read_text())
    for row, point in zip(rows, kept["points"], strict=True):
        gains = [row.distilled.values[seed] - row.baseline.values[seed] for seed in SEEDS]
        assert row.gain.mean == pytest.approx(fmean(gains))
        assert row.gain.deviation == pytest.approx(stdev(gains))
        assert point["gain"] == {str(seed): gain for seed, gain in zip(SEEDS, gains, strict=True)}
    assert (out / "sweep.md").read_text().count("±") == 16
    assert rows[0].baseline.values == rows[2].baseline.values
    assert rows[0].teacher.values == rows[3].teacher.values
    # Each point is a run, whose report can be written.
    assert all((point.out / "run.json").is_file() for point in points)


SBATCH = """#!/usr/bin/env python3
import json, os, sys
log = os.environ["SBATCH_LOG"]
jobs = json.load(open(log)) if os.path.exists(log) else []
jobs.append(sys.argv[1:])
json.dump(jobs, open(log, "w"))
print(100 + len(jobs))
"""


def test_slurm_gets_a_job_a_stage_after_its_parents(make_jobs, tmp_path, monkeypatch):
    """Against a stand-in for sbatch that numbers what it is given."""
    binary = tmp_path / "bin" / "sbatch"
    binary.parent.mkdir()
    binary.write_text(SBATCH)
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_LOG", str(tmp_path / "log.json"))
    jobs = make_jobs()
    script = sweep.write_slurm(jobs, tmp_path / "runs" / "grid", gpus=2, options=["--gpus=2", "--time=1:00"])
    assert sweep.submit(script)
    given = json.loads((tmp_path / "log.json").read_text())
    assert len(given) == len(jobs)
    number = {name: str(101 + place) for place, name in enumerate(jobs)}
    for (name, job), arguments in zip(jobs.items(), given, strict=True):
        assert {"--parsable", "--requeue", "--gpus=2", "--time=1:00", f"--job-name={name}"} <= set(arguments)
        after = [a for a in arguments if a.startswith("--dependency")]
        expected = ":".join(number[parent] for parent in job.parents)
        assert after == ([f"--dependency=afterok:{expected}"] if job.parents else [])
        command = shlex.split(arguments[arguments.index("--wrap") + 1])
        assert command[1:5] == ["-m", "bevkd", "train", "--from"]
        assert command[command.index("--arm") + 1] == job.arm
        assert command[command.index("--seed") + 1] == str(job.seed)
        assert command[command.index("--gpus") + 1] == "2"


def test_without_slurm_the_script_is_left_to_the_user(make_jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    jobs = {name: replace(job, data_root=tmp_path) for name, job in make_jobs().items()}
    script = sweep.write_slurm(jobs, tmp_path, gpus=None, options=[])
    assert not sweep.submit(script)
    assert subprocess.run(["/bin/bash", "-n", str(script)], check=False).returncode == 0
    assert script.read_text().count("--data-root") == 16


def test_ray_that_is_not_installed_is_one_sentence(make_jobs, reporter, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="Ray is not installed: uv pip install"):
        sweep.run_on_ray(make_jobs(), gpus=None, reporter=reporter)


class TaskError(Exception):
    """As Ray raises it, with the cause."""

    def __init__(self, cause):
        self.cause = cause


class FakeRay:
    """What is used of Ray, in this process: a task runs once, after its parents, when it is asked for."""

    exceptions = SimpleNamespace(RayTaskError=TaskError)

    def init(self, **options):
        self.open = True

    def shutdown(self):
        self.open = False

    def remote(self, **resources):
        self.resources = resources

        def wrap(function):
            return type("Task", (), {"remote": staticmethod(partial(FakeTask, function))})

        return wrap

    def get(self, task):
        task.run()


class FakeTask:
    def __init__(self, function, command, folder, *parents):
        self.function, self.arguments, self.parents, self.done = function, (command, folder), parents, False

    def run(self):
        if self.done:
            return
        for parent in self.parents:
            parent.run()
        try:
            self.function(*self.arguments)
        except RuntimeError as error:
            raise TaskError(error) from None
        self.done = True


@pytest.fixture
def run_on_ray(make_jobs, reporter, monkeypatch):
    """Hand all jobs to the stand-in, where processes end with the codes given; what came of it."""

    def call(codes, gpus=None):
        ray = FakeRay()
        monkeypatch.setitem(sys.modules, "ray", ray)
        ran = []

        def run(command, **options):
            ran.append(command)
            return subprocess.CompletedProcess(command, codes.get(len(ran), 0), "", "first\nthe disk is full\n")

        jobs = make_jobs()
        monkeypatch.setattr(sweep.subprocess, "run", run)
        try:
            sweep.run_on_ray(jobs, gpus=gpus, reporter=reporter)
            failure = ""
        except UserError as error:
            failure = str(error)
        return SimpleNamespace(ray=ray, jobs=jobs, ran=ran, failure=failure)

    return call


def test_ray_runs_each_job_once_after_its_parents(run_on_ray):
    done = run_on_ray({}, gpus=2)
    assert not done.failure
    assert done.ray.resources["num_gpus"] == 2
    arms = Counter(command[command.index("--arm") + 1] for command in done.ran)
    assert arms == {"teacher": 2, "pretraining": 2, "baseline": 4, "distilled": 8}
    assert len({tuple(command) for command in done.ran}) == len(done.jobs) == 16
    assert not done.ray.open


def test_a_job_that_fails_on_ray_is_one_sentence(run_on_ray):
    done = run_on_ray({3: 2})
    assert re.search(r"baseline, seed 0 .*: the disk is full; the same command goes on", done.failure)
    assert [command[command.index("--arm") + 1] for command in done.ran] == ["teacher", "pretraining", "baseline"]
    assert not done.ray.open


def test_several_processes_are_commands_of_their_own(make_jobs, reporter, monkeypatch):
    ran = []

    def run(command, **options):
        ran.append(command)
        return subprocess.CompletedProcess(command, 2 if len(ran) == 3 else 0)

    monkeypatch.setattr(sweep.subprocess, "run", run)
    with pytest.raises(UserError, match=r"baseline, seed 0 .* failed; the same command goes on"):
        sweep.run_commands(make_jobs(), gpus=2, reporter=reporter)
    assert [command[-2:] for command in ran] == [["--gpus", "2"]] * 3
