"""A training that is killed in the middle, against one left in peace."""

import os
import re
import signal
import subprocess
import sys
import time

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
COMMAND = [
    sys.executable, "-m", "bevkd", "train", "distillbev", "--student", "bevdet", "--arm", "baseline",
    "--gpus", "0", "--out", "runs/x", *(part for value in OVERRIDES for part in ("--set", value)),
]  # fmt: skip
PATIENCE_S = 120


def _start(folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        COMMAND, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(folder):
    process = _start(folder)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def _newest(folder):
    found = (folder / "runs" / ".stages").glob("baseline-*/checkpoints/step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    peaceful, killed = tmp_path / "peaceful", tmp_path / "killed"
    for folder in (peaceful, killed):
        folder.mkdir()
    _finish(peaceful)
    for threshold in (EVERY, 4 * EVERY):
        process = _start(killed)
        deadline = time.monotonic() + PATIENCE_S
        while _newest(killed) < threshold:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached = _newest(killed)
        assert threshold <= reached < STEPS
    said = _finish(killed)
    assert int(re.search(r"goes on from step (\d+) of 40", said)[1]) == reached
    (expected,) = (peaceful / "runs" / ".stages").glob("baseline-*/checkpoints/step-*/raw.safetensors")
    (found,) = (killed / "runs" / ".stages").glob("baseline-*/checkpoints/step-*/raw.safetensors")
    weights = load_file(found)
    for name, value in load_file(expected).items():
        assert torch.equal(weights[name], value), name
    assert len(weights) > 200
