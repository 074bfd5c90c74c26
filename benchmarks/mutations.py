"""Check the tests: plant one fault at a time in a copy of the sources, and see whether a test fails.

    python benchmarks/mutations.py --output mutations.json
    python benchmarks/mutations.py --only losses/attention-times-temperature

The faults are listed in `mutations.yaml` beside this file. The working tree is never changed. A fault is caught if
pytest ran its tests and one failed; anything else that goes wrong (no test collected, a crash, a hang) is an error
of this check. Exit code 1 if a fault survives that nobody explained, 2 on an error.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml

ROOT = Path(__file__).resolve().parents[1]
FAULTS = Path(__file__).with_suffix(".yaml")
MOST_SECONDS = 900  # for the tests of one fault, on a machine that is busy with other things too

Verdict = Literal["caught", "survived", "explained", "error"]
PYTEST_VERDICTS: dict[int, Verdict] = {0: "survived", 1: "caught"}
"""By exit code; any other says that the tests did not run."""


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Attributes:
        name: `module/what-is-wrong`.
        file: source file, relative to the repository.
        find: text that stands exactly once in it.
        replace: what takes its place.
        tests: test files or node ids that should fail, relative to the repository.
        explained: why no test can see the fault; empty for one that must be caught.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    explained: str = ""

    def apply(self, root: Path) -> None:
        """Plant the fault in the sources under `root`.

        Raises:
            ValueError: The text does not stand exactly once in the file.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.find)) != 1:
            raise ValueError(f"{self.name}: {self.find!r} stands {count} times in {self.file}, not once")
        path.write_text(text.replace(self.find, self.replace), encoding="utf-8")


@dataclass(frozen=True)
class Outcome:
    """What became of one fault, and the line that says so."""

    name: str
    verdict: Verdict
    seconds: float
    evidence: str


def main() -> int:
    """Plant all faults, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this fault alone; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="faults that are tried at the same time")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    mutations = read_mutations(FAULTS)
    if arguments.only:
        if unknown := set(arguments.only) - {mutation.name for mutation in mutations}:
            parser.error(f"{FAULTS.name} lists no {', '.join(sorted(unknown))}")
        mutations = tuple(mutation for mutation in mutations if mutation.name in arguments.only)
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = try_all(mutations, ROOT, Path(scratch), arguments.jobs)
    counts = Counter(outcome.verdict for outcome in outcomes)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if arguments.output:
        report = {"counts": counts, "outcomes": [asdict(outcome) for outcome in outcomes]}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 2 if counts["error"] else int(counts["survived"] > 0)


def read_mutations(path: Path) -> tuple[Mutation, ...]:
    """Read the list of faults."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(Mutation(**entry | {"tests": tuple(entry["tests"])}) for entry in entries)


def try_all(mutations: Sequence[Mutation], root: Path, scratch: Path, jobs: int) -> list[Outcome]:
    """Try each fault in a copy of its own under `scratch`, and print what became of it.

    Raises:
        SystemExit: The tests do not pass on the sources as they are, so their failing would say nothing.
    """
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    code, tail = run_tests(tests, root, copy_sources(root, scratch / "unchanged"), scratch)
    if code != 0:
        raise SystemExit(f"the tests do not pass without a fault:\n{tail}")
    width = max(len(mutation.name) for mutation in mutations)
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(lambda mutation: try_one(mutation, root, scratch), mutations):
            row = f"{outcome.name:{width}}  {outcome.verdict:9} {outcome.seconds:6.1f} s  {outcome.evidence}"
            print(row, flush=True)
            outcomes.append(outcome)
    return outcomes


def try_one(mutation: Mutation, root: Path, scratch: Path) -> Outcome:
    """Run the tests of one fault on a fresh copy of the sources that has it."""
    start = time.perf_counter()
    copy = copy_sources(root, scratch / mutation.name)
    mutation.apply(copy)
    code, tail = run_tests(mutation.tests, root, copy, scratch)
    shutil.rmtree(copy)
    verdict = PYTEST_VERDICTS.get(code, "error")
    if verdict == "survived" and mutation.explained:
        verdict = "explained"
    lines = [line for line in tail.splitlines() if line.startswith("FAILED")]
    evidence = lines[0].removeprefix("FAILED ") if lines else (mutation.explained or tail.splitlines()[-1])
    return Outcome(mutation.name, verdict, time.perf_counter() - start, evidence)


def copy_sources(root: Path, target: Path) -> Path:
    """Copy the sources of all packages to the same places under `target`."""
    for source in members(root):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, target / source.relative_to(root), ignore=ignore)
    return target


def members(root: Path) -> list[Path]:
    """The source folders of the workspace's members."""
    return sorted([*root.glob("packages/*/src"), *root.glob("cli/src")])


def run_tests(tests: Sequence[str], root: Path, sources: Path, scratch: Path) -> tuple[int, str]:
    """Run tests of the repository on other sources; return pytest's exit code and the end of what it printed.

    Whatever is written on the way (bytecode, examples that failed) goes to `scratch`. A hang has the exit code 124.
    """
    packages = [str(path) for path in members(sources)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(packages),
        "PYTHONPYCACHEPREFIX": str(scratch / "bytecode"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis"),
        "OMP_NUM_THREADS": "1",
    }
    # Compiling what is imported, again for every fault, takes longer than most of the tests.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, f"no result after {MOST_SECONDS} s"
    return done.returncode, "\n".join((done.stdout + done.stderr).splitlines()[-5:])


if __name__ == "__main__":
    sys.exit(main())
