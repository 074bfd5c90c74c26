"""Kill an experiment at random moments, run it again each time, and compare every weight with a run left in peace.

    python benchmarks/kills.py --kills 20

The experiment is a small one: teacher, first training of the student, student alone, student distilled, a
checkpoint every few steps. A kill is SIGKILL, at a moment drawn from its life. Exit code 1 if the run ends before
all kills, if a weight differs by a bit, if a run does not go on from the newest checkpoint that a kill left, or if
a kill finds that checkpoint further behind the last logged step than checkpoints are apart.
"""

import argparse
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

import torch
from bevkd_common.engine.checkpoint import MANIFEST
from safetensors.torch import load_file

EVERY = 5
STARTING_S = 5.0
"""About how long a process takes to its first step."""
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
COMMAND = [
    sys.executable, "-m", "bevkd", "run", "distillbev", "--teacher", "centerpoint", "--student", "bevdet",
    "--gpus", "0", "--out", "runs/killed", *(part for value in OVERRIDES for part in ("--set", value)),
]  # fmt: skip
RESUMED = re.compile(r"goes on from step (\d+)")


def main() -> None:
    """Kill, compare, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=Path("kills.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        peaceful, killed = Path(temporary, "peaceful"), Path(temporary, "killed")
        seconds = _run_to_the_end(peaceful)
        shutil.copytree(peaceful / "runs" / ".data", killed / "runs" / ".data")
        kills = _kill(killed, arguments.kills, seconds, random.Random(arguments.seed))
        _run_to_the_end(killed)
        repeated = _run_to_the_end(killed)
        compared, different = _compare(peaceful, killed)
    stages = sorted({kill["stage"] for kill in kills if kill["stage"]})
    lost = max((kill["step"] - kill["newest"] for kill in kills if kill["stage"]), default=0)
    resumed = [kill for kill in kills if kill["resumed"] is not None]
    elsewhere = sum(kill["resumed"] != kill["expected"] for kill in resumed)
    figures = {
        "kills": len(kills), "stages_hit": stages, "most_steps_lost": lost, "steps_between_checkpoints": EVERY,
        "resumed": len(resumed), "resumed_elsewhere": elsewhere,
        "tensors_compared": compared, "tensors_that_differ": different, "uninterrupted_s": round(seconds, 1),
        "repeated_s": round(repeated, 1), "each": kills,
    }  # fmt: skip
    for name, value in figures.items():
        if name != "each":
            print(f"{name:28} {value}")
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    if len(kills) < arguments.kills or different or not compared or elsewhere or not resumed or lost > EVERY:
        raise SystemExit(1)


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _run_to_the_end(folder: Path) -> float:
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    subprocess.run(COMMAND, cwd=folder, env=_environment(), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def _kill(folder: Path, count: int, seconds: float, rng: random.Random) -> list[dict[str, object]]:
    kills: list[dict[str, object]] = []
    left: tuple[str, int] = ("", 0)
    while len(kills) < count:
        log = folder / "log.txt"
        with log.open("w") as stream:
            process = subprocess.Popen(COMMAND, cwd=folder, env=_environment(), stdout=stream, stderr=stream)
            try:
                process.wait(rng.uniform(0.5 * STARTING_S, STARTING_S + seconds / count))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the run failed:\n{log.read_text()}")
        resumed = RESUMED.search(log.read_text())
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


def _compare(peaceful: Path, killed: Path) -> tuple[int, int]:
    compared = different = 0
    for path in sorted((peaceful / "runs" / ".stages").glob("*/checkpoints/*/*.safetensors")):
        expected, found = load_file(path), load_file(killed / path.relative_to(peaceful))
        for name, value in expected.items():
            compared += 1
            different += not torch.equal(value, found[name])
    return compared, different


if __name__ == "__main__":
    main()
