"""A training that is killed in the middle, against one left in peace."""

import os
import re
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

EVERY, STEPS = 5, 40
OVERRIDES = [
    "dataset.world.train_scenes=2",
    "dataset.world.val_scenes=2",
    "dataset.world.keyframes_per_scene=2",
    "dataset.world.lidar_azimuths=180",
    "student_pretraining=null",
    f"student_training.steps={STEPS}",
    f"checkpoints.steps={EVERY}",
]
PATIENCE_S = 120


@pytest.fixture
def start(train_command):
    def call(folder):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            train_command("baseline", 0, OVERRIDES), cwd=folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return call


@pytest.fixture
def finish(start):
    def call(folder):
        process = start(folder)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return said

    return call


def _newest(folder):
    found = (folder / "runs" / ".stages").glob("baseline-*/checkpoints/step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def test_a_killed_training_ends_with_the_same_weights(start, finish, tmp_path):
    peaceful, killed = tmp_path / "peaceful", tmp_path / "killed"
    for folder in (peaceful, killed):
        folder.mkdir()
    finish(peaceful)
    for threshold in (EVERY, 4 * EVERY):
        process = start(killed)
        deadline = time.monotonic() + PATIENCE_S
        while _newest(killed) < threshold:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached = _newest(killed)
        assert threshold <= reached < STEPS
    said = finish(killed)
    assert int(re.search(r"goes on from step (\d+) of 40", said)[1]) == reached
    (expected,) = (peaceful / "runs" / ".stages").glob("baseline-*/checkpoints/step-*/raw.safetensors")
    (found,) = (killed / "runs" / ".stages").glob("baseline-*/checkpoints/step-*/raw.safetensors")
    weights = load_file(found)
    for name, value in load_file(expected).items():
        assert torch.equal(weights[name], value), name
    assert len(weights) > 200
