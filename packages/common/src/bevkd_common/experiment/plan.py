"""What is about to happen, derived and printed before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bevkd_common.config.methods import paper, title
from bevkd_common.config.model import Config
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.training import TrainingConfig
from bevkd_common.engine.optimizer import grouped_parameters, split_batch
from bevkd_common.experiment.arms import Arm
from bevkd_common.experiment.build import (
    build_detector,
    build_method,
    build_pretraining,
    dataset_spec,
    detector_spec,
    parameter_count,
)


def plan_lines(recipe: Recipe, arms: Sequence[Arm], seeds: Sequence[int], processes: int) -> list[str]:
    """The plan, one line a thing; building the models here also checks that the taps fit, before any data is read.

    Raises:
        UserError: If teacher, student and method do not fit, or the batch cannot be split.
    """
    data = dataset_spec(recipe.dataset)
    teacher = build_detector(recipe.teacher, data.classes, seed=0)
    student = build_detector(recipe.student, data.classes, seed=0)
    for arm in arms:
        if arm.method is not None:
            build_method(arm.method, teacher, student, names=(recipe.selects.teacher, recipe.selects.student))
    for detector, config in ((teacher, recipe.teacher_training), (student, recipe.student_training)):
        if config is not None:
            grouped_parameters(detector, config.optimizer.lr_factors)
    return [
        f"method   {title(recipe.method)} ({paper(recipe.method)})",
        f"data     {data.kind}: {data.summary}",
        f"teacher  {_described(recipe.selects.teacher, recipe.teacher, teacher)}; {_fetched(recipe, processes)}",
        f"student  {_described(recipe.selects.student, recipe.student, student)};"
        f" {_trained(recipe.student_training, processes)}",
        *_pretrained(recipe, data.classes, processes),
        f"arms     {', '.join(arm.title for arm in arms)}",
        f"seeds    {', '.join(map(str, seeds))}",
    ]


def _described(name: str, config: Config, detector: nn.Module) -> str:
    spec = detector_spec(config)
    return f"{name} = {spec.kind} ({spec.describe(config)}), {parameter_count(detector) / 1e6:.2f} M parameters"


def _fetched(recipe: Recipe, processes: int) -> str:
    if recipe.teacher_checkpoint is not None:
        return f"loaded from {recipe.teacher_checkpoint}"
    return "finished" if recipe.teacher_training is None else _trained(recipe.teacher_training, processes)


def _pretrained(recipe: Recipe, classes: tuple[str, ...], processes: int) -> list[str]:
    if recipe.student_pretraining is None:
        return []
    learned = build_pretraining(recipe.student, classes, seed=0).summary
    return [f"         first {learned}; {_trained(recipe.student_pretraining, processes)}"]


def _trained(training: TrainingConfig, processes: int) -> str:
    micro, accumulation = split_batch(training, processes)
    length = f"{training.steps} steps" if training.steps is not None else f"{training.epochs} epochs"
    batch = f"batch {training.batch} = {micro} samples x {processes} processes x {accumulation} accumulated"
    return f"{length}, {batch}, learning rate {training.optimizer.lr:g}, {training.precision}"
