"""Disks, files and signals that get in the way: one sentence, and nothing that was done is lost."""

import json
import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch
from bevkd_common.engine import train as train_module
from safetensors.torch import load_file

ALONE = ("--gpus", "0", "--jobs", "1")
RUN = ("run", "toy_method", "--dataset", "toy", *ALONE, "--out", "runs/x", "--set", "checkpoints.steps=5")
STAGES = {"teacher": 30, "baseline": 20, "distilled": 20}


@pytest.fixture
def bevkd(toy_command):
    return toy_command


def trained(folder):
    return {path.parent.name.partition("-")[0] for path in (folder / "runs" / ".stages").glob("*/trained.json")}


def one_sentence(err):
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    return lines[0]


@contextmanager
def room_for(size):
    """The largest file that may be written stands in for the room on a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (900, "runs/y cannot be written (File too large): choose another --out"),
        (3500, "the checkpoint of step 5 cannot"),
    ],
)
def test_a_full_disk(bevkd, tmp_path, size, message):
    assert bevkd(*RUN[:-1], "checkpoints.steps=5", "--set", "teacher_training.steps=4")[0] == 0
    before = trained(tmp_path)
    kept = (tmp_path / "runs" / "x" / "run.json").read_text()
    with room_for(size):
        code, _, err = bevkd(*RUN, "--out", "runs/y")
    assert code == 2
    assert message in one_sentence(err)
    assert trained(tmp_path) >= before
    assert (tmp_path / "runs" / "x" / "run.json").read_text() == kept
    assert bevkd(*RUN, "--out", "runs/y")[0] == 0
    assert trained(tmp_path) == set(STAGES)


def test_a_run_folder_that_cannot_be_written(bevkd, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file/run", "/proc/bevkd/run"):
        code, _, err = bevkd(*RUN, "--out", out)
        assert code == 2
        assert "cannot be written" in one_sentence(err)
    assert not (tmp_path / "runs").exists()


def test_another_recipe_under_an_old_name(bevkd, tmp_path):
    assert bevkd(*RUN)[0] == 0
    code, _, err = bevkd(*RUN, "--set", "method.weight=3.0")
    assert code == 2
    assert "holds a run of another recipe: choose another --out" in one_sentence(err)
    code, out, _ = bevkd(*RUN)
    assert (code, out.count("trained before")) == (0, 3)


def _stage(folder, kind):
    (stage,) = (folder / "runs" / ".stages").glob(f"{kind}-*")
    return stage


def _weights(folder, kind):
    (path,) = _stage(folder, kind).glob("checkpoints/*/raw.safetensors")
    return path


def test_a_finished_checkpoint_that_is_cut_off(bevkd, tmp_path):
    assert bevkd(*RUN)[0] == 0
    path = _weights(tmp_path, "teacher")
    path.write_bytes(path.read_bytes()[:-7])
    code, _, err = bevkd("eval", "runs/x", "--gpus", "0")
    assert code == 2
    assert "raw.safetensors is damaged" in one_sentence(err)


def test_a_checkpoint_of_another_architecture(bevkd, tmp_path):
    assert bevkd(*RUN)[0] == 0
    teacher, student = _weights(tmp_path, "teacher"), _weights(tmp_path, "baseline")
    student.write_bytes(teacher.read_bytes())
    code, _, err = bevkd("eval", "runs/x", "--gpus", "0")
    assert code == 2
    assert "holds weights of another architecture" in one_sentence(err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_step_and_the_same_command_goes_on(bevkd, tmp_path, monkeypatch, number):
    assert bevkd(*RUN, "--out", "whole/x")[0] == 0
    original = train_module._Training._optimizer_step

    def signalled(self, batches):
        if self.step == 12 and self.steps == STAGES["baseline"]:
            os.kill(os.getpid(), number)
        return original(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(train_module._Training, "_optimizer_step", signalled)
        code, _, err = bevkd(*RUN)
    assert code == 128 + number
    assert "student alone, seed 0: stopped after step 13 of 20, which is kept" in one_sentence(err)
    assert trained(tmp_path) == {"teacher"}
    code, out, _ = bevkd(*RUN)
    assert code == 0
    assert "student alone, seed 0: goes on from step 13 of 20" in out
    compared = 0
    for kind in STAGES:
        (whole,) = (tmp_path / "whole" / ".stages").glob(f"{kind}-*/checkpoints/*/raw.safetensors")
        found = load_file(_weights(tmp_path, kind))
        for name, value in load_file(whole).items():
            assert torch.equal(found[name], value)
            compared += 1
    assert compared >= 12


def test_a_loss_that_is_not_finite_keeps_the_samples(bevkd, tmp_path):
    code, _, err = bevkd(*RUN, "--set", "teacher_training.optimizer.lr=1e30")
    assert code == 2
    assert "the loss is not finite at step" in one_sentence(err)
    kept = json.loads((_stage(tmp_path, "teacher") / "non-finite.json").read_text())
    assert len(kept["samples"]) == 4


def test_a_sweep_that_is_asked_for_badly(bevkd):
    for flags, message in (
        ((), "--grid: name an axis and its values"),
        (("--grid", "method.weight=2"), "write a key and a list of values"),
        (("--grid", "method.weight"), "write a key and a list of values"),
        (("--grid", "method.weight=[a]"), "method.weight: must be a number"),
        (("--grid", "method.weight=[1]", "--on", "mars"), "choose local, slurm, ray"),
    ):
        code, _, err = bevkd("sweep", "toy_method", "--dataset", "toy", *flags)
        assert code == 2
        assert message in one_sentence(err)


def test_a_sweep_ends_in_a_table(bevkd, tmp_path, monkeypatch):
    command = ("sweep", "toy_method", "--dataset", "toy", "--gpus", "0", "--grid", "method.weight=[1.0, 2.0]")
    code, out, _ = bevkd(*command, "--seeds", "2", "--out", "runs/s")
    assert code == 0
    assert "2 points, 2 seeds: 8 stages, 8 to be trained" in out
    table = (tmp_path / "runs" / "s" / "sweep.md").read_text().splitlines()
    columns = ("AP, teacher", "AP, student alone", "AP, distilled", "AP, gain")
    assert table[0] == f"| method.weight | {' | '.join(columns)} |"
    assert len(table) == 4
    code, out, _ = bevkd(*command, "--seeds", "2", "--out", "runs/s")
    assert "8 stages, 0 to be trained" in out
    assert (tmp_path / "runs" / "s" / "sweep.md").read_text().splitlines() == table
    monkeypatch.setenv("PATH", str(tmp_path))
    grid = ("--grid", "method.weight=[1.0, 5.0]")
    code, out, _ = bevkd(*command[:-2], *grid, "--on", "slurm", "--out", "runs/t")
    assert code == 0
    assert "4 stages, 1 to be trained" in out
    jobs = (tmp_path / "runs" / "t" / "submit.sh").read_text()
    assert jobs.count("$(sbatch ") == 1
    assert "--gpus 0" in jobs


def test_damaged_files_of_a_run_are_one_sentence_of_every_command(bevkd, tmp_path):
    assert bevkd(*RUN)[0] == 0
    run, stage = tmp_path / "runs" / "x", _stage(tmp_path, "baseline")
    again = ("run", "--from", "runs/x/config.yaml", *ALONE)
    report, score = ("report", "runs/x", "--gpus", "0"), ("eval", "runs/x", "--gpus", "0")
    commands = {
        run / "run.json": (again, report, score),
        run / "config.yaml": (again, report, score),
        run / "environment.json": (report,),
        stage / "results.json": (again, report),
        stage / "trained.json": (again, report),
    }
    refused, record = 0, (run / "run.json").read_bytes()
    for path, affected in commands.items():
        sound = path.read_bytes()
        for damage in (
            b"",
            sound[: len(sound) // 2],
            b"\xff\xfe\x00" * 9,
            b"[" * 50_000,
            b'{"a": "\\ud800"}',
            b"[1]",
        ):
            for command in affected:
                # `run` writes it again, stage by stage.
                (run / "run.json").write_bytes(record)
                path.write_bytes(damage)
                code, _, err = bevkd(*command)
                assert code == 2, (path, damage[:9], command)
                # Of a recipe all problems are listed.
                said = err.splitlines()[0] if path.suffix == ".yaml" else one_sentence(err)
                assert str(path.relative_to(tmp_path)) in said
                assert path.read_bytes() == damage
                refused += 1
        path.write_bytes(sound)
    (run / "run.json").write_bytes(record)
    assert refused == 66
    (stage / "metrics.jsonl").write_bytes(b'{"step": null}\n[1]\n\xff\n{"step": 1, "terms": 3}\n')
    for command in (again, report, score):
        assert bevkd(*command)[0] == 0


def test_a_checkpoint_without_weights_is_one_sentence(bevkd, tmp_path):
    assert bevkd(*RUN)[0] == 0
    _weights(tmp_path, "teacher").unlink()
    code, _, err = bevkd("eval", "runs/x", "--gpus", "0")
    assert code == 2
    assert "lacks raw.safetensors: restore it" in one_sentence(err)
