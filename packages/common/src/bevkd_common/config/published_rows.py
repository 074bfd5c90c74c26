"""Rows of a paper's tables as data; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
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
