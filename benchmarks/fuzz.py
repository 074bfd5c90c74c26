"""Give the commands thousands of damaged and hostile inputs, and count how they end.

    python benchmarks/fuzz.py --inputs 10000 --seed 0

Every class of inputs has a share: recipes, `--set`, tables, calibrations, index files, run files, submissions,
checkpoints, plug-ins, signals. An input is accepted (exit code 0), refused (2, with a message), stopped (130,
143), or ends in a traceback. An audit hook of the interpreter reports what is written outside the run, the
cache and the data root; pickles are canaries that leave a file when they are executed; the arrays of a damaged
index are compared with those of the sound one. Exit code 1 if there is a traceback, a write outside, an
executed pickle, or a damaged index that was used. The inputs themselves are not kept, except those that end in
a traceback, with `--keep FOLDER`.
"""

import argparse
import errno
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from fuzz_damage import Place, prepare
from fuzz_inputs import CLASSES

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
    "os.chown", "os.utime", "shutil.rmtree", "shutil.move",
}  # fmt: skip
OUTCOMES = (
    "accepted",
    "refused",
    "stopped",
    "traceback",
    "written outside",
    "pickle executed",
    "damaged index used",
)
FAULTS = OUTCOMES[3:]


class Watch:
    """Reports and prevents changes of files outside some folders, while it is on.

    Args:
        allowed: Folders in which anything may be written.
    """

    def __init__(self, allowed: tuple[Path, ...]) -> None:
        self.allowed = tuple(path.resolve() for path in allowed)
        self.on = False
        self.outside: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES:
                self._note(event, path)
        elif event in CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "shutil.move") else 1]:
                self._note(event, path)

    def _note(self, event: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        # Without the last part: what is removed or replaced is a link itself.
        name = os.fsdecode(path)
        try:
            real = Path(name).parent.resolve() / Path(name).name
        except (OSError, RuntimeError, ValueError):  # no such path can be opened
            return
        if name != os.devnull and not any(real.is_relative_to(folder) for folder in self.allowed):
            self.outside.append(f"{event} {name}")
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)


def main() -> None:
    """Run all classes, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(CLASSES), action="append", help="some classes")
    parser.add_argument("--keep", type=Path, help="folder for the reports of tracebacks")
    parser.add_argument("--output", type=Path, default=Path("fuzz.json"))
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    keep = arguments.keep.absolute() if arguments.keep else None
    with tempfile.TemporaryDirectory() as temporary:
        place = prepare(Path(temporary).resolve())
        watch = Watch(place.allowed)
        table = {}
        for name in arguments.only or CLASSES:
            started = time.monotonic()
            counts = _run(
                name, max(1, round(CLASSES[name].share * arguments.inputs)), arguments.seed, place, watch, keep
            )
            table[name] = {**counts, "seconds": round(time.monotonic() - started)}
            _print(name, table[name])
        os.chdir(output.parent)
    total = {key: sum(row.get(key, 0) for row in table.values()) for key in ("inputs", *OUTCOMES, "seconds")}
    _print("all", total)
    output.write_text(json.dumps({"seed": arguments.seed, "classes": table, "all": total}, indent=1) + "\n")
    if any(total[fault] for fault in FAULTS):
        raise SystemExit(1)


def _print(name: str, row: dict[str, int]) -> None:
    columns = ("inputs", *OUTCOMES, "seconds")
    if name == next(iter(CLASSES)):
        print(f"| class | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    print(f"| {name} | {' | '.join(str(row.get(key, 0)) for key in columns)} |", flush=True)


def _run(name: str, count: int, seed: int, place: Place, watch: Watch, keep: Path | None) -> dict[str, int]:
    counts: Counter[str] = Counter(inputs=count)
    for number in range(count):
        # Of its own for each input, so that one can be repeated alone.
        rng = random.Random(f"{seed} {name} {number}")
        trial = CLASSES[name].make(rng, place)
        watch.on, watch.outside = True, []
        outcome, report = _outcome(trial)
        watch.on = False
        counts[outcome] += 1
        for fault, found in (("written outside", watch.outside), ("pickle executed", place.canaries())):
            if found:
                counts[fault] += 1
                report = f"{fault}: {found}\n{report}"
        if keep is not None and (outcome in FAULTS or report.startswith(FAULTS)):
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name}-{number}.txt").write_text(report, errors="backslashreplace")
        place.restore()
    return dict(counts)


def _outcome(trial: Callable[[], str | None]) -> tuple[str, str]:
    """How a trial ended, and a report. It returns the name of a fault that it found itself, or None."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            return trial() or "accepted", err.getvalue()
    except SystemExit as ended:
        said = err.getvalue().strip() or out.getvalue().strip()
        if ended.code in (0, None):
            return "accepted", said
        if ended.code == 2 and said and "Traceback" not in said and max(map(len, said.splitlines())) < 4000:
            return "refused", said
        if ended.code in (130, 143):
            return "stopped", said
        return "traceback", f"exit code {ended.code}\n{said[:10_000]}"
    except BaseException:
        return "traceback", traceback.format_exc()


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
