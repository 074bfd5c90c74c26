"""Seconds a training step beside other programs: alone, beside a busy process, beside another training.

For each number of threads and each waiting policy of OpenMP, and for each arm of a recipe, a process trains a few
steps. The load is started and ended by this script. Prints a table and writes JSON:

    uv run python benchmarks/contention.py --steps 20 --out contention.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ARMS = ("pretraining", "baseline", "distilled")
LOADS = ("quiet", "busy process", "training")
BUSY = "while True: pass"
STARTED = "started"
WARM_UP_S = 5.0
"""Seconds after which a training that serves as load is taking steps."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        arm: What was trained.
        threads: Of each process.
        policy: OMP_WAIT_POLICY.
        load: What ran beside it.
        step_s: Mean seconds a step, its data included.
        factor: `step_s` as a multiple of that of the same process without load.
    """

    arm: str
    threads: int
    policy: str
    load: str
    step_s: float
    factor: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="distillbev/mvp-bevformer.synthetic", help="a recipe")
    parser.add_argument("--set", action="append", default=[], help="a.b=c changes one value of the recipe")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=("teacher", *ARMS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--policies", nargs="+", default=["PASSIVE", "ACTIVE"])
    parser.add_argument("--loads", nargs="+", default=LOADS, choices=LOADS)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--train", nargs=2, metavar=("ARM", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        _train(options)
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        _measure(options, folder, options.arms[0], 1, "PASSIVE", steps=2)  # makes the data
        for policy in options.policies:
            for threads in options.threads:
                for arm in options.arms:
                    rows += _loads(options, folder, arm, threads, policy)
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _loads(options: argparse.Namespace, folder: str, arm: str, threads: int, policy: str) -> Iterator[Row]:
    quiet = float("nan")
    for load in options.loads:
        with _running(options, folder, load, threads, policy):
            step_s = _measure(options, folder, arm, threads, policy, steps=options.steps)
        quiet = step_s if load == "quiet" else quiet
        row = Row(arm, threads, policy, load, round(step_s, 4), round(step_s / quiet, 2))
        print(f"{arm:12} {threads:2} threads {policy:8} {load:14} {step_s:8.3f} s a step {row.factor:6.2f} x quiet")
        yield row


@contextmanager
def _running(options: argparse.Namespace, folder: str, load: str, threads: int, policy: str) -> Iterator[None]:
    """Another program at normal priority, ended with the block."""
    if load == "quiet":
        yield
        return
    if load == "training":
        beside = Path(folder) / "beside"
        command = _command(options, "baseline", beside, steps=10**6)
    else:
        command = [sys.executable, "-c", BUSY]
    process = subprocess.Popen(command, env=_environment(threads, policy), stdout=subprocess.DEVNULL)
    try:
        if load == "training":
            _wait_for(beside / STARTED, process)
        yield
    finally:
        process.kill()
        process.wait()
        (Path(folder) / "beside" / STARTED).unlink(missing_ok=True)


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.is_file():
        if process.poll() is not None:
            raise SystemExit("the training that serves as load has ended; its messages stand above")
        time.sleep(0.1)
    time.sleep(WARM_UP_S)


def _measure(options: argparse.Namespace, folder: str, arm: str, threads: int, policy: str, *, steps: int) -> float:
    command = _command(options, arm, Path(folder) / "measured", steps=steps)
    done = subprocess.run(command, env=_environment(threads, policy), stdout=subprocess.PIPE, check=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def _command(options: argparse.Namespace, arm: str, folder: Path, *, steps: int) -> list[str]:
    command = [sys.executable, __file__, "--train", arm, str(folder), "--pair", options.pair, "--steps", str(steps)]
    return command + [part for change in options.set for part in ("--set", change)]


def _environment(threads: int, policy: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}


def _train(options: argparse.Namespace) -> None:
    """In a process of its own: train some steps that are not kept, and print their mean seconds."""
    from accelerate import Accelerator
    from bevkd_common.config.recipes import load_named
    from bevkd_common.experiment.execution import open_laboratory
    from bevkd_common.experiment.request import stages_for
    from bevkd_common.experiment.training import rehearse_arm, rehearse_pretraining
    from bevkd_common.progress import SilentReporter

    name, folder = options.train[0], Path(options.train[1])
    recipe = load_named(options.pair, options.set)
    lab = open_laboratory(recipe, recipe.seeds[0], folder.parent, None, SilentReporter(), Accelerator(cpu=True))
    folder.mkdir(exist_ok=True)
    (folder / STARTED).touch()
    node = stages_for(recipe, name)[name]
    if node.pretrains:
        assert node.arm.pretraining is not None
        found = rehearse_pretraining(lab, node.arm, node.arm.pretraining, options.steps)
    else:
        found = rehearse_arm(lab, node.arm, options.steps)
    print(found.step_s)


if __name__ == "__main__":
    main()
