"""The plan of an experiment, printed before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bevkd_common.config.methods import paper, title
from bevkd_common.config.model import Config
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.training import TrainingConfig
from bevkd_common.engine.optimizer import grouped_parameters, split_batch
from bevkd_common.experiment.arms import Arm
from bevkd_common.experiment.build import (
    build_method,
    build_pretraining,
    dataset_spec,
    detector_spec,
    parameter_count,
    shape_of,
)


def plan_lines(recipe: Recipe, arms: Sequence[Arm], seeds: Sequence[int], processes: int) -> list[str]:
    """The plan, one line a thing; building the models checks that the taps fit, before any data is read.

    Raises:
        UserError: If teacher, student and method do not fit, or the batch cannot be split.
    """
    data = dataset_spec(recipe.dataset)
    classes = data.classes_of(recipe.dataset)
    teacher, student = shape_of(recipe.teacher, classes), shape_of(recipe.student, classes)
    with torch.device("meta"):
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
        *_pretrained("teacher", recipe.teacher, recipe.teacher_pretraining, classes, processes),
        *_pretrained("student", recipe.student, recipe.student_pretraining, classes, processes),
        f"arms     {', '.join(arm.title for arm in arms)}",
        f"seeds    {', '.join(map(str, seeds))}",
    ]


def _described(name: str, config: Config, detector: nn.Module) -> str:
    spec = detector_spec(config)
    return f"{name} = {spec.kind} ({spec.describe(config)}), {parameter_count(detector) / 1e6:.2f} M parameters"


def _fetched(recipe: Recipe, processes: int) -> str:
    if recipe.teacher_checkpoint is not None:
        return f"loaded from {recipe.teacher_checkpoint}"
    return "pretrained" if recipe.teacher_training is None else _trained(recipe.teacher_training, processes)


def _pretrained(
    role: str, detector: Config, training: TrainingConfig | None, classes: tuple[str, ...], processes: int
) -> list[str]:
    if training is None:
        return []
    with torch.device("meta"):
        learned = build_pretraining(detector, classes, seed=0).summary
    return [f"         {role} pretraining: {learned}; {_trained(training, processes)}"]


def _trained(training: TrainingConfig, processes: int) -> str:
    micro, accumulation = split_batch(training, processes)
    length = f"{training.steps} steps" if training.steps is not None else f"{training.epochs} epochs"
    batch = f"batch {training.batch} = {micro} samples x {processes} processes x {accumulation} accumulated"
    return f"{length}, {batch}, learning rate {training.optimizer.lr:g}, {training.precision}"
