"""The log of a training: one JSON record a line, safe against a power cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bevkd_common.engine.checkpoint import write_atomically


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, empty without a file; lines a power cut left incomplete are dropped."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "step" in record:
                records.append(record)
    return records


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
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
