"""A package outside the workspace brings its own detector, method, data set and evaluator."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def bevkd(toy_package, tmp_path):
    def call(*arguments, code=0):
        environment = os.environ | {"PYTHONPATH": str(toy_package), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        result = subprocess.run(
            [sys.executable, "-m", "bevkd", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    return call


def test_it_runs_evaluates_and_reports(bevkd, tmp_path):
    assert "toy to toy\ttoy_method\t" in bevkd("recipes", "ls")
    flags = ("run", "toy_method", "--teacher", "big", "--student", "small", "--dataset", "toy", "--seeds", "2")
    output = bevkd(*flags)
    assert "hit rate" in output
    run = tmp_path / "runs" / "toy_method-toy"
    record = json.loads((run / "run.json").read_text())
    arms = ["teacher", "baseline", "distilled", "baseline_double_steps", "baseline_equal_time", "no_imitation"]
    assert {seed: list(stages) for seed, stages in record["stages"].items()} == {"0": arms, "1": arms}
    page = (run / "report" / "index.html").read_text()
    assert "synthetic" in page.lower()
    assert "Toy scores prove nothing." in page

    stage = tmp_path / "runs" / ".stages" / record["stages"]["0"]["distilled"]
    scored = json.loads((stage / "results.json").read_text())
    assert set(scored["results"]) == {"raw", "ema"}
    assert scored["primary"] == "ema"
    (stage / "results.json").unlink()
    assert "hit rate" in bevkd("eval", str(run))
    assert json.loads((stage / "results.json").read_text()) == scored

    again = bevkd(*flags)
    assert again.count("trained before") == 2 * len(arms)
    (run / "report" / "index.html").unlink()
    bevkd("report", str(run))
    assert (run / "report" / "index.html").is_file()


def test_another_recipe_under_the_same_name_is_refused(bevkd):
    flags = ("run", "toy_method", "--teacher", "big", "--student", "small", "--dataset", "toy", "--out", "runs/x")
    bevkd(*flags)
    message = bevkd(*flags, "--set", "student_training.steps=5", code=2)
    assert "another recipe" in message
    assert "Traceback" not in message
    bevkd(*flags, "--set", "student_training.steps=5", "--restart")
