"""Several methods as one: their losses are added, and they prepare the student in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations, tee
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from bevkd_common.config.plugins import MethodSpec, installed, load
from bevkd_common.config.stack import StackConfig
from bevkd_common.data.samples import Batch
from bevkd_common.distill.method import ParamGroup
from bevkd_common.distill.panels import Panel
from bevkd_common.errors import UserError
from bevkd_common.models.detector import Deferred, Losses, Outputs
from bevkd_common.models.taps import Taps

if TYPE_CHECKING:
    from bevkd_common.distill.method import MethodModule
    from bevkd_common.models.detector import DetectorModule


class Stack(nn.Module):
    """The sum of several methods; a `Method`.

    Args:
        parts: The methods by name, in the order in which they prepare the student.

    Raises:
        UserError: If two parts inherit or freeze the same part of the student.
    """

    def __init__(self, parts: Mapping[str, MethodModule]) -> None:
        super().__init__()
        for (one, first), (other, second) in combinations(parts.items(), 2):
            for part in sorted(_shared(first.student_parts, second.student_parts)):
                raise UserError(
                    f"{one} and {other} both inherit or freeze the student's `{part}`: switch it off in one of them"
                )
        self.parts = nn.ModuleDict(parts)
        self.teacher_taps = frozenset[str]().union(*(part.teacher_taps for part in parts.values()))
        self.student_taps = frozenset[str]().union(*(part.student_taps for part in parts.values()))
        self.student_parts = frozenset[str]().union(*(part.student_parts for part in parts.values()))

    def _methods(self) -> Iterable[tuple[str, MethodModule]]:
        return cast("Iterable[tuple[str, MethodModule]]", self.parts.items())

    def forward(self, teacher: Outputs, student: Outputs, targets: object, batch: Batch) -> Losses:
        """Terms and metrics of all parts, each named `part/name`."""
        outputs = {name: method(teacher, student, targets, batch) for name, method in self._methods()}
        terms = {f"{name}/{term}": value for name, own in outputs.items() for term, value in own.terms.items()}

        def metrics() -> dict[str, Tensor]:
            return {f"{name}/{key}": value for name, own in outputs.items() for key, value in own.metrics.items()}

        return Losses(terms, Deferred(metrics))

    def prepare(self, teacher: DetectorModule, student: DetectorModule, calibration: Iterable[Batch]) -> None:
        """Prepare each part in order; every part reads the same calibration batches."""
        copies = tee(calibration, len(self.parts))
        for (_, method), batches in zip(self._methods(), copies, strict=True):
            method.prepare(teacher, student, batches)

    def param_groups(self) -> list[ParamGroup]:
        """The parameter groups of all parts."""
        return [group for _, method in self._methods() for group in method.param_groups()]

    def explain(self, teacher: Outputs, student: Outputs, targets: object, batch: Batch) -> list[Panel]:
        """The panels of all parts, each title with the name of its part."""
        return [
            replace(panel, title=f"{name}: {panel.title}")
            for name, method in self._methods()
            for panel in method.explain(teacher, student, targets, batch)
        ]


def _shared(ours: frozenset[str], theirs: frozenset[str]) -> set[str]:
    """The parts in both sets; `head` contains `head.decoder`."""
    pairs = [sorted((mine, other), key=len) for mine in ours for other in theirs]
    return {inner for outer, inner in pairs if f"{inner}.".startswith(f"{outer}.")}


def build(config: StackConfig, teacher: Taps, student: Taps) -> Stack:
    """Build every part between two detectors.

    Raises:
        UserError: If a method does not fit the detectors, or two inherit or freeze the same part of the student.
    """
    methods = installed(MethodSpec)
    specs = [methods.of(part) for part in config.parts]
    return Stack(
        {
            spec.kind: load(spec.build)(part, teacher, student)
            for spec, part in zip(specs, config.parts, strict=True)
        }
    )
