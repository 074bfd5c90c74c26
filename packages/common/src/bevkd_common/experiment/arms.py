"""The arms of an experiment: what is trained, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import Ablation
from bevkd_common.config.published_rows import PaperRow, in_one_line
from bevkd_common.config.reading.loading import override
from bevkd_common.config.recipe import Control, Recipe
from bevkd_common.config.training import TrainingConfig
from bevkd_common.errors import UserError
from bevkd_common.report.inputs import Role

SHORTEST_S = 1e-3
"""Training time in seconds below which no pace can be told."""


@dataclass(frozen=True)
class Arm:
    """One model to train, for each seed.

    Attributes:
        name: Short and unique within the experiment.
        title: As the reader sees it.
        role: What it is compared as.
        summary: One sentence: what it is, and how it differs from the baseline.
        detector: Configuration of the detector.
        training: How it is trained.
        pretraining: How a part of the detector is pretrained, or None where all weights start at random.
        method: The distillation, or None where there is none.
        as_long_as: Name of the arm whose training time this one is given, or None.
    """

    name: str
    title: str
    role: Role
    summary: str
    detector: Config
    training: TrainingConfig
    pretraining: TrainingConfig | None = None
    method: Config | None = None
    as_long_as: str | None = None


def teacher_arm(recipe: Recipe) -> Arm:
    """The teacher on its own labels; a teacher that is loaded is scored in the student's precision."""
    return Arm(
        name="teacher",
        title=f"teacher ({recipe.selects.teacher})",
        role="teacher",
        summary="The model that is distilled from.",
        detector=recipe.teacher,
        training=recipe.teacher_training or recipe.student_training,
        pretraining=None if recipe.teacher_checkpoint else recipe.teacher_pretraining,
    )


def baseline_arm(recipe: Recipe) -> Arm:
    """The student without distillation."""
    return Arm(
        name="baseline",
        title="student alone",
        role="baseline",
        summary="The student on its labels alone; data order, steps, schedule and initial weights as distilled.",
        detector=recipe.student,
        training=recipe.student_training,
        pretraining=recipe.student_pretraining,
    )


def distilled_arm(recipe: Recipe) -> Arm:
    """The student under the teacher, as the recipe says."""
    return Arm(
        name="distilled",
        title="student distilled",
        role="distilled",
        summary="The student under the teacher.",
        detector=recipe.student,
        training=recipe.student_training,
        pretraining=recipe.student_pretraining,
        method=recipe.method,
    )


def control_arm(recipe: Recipe, control: Control) -> Arm:
    """One of the recipe's controls."""
    changed = override(recipe, control.overrides, f"control {control.name}")
    base = baseline_arm(changed) if control.base == "baseline" else distilled_arm(changed)
    return replace(
        base,
        name=control.name,
        title=control.name.replace("_", " "),
        role="control",
        summary=_summary(control),
        training=lengthened(changed.student_training, control.steps_factor),
        as_long_as="distilled" if control.equal_time else None,
    )


def ablation_arm(recipe: Recipe, name: str, ablation: Ablation, published: PaperRow | None) -> Arm:
    """The distilled student with some of the method's settings changed; `published` is what the paper reports."""
    values = {f"method.{key}": value for key, value in ablation.overrides.items()}
    changed = override(recipe, values, f"ablation {name}")
    paper = f" Published: {published.setting}, {in_one_line([published])}." if published is not None else ""
    summary = ablation.summary + paper
    return replace(distilled_arm(changed), name=name, title=name.replace("_", " "), role="control", summary=summary)


def lengthened(training: TrainingConfig, factor: float) -> TrainingConfig:
    """The same training with more or fewer steps, its schedule stretched."""
    if training.steps is not None:
        return training.model_copy(update={"steps": max(round(training.steps * factor), 1)})
    assert training.epochs is not None
    return training.model_copy(update={"epochs": max(round(training.epochs * factor), 1)})


def fixed_length(arm: Arm, seconds: Mapping[str, float]) -> Arm:
    """An arm that is given another's training time, with the steps that the baseline does in this time.

    Args:
        arm: Any arm.
        seconds: Training time of the arms before it.

    Raises:
        UserError: If there is no baseline to take the pace from.
    """
    if arm.as_long_as is None:
        return arm
    if "baseline" not in seconds:
        raise UserError(f"`{arm.name}` takes its pace from the baseline: leave out --no-baseline")
    ratio = seconds[arm.as_long_as] / max(seconds["baseline"], SHORTEST_S)
    return replace(arm, training=lengthened(arm.training, ratio), as_long_as=None)


def _summary(control: Control) -> str:
    changes: list[str] = []
    if control.steps_factor != 1.0:
        changes.append(f"{control.steps_factor:g} times the steps")
    if control.equal_time:
        changes.append("as many steps as fit into the distilled student's training time")
    changes += [f"{key} = {_shown(value)}" for key, value in control.overrides.items()]
    return f"The {control.base} with {', '.join(changes) or 'nothing changed'}."


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
