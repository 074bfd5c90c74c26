"""Build the wheels, look into them, and run the tests against them in an environment outside the workspace.

    python benchmarks/wheels.py

Environments in one: bevkd-common alone runs tests/common, with each method it runs the method's tests, with all
wheels the command starts. Third-party packages have the versions of the environment this runs in. Needs uv;
the first time it downloads several gigabytes.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEST_PACKAGES = ("pytest", "hypothesis", "nuscenes-devkit")
# Data that are read at run time, by wheel: lost data break an installation and no test of the workspace.
DATA = {
    "bevkd_common": ("bevkd_common/report/templates/report.html", "bevkd_common/data/nuscenes/splits.json"),
    "distillbev": ("distillbev/paper.yaml",),
}
STARTS = 10
BUDGET = 0.4  # seconds from `bevkd --help` to its end


def main() -> None:
    """Build, install, test, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-tests", action="store_true", help="install and start the command only")
    parser.add_argument("--output", type=Path, default=Path("wheels-benchmark.json"))
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="wheels-") as folder:
        wheels = build(Path(folder) / "dist")
        figures: dict[str, object] = {f"files in {name}": look_into(path) for name, path in wheels.items()}
        outside = Outside(Path(folder), wheels["bevkd"].parent)
        outside.install("bevkd-common", *TEST_PACKAGES)
        if not arguments.no_tests:
            figures["tests/common, bevkd-common alone"] = outside.test("tests/common")
        for method in ("unidistill", "distillbev"):
            outside.install(method)
            if not arguments.no_tests:
                figures[f"tests/{method}, with {method}"] = outside.test(f"tests/{method}")
        outside.install(*wheels)
        figures["recipes"] = len(outside.run("bevkd", "recipes", "ls").splitlines())
        figures["bevkd --help, median s"] = round(statistics.median(outside.starts()), 3)
        figures["bevkd --help, budget s"] = BUDGET
    for name, value in figures.items():
        print(f"{name:36} {value}")
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


def build(folder: Path) -> dict[str, Path]:
    """The wheels of all members of the workspace, by import name."""
    command = ["uv", "build", "--quiet", "--all-packages", "--wheel", "--out-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    wheels = {path.name.partition("-")[0]: path for path in sorted(folder.glob("*.whl"))}
    if set(wheels) != set(sources()):
        raise SystemExit(f"wheels of {sorted(wheels)}, but the workspace holds {sorted(sources())}")
    return wheels


def sources() -> dict[str, Path]:
    """The source folders of the workspace's members, by import name."""
    members = (ROOT / "cli", *(ROOT / "packages").iterdir())
    return {path.parent.name: path.parent for member in members for path in member.glob("src/*/__init__.py")}


def look_into(wheel: Path) -> int:
    """The number of files in a wheel that holds its data, its recipes and its mark of being typed."""
    name = wheel.name.partition("-")[0]
    held = set(zipfile.ZipFile(wheel).namelist())
    source = sources()[name]
    wanted = {path.relative_to(source.parent).as_posix() for path in source.rglob("*.yaml")}
    wanted |= {f"{name}/py.typed", *DATA.get(name, ())}
    missing = sorted(wanted - held)
    if missing:
        raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}")
    return len(held)


class Outside:
    """A fresh environment that knows the workspace's packages as wheels only."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self._folder, self._wheels = folder, wheels
        self._python = folder / "venv" / "bin" / "python"
        self._versions = folder / "versions.txt"
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        subprocess.run(["uv", "venv", "--quiet", "--python", python, str(folder / "venv")], check=True)
        frozen = ["uv", "pip", "freeze", "--exclude-editable", "--python", sys.executable]
        self._versions.write_bytes(subprocess.run(frozen, check=True, capture_output=True).stdout)

    def install(self, *packages: str) -> None:
        """Install by name, the workspace's own from the wheels."""
        links = ["--find-links", str(self._wheels), "--constraint", str(self._versions)]
        command = ["uv", "pip", "install", "--quiet", "--python", str(self._python), *links, *packages]
        subprocess.run(command, cwd=self._folder, check=True)

    def run(self, *command: str) -> str:
        """Standard output of a command of the environment, run far from the workspace."""
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        program = self._python.with_name(command[0])
        result = subprocess.run(
            [program, *command[1:]], cwd=self._folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        if result.returncode:
            raise SystemExit(f"{result.stdout}\n{' '.join(command)} ended with {result.returncode}")
        return result.stdout

    def test(self, folder: str) -> str:
        """Pytest's last line on some of the repository's tests, once nothing comes from the workspace itself."""
        options = ("-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT))
        origin = self.run("python", "-c", "import bevkd_common; print(bevkd_common.__file__)").strip()
        if not Path(origin).is_relative_to(self._folder):
            raise SystemExit(f"bevkd_common comes from {origin}, not from its wheel")
        last = self.run("python", "-m", "pytest", *options, str(ROOT / folder)).splitlines()[-1]
        return re.sub(r"^=+ | =+$", "", last)

    def starts(self) -> list[float]:
        """Seconds of several `bevkd --help`, after one that fills the caches."""
        self.run("bevkd", "--help")
        seconds = []
        for _ in range(STARTS):
            started = time.perf_counter()
            self.run("bevkd", "--help")
            seconds.append(time.perf_counter() - started)
        return seconds


if __name__ == "__main__":
    main()
