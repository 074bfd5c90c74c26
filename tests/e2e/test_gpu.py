"""What only GPUs can show."""

import json
import subprocess

import pytest
import torch

OVERRIDES = [
    "dataset.world.train_scenes=4",
    "dataset.world.val_scenes=2",
    "dataset.world.keyframes_per_scene=2",
    "student_pretraining=null",
    "student_training.steps=11",
    "student_training.batch=8",
    "student_training.precision=fp32",
    "student_training.optimizer.lr=2e-5",
    "student_training.batch_norm=synchronized",
]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_with_synchronized_batch_norm_learn_what_one_does(train_command, tmp_path):
    losses = []
    for gpus in (1, 2):
        folder = tmp_path / str(gpus)
        folder.mkdir()
        subprocess.run(train_command("baseline", gpus, OVERRIDES), cwd=folder, check=True)
        (log,) = (folder / "runs" / ".stages").glob("baseline-*/metrics.jsonl")
        losses.append([json.loads(line)["loss"] for line in log.read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len(losses[0]) == 3
