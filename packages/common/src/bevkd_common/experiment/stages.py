"""Stages: units of work that are kept, found again by a fingerprint of all that determines them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import Field

from bevkd_common.config.records import Record, read_record
from bevkd_common.engine.checkpoint import latest, write_atomically
from bevkd_common.errors import UserError

STAGES = ".stages"
LOCK = ".lock"
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
STAGE_NAME = re.compile(r"[a-z]+-[0-9a-f]{12}")
"""Name of a stage's folder: its kind and the start of its fingerprint."""


def fingerprint(content: Any) -> str:
    """SHA-256 of JSON-ready data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def stage_weights(folder: Path) -> dict[str, Path]:
    """File stem ("raw", "ema", "method") to the weights of a stage's newest checkpoint.

    Raises:
        UserError: If the stage has none.
    """
    found = latest(folder / "checkpoints")
    if found is None:
        raise UserError(f"{folder} holds no checkpoint: run the experiment again, finished stages are reused")
    weights = {path.stem: path for path in sorted(found.folder.glob("*.safetensors"))}
    if "raw" not in weights:
        raise UserError(f"{found.folder} lacks raw.safetensors: restore it, or repeat the run with --restart")
    return weights


class TrainedRecord(Record):
    """What a finished training recorded, in trained.json.

    Attributes:
        steps: Optimizer steps.
        seconds: Of all steps.
        step_s: Median seconds per step.
        parameters: Of the detector.
        memory: Peak in bytes.
        threads: Of torch.
        side_by_side: Stages that were trained at the same time.
        skipped: Damaged samples.
        notes: See `SampleSource.notes`.
    """

    steps: Count
    seconds: Seconds
    step_s: Seconds
    parameters: Count
    memory: Count = 0
    threads: Count = 0
    side_by_side: Count = 1
    skipped: Count = 0
    notes: tuple[str, ...] = ()


def read_trained(path: Path) -> dict[str, Any]:
    """Read a trained.json.

    Raises:
        UserError: If it is missing or damaged.
    """
    repair = "delete it and run the same command again, the training is not repeated"
    return read_record(path, TrainedRecord, repair).model_dump(exclude_unset=True)


@dataclass(frozen=True)
class Stage:
    """One trained model and its score.

    Attributes:
        kind: "teacher", "baseline", "distilled"; the first half of the folder's name.
        inputs: All that determines the trained weights, JSON-ready.
        root: The folder that holds `.stages`.
    """

    kind: str
    inputs: Mapping[str, Any]
    root: Path

    @property
    def fingerprint(self) -> str:
        """Hash of the inputs."""
        return fingerprint({"kind": self.kind, **self.inputs})

    @property
    def folder(self) -> Path:
        """Where the stage lives."""
        return self.root / STAGES / f"{self.kind}-{self.fingerprint[:12]}"

    @property
    def trained(self) -> dict[str, Any] | None:
        """What the finished training recorded, or None while it is not finished."""
        path = self.folder / "trained.json"
        return read_trained(path) if path.is_file() else None

    def finish_training(self, record: Mapping[str, Any]) -> None:
        """Mark the training as finished."""
        write_atomically(self.folder / "trained.json", json.dumps(record, indent=2) + "\n")

    def open(self) -> None:
        """Make the folder and write what determines it.

        Raises:
            UserError: If the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "inputs.json", json.dumps(self.inputs, indent=2, default=str) + "\n")
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}): choose another --out") from None


@contextmanager
def alone_in(folder: Path, *, wait: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes out of a stage's folder; the system lets them in when this one ends, however it ends.

    On a disk whose system has no locks, `filelock` keeps them out by a file.

    Args:
        folder: Made if it is not there.
        wait: Whether to wait for a process that is in it.
        say: Told once if this waits.

    Raises:
        UserError: If another process is in it and this does not wait, or it cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(
                f"another process works in {folder}: start this again when it is done, or choose another --out"
            ) from None
        say(f"another process works in {folder}: waiting until it is done")
        lock.acquire()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another --out") from None
    try:
        yield
    finally:
        lock.release()
