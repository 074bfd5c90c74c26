"""Kill commands at random moments, run them again each time, and compare what they made with a run left in peace.

    python benchmarks/kills.py --kills 20

Kills five kinds of work, `--kills` times each: generating a world, indexing its tables, an experiment (teacher,
pretraining, student alone, student distilled; a checkpoint every few steps), scoring, and the report. A kill
is SIGKILL, at a moment drawn from the life of the command. Exit code 1 if a byte of what was made differs, if
a file is left over or missing, or if the experiment ends before all kills, does not go on from the newest
checkpoint that a kill left, or finds that checkpoint further behind the last logged step than checkpoints are
apart.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bevkd_common.engine.checkpoint import MANIFEST

EVERY = 5
STEPS = 200
OVERRIDES = [
    "dataset.world.train_scenes=4",
    "dataset.world.val_scenes=2",
    "dataset.world.keyframes_per_scene=2",
    "dataset.world.lidar_azimuths=180",
    f"teacher_training.steps={STEPS}",
    f"student_pretraining.steps={STEPS}",
    f"student_training.steps={STEPS}",
    "evaluation.bootstrap=20",
    f"checkpoints.steps={EVERY}",
]
BEVKD = [sys.executable, "-m", "bevkd"]
EXPERIMENT = [
    *BEVKD, "run", "distillbev", "--teacher", "centerpoint", "--student", "bevdet",
    "--gpus", "0", "--jobs", "1", "--out", "runs/killed",
    *(part for value in OVERRIDES for part in ("--set", value)),
]  # fmt: skip
RESUMED = re.compile(r"goes on from step (\d+)")
STAGES = ("runs/.stages",)
UNSTABLE = {"trained.json", "manifest.json", "metrics.jsonl", "environment.json", "run.json"}
"""Files that hold times, or the plan of the machine."""


class Work(NamedTuple):
    """A command that can be killed.

    Attributes:
        name: In the table.
        command: Does all of the work again when it is repeated.
        made: Folders that it writes to.
    """

    name: str
    command: list[str]
    made: tuple[str, ...]


WORKS = (
    Work(
        "data",
        [*BEVKD, "data", "synth", "made", "--seed", "5", "--train-scenes", "4", "--val-scenes", "2"],
        ("made",),
    ),
    Work("index", [*BEVKD, "data", "index", "world", "--rebuild"], ("world",)),
    Work("scoring", [*BEVKD, "eval", "runs/killed", "--gpus", "0"], ("runs/.stages", "runs/killed")),
    Work("report", [*BEVKD, "report", "runs/killed", "--gpus", "0"], ("runs/killed",)),
)


def main() -> None:
    """Kill, compare, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind of work")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=Path("kills.json"))
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        peaceful, killed = Path(temporary, "peaceful"), Path(temporary, "killed")
        experiment = _experiment(peaceful, killed, arguments.kills, rng)
        rows = [_work(work, killed, arguments.kills, rng) for work in WORKS]
    columns = ("kills", "files", "differ", "left_over", "missing")
    print("work".ljust(12), *(column.rjust(10) for column in columns))
    for row in (experiment["files"], *rows):
        print(row["work"].ljust(12), *(str(row[column]).rjust(10) for column in columns))
    for name, value in experiment.items():
        if name not in ("files", "each"):
            print(f"{name:28} {value}")
    arguments.output.write_text(json.dumps({"experiment": experiment, "works": rows}, indent=1) + "\n")
    faults = sum(row[key] for row in (experiment["files"], *rows) for key in ("differ", "left_over", "missing"))
    short = any(row["kills"] < arguments.kills or not row["files"] for row in (experiment["files"], *rows))
    if (
        faults
        or short
        or experiment["resumed_elsewhere"]
        or not experiment["resumed"]
        or experiment["most_steps_lost"] > EVERY
    ):
        raise SystemExit(1)


