"""From scores to statements: means over seeds, paired gains, and intervals that can be defended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import t as student_t

from bevkd_common.evaluation.bootstrap import Interval, paired_bootstrap
from bevkd_common.evaluation.results import Metric
from bevkd_common.report.inputs import Arm, ReportInput


@dataclass(frozen=True)
class Spread:
    """A number over seeds.

    Attributes:
        mean: Over the seeds.
        deviation: Sample standard deviation; None for one seed.
        values: By seed.
    """

    mean: float
    deviation: float | None
    values: Mapping[int, float]


@dataclass(frozen=True)
class Gain:
    """One arm minus another, seed by seed.

    Attributes:
        metric: Name of the headline metric.
        spread: Of the paired differences.
        seeds_interval: 95 % t-interval of the mean over seeds; None for one seed.
        scenes_intervals: 95 % paired bootstrap interval over scenes, by seed; empty where it was left out.
    """

    metric: str
    spread: Spread
    seeds_interval: tuple[float, float] | None
    scenes_intervals: Mapping[int, Interval]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval that the headline quotes: over seeds where there are several, else over scenes."""
        if self.seeds_interval is not None:
            return self.seeds_interval
        only = next(iter(self.scenes_intervals.values()), None)
        return None if only is None else (only.low, only.high)


def spread(values: Mapping[int, float]) -> Spread:
    """Mean and deviation over seeds."""
    numbers = list(values.values())
    return Spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, dict(values))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of at least two independent values."""
    mean, count = fmean(values), len(values)
    half = float(student_t.ppf((1 + confidence) / 2, count - 1)) * stdev(values) / sqrt(count)
    return mean - half, mean + half


def headline(arm: Arm, metric: str) -> Spread:
    """A headline metric of an arm over its seeds."""
    return spread({seed: run.results.headline[metric].value for seed, run in arm.runs.items()})


@lru_cache(maxsize=64)
def gains(report: ReportInput, arm: Arm, reference: Arm) -> dict[str, Gain]:
    """`arm` minus `reference` in every headline metric, on the seeds that both have."""
    seeds = [seed for seed in arm.runs if seed in reference.runs]
    resampled = {}
    if report.bootstrap:
        for seed in seeds:
            evidence = {"arm": arm.runs[seed].evidence, "reference": reference.runs[seed].evidence}
            resampled[seed] = paired_bootstrap(evidence, report.bootstrap)
    found = {}
    for metric in metrics(report):
        differences = {
            seed: arm.runs[seed].results.headline[metric].value
            - reference.runs[seed].results.headline[metric].value
            for seed in seeds
        }
        found[metric] = Gain(
            metric,
            spread(differences),
            t_interval(list(differences.values())) if len(seeds) > 1 else None,
            {seed: boot.difference("arm", "reference", metric) for seed, boot in resampled.items()},
        )
    return found


def metrics(report: ReportInput) -> Mapping[str, Metric]:
    """The headline metrics, in order, with unit and direction."""
    return next(iter(report.arms[0].runs.values())).results.headline


def arm_of(report: ReportInput, role: str) -> Arm | None:
    """The arm that plays a role, or None."""
    return next((arm for arm in report.arms if arm.role == role), None)
