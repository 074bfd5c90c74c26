"""Two processes against one at the same effective batch, through the command and torchrun."""

import json
import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

SMALL = [
    "dataset.world.train_scenes=2",
    "dataset.world.val_scenes=2",
    "dataset.world.keyframes_per_scene=2",
    "dataset.world.lidar_azimuths=180",
    "teacher_training.steps=2",
    "student_pretraining=null",
    "student_training.steps=11",
    "student_training.batch=4",
    "student_training.batch_norm=frozen",
    "student_training.precision=fp32",
    # Adam turns rounding in a gradient near zero into a whole step.
    "student_training.optimizer.lr=2e-5",
]


@pytest.fixture(scope="module")
def train(train_command):
    def call(folder, arm, gpus):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = train_command(arm, gpus, SMALL)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def folders(train, tmp_path_factory):
    """The distilled arm by one process, and by two with the same teacher."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    train(one, "teacher", 0)
    shutil.copytree(one, two, dirs_exist_ok=True)
    train(one, "distilled", 0)
    train(two, "distilled", 2)
    return one, two


def _stage(folder):
    (stage,) = (folder / "runs" / ".stages").glob("distilled-*")
    return stage


def test_two_processes_learn_what_one_does(folders):
    one, two = folders
    logs = [
        [json.loads(line) for line in (_stage(f) / "metrics.jsonl").read_text().splitlines()] for f in (one, two)
    ]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] == [1, 10, 11]
    compared = 0
    for alone, shared in zip(*logs, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        for name, term in alone["terms"].items():
            assert shared["terms"][name]["value"] == pytest.approx(term["value"], rel=1e-5), name
            compared += 1
    assert compared >= 15
    weights = [load_file(_stage(f) / "checkpoints" / "step-000011" / "raw.safetensors") for f in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-5, rtol=0)
    assert len(weights[0]) > 200


def test_two_processes_score_what_one_does(train, folders, tmp_path):
    """The very same weights."""
    one, _ = folders
    shutil.copytree(one, tmp_path, dirs_exist_ok=True)
    (_stage(tmp_path) / "results.json").unlink()
    said = train(tmp_path, "distilled", 2)
    results = [json.loads((_stage(f) / "results.json").read_text())["results"] for f in (one, tmp_path)]
    assert results[1] == results[0]
    assert results[0]["raw"]["counts"]["samples"] == 4
    # Said once, by the first process.
    assert said.count("student distilled: mAP") == 1
