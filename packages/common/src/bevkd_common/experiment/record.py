"""The folder of one run: its recipe, its environment, and the stage of each arm."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bevkd_common.config.wording import shorten
from bevkd_common.engine.checkpoint import read_json, write_atomically
from bevkd_common.errors import UserError
from bevkd_common.experiment.stages import STAGES

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
REPORTED_PACKAGES = ("bevkd-common", "torch", "torchvision", "timm", "accelerate", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/` with config.yaml, environment.json, run.json and report/."""

    path: Path

    @property
    def root(self) -> Path:
        """The folder of all runs, which also holds the stages."""
        return self.path.parent

    def open(self, recipe_yaml: str, *, restart: bool) -> None:
        """Start or continue the experiment.

        Raises:
            UserError: If the folder holds a run of another recipe, is not a run, or cannot be written.
        """
        config = self.path / CONFIG
        if restart:
            self._discard()
        elif config.is_file() and config.read_text() != recipe_yaml:
            raise UserError(
                f"{self.path} holds a run of another recipe: choose another --out,"
                " or replace the run with --restart"
            )
        try:
            write_atomically(config, recipe_yaml)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): choose another --out") from None

    def write(self, record: dict[str, Any]) -> None:
        """Write run.json."""
        write_atomically(self.path / "run.json", json.dumps(record, indent=2) + "\n")

    def read(self) -> dict[str, Any]:
        """Read run.json.

        Raises:
            UserError: If the folder is not a run.
        """
        if not (self.path / "run.json").is_file():
            raise UserError(f"{self.path} is not a run: it has no run.json; `bevkd run` creates one")
        record = read_json(self.path / "run.json")
        if "stages" not in record:
            raise UserError(f"{self.path / 'run.json'} lists no stages: it is damaged, or does not belong to a run")
        return record

    def write_environment(self, environment: dict[str, str]) -> None:
        """Write environment.json."""
        write_atomically(self.path / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")

    def read_environment(self) -> dict[str, str]:
        """Read environment.json."""
        return read_json(self.path / ENVIRONMENT)

    def _discard(self) -> None:
        others = [path.name for path in self.path.iterdir() if path.name != CONFIG] if self.path.is_dir() else []
        if others and not (self.path / ENVIRONMENT).is_file():
            raise UserError(
                f"{self.path} holds {shorten(', '.join(sorted(others)))} and is not a run: nothing was deleted;"
                " choose another --out"
            )
        if (self.path / "run.json").is_file():
            for arms in self.read()["stages"].values():
                for stage in arms.values():
                    shutil.rmtree(self.root / STAGES / stage, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)


def environment(device: torch.device, method: str) -> dict[str, str]:
    """Versions, machine and git state, for the report.

    Args:
        device: Device of the run.
        method: Distribution and version of the method.
    """
    versions = {name: importlib.metadata.version(name) for name in REPORTED_PACKAGES}
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return versions | {
        "method from": method,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "accelerator": accelerator,
        "git": _git_state(),
        "command": " ".join(Path(part).name if index == 0 else part for index, part in enumerate(sys.argv)),
    }


def _git_state() -> str:
    here = Path(__file__).parent
    try:
        commit = _git("rev-parse", "--short=12", "HEAD", cwd=here)
        dirty = _git("status", "--porcelain", "--untracked-files=no", cwd=here)
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
    return f"{commit} with uncommitted changes" if dirty else commit


def _git(*arguments: str, cwd: Path) -> str:
    result = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return result.stdout.strip()
