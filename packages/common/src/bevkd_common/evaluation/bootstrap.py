"""How far a difference between two models depends on the scenes that happened to be in the split."""

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
    """A number computed on the split as it is, and the central 95 % of its values on resampled scenes."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Headline metrics of several arms on the same resampled scenes.

    Attributes:
        estimates: metrics of the split as it is, by arm and metric.
        samples: [N] metrics of N resamples, by arm and metric; element n of every arm saw the same scenes.
    """

    estimates: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, Mapping[str, FloatArray]]

    def value(self, arm: str, metric: str) -> Interval:
        """Return the interval of a metric of one arm."""
        return _interval(self.estimates[arm][metric], self.samples[arm][metric])

    def difference(self, arm: str, reference: str, metric: str) -> Interval:
        """Return the interval of `arm` minus `reference`, paired: scene by scene the same for both."""
        return _interval(
            self.estimates[arm][metric] - self.estimates[reference][metric],
            self.samples[arm][metric] - self.samples[reference][metric],
        )


def paired_bootstrap(arms: Mapping[str, Evidence], resamples: int = 1000, seed: int = 0) -> Bootstrap:
    """Score every arm on the same scenes, drawn with replacement as many as there are.

    Scenes and not samples are drawn, because the key frames of a scene show the same objects. A class that is
    missing from a draw scores as the metric scores a missing class, for all arms alike; so classes that few
    scenes contain pull the interval of a difference towards zero.

    Args:
        arms: what was matched, by name of the arm.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        UserError: There are fewer than two scenes.
        ValueError: The arms were evaluated on different scenes.
    """
    scenes = next(iter(arms.values())).groups
    for name, evidence in arms.items():
        if set(evidence.groups) != set(scenes):
            raise ValueError(f"{name} was evaluated on other scenes than {next(iter(arms))}")
    if len(scenes) < 2:
        raise UserError(
            "The split has one scene only, so nothing says how the scores vary; evaluate on two or more."
        )
    draws = np.random.default_rng(seed).multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), resamples)
    weights = np.concatenate([np.ones((1, len(scenes))), draws])
    estimates, samples = {}, {}
    for name, evidence in arms.items():
        scored = evidence.headlines(weights[:, [scenes.index(scene) for scene in evidence.groups]])
        estimates[name] = {metric: float(values[0]) for metric, values in scored.items()}
        samples[name] = {metric: values[1:] for metric, values in scored.items()}
    return Bootstrap(estimates, samples)


def _interval(estimate: float, samples: FloatArray) -> Interval:
    low, high = np.percentile(samples, [2.5, 97.5]).tolist()
    return Interval(estimate, low, high)
