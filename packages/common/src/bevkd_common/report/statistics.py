"""Means over seeds, paired gains, and their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import t as student_t

from bevkd_common.evaluation.bootstrap import Bootstrap, Interval, paired_bootstrap
from bevkd_common.evaluation.results import Metric, Results
from bevkd_common.report.inputs import ArmReport, ReportInput


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
    """One arm minus the baseline in one metric.

    Attributes:
        spread: Of the differences, seed by seed.
        seeds_interval: 95 % t-interval of the mean over seeds; None for one seed.
        group_intervals: 95 % paired bootstrap interval over the groups of the split (scenes, or samples), by seed;
            empty where the metric is not resampled.
    """

    spread: Spread
    seeds_interval: tuple[float, float] | None
    group_intervals: Mapping[int, Interval]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval to quote: over seeds where there are several, else over groups; None without either."""
        if self.seeds_interval is not None:
            return self.seeds_interval
        only = next(iter(self.group_intervals.values()), None)
        return None if only is None else (only.low, only.high)


def spread(values: Mapping[int, float]) -> Spread:
    """Mean and sample standard deviation over seeds."""
    numbers = list(values.values())
    return Spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, dict(values))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t-interval of the mean of at least two independent values."""
    mean, count = fmean(values), len(values)
    half = float(student_t.ppf((1 + confidence) / 2, count - 1)) * stdev(values) / sqrt(count)
    return mean - half, mean + half


def headline(arm: ArmReport, metric: str) -> Spread | None:
    """A headline metric of an arm over its seeds; None where it has no value."""
    values = {seed: run.results.headline[metric].value for seed, run in arm.runs.items()}
    known = {seed: value for seed, value in values.items() if value is not None}
    return spread(known) if known else None


@lru_cache(maxsize=64)
def gains(report: ReportInput, arm: ArmReport) -> dict[str, Gain]:
    """An arm minus the baseline in every headline metric that both have, on the seeds that both have.

    Raises:
        ValueError: The report has no baseline.
    """
    baseline = arm_of(report, "baseline")
    if baseline is None:
        raise ValueError("a gain needs a baseline")
    seeds = [seed for seed in arm.runs if seed in baseline.runs]
    resampled = {seed: boot for seed in seeds if (boot := _resampled(report, seed)) is not None}
    found = {}
    for metric in metrics(report):
        ours, theirs = headline(arm, metric), headline(baseline, metric)
        if ours is None or theirs is None:
            continue
        differences = {seed: ours.values[seed] - theirs.values[seed] for seed in seeds}
        found[metric] = Gain(
            spread(differences),
            t_interval(list(differences.values())) if len(seeds) > 1 else None,
            {
                seed: boot.difference(arm.name, baseline.name, metric)
                for seed, boot in resampled.items()
                if metric in boot.estimates[arm.name]
            },
        )
    return found


@lru_cache(maxsize=64)
def _resampled(report: ReportInput, seed: int) -> Bootstrap | None:
    """All arms of one seed but the teacher on the same resampled groups; the baseline is scored once for all."""
    evidence = {
        arm.name: arm.runs[seed].evidence
        for arm in report.arms
        if arm.role != "teacher" and seed in arm.runs and arm.runs[seed].results.groups is not None
    }
    known = {name: matches for name, matches in evidence.items() if matches is not None}
    if not report.bootstrap or not known or has_one_group(report):
        return None
    return paired_bootstrap(known, report.bootstrap)


def has_one_group(report: ReportInput) -> bool:
    """Whether the split has a single scene or sample, so that nothing can be resampled."""
    evidence = (run.evidence for arm in report.arms for run in arm.runs.values())
    return any(len(set(matches.groups)) < 2 for matches in evidence if matches is not None)


def metrics(report: ReportInput) -> Mapping[str, Metric]:
    """The headline metrics, in order, with unit and direction."""
    return example(report).headline


def primary(report: ReportInput) -> str:
    """Name of the metric by which arms are compared."""
    return example(report).primary


def example(report: ReportInput) -> Results:
    """One of the results; all of a report have the same metrics, tables and groups."""
    return next(iter(report.arms[0].runs.values())).results


def arm_of(report: ReportInput, role: str) -> ArmReport | None:
    """The first arm of a role, or None."""
    return next((arm for arm in report.arms if arm.role == role), None)
