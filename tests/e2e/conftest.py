import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_package(tmp_path_factory) -> Path:
    """A folder to put on the path: the toy package, built as a wheel and unpacked as an installer does."""
    out = tmp_path_factory.mktemp("toy")
    source = Path(__file__).parent / "toy"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    site = out / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


@pytest.fixture(scope="session")
def train_command() -> Callable[[str, int, Sequence[str]], list[str]]:
    """The command that trains one arm of BEVDet's recipe, with processes and overrides."""

    def command(arm: str, gpus: int, overrides: Sequence[str]) -> list[str]:
        chosen = ["--teacher", "centerpoint", "--student", "bevdet", "--arm", arm, "--gpus", str(gpus)]
        changes = [part for value in overrides for part in ("--set", value)]
        return [sys.executable, "-m", "bevkd", "train", "distillbev", *chosen, "--out", "runs/x", *changes]

    return command
