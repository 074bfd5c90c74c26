"""The log of a training: one JSON record a line, safe against a power cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from bevkd_common.config.records import Record
from bevkd_common.engine.checkpoint import write_atomically


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, empty without a file; lines that a power cut damaged are dropped."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValidationError):
            _Line.model_validate_json(line)
            records.append(json.loads(line))
    return records


class _Term(Record):
    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    value: float
    weight: float


class _Line(Record):
    """One logged step, as far as it is read again; other keys are kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    step: int = Field(ge=0)
    terms: dict[str, _Term] = Field(default_factory=dict)


class MetricsLog:
    """`metrics.jsonl`, one line a logged step; lines beyond the step resumed from are dropped.

    Args:
        path: The file.
        resumed_at: Step that the training goes on from; 0 for a fresh one.
        writes: Whether this process writes the file.
    """

    def __init__(self, path: Path, resumed_at: int, *, writes: bool) -> None:
        self._path, self._writes = path, writes
        if not writes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_metrics(path) if record["step"] <= resumed_at]
        write_atomically(path, "".join(f"{json.dumps(record)}\n" for record in kept))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
