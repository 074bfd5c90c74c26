"""What a frozen teacher saw, kept on disk: for data whose augmentation is a finite set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.errors import UserError
from bevkd_common.files import replaced_when_complete
from bevkd_common.models.detector import Outputs


@runtime_checkable
class RepeatingSource(Protocol):
    """A source that knows whether a detector sees the same again."""

    def endless(self, needs: DataNeeds) -> str | None:
        """Why a detector with these needs never sees a sample twice alike; None where `Sample.view` tells."""
        ...


def check_repeats(source: object, needs: DataNeeds) -> None:
    """See that what a teacher sees of a source can be kept.

    Raises:
        UserError: If it cannot.
    """
    reason = (
        source.endless(needs)
        if isinstance(source, RepeatingSource)
        else "this data set does not say which views it repeats"
    )
    if reason is not None:
        raise UserError(f"`teacher_cache` keeps what repeats, and here nothing does: {reason}; set it to false")


class TeacherCache:
    """Outputs by sample and view, one file each.

    Args:
        folder: Of everything that was seen by one teacher in one precision; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def seen(self, batch: Batch, want: frozenset[str], look: Callable[[], Outputs]) -> Outputs:
        """The outputs of a batch, from the disk if all its samples are there, else by looking.

        Args:
            batch: With the views of its samples.
            want: Taps.
            look: Runs the teacher.

        Raises:
            UserError: If nothing more can be kept, as on a full disk.
        """
        paths = [self._path(view, want) for view in batch.views]
        kept = [_read(path) for path in paths]
        if all(part is not None for part in kept):
            return _joined([part for part in kept if part is not None], batch.device)
        outputs = look()
        for row, (path, part) in enumerate(zip(paths, kept, strict=True)):
            if part is None:
                _write(path, _one(outputs, row))
        return outputs

    def _path(self, view: str | None, want: frozenset[str]) -> Path:
        if view is None:
            raise ValueError("a sample without a view cannot be kept")
        name = hashlib.sha256(" ".join([view, *sorted(want)]).encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:34]}.safetensors"


def _one(outputs: Outputs, row: int) -> dict[str, Tensor]:
    """The tensors of one sample."""
    if outputs.extras or outputs.tokens or outputs.state is not None:
        raise ValueError("a teacher whose outputs have more than taps and head maps cannot be kept")
    taps = {f"tap {name}": value for name, value in outputs.taps.items()}
    head = {f"head {task} {name}": value for task, maps in enumerate(outputs.head) for name, value in maps.items()}
    return {
        name: value[row].detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in (taps | head).items()
    }


def _joined(parts: list[dict[str, Tensor]], device: torch.device) -> Outputs:
    # One sample is not copied.
    together = torch.stack if len(parts) > 1 else lambda values: values[0][None]
    whole = {name: together([part[name] for part in parts]).to(device) for name in parts[0]}
    head: dict[int, dict[str, Tensor]] = {}
    for name, value in whole.items():
        if name.startswith("head "):
            _, task, branch = name.split(" ", 2)
            head.setdefault(int(task), {})[branch] = value
    taps = {name.removeprefix("tap "): value for name, value in whole.items() if name.startswith("tap ")}
    return Outputs(taps, [head[task] for task in sorted(head)])


def _read(path: Path) -> dict[str, Tensor] | None:
    """None where there is no file, or a damaged one, which is written again."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        with replaced_when_complete(path) as partial:
            save_file(tensors, partial)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"what the teacher saw cannot be kept in {path.parent} ({error}): make room, or set `teacher_cache` to"
            " false"
        ) from error
