"""What is trained: a detector alone, a student under a teacher, or a part of a detector before the rest.

All return named terms; the loop sums `value * weight` and logs value and weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from bevkd_common.data.samples import Batch
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.models.detector import Term

if TYPE_CHECKING:
    from bevkd_common.distill.method import MethodModule
    from bevkd_common.models.detector import DetectorModule, PretrainingModule

HEAD = frozenset({"head"})


class StepOutput(NamedTuple):
    """Losses of one micro-batch, and numbers to log beside them."""

    terms: Mapping[str, Term]
    metrics: Mapping[str, Tensor]


class SupervisedTask(nn.Module):
    """A detector on its own labels: the teacher's training, and the baseline's."""

    def __init__(self, detector: DetectorModule) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch) -> StepOutput:
        """Named detection losses."""
        outputs = self.detector(batch, HEAD)
        targets = self.detector.targets(outputs, batch)
        return StepOutput(_prefixed("detection", self.detector.losses(outputs, targets, batch)), {})


class DistillationTask(nn.Module):
    """A student on its labels and under a teacher."""

    def __init__(self, student: DetectorModule, teacher: FrozenTeacher, method: MethodModule) -> None:
        super().__init__()
        self.detector = student
        self.method = method
        self.teacher = teacher

    def forward(self, batch: Batch) -> StepOutput:
        """Named detection and distillation losses."""
        seen = self.teacher(batch, self.method.teacher_taps)
        outputs = self.detector(batch, HEAD | self.method.student_taps)
        targets = self.detector.targets(outputs, batch)
        distilled = self.method(seen, outputs, targets, batch)
        detection = self.detector.losses(outputs, targets, batch)
        terms = _prefixed("detection", detection) | _prefixed("distillation", distilled.terms)
        return StepOutput(terms, distilled.metrics)


class PretrainingTask(nn.Module):
    """A part of a detector on an objective of its own; the rest is frozen."""

    def __init__(self, detector: DetectorModule, objective: PretrainingModule) -> None:
        super().__init__()
        self.detector = detector
        self.objective = objective
        trained = {id(parameter) for part in objective.trained(detector) for parameter in part.parameters()}
        for parameter in detector.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> StepOutput:
        """Named losses of the objective."""
        return StepOutput(_prefixed("pretraining", self.objective(self.detector, batch)), {})


Task = SupervisedTask | DistillationTask | PretrainingTask


def _prefixed(prefix: str, terms: Mapping[str, Term]) -> dict[str, Term]:
    return {f"{prefix}/{name}": term for name, term in terms.items()}
