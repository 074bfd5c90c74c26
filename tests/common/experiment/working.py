"""What the processes of `test_side_by_side` do."""

import os
import signal
import time
from pathlib import Path

from bevkd_common.engine.interrupt import StopRequest
from bevkd_common.errors import TrainingStoppedError, UserError

PATIENCE_S = 120


def meet(job, reporter):
    """a and b end only when both run; c finds them done."""
    import torch

    (job.out / job.key).touch()
    _wait_for(lambda: all((job.out / name).exists() for name in "ab"))
    with reporter.bar(f"work {job.key}", 5) as bar:
        for done in range(1, 6):
            bar.update(done, note=f"loss {done}")
    reporter.say(f"{job.key} with {torch.get_num_threads()} threads")


def alone(job, reporter):
    """Fails if another process works at the same time."""
    mark = job.out / "working"
    mark.touch(exist_ok=False)
    time.sleep(0.5)
    mark.unlink()
    reporter.say(f"{job.key} alone")


def slow_or_failing(job, reporter):
    """`slow` jobs take steps until they are stopped; the others end in different ways once `slow` takes steps."""
    if job.key.startswith("slow"):
        with StopRequest() as stop:
            partial = job.out / f".{job.key}"
            partial.write_text(str(os.getpid()))
            partial.rename(job.out / f"{job.key}.on")
            _wait_for(lambda: stop.signal is not None)
        (job.out / job.key).write_text(f"stopped by {int(stop.signal)}")
        raise TrainingStoppedError(f"{job.key} stopped", stop.signal)
    if job.key == "fails":
        _wait_for(Path(job.out / "slow.on").exists)
        raise UserError("the disk is full")
    if job.key == "crash":
        raise ZeroDivisionError
    if job.key == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    (job.out / job.key).touch()


def _wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
