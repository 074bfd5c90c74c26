"""Parameter groups of the optimizer, and how a batch is split among processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bevkd_common.config.training import TrainingConfig
from bevkd_common.config.wording import did_you_mean
from bevkd_common.engine.tasks import Task
from bevkd_common.errors import UserError


def split_batch(config: TrainingConfig, ranks: int) -> tuple[int, int]:
    """Samples a device sees at once, and how many such micro-batches make one step.

    Raises:
        UserError: If the effective batch cannot be kept.
    """
    micro = config.micro_batch or max(config.batch // ranks, 1)
    if config.batch % (micro * ranks):
        raise UserError(
            f"batch {config.batch} is not a multiple of {ranks} processes x {micro} samples:"
            " set the training's micro_batch so that the effective batch of the recipe is kept"
        )
    return micro, config.batch // (micro * ranks)


def trained_parameters(task: Task) -> list[nn.Parameter]:
    """The parameters that the optimizer updates."""
    return [parameter for parameter in task.parameters() if parameter.requires_grad]


def build_optimizer(task: Task, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the detector and the parameters that the task declares beside it.

    Each group carries `lr_factor`, which the loop multiplies with the schedule's learning rate.

    Raises:
        UserError: If `lr_factors` names a module that the detector does not have.
    """
    optimizer = config.optimizer
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr_factor": factor}
        for factor, parameters in grouped_parameters(task.detector, optimizer.lr_factors).items()
    ]
    for group in task.param_groups():
        extra = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
        groups.append({"params": list(group.parameters), "lr_factor": group.lr_factor} | extra)
    return torch.optim.AdamW(
        groups, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay, fused=True
    )


def grouped_parameters(detector: nn.Module, factors: Mapping[str, float]) -> dict[float, list[nn.Parameter]]:
    """The trainable parameters by the factor of their learning rate; the longest matching module path decides.

    Raises:
        UserError: If a path names no module of the detector.
    """
    parts = dict(detector.named_modules())
    for path in factors:
        if path not in parts:
            raise UserError(
                f"`lr_factors` names `{path}`, which this detector does not have{did_you_mean(path, parts)}"
            )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            fitting = [path for path in factors if name.startswith(f"{path}.")]
            factor = factors[max(fitting, key=len)] if fitting else 1.0
            groups.setdefault(factor, []).append(parameter)
    return groups