def _experiment(peaceful: Path, killed: Path, count: int, rng: random.Random) -> dict:
    seconds = _to_the_end(EXPERIMENT, peaceful)
    shutil.copytree(peaceful / "runs" / ".data", killed / "runs" / ".data")
    starting = _seconds_to_the_first_step(killed)
    kills = _kill_experiment(killed, count, starting, seconds, rng)
    _to_the_end(EXPERIMENT, killed)
    repeated = _to_the_end(EXPERIMENT, killed)
    resumed = [kill for kill in kills if kill["resumed"] is not None]
    return {
        "files": _compared("experiment", len(kills), *(_digests(root, STAGES) for root in (peaceful, killed))),
        "stages_hit": sorted({kill["stage"] for kill in kills if kill["stage"]}),
        "most_steps_lost": max((kill["step"] - kill["newest"] for kill in kills if kill["stage"]), default=0),
        "steps_between_checkpoints": EVERY,
        "resumed": len(resumed),
        "resumed_elsewhere": sum(kill["resumed"] != kill["expected"] for kill in resumed),
        "uninterrupted_s": round(seconds, 1),
        "repeated_s": round(repeated, 1),
        "each": kills,
    }


def _seconds_to_the_first_step(folder: Path) -> float:
    started = time.monotonic()
    with (folder / "log.txt").open("w") as stream:
        process = subprocess.Popen(EXPERIMENT, cwd=folder, env=_environment(), stdout=stream, stderr=stream)
        while process.poll() is None and not any(folder.glob("runs/.stages/*/metrics.jsonl")):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return time.monotonic() - started


def _kill_experiment(folder: Path, count: int, starting: float, seconds: float, rng: random.Random) -> list[dict]:
    kills: list[dict] = []
    left: tuple[str, int] = ("", 0)
    while len(kills) < count:
        log = _killed_after(EXPERIMENT, folder, rng.uniform(0.5 * starting, starting + seconds / count))
        if log is None:
            break
        resumed = RESUMED.search(log)
        stage, step, newest = _under_way(folder)
        kills.append({
            "stage": stage, "step": step, "newest": newest,
            "expected": left[1], "resumed": int(resumed[1]) if resumed else None,
        })  # fmt: skip
        left = (stage, newest)
    return kills


def _under_way(folder: Path) -> tuple[str, int, int]:
    """Kind of the stage that is not finished, the last step that it logged, and that of its newest checkpoint."""
    for stage in (folder / "runs" / ".stages").glob("*"):
        log = stage / "metrics.jsonl"
        if log.is_file() and not (stage / "trained.json").is_file():
            lines = log.read_text().splitlines()
            # The manifest is written last: a folder without one is what the kill cut off.
            kept = [int(path.parent.name[len("step-") :]) for path in stage.glob(f"checkpoints/step-*/{MANIFEST}")]
            logged = json.loads(lines[-1])["step"] if lines else 0
            return stage.name.partition("-")[0], logged, max(kept, default=0)
    return "", 0, 0


def _work(work: Work, folder: Path, count: int, rng: random.Random) -> dict:
    """Do the work in peace, kill it, end it, and compare what the folder holds."""
    if work.name == "index":
        shutil.copytree(next((folder / "made").glob("*-*")), folder / "world")
    seconds = _to_the_end(work.command, folder)
    expected = _digests(folder, work.made)
    done = 0
    while done < count:
        if work.name == "data" and any(folder.glob("made/*/world.json")):
            shutil.rmtree(folder / "made")  # a finished world is not generated again
        done += _killed_after(work.command, folder, rng.uniform(0, seconds)) is not None
    _to_the_end(work.command, folder)
    return _compared(work.name, done, expected, _digests(folder, work.made))


def _killed_after(command: list[str], folder: Path, seconds: float) -> str | None:
    """What a command had written when it was killed; None if it ended before."""
    log = folder / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=folder, env=_environment(), stdout=stream, stderr=stream)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()}")
    return log.read_text()


def _to_the_end(command: list[str], folder: Path) -> float:
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    subprocess.run(command, cwd=folder, env=_environment(), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _compared(work: str, kills: int, expected: dict[str, str], found: dict[str, str]) -> dict:
    differ = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    for name in (*differ, *(expected.keys() ^ found.keys())):
        print(f"{work}: {name}", file=sys.stderr)
    return {
        "work": work,
        "kills": kills,
        "files": len(expected),
        "differ": len(differ),
        "left_over": len(found.keys() - expected.keys()),
        "missing": len(expected.keys() - found.keys()),
    }


def _digests(root: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """Hash of each file, by its name relative to the root."""
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in UNSTABLE and not path.name.endswith(".lock")
    }


if __name__ == "__main__":
    main()
