"""The contract of a distillation method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from bevkd_common.data.samples import Batch
from bevkd_common.models.detector import Outputs, Targets, Term


class Deferred(Mapping[str, Tensor]):
    """Numbers that are computed when the first of them is read: most steps are not logged."""

    def __init__(self, compute: Callable[[], Mapping[str, Tensor]]) -> None:
        self._compute = compute

    @cached_property
    def _numbers(self) -> Mapping[str, Tensor]:
        with torch.no_grad():
            return self._compute()

    def __getitem__(self, name: str) -> Tensor:
        return self._numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


@dataclass(frozen=True, eq=False)
class MethodOutput:
    """Losses of one step, and numbers to log beside them, which are read at the steps that are logged."""

    terms: Mapping[str, Term]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ParamGroup:
    """Parameters with a learning-rate factor and a weight decay; None keeps the recipe's."""

    parameters: Sequence[nn.Parameter]
    lr_factor: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture that explains the method; the report draws it knowing no method.

    Attributes:
        title: Shown above.
        caption: One sentence: what the reader sees.
        kind: "regions" is an integer map whose values index `legend`; "map" is a continuous map; "matrix" is a
            square of pairwise values.
        values: [Y, X] on the CPU.
        extent: x0, x1, y0, y1 in metres for maps that lie on the ground.
        legend: Names of the values of a "regions" panel.
    """

    title: str
    caption: str
    kind: Literal["regions", "map", "matrix"]
    values: Tensor
    extent: tuple[float, float, float, float] | None = None
    legend: tuple[str, ...] = ()


class Method(Protocol):
    """An `nn.Module`, one per paper, that owns its adapters; a structural contract.

    The constructor takes its hyper-parameters and the two detectors' `Taps`, and checks every tap it needs before
    any data is read.

    Attributes:
        teacher_taps: What the teacher must return.
        student_taps: What the student must return.
    """

    teacher_taps: frozenset[str]
    student_taps: frozenset[str]

    def __call__(self, teacher: Outputs, student: Outputs, targets: Targets, batch: Batch) -> MethodOutput:
        """Losses of one step."""
        ...

    def prepare(self, teacher: nn.Module, student: nn.Module, calibration: Iterable[Batch]) -> None:
        """Once, on a fresh start and never on resume; before the optimizer, EMA and DDP exist."""
        ...

    def param_groups(self) -> list[ParamGroup]:
        """What the optimizer trains besides the student."""
        ...

    def explain(self, teacher: Outputs, student: Outputs, targets: Targets, batch: Batch) -> list[Panel]:
        """Pictures of the first sample of the batch."""
        ...


if TYPE_CHECKING:

    class MethodModule(nn.Module, Method):
        """An `nn.Module` that fulfils the contract: a name for the type checker, nothing to inherit from."""
