"""Rows of a paper's tables as data; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One published row, which a report shows beside our own numbers and never mixes with them.

    Attributes:
        setting: What was trained, as "BEVDet, student alone" or "CenterPoint to BEVDet".
        dataset: Data set and split of the paper, as "nuScenes val".
        metrics: Numbers by name of the metric, as printed in the source: percent for scores and precisions, the
            metric's own unit for errors.
        source: Where the row is printed, as "DistillBEV (ICCV 2023), table 1".
    """

    setting: str
    dataset: str
    metrics: Mapping[str, float]
    source: str


def in_one_line(rows: Sequence[PaperRow]) -> str:
    """Rows for listings, values side by side: "nuScenes val: mAP 32.3 -> 36.7, NDS 43.4 -> 47.6"."""
    lines = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row.metrics for row in rows if row.dataset == dataset]
        values = [f"{name} {' -> '.join(f'{row[name]:g}' for row in own if name in row)}" for name in own[-1]]
        lines.append(f"{dataset}: {', '.join(values)}")
    return "; ".join(lines)
