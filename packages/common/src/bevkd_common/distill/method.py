"""The contract of a distillation method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import nn

from bevkd_common.data.samples import Batch
from bevkd_common.distill.panels import Panel
from bevkd_common.models.detector import Losses, Outputs

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule


@dataclass(frozen=True, eq=False)
class ParamGroup:
    """Parameters with a learning-rate factor and a weight decay; None keeps the decay of the recipe."""

    parameters: Sequence[nn.Parameter]
    lr_factor: float = 1.0
    weight_decay: float | None = None


class Method(Protocol):
    """The contract of a method: an `nn.Module`, one per paper, that owns its adapters; there is no base class.

    The `build` function of its spec takes the configuration and the `Taps` of both detectors, and checks every tap
    that the method reads before any data is read.

    Targets are those of the student and opaque: a method that reads heat maps checks `TapSpec.heatmap_grid` of the
    student's head when it is built; the targets are `HeatmapTargets` then.

    Attributes:
        teacher_taps: Taps of the teacher that are read.
        student_taps: Taps of the student that are read.
        student_parts: Parts of the student that `prepare` overwrites or freezes; `head` contains `head.decoder`.
    """

    teacher_taps: frozenset[str]
    student_taps: frozenset[str]
    student_parts: frozenset[str]

    def __call__(self, teacher: Outputs, student: Outputs, targets: object, batch: Batch) -> Losses:
        """Compute the loss terms of one step."""
        ...

    def prepare(self, teacher: DetectorModule, student: DetectorModule, calibration: Iterable[Batch]) -> None:
        """Prepare a training: copy or freeze parts of the student, measure statistics of the teacher.

        Called once on a fresh start and never on resume, before the optimizer, EMA and DDP exist.
        """
        ...

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameters that the optimizer trains besides those of the student."""
        ...

    def explain(self, teacher: Outputs, student: Outputs, targets: object, batch: Batch) -> list[Panel]:
        """Draw figures of the first sample of the batch."""
        ...


if TYPE_CHECKING:

    class MethodModule(nn.Module, Method):
        """An `nn.Module` that fulfils `Method`; a name for the type checker alone."""
