"""Weights and training state on disk: safetensors for weights, plain tensors for the rest, written atomically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bevkd_common.errors import UserError
from bevkd_common.evaluation.atomic import replaced_when_complete
from bevkd_common.models.weights import mismatches

STATE_FILE = "state.pt"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one."""
    with replaced_when_complete(path) as partial:
        partial.write_text(text)


def save_weights(path: Path, weights: Mapping[str, Tensor], *, kind: str, architecture: str, step: int) -> None:
    """Write weights with what they are.

    Args:
        path: A .safetensors file.
        weights: As of `state_dict()`.
        kind: "raw" or "ema".
        architecture: Hash of the configuration that builds the module.
        step: Optimizer steps behind the weights.
    """
    metadata = {"kind": kind, "architecture": architecture, "step": str(step)}
    with replaced_when_complete(path) as partial:
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, partial, metadata)


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


@dataclass(frozen=True)
class Checkpoint:
    """One folder `step-000600` with weights and, until the training is finished, the state to go on from."""

    folder: Path

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.folder.name.removeprefix("step-"))

    def state(self) -> dict[str, Any]:
        """Optimizer, random numbers and EMA counter; tensors and plain values only, nothing is unpickled."""
        return torch.load(self.folder / STATE_FILE, weights_only=True, map_location="cpu")


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a stage; partial ones carry another name and do not count."""
    complete = sorted(path for path in folder.glob("step-*") if path.is_dir())
    return Checkpoint(complete[-1]) if complete else None


def save_checkpoint(
    folder: Path,
    step: int,
    files: Mapping[str, Mapping[str, Tensor]],
    about: Mapping[str, str],
    state: Mapping[str, Any] | None,
) -> Checkpoint:
    """Write a checkpoint beside the older ones, then remove those.

    Args:
        folder: The stage's `checkpoints`.
        step: Optimizer steps done.
        files: File stem ("raw", "ema", "method") to weights.
        about: Stem to the hash of the architecture it belongs to.
        state: What a resumed training needs; None for a finished one.
    """
    partial = folder / f".partial-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for stem, weights in files.items():
        path = partial / f"{stem}.safetensors"
        save_weights(path, weights, kind=stem, architecture=about[stem], step=step)
    if state is not None:
        torch.save(dict(state), partial / STATE_FILE)
    final = folder / f"step-{step:06d}"
    older = [path for path in folder.glob("step-*") if path != final]
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    for path in older:
        shutil.rmtree(path, ignore_errors=True)
    return Checkpoint(final)


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage wrote.

    Raises:
        UserError: If it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the experiment again, finished stages are reused") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not readable as JSON ({error}): delete it and run the experiment again"
        ) from None
