"""The student's head starts as the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from bevkd_common.errors import UserError
from torch import nn

Part = Literal["task_heads", "head", "decoder"]
Inheritance = Literal["none"] | Part

PATHS: Mapping[Part, str] = {"task_heads": "head.task_heads", "head": "head", "decoder": "head.decoder"}
"""Where a detector keeps each part."""


def inherit_head(teacher: nn.Module, student: nn.Module, part: Part) -> None:
    """Copy weights and buffers of the teacher's head to the student's.

    Args:
        teacher: A detector with `head`.
        student: A detector with `head`; changed in place.
        part: Of a centre-point head the branches of all tasks or everything; of a query head the decoder with its
            branches, or everything, what starts the queries included.

    Raises:
        UserError: If one of the two has no such part, or a tensor has another shape.

    Source: DistillBEV; the released code copies the branches of convolutional students and leaves the shared
    convolution, whose input differs, alone; for BEVFormer it copies the decoder and leaves the queries alone. A
    temporal student regresses displacements where the teacher regresses velocities; for it the velocity branch is a
    mere initialisation.
    """
    path = PATHS[part]
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
            f"same sizes, or set `inherit: {'task_heads' if part == 'head' else 'none'}`"
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
