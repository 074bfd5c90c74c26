"""Metrics to TensorBoard, Weights & Biases or MLflow, through accelerate; off unless asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_wandb_available

from bevkd_common.errors import UserError

INSTALLED = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "mlflow": is_mlflow_available,
}


def check_trackers(names: Sequence[str]) -> None:
    """See that trackers exist and are installed.

    Raises:
        UserError: If one is not.
    """
    for name in names:
        if name not in INSTALLED:
            raise UserError(f"no tracker `{name}`: choose from {', '.join(INSTALLED)}")
        if not INSTALLED[name]():
            raise UserError(f"the tracker {name} is not installed: uv pip install {name}")


class Trackers:
    """Open trackers of one training, within a `with` block."""

    def __init__(self, names: Sequence[str], title: str, folder: Path, *, writes: bool) -> None:
        self._open: list[GeneralTracker] = []
        if not writes:
            return
        check_trackers(names)
        for name in names:
            tracker = LOGGER_TYPE_TO_CLASS[name]
            where = {"logging_dir": folder / "trackers"} if tracker.requires_logging_directory else {}
            self._open.append(tracker(title, **where))

    def __enter__(self) -> Trackers:
        for tracker in self._open:
            tracker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for tracker in self._open:
            tracker.finish()

    def write(self, record: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`, its numbers under names such as `terms/distillation/neck`."""
        numbers = {name: value for name, value in _flat(record).items() if name != "step"}
        for tracker in self._open:
            tracker.log(numbers, step=record["step"])


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{name}"] = float(value)
    return flat
