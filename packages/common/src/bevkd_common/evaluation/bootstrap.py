"""Paired bootstrap: how far a difference between two models depends on the groups of samples in the split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.global_boxes import FloatArray

if TYPE_CHECKING:
    from bevkd_common.evaluation.evaluator import Evidence


@dataclass(frozen=True)
class Interval:
    """A number computed on the whole split, and the central 95 % of its values on resampled groups."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Headline metrics of several arms on the same resampled groups.

    Attributes:
        estimates: Metrics of the whole split, by arm and metric.
        samples: [N] metrics of N draws, by arm and metric; element n of every arm is from the same groups.
    """

    estimates: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, Mapping[str, FloatArray]]

    def value(self, arm: str, metric: str) -> Interval:
        """Return the interval of a metric of one arm."""
        return _interval(self.estimates[arm][metric], self.samples[arm][metric])

    def difference(self, arm: str, reference: str, metric: str) -> Interval:
        """Return the interval of `arm` minus `reference`, paired: each draw has the same groups for both."""
        return _interval(
            self.estimates[arm][metric] - self.estimates[reference][metric],
            self.samples[arm][metric] - self.samples[reference][metric],
        )


def paired_bootstrap(arms: Mapping[str, Evidence], resamples: int = 1000, seed: int = 0) -> Bootstrap:
    """Score every arm on the same groups, drawn with replacement as many as there are.

    Groups are the independent units of a split. They are scenes where a data set has scenes, because the key frames
    of one scene show the same objects, and samples elsewhere. A class that is missing from a draw scores as the
    metric scores a missing class, for all arms alike; so classes that occur in few groups pull the interval of a
    difference towards zero. Each arm is scored once, in time linear in the number of groups.

    Args:
        arms: Matches by name of the arm.
        resamples: Number of draws.
        seed: Of the draws.

    Raises:
        UserError: There are fewer than two groups.
        ValueError: The arms were evaluated on different groups.
    """
    reference, first = next(iter(arms.items()))
    place = {group: column for column, group in enumerate(first.groups)}
    for name, evidence in arms.items():
        if evidence.groups != first.groups and set(evidence.groups) != place.keys():
            raise ValueError(f"{name} was evaluated on other groups than {reference}")
    count = len(place)
    if count < 2:
        raise UserError(
            "The split has one scene or sample only, so the spread of the scores is unknown: evaluate on two or"
            " more, or set evaluation.bootstrap to 0."
        )
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    weights = np.concatenate([np.ones((1, count)), draws])
    estimates, samples = {}, {}
    for name, evidence in arms.items():
        scored = evidence.headlines(weights[:, [place[group] for group in evidence.groups]])
        estimates[name] = {metric: float(values[0]) for metric, values in scored.items()}
        samples[name] = {metric: values[1:] for metric, values in scored.items()}
    return Bootstrap(estimates, samples)


def _interval(estimate: float, samples: FloatArray) -> Interval:
    low, high = np.percentile(samples, [2.5, 97.5]).tolist()
    return Interval(estimate, low, high)
