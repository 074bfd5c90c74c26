"""The contract of a detector, and the types that cross it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.taps import TapSpec


class Term(NamedTuple):
    """One named loss: the loop sums `value * weight` and logs both."""

    value: Tensor
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Outputs:
    """What one forward pass returns.

    Attributes:
        taps: The feature maps that were wanted, by tap name.
        head: What the head predicts, by name: of a head with `HeadMaps` one mapping a task, branch name to
            [B, C, Y, X] logits in the order of the maps; of a head with `Queries` one mapping a decoder layer, the
            last one final. Empty where the head was not asked to run.
        extras: Further tensors that `losses` needs (depth logits, say).
        state: What a temporal detector carries to the next frame.
    """

    taps: Mapping[str, Tensor]
    head: Sequence[Mapping[str, Tensor]] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    state: object | None = None


@dataclass(frozen=True, eq=False)
class CenterTargets:
    """What a head with `HeadMaps` learns.

    Attributes:
        heatmaps: One [B, K, Y, X] map of Gaussians a task.
        regression: One [B, M, 10] tensor a task, in the head's branch order.
        indices: One [B, M] int64 tensor a task, flat cell y * X + x.
        mask: One [B, M] bool tensor a task.
    """

    heatmaps: Sequence[Tensor]
    regression: Sequence[Tensor]
    indices: Sequence[Tensor]
    mask: Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class SetTargets:
    """What a head with `Queries` learns.

    Attributes:
        labels: [B, M] int64, class of each box; -1 where there is nothing to learn.
        code: [B, M, 10] float32, box codes; a number that nobody knows is NaN.
        matched: One [B, Q] int64 a decoder layer: the box that each query learns, -1 where it is background.
        heatmap: [B, K, Y, X] Gaussians, where queries start at the peaks of a heat map.
    """

    labels: Tensor
    code: Tensor
    matched: Sequence[Tensor]
    heatmap: Tensor | None = None


Targets = CenterTargets | SetTargets
"""What the losses compare with; made once a step and shared with the method."""


@dataclass(frozen=True, eq=False)
class Detections:
    """Decoded boxes of one sample, best first, in the batch's LiDAR axes.

    Attributes:
        boxes: [M] boxes.
        scores: [M] float32 in [0, 1].
        labels: [M] int64.
    """

    boxes: Boxes
    scores: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> Detections:
        """The same on `device`."""
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device))


class Detector(Protocol):
    """An `nn.Module` that detects; a structural contract, nobody inherits from it.

    `forward` computes only the taps wanted. Wanting "head" runs the whole detector; a teacher of which only
    features are wanted never reaches its head.
    """

    taps: Mapping[str, TapSpec]
    needs: DataNeeds

    def __call__(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """One forward pass that computes what is wanted."""
        ...

    def targets(self, outputs: Outputs, batch: Batch) -> Targets:
        """What the head learns from a batch."""
        ...

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Term]:
        """Named losses."""
        ...

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """One entry a sample."""
        ...


class Pretraining(Protocol):
    """An `nn.Module` that trains a part of a detector before the whole; what it owns is dropped afterwards."""

    needs: DataNeeds
    summary: str
    """What is learned, from what; for the plan and the report."""

    def __call__(self, detector: DetectorModule, batch: Batch) -> dict[str, Term]:
        """Named losses."""
        ...

    def trained(self, detector: DetectorModule) -> Sequence[nn.Module]:
        """The modules of the detector that the losses reach."""
        ...


if TYPE_CHECKING:

    class DetectorModule(nn.Module, Detector):
        """An `nn.Module` that fulfils the contract: a name for the type checker, nothing to inherit from."""

    class PretrainingModule(nn.Module, Pretraining):
        """As `DetectorModule`."""
