"""Parts of a student that start as the teacher's, or stay frozen.

A detector names such parts in `Detector.parts`; a method reads no other attribute of a detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bevkd_common.errors import UserError

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule


def copy_part(teacher: DetectorModule, student: DetectorModule, name: str, asked_by: str, remedy: str) -> None:
    """Copy the weights and buffers of a named part of the teacher to the student.

    Args:
        teacher: Detector with the part.
        student: Detector with a part of the same name and shapes; changed in place.
        name: Key in `Detector.parts`.
        asked_by: Start of the message, such as "distillbev `inherit: head`".
        remedy: End of the message: which setting to change.

    Raises:
        UserError: If a detector has no such part, or a tensor is missing or has another shape; nothing is copied.
    """
    source, target = (_tensors(part_of(detector, name, asked_by, remedy)) for detector in (teacher, student))
    differences = [
        f"{key}: {given} and {taken}"
        for key in sorted({*source, *target})
        if (given := _shape(source, key)) != (taken := _shape(target, key))
    ]
    if differences:
        raise UserError(
            f"{asked_by}: the part `{name}` of {type(teacher).__name__} does not fit {type(student).__name__}: "
            f"tensors differ, first {name}.{differences[0]} ({len(differences)} in all); {remedy}"
        )
    with torch.no_grad():
        for key, value in target.items():
            value.copy_(source[key])


def freeze_part(detector: DetectorModule, name: str, asked_by: str, remedy: str) -> None:
    """Exclude the parameters of a named part from the training; the checkpoint records their names.

    Batch norms of the part still update their running statistics in training mode.

    Raises:
        UserError: If the detector has no such part.
    """
    part_of(detector, name, asked_by, remedy).requires_grad_(False)


def part_of(detector: DetectorModule, name: str, asked_by: str, remedy: str) -> nn.Module | nn.Parameter:
    """Return a named part of a detector.

    Raises:
        UserError: If the detector has no such part.
    """
    parts = detector.parts
    if name not in parts:
        offered = f"its parts are {', '.join(parts)}" if parts else "it names no parts"
        raise UserError(f"{asked_by}: {type(detector).__name__} has no part `{name}`, {offered}; {remedy}")
    return parts[name]


def _tensors(part: nn.Module | nn.Parameter) -> Mapping[str, Tensor]:
    return {"": part.data} if isinstance(part, nn.Parameter) else part.state_dict()


def _shape(tensors: Mapping[str, Tensor], key: str) -> str:
    return str(tuple(tensors[key].shape)) if key in tensors else "missing"
