"""Weights and training state on disk: safetensors for weights, plain tensors for the rest, written atomically."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bevkd_common.config.records import Record, read_record
from bevkd_common.config.wording import shorten
from bevkd_common.errors import UserError
from bevkd_common.files import folder_when_complete, foreign_content, replaced_when_complete, start_of
from bevkd_common.models.state_dicts import mismatches

STEP_NAME = re.compile(r"step-[0-9]+")
STATE_FILE = "state.pt"
MANIFEST = "manifest.json"
REMOVE = "remove the folder of this checkpoint, and run the same command again"
KEPT = 2
"""Number of checkpoints kept during a training: the newest, and the previous one as a fallback."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: a reader gets the old content or the complete new content."""
    with replaced_when_complete(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    kind: str,
    architecture: str,
    step: int,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write weights and metadata; equal weights give equal bytes.

    Args:
        path: A .safetensors file.
        weights: A `state_dict()`.
        kind: "raw" or "ema".
        architecture: Hash of the configuration that builds the module.
        step: Optimizer steps done.
        about: Further metadata.
    """
    metadata = {"kind": kind, "architecture": architecture, "step": str(step), **(about or {})}
    with replaced_when_complete(path) as partial:
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, partial, metadata)
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file; the library writes it in random order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length
        file.seek(8)
        file.write(text)


def _something_else(start: bytes) -> str | None:
    """What a file is that is no file of safetensors, with the advice; None if that is not known."""
    if start.startswith((b"PK", b"\x80")):
        return "is a checkpoint of PyTorch, not of safetensors: convert it with `bevkd weights import`"
    return foreign_content(start)


def load_weights(path: Path, module: nn.Module, *, architecture: str | None = None) -> dict[str, str]:
    """Load weights strictly; returns the metadata.

    Raises:
        UserError: If the file is missing or damaged, belongs to another architecture, or does not fit.
    """
    if not path.is_file():
        raise UserError(f"no weights at {path}: train the stage again with --restart")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        if (known := _something_else(start_of(path))) is not None:
            raise UserError(f"{path} {known}") from None
        raise UserError(
            f"{path} is damaged ({error}): delete it, or train the stage again with --restart"
        ) from None
    if architecture is not None and metadata.get("architecture", architecture) != architecture:
        raise UserError(
            f"{path} holds weights of another architecture ({metadata['architecture'][:12]},"
            f" wanted {architecture[:12]}): use the recipe it was trained with"
        )
    problems = mismatches(module.state_dict(), weights)
    if problems:
        raise UserError(f"{path} does not fit {type(module).__name__}:\n  " + "\n  ".join(problems))
    module.load_state_dict(weights)
    return metadata


class _Manifest(Record):
    """What a checkpoint consists of.

    Attributes:
        progress: Values that the training stored.
        files: Name to SHA-256.
        checksum: Of both; None in a checkpoint of an earlier version.
    """

    progress: dict[str, Any]
    files: dict[str, str] = Field(min_length=1)
    checksum: str | None = None

    def expected(self) -> str:
        """The checksum of the content."""
        content = json.dumps([self.progress, self.files], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """One folder `step-000600` with weights and, until the training is finished, the state to resume from."""

    folder: Path

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.folder.name.removeprefix("step-"))

    @property
    def finished(self) -> bool:
        """Whether the training ended here."""
        return not (self.folder / STATE_FILE).is_file()

    @property
    def progress(self) -> dict[str, Any]:
        """Values that the training stored: seconds, names of frozen parameters and others."""
        return dict(self._manifest.progress)

    def state(self) -> dict[str, Any]:
        """Optimizer state, random state and EMA counter: tensors and plain values; nothing is unpickled.

        Raises:
            UserError: If the file is not one that `save_checkpoint` wrote.
        """
        path = self.folder / STATE_FILE
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # the errors of a foreign file are not documented
            raise UserError(f"{path} is no state of a training ({type(error).__name__}): {REMOVE}") from None
        if not isinstance(state, dict) or not {"optimizer", "rng"} <= state.keys():
            raise UserError(f"{path} is no state of a training: {REMOVE}")
        return state

    def damage(self) -> str | None:
        """A short description of the damage to the files; None if the files are unchanged."""
        try:
            manifest = self._manifest
            if manifest.checksum not in (None, manifest.expected()):
                return f"{MANIFEST} has changed"
            digests = manifest.files
            found = {path.name for path in self.folder.iterdir()} - {MANIFEST}
            if other := sorted(found ^ digests.keys()):
                return f"{shorten(other[0])} is {'not in its manifest' if other[0] in found else 'missing'}"
            for name in digests:
                if _sha256(self.folder / name) != digests[name]:
                    return f"{name} has changed"
        except (OSError, UserError) as error:
            return str(error)
        return None

    @property
    def _manifest(self) -> _Manifest:
        return read_record(self.folder / MANIFEST, _Manifest, REMOVE)


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a stage, newest first; partial ones have other names and are not listed."""
    found = [Checkpoint(path) for path in folder.glob("step-*") if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a stage."""
    return next(iter(checkpoints(folder)), None)


def newest_sound(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint without damage; None if there is none.

    Args:
        folder: The stage's `checkpoints`.
        say: Called with a message about each damaged checkpoint.
    """
    for found in checkpoints(folder):
        damage = found.damage()
        if damage is None:
            return found
        say(f"{found.folder} is damaged and not used: {damage}")
    return None


def save_checkpoint(
    folder: Path,
    step: int,
    files: Mapping[str, Mapping[str, Tensor]],
    about: Mapping[str, str],
    state: Mapping[str, Any] | None,
    progress: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write a checkpoint, then remove older ones: all when the training is finished, else all but one.

    Args:
        folder: The stage's `checkpoints`.
        step: Optimizer steps done.
        files: File stem ("raw", "ema", "method") to weights.
        about: File stem to the hash of its architecture.
        state: State to resume from; None for a finished training.
        progress: Values that the training stores, as JSON types.

    Raises:
        UserError: If it cannot be written, for example on a full disk; older checkpoints are kept.
    """
    final = folder / f"step-{step:06d}"
    try:
        with folder_when_complete(final) as partial:
            for stem, weights in files.items():
                path = partial / f"{stem}.safetensors"
                save_weights(path, weights, kind=stem, architecture=about[stem], step=step)
            if state is not None:
                torch.save(dict(state), partial / STATE_FILE)
            digests = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
            manifest = _Manifest(progress=dict(progress or {}), files=digests)
            sealed = manifest.model_copy(update={"checksum": manifest.expected()})
            (partial / MANIFEST).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint of step {step} cannot be written to {folder} ({error}): free disk space or repair the"
            " folder, and run the same command again; it resumes from the previous checkpoint"
        ) from error
    kept = 1 if state is None else KEPT
    for old in checkpoints(folder)[kept:]:
        shutil.rmtree(old.folder, ignore_errors=True)
    return Checkpoint(final)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
