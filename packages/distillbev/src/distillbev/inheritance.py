"""The student's head starts as the teacher's."""

from __future__ import annotations

from typing import Any, Literal

from bevkd_common.errors import UserError
from torch import nn

Inheritance = Literal["none", "task_heads", "head"]


def inherit_head(teacher: nn.Module, student: nn.Module, part: Literal["task_heads", "head"]) -> None:
    """Copy weights and buffers of the teacher's head to the student's.

    Args:
        teacher: A detector with `head`.
        student: A detector with `head`; changed in place.
        part: The branches of all tasks (`head.task_heads`), or the whole head.

    Raises:
        UserError: If one of the two has no such part, or a tensor has another shape.

    Source: DistillBEV; the released code copies the branches of convolutional students and leaves the shared
    convolution, whose input differs, alone. A temporal student regresses displacements where the teacher regresses
    velocities; for it the velocity branch is a mere initialisation.
    """
    path = "head.task_heads" if part == "task_heads" else "head"
    source, target = (_submodule(detector, path, part) for detector in (teacher, student))
    weights = source.state_dict()
    differences = [
        f"{path}.{name}: {given} and {taken}"
        for name, given, taken in _paired_shapes(weights, target.state_dict())
        if given != taken
    ]
    if differences:
        raise UserError(
            f"`inherit: {part}` cannot copy the head of {type(teacher).__name__} into {type(student).__name__}: "
            f"their tensors differ, first in {differences[0]} ({len(differences)} in all); give both heads the "
            f"same channels and tasks, or set `inherit: {'none' if part == 'task_heads' else 'task_heads'}`"
        )
    target.load_state_dict(weights)


def _submodule(detector: nn.Module, path: str, part: str) -> nn.Module:
    try:
        return detector.get_submodule(path)
    except AttributeError:
        raise UserError(
            f"`inherit: {part}` needs a `{path}`, which {type(detector).__name__} does not have; "
            "set `inherit: none`"
        ) from None


def _paired_shapes(teacher: dict[str, Any], student: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, the teacher's shape and the student's, for every tensor that either has."""

    def shape(weights: dict[str, Any], name: str) -> str:
        return str(tuple(weights[name].shape)) if name in weights else "missing"

    return [(name, shape(teacher, name), shape(student, name)) for name in sorted({*teacher, *student})]
