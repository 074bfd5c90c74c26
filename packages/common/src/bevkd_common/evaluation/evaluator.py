"""The contract of an evaluator, the other half of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bevkd_common.data.samples import Batch
from bevkd_common.evaluation.results import Results
from bevkd_common.models.detector import Detections


class Evidence(Protocol):
    """What was matched, kept so that scenes can be resampled without matching again.

    Attributes:
        groups: The independent units (scenes), in order.
    """

    groups: tuple[str, ...]

    def headlines(self, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """The headline metrics, [N] each, with group g counted `weights[n, g]` times.

        Args:
            weights: [N, G], one row a draw.
        """
        ...

    def save(self, path: Path) -> None:
        """Write to one file that can be read without unpickling."""
        ...


class Evaluator(Protocol):
    """Streams detections; keeps a few dozen bytes a prediction."""

    def update(self, batch: Batch, detections: Sequence[Detections]) -> None:
        """Take the detections of an unaugmented batch, in the LiDAR axes."""
        ...

    def compute(self) -> Results:
        """Score what was seen."""
        ...

    def evidence(self) -> Evidence:
        """What a paired bootstrap over scenes resamples."""
        ...

    def load_evidence(self, path: Path) -> Evidence:
        """Read what an `Evidence` of this evaluator saved.

        Raises:
            UserError: If the file is missing or damaged.
        """
        ...

    def findings(self, results: Results) -> list[str]:
        """One sentence for each likely mistake outside the model that the scores betray."""
        ...


class Submission(Protocol):
    """Collects detections for a data set's benchmark; no annotations are needed."""

    def update(self, batch: Batch, detections: Sequence[Detections]) -> None:
        """Take the detections of an unaugmented batch, in the LiDAR axes."""
        ...

    def content(self) -> object:
        """The official submission as JSON-ready data."""
        ...
