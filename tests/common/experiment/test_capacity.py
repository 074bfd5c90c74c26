"""What a machine is said to hold; no machine is asked but this one's /proc."""

import json
import os

import pytest
from bevkd_common.experiment import capacity as module
from bevkd_common.experiment.capacity import (
    UNKNOWN_MEMORY,
    Capacity,
    available_memory,
    capacity,
    expected_memory,
    fits,
    free_device,
    resident_memory,
)


@pytest.fixture
def machine(monkeypatch):
    """A machine with some cores and GPUs."""

    def make(cores, gpus=()):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(module, "available_cores", lambda: cores)
        monkeypatch.setattr(module, "visible_gpus", lambda: tuple(gpus))

    return make


@pytest.mark.parametrize(
    ("cores", "jobs", "width", "expected"),
    [
        (2, None, 2, Capacity(2, 1)),
        (16, None, 2, Capacity(2, 8)),
        (16, None, 6, Capacity(6, 2)),
        (2, None, 6, Capacity(2, 1)),
        (2, 4, 6, Capacity(4, 1)),  # as asked, although the cores are fewer
        (2, 4, 3, Capacity(3, 1)),
        (2, 1, 6, Capacity()),
        (1, None, 6, Capacity()),
        (8, None, 1, Capacity()),
    ],
)
def test_cores_are_shared_among_the_stages(machine, cores, jobs, width, expected):
    machine(cores)
    assert capacity(jobs, width=width, device="cpu", processes=1) == expected


def test_each_stage_has_one_gpu(machine):
    machine(16, ("0", "1", "5"))
    found = capacity(None, width=6, device="cuda", processes=1)
    assert found == Capacity(3, 5, ("0", "1", "5"), cpu=False)
    assert found.sentence == "up to 3 side by side, one GPU each"
    assert capacity(9, width=6, device="cuda", processes=1).jobs == 3
    assert capacity(None, width=1, device="cuda", processes=1) == Capacity(cpu=False)
    assert [free_device(found.devices, taken) for taken in ((), ("0",), ("1", "0"))] == ["0", "1", "5"]
    assert free_device((), ()) is None


def test_a_stage_of_several_processes_has_the_machine(machine):
    machine(16, ("0", "1"))
    assert capacity(None, width=6, device="cuda", processes=2) == Capacity(cpu=False)


def test_the_threads_that_the_user_sets_stay(machine, monkeypatch):
    machine(16)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = capacity(None, width=2, device="cpu", processes=1)
    assert found == Capacity(2, None)
    assert found.sentence == "up to 2 side by side, OMP_NUM_THREADS each"
    assert Capacity(2, 1).sentence == "up to 2 side by side, 1 thread each"
    assert Capacity().sentence == "one after the other"


def test_gpus_are_those_that_the_user_left_visible(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7")
    assert module.visible_gpus() == ("3", "GPU-7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert module.visible_gpus() == ("0", "1")


def test_a_stage_starts_if_its_memory_and_what_others_still_take_fit():
    assert fits(10, 5, [])  # the only stage is started whatever it needs
    assert fits(10, None, [(10, 0)])
    assert fits(10, 13, [(8, 5)])
    assert not fits(10, 12, [(8, 5)])
    assert fits(10, 10, [(8, 9)])  # it already holds more than was expected


def test_the_system_says_what_it_has():
    assert 1e8 < available_memory() < 1e13
    assert 1e6 < resident_memory(os.getpid()) < 1e11
    assert resident_memory(2**22 + 1) == 0


def test_the_largest_peak_of_a_kind_is_expected(tmp_path):
    assert expected_memory(tmp_path, "teacher") == UNKNOWN_MEMORY
    for name, memory in (("teacher-a", 5), ("teacher-b", 7), ("distilled-a", 9)):
        folder = tmp_path / ".stages" / name
        folder.mkdir(parents=True)
        (folder / "trained.json").write_text(
            json.dumps({"steps": 1, "seconds": 1.0, "step_s": 1.0, "parameters": 1, "memory": memory})
        )
    (tmp_path / ".stages" / "teacher-a" / "trained.json").write_text("{")
    assert expected_memory(tmp_path, "teacher") == 7
    assert expected_memory(tmp_path, "baseline") == UNKNOWN_MEMORY
