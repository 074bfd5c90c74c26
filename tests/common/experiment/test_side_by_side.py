"""Processes side by side: their order, messages, failures and ends. What they do is in `working.py`."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from bevkd_common.errors import TrainingStoppedError, UserError
from bevkd_common.experiment.capacity import Capacity
from bevkd_common.experiment.graph import Job
from bevkd_common.experiment.side_by_side import PipeReporter, run_side_by_side

PATIENCE_S = 120


def job(key, folder, *parents, memory=0):
    return Job(key, f"stage {key}", parents, folder / "config.yaml", folder, None, key, 0, memory)


def jobs_of(*jobs):
    return {one.key: one for one in jobs}


class Bars:
    """Keeps messages and bars."""

    def __init__(self):
        self.said, self.bars = [], []

    def say(self, message):
        self.said.append(message)

    @contextmanager
    def bar(self, title, total):
        kept = {"title": title, "total": total, "updates": [], "open": True}
        self.bars.append(kept)
        yield type(
            "Bar", (), {"update": lambda _, done, total=None, note="": kept["updates"].append((done, note))}
        )()
        kept["open"] = False


@pytest.fixture
def working(monkeypatch):
    """The module `working`, importable here and in the processes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("working")


@pytest.fixture
def bars():
    return Bars()


def test_two_run_at_once_and_a_child_after_its_parents(working, tmp_path, bars):
    jobs = jobs_of(job("a", tmp_path), job("b", tmp_path), job("c", tmp_path, "a", "b"))
    order = []
    run_side_by_side(jobs, working.meet, Capacity(2, 1), bars, lambda one: order.append(one.key))
    assert sorted(order[:2]) == ["a", "b"]
    assert order[2] == "c"
    assert sorted(bars.said) == [f"{name} with 1 threads" for name in ("a", "b", "c")]
    assert {bar["title"] for bar in bars.bars} == {"work a", "work b", "work c"}
    assert all(bar["updates"][-1] == (5, "loss 5") and not bar["open"] for bar in bars.bars)


def test_memory_keeps_the_second_waiting(working, tmp_path, bars):
    jobs = jobs_of(job("x", tmp_path, memory=1 << 60), job("y", tmp_path, memory=1 << 60))
    run_side_by_side(jobs, working.alone, Capacity(2, 1), bars)
    assert sorted(bars.said) == ["x alone", "y alone"]


def test_an_error_is_one_sentence_and_stops_the_others(working, tmp_path, bars):
    jobs = jobs_of(job("slow", tmp_path), job("fails", tmp_path), job("later", tmp_path, "slow"))
    with pytest.raises(UserError, match=r"^stage fails: the disk is full$"):
        run_side_by_side(jobs, working.slow_or_failing, Capacity(2, 1), bars)
    assert (tmp_path / "slow").read_text() == f"stopped by {int(signal.SIGTERM)}"
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("crash", "ended with exit code 1; see its messages above"),
        ("killed", "killed its process, as it does when"),
    ],
)
def test_a_process_that_ends_without_a_word_is_an_error(working, tmp_path, bars, key, message, capfd):
    with pytest.raises(UserError, match=message):
        run_side_by_side(jobs_of(job(key, tmp_path)), working.slow_or_failing, Capacity(2, 1), bars)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_process_after_its_step(working, tmp_path, bars, number):
    jobs = jobs_of(job("slow", tmp_path), job("slow2", tmp_path), job("later", tmp_path, "slow"))
    threading.Thread(target=_signal_when, args=(tmp_path, ("slow.on", "slow2.on"), number), daemon=True).start()
    with pytest.raises(TrainingStoppedError, match=r"slow2? stopped; slow2? stopped") as caught:
        run_side_by_side(jobs, working.slow_or_failing, Capacity(2, 1), bars)
    assert caught.value.signal == number
    assert [(tmp_path / name).read_text() for name in ("slow", "slow2")] == [
        f"stopped by {int(signal.SIGTERM)}"
    ] * 2
    assert not (tmp_path / "later").exists()


def _signal_when(folder, names, number):
    _wait_for(lambda: all((folder / name).exists() for name in names))
    os.kill(os.getpid(), number)


def _wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import working
from bevkd_common.experiment.capacity import Capacity
from bevkd_common.experiment.graph import Job
from bevkd_common.experiment.side_by_side import run_side_by_side
from bevkd_common.progress import SilentReporter
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    job = Job("slow", "slow", (), folder / "config.yaml", folder, None, "slow", 0)
    run_side_by_side({"slow": job}, working.slow_or_failing, Capacity(2, 1), SilentReporter())
"""


def test_a_process_stops_after_its_step_when_its_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)])
    _wait_for((tmp_path / "slow.on").exists)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_for((tmp_path / "slow").exists)
    assert (tmp_path / "slow").read_text() == f"stopped by {int(signal.SIGTERM)}"
    child = int((tmp_path / "slow.on").read_text())
    _wait_for(lambda: not Path(f"/proc/{child}").exists())


def test_updates_are_thinned_and_the_last_arrives():
    sent = []
    reporter = PipeReporter(sent.append)
    with reporter.bar("work", 1000) as bar:
        for done in range(1, 1001):
            bar.update(done, note=f"loss {done}")
    assert sent[0] == {"open": 1, "title": "work", "total": 1000}
    assert sent[-2:] == [{"bar": 1, "done": 1000, "total": None, "note": "loss 1000"}, {"close": 1}]
    assert len(sent) < 100
    assert json.loads(json.dumps(sent)) == sent
