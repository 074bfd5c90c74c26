"""The contract of an evaluator, the other half of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.evaluation.results import Results
from bevkd_common.models.detector import Detections


class Evidence(Protocol):
    """Matches of one model, from which resampled splits are scored without matching again.

    Attributes:
        groups: Names of the G independent groups of samples, in order: scenes where the data set has scenes, single
            samples where it has none.
    """

    groups: tuple[str, ...]

    def headlines(self, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Headline metrics [N] with group g counted `weights[n, g]` times.

        Metrics that cannot be computed from resampled groups are left out; the primary metric must be there.

        Args:
            weights: [N, G] whole numbers, one row a draw.
        """
        ...

    def save(self, path: Path) -> None:
        """Write one file that can be read without unpickling."""
        ...


class Evaluator(Protocol):
    """Scores the detections of one split as they come; keeps a few dozen bytes a detection.

    An evaluator asks neither for scenes nor for an order of time: where samples are independent, its groups are the
    samples. A data set whose primary metric cannot be computed from resampled groups sets `Results.groups` to None;
    then `evidence` and `load_evidence` are never called, and the report shows no interval for one seed.
    """

    def update(self, batch: Batch, detections: Sequence[Detections]) -> None:
        """Take the detections of an unaugmented batch, in the LiDAR axes.

        Args:
            batch: B samples. What the sensors recorded may have been dropped from it.
            detections: One entry a sample.
        """
        ...

    def compute(self, needs: DataNeeds) -> Results:
        """Score the whole split.

        Args:
            needs: What the detector reads. A metric that cannot be observed from it has no value but a reason, such
                as an error of velocity for a detector that reads one instant.
        """
        ...

    def evidence(self) -> Evidence:
        """Matches for the paired bootstrap."""
        ...

    def load_evidence(self, path: Path) -> Evidence:
        """Read a file of `Evidence.save`.

        Raises:
            UserError: If the file is missing or damaged.
        """
        ...

    def findings(self, results: Results) -> list[str]:
        """One sentence for each score that points to a mistake outside the model."""
        ...


class Submission(Protocol):
    """Collects detections for a data set's benchmark; no annotations are needed."""

    def update(self, batch: Batch, detections: Sequence[Detections]) -> None:
        """Take the detections of an unaugmented batch, in the LiDAR axes."""
        ...

    def content(self) -> object:
        """The official submission as JSON-ready data."""
        ...


@dataclass(frozen=True)
class ScoredFile:
    """The scores of a file of detections that any tool wrote.

    Attributes:
        headline: By name.
        results: All scores; None where another engine than ours computed them.
        findings: One sentence for each likely mistake outside the model.
        columns: Headings of `rows`.
        rows: A table for people, as text.
    """

    headline: Mapping[str, float]
    results: Results | None = None
    findings: Sequence[str] = ()
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
