"""The folder of one run: its recipe, its environment, and the stage of each arm."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any

import torch
from filelock import FileLock, Timeout
from pydantic import AfterValidator, Field

from bevkd_common.config.records import Record, read_record
from bevkd_common.config.wording import shorten
from bevkd_common.engine.checkpoint import write_atomically
from bevkd_common.errors import UserError
from bevkd_common.experiment.stages import LOCK, STAGE_NAME, STAGES, alone_in, fingerprint

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
RECORD = "run.json"
MARKER = ".bevkd-run"
"""Says that a folder is a run; written before everything else."""
OWN_FILES = (
    CONFIG,
    ENVIRONMENT,
    RECORD,
    MARKER,
    LOCK,
    ".*.partial",
    "report/index.html",
    "report/report.md",
    "report/report.json",
    "report/pictures/*.png",
)
"""Patterns of the files that a run writes into its folder, and the only ones that it removes."""
REPORTED_PACKAGES = ("bevkd-common", "torch", "torchvision", "timm", "accelerate", "numpy")


def _stage_name(name: str) -> str:
    # The name becomes a part of a path.
    if STAGE_NAME.fullmatch(name) is None:
        raise ValueError(f"{shorten(name)} is no name of a stage")
    return name


Seed = Annotated[int, Field(ge=0)]


class RunRecord(Record):
    """The content of run.json.

    Attributes:
        method: Kind of the method.
        data_root: Folder of the data set; None where the data are generated.
        plan: Lines, as printed.
        controls: Whether controls were asked for.
        ablations: Names.
        baseline: Whether the student is trained alone.
        seeds: Of the experiment.
        data: Seed to fingerprint of the data.
        stages: Seed and name of the arm to name of the stage.
        checksum: Of the rest; None in a run of an earlier version.
    """

    method: str
    data_root: str | None
    plan: tuple[str, ...]
    controls: bool
    ablations: tuple[str, ...]
    baseline: bool
    seeds: tuple[Seed, ...] = Field(min_length=1)
    data: dict[Seed, str]
    stages: dict[Seed, dict[str, Annotated[str, AfterValidator(_stage_name)]]]
    checksum: str | None = None


def named(path: Path) -> Path:
    """The same folder by a path that ends with its name, as `.` and `runs/..` do not."""
    return path if path.name not in ("", "..") else path.resolve()


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/` with config.yaml, environment.json, run.json and report/."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", named(self.path))

    @property
    def root(self) -> Path:
        """The folder of all runs, which also holds the stages."""
        return self.path.parent

    def open(self, recipe_yaml: str, *, restart: bool) -> None:
        """Start or continue the experiment.

        Raises:
            UserError: If the folder holds a run of another recipe, is not a run, or cannot be written, or if stages
                that a restart would remove are in use. Nothing is changed then.
        """
        config = self.path / CONFIG
        same = config.is_file() and config.read_bytes() == recipe_yaml.encode()
        present = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        if present and not self._is_run() and (restart or not same or present != [CONFIG]):
            raise UserError(
                f"{self.path} holds {shorten(', '.join(present))} and is not a run: nothing was changed;"
                " choose another --out"
            )
        if restart:
            self._discard()
        elif config.is_file() and not same:
            raise UserError(
                f"{self.path} holds a run of another recipe: choose another --out,"
                " or replace the run with --restart"
            )
        try:
            write_atomically(self.path / MARKER, "A folder of bevkd run.\n")
            write_atomically(config, recipe_yaml)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): choose another --out") from None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Prevent `--restart` of this run, and of runs that share its stages, from removing the stages."""
        lock = FileLock(self.path / LOCK)
        # A second process of the same run goes on without it.
        with suppress(Timeout):
            lock.acquire(timeout=0)
        try:
            yield
        finally:
            lock.release()

    def write(self, record: dict[str, Any]) -> None:
        """Write run.json."""
        sealed = {**record, "checksum": fingerprint(record)}
        write_atomically(self.path / RECORD, json.dumps(sealed, indent=2) + "\n")

    def read(self) -> dict[str, Any]:
        """Read run.json.

        Raises:
            UserError: If the folder is not a run, or the file is damaged, such as by an invalid name of a stage.
        """
        path = self.path / RECORD
        if not path.is_file():
            raise UserError(f"{self.path} is not a run: it has no run.json; `bevkd run` creates one")
        record = read_record(path, RunRecord, "restore it, or choose another --out")
        content = record.model_dump(mode="json", exclude={"checksum"})
        # It names folders: a damaged name may be that of another folder.
        if record.checksum not in (None, fingerprint(content)):
            raise UserError(
                f"{path} was changed after it was written: restore it, or remove `checksum` if the change is meant"
            )
        return content

    def write_environment(self, environment: dict[str, str]) -> None:
        """Write environment.json."""
        write_atomically(self.path / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")

    def read_environment(self) -> dict[str, str]:
        """Read environment.json.

        Raises:
            UserError: If it is missing or damaged.
        """
        repair = "run the experiment again to write it, finished stages are reused"
        return read_record(self.path / ENVIRONMENT, dict[str, str], repair)

    def _is_run(self) -> bool:
        if (self.path / MARKER).is_file():
            return True
        try:
            self.read()
        except UserError:
            return False
        return True

    def _discard(self) -> None:
        """Remove the files of this run and its stages, all or nothing."""
        paths = sorted(path for path in self.path.rglob("*") if not path.is_dir() or path.is_symlink())
        foreign = [path for path in paths if not _is_own(path.relative_to(self.path))]
        if foreign:
            names = ", ".join(str(path.relative_to(self.path)) for path in foreign)
            raise UserError(
                f"{self.path} holds {shorten(names)}, which the run did not write: nothing was removed;"
                " move it away, or choose another --out"
            )
        folders = self._stages()
        with ExitStack() as locks:
            self._refuse_stages_in_use(folders)
            for folder in folders:
                locks.enter_context(alone_in(folder, wait=False, say=lambda message: None))
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            for path in paths:
                path.unlink(missing_ok=True)
            for empty in ("report/pictures", "report"):
                with suppress(OSError):
                    (self.path / empty).rmdir()

    def _stages(self) -> list[Path]:
        """The folders of the stages that run.json names and that are there."""
        if not (self.path / RECORD).is_file():
            return []
        names = dict.fromkeys(name for stages in self.read()["stages"].values() for name in stages.values())
        return [folder for name in names if (folder := self.root / STAGES / name).is_dir()]

    def _refuse_stages_in_use(self, folders: Sequence[Path]) -> None:
        for lock in sorted(self.root.glob(f"*/{LOCK}")):
            other = RunFolder(lock.parent)
            used: list[Path] = []
            with suppress(UserError):
                used = other._stages()
            if other.path == self.path or set(folders) & set(used):
                with alone_in(other.path, wait=False, say=lambda message: None):
                    pass


def _is_own(path: PurePath) -> bool:
    """Whether a run writes a file of this name, relative to its folder."""
    return any(len(PurePath(own).parts) == len(path.parts) and path.match(own) for own in OWN_FILES)


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
