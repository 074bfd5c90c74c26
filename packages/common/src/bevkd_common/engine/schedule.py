"""Learning-rate schedules as plain functions of the step."""

from __future__ import annotations

import math

from bevkd_common.config.training import CosineSchedule, OneCycleSchedule, Schedule, StepSchedule


def lr_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Learning rate at optimizer step `step` of `steps` (0-based), as a factor of the peak."""
    match schedule:
        case CosineSchedule():
            return _cosine(schedule, step, steps)
        case StepSchedule():
            passed = sum(step >= milestone * steps for milestone in schedule.milestones)
            return _warmup(step, schedule.warmup_steps, schedule.warmup_factor) * schedule.factor**passed
        case OneCycleSchedule():
            return _one_cycle(schedule, step, steps, schedule.start_factor, 1.0, schedule.final_factor)


def first_beta(schedule: Schedule, step: int, steps: int, beta: float) -> float:
    """Adam's first beta at a step; only the one-cycle schedule moves it."""
    if isinstance(schedule, OneCycleSchedule) and schedule.low_beta is not None:
        return _one_cycle(schedule, step, steps, beta, schedule.low_beta, beta)
    return beta


def _warmup(step: int, warmup_steps: int, start: float) -> float:
    if step >= warmup_steps:
        return 1.0
    return start + (1.0 - start) * step / warmup_steps


def _cosine(schedule: CosineSchedule, step: int, steps: int) -> float:
    warmup_steps = round(schedule.warmup * steps)
    if step < warmup_steps:
        return _warmup(step, warmup_steps, schedule.warmup_factor)
    share = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return _half_cosine(1.0, schedule.final_factor, share)


def _one_cycle(schedule: OneCycleSchedule, step: int, steps: int, start: float, peak: float, end: float) -> float:
    rise = schedule.peak_at * steps
    if step < rise:
        return _half_cosine(start, peak, step / rise)
    return _half_cosine(peak, end, (step - rise) / max(steps - rise, 1))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
