"""What is trained: a detector alone, a student under a teacher, or a part of a detector before the rest.

A task returns named loss terms; the loop sums `value * weight` and logs value and weight. A task also declares what
the loop and the experiment need from it: data, further parameters, modules to save, preparation, and what has to be
moved to the device beside its own modules. The loop asks no task for its type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor, nn

from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.distill.method import ParamGroup
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.models.detector import Deferred, Losses, Term

if TYPE_CHECKING:
    from bevkd_common.distill.method import MethodModule
    from bevkd_common.models.detector import DetectorModule, PretrainingModule

HEAD = frozenset({"head"})


class StepOutput(NamedTuple):
    """Losses of one micro-batch, and numbers to log beside them."""

    terms: Mapping[str, Term]
    metrics: Mapping[str, Tensor]

    def detached(self, *, metrics: bool) -> StepOutput:
        """The values without their graph; metrics are computed only if they are asked for."""
        terms = {name: term._replace(value=term.value.detach()) for name, term in self.terms.items()}
        return StepOutput(terms, {name: value.detach() for name, value in self.metrics.items()} if metrics else {})


class Task(nn.Module):
    """A detector in training.

    Attributes:
        detector: The detector whose weights are the result.
    """

    def __init__(self, detector: DetectorModule) -> None:
        super().__init__()
        self.detector = detector

    @property
    def needs(self) -> DataNeeds:
        """What the samples must contain."""
        return self.detector.needs

    @property
    def saved(self) -> Mapping[str, nn.Module]:
        """The modules of a checkpoint, by file stem."""
        return {"raw": self.detector}

    def param_groups(self) -> Sequence[ParamGroup]:
        """Parameters that are trained beside the detector's."""
        return ()

    def prepare(self, calibration: Iterable[Batch]) -> None:
        """Initialise from data, once and before the first step; a resumed training is not prepared again.

        Args:
            calibration: A few batches of the training split on the device, read only where they are iterated.
        """

    def place(self, device: torch.device) -> Self:
        """Move the task to a device, with what it does not register."""
        return self.to(device)

    def forward(self, batch: Batch) -> StepOutput:
        """Named losses of one micro-batch."""
        raise NotImplementedError


class SupervisedTask(Task):
    """A detector on its own labels: the teacher's training, and the baseline's."""

    def forward(self, batch: Batch) -> StepOutput:
        """Named detection losses."""
        outputs = self.detector(batch, HEAD)
        targets = self.detector.targets(outputs, batch)
        return _step(detection=self.detector.losses(outputs, targets, batch))


class DistillationTask(Task):
    """A student on its labels and under a teacher."""

    def __init__(self, student: DetectorModule, teacher: FrozenTeacher, method: MethodModule) -> None:
        super().__init__(student)
        self.method = method
        self.teacher = teacher

    @property
    def needs(self) -> DataNeeds:
        """The needs of teacher and student together."""
        return self.teacher.detector.needs | self.detector.needs

    @property
    def saved(self) -> Mapping[str, nn.Module]:
        """The student, and the method where it has weights."""
        return {"raw": self.detector} | ({"method": self.method} if len(self.method.state_dict()) else {})

    def param_groups(self) -> Sequence[ParamGroup]:
        """The method's."""
        return self.method.param_groups()

    def prepare(self, calibration: Iterable[Batch]) -> None:
        """Prepare the method with both detectors."""
        self.method.prepare(self.teacher.detector, self.detector, calibration)

    def place(self, device: torch.device) -> Self:
        """Move the teacher too, which is not a submodule."""
        self.teacher.to(device)
        return super().place(device)

    def forward(self, batch: Batch) -> StepOutput:
        """Named detection and distillation losses."""
        seen = self.teacher(batch, self.method.teacher_taps)
        outputs = self.detector(batch, HEAD | self.method.student_taps)
        targets = self.detector.targets(outputs, batch)
        distilled = self.method(seen, outputs, targets, batch)
        detection = self.detector.losses(outputs, targets, batch)
        return _step(detection=detection, distillation=distilled)


class PretrainingTask(Task):
    """A part of a detector on an objective of its own; the rest is frozen."""

    def __init__(self, detector: DetectorModule, objective: PretrainingModule) -> None:
        super().__init__(detector)
        self.objective = objective
        trained = {id(parameter) for part in objective.trained(detector) for parameter in part.parameters()}
        for parameter in detector.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)

    @property
    def needs(self) -> DataNeeds:
        """The objective's."""
        return self.objective.needs

    @property
    def saved(self) -> Mapping[str, nn.Module]:
        """The detector, and the objective, which a resumed pretraining needs."""
        return {"raw": self.detector, "objective": self.objective}

    def param_groups(self) -> Sequence[ParamGroup]:
        """The objective's parameters."""
        return (ParamGroup(list(self.objective.parameters())),)

    def forward(self, batch: Batch) -> StepOutput:
        """Named losses of the objective."""
        return _step(pretraining=self.objective(self.detector, batch))


def _step(**parts: Losses) -> StepOutput:
    """Merge the losses of the parts, each name behind the name of its part."""
    terms = {f"{part}/{name}": term for part, losses in parts.items() for name, term in losses.terms.items()}

    def metrics() -> dict[str, Tensor]:
        return {f"{part}/{name}": value for part, one in parts.items() for name, value in one.metrics.items()}

    return StepOutput(terms, Deferred(metrics))
