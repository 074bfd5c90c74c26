"""The contract of a detector, and the types of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.taps import TapSpec
from bevkd_common.models.tokens import TokenFeatures


class Term(NamedTuple):
    """One loss term: the training loop sums `value * weight` and logs both."""

    value: Tensor
    weight: float = 1.0


class Deferred(Mapping[str, Tensor]):
    """Metrics that are computed when the first of them is read: most steps are not logged."""

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
class Losses:
    """What a detector, a pretraining and a distillation method return for one step.

    Attributes:
        terms: Loss terms by name.
        metrics: Scalars to log beside them by name; they are read at the steps that are logged, see `Deferred`.
    """

    terms: Mapping[str, Term]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Outputs:
    """The result of one forward pass.

    Attributes:
        taps: The feature maps that were wanted, by tap name.
        tokens: The values of the `Tokens` taps that were wanted, by tap name.
        head: Predictions as the tap `head` describes them: of `HeadMaps` one mapping per task, of `Queries` one
            per decoder layer, the last one final. Empty if "head" was not wanted.
        extras: Further tensors that `losses` reads, such as depth logits.
        state: State that a temporal detector carries to the next frame.
    """

    taps: Mapping[str, Tensor]
    head: Sequence[Mapping[str, Tensor]] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    state: object | None = None
    tokens: Mapping[str, TokenFeatures] = field(default_factory=dict)

    def value(self, name: str) -> object:
        """Return the value of a tap by its name, the predictions for "head"."""
        if name == "head":
            return self.head
        return self.tokens[name] if name in self.tokens else self.taps[name]

    @property
    def heatmaps(self) -> list[Tensor]:
        """The class heat maps among the predictions, [B, K, Y, X] logits each; see `TapSpec.heatmap_grid`."""
        return [part["heatmap"] for part in self.head if "heatmap" in part]


@runtime_checkable
class HeatmapTargets(Protocol):
    """Targets with class heat maps: those of every detector whose `head` tap has a `heatmap_grid`."""

    @property
    def heatmaps(self) -> Sequence[Tensor]:
        """Gaussians [B, K, Y, X] in [0, 1], one tensor for each of `Outputs.heatmaps`."""
        ...


@dataclass(frozen=True, eq=False)
class CenterTargets:
    """Targets of a centre-point head; these are `HeatmapTargets`.

    Attributes:
        heatmaps: One [B, K, Y, X] map of Gaussians per task.
        regression: One [B, M, 10] tensor per task, in the order of the head's branches.
        indices: One [B, M] int64 tensor per task, flat cell y * X + x.
        mask: One [B, M] bool tensor per task.
    """

    heatmaps: Sequence[Tensor]
    regression: Sequence[Tensor]
    indices: Sequence[Tensor]
    mask: Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class SetTargets:
    """Targets of a query head.

    Attributes:
        labels: [B, M] int64, class of each box; -1 for boxes that are left out.
        code: [B, M, 10] float32, box codes; unknown numbers are NaN.
        matched: One [B, Q] int64 per decoder layer: the box that each query is matched with, -1 for background.
        heatmap: [B, K, Y, X] Gaussians, for queries that start at the peaks of a heat map.
    """

    labels: Tensor
    code: Tensor
    matched: Sequence[Tensor]
    heatmap: Tensor | None = None

    @property
    def heatmaps(self) -> list[Tensor]:
        """See `HeatmapTargets`."""
        return [] if self.heatmap is None else [self.heatmap]


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
    """The contract of a detector: an `nn.Module` with these attributes and methods; there is no base class.

    `forward` computes the taps that are wanted and what they depend on. "head" runs the whole detector; a teacher
    whose head is not wanted does not compute it.

    Targets are opaque: only the detector that makes them reads all of them. A method asks for a capability such as
    `HeatmapTargets`, which the `head` tap announces when the method is built.

    Attributes:
        taps: Descriptions of the taps by name.
        needs: Data that a batch must hold.
        parts: Named parts that a method may copy or freeze and that tap descriptions refer to; `head` contains
            `head.decoder`. Shared names: `image_backbone`, `image_neck`, `depth_net`, `reader`, `backbone`,
            `encoder`, `encoder.bev_queries`, `bev_neck`, `head`; of a centre-point head `head.task_heads`; of a
            query head `head.decoder` and `head.queries`.
    """

    taps: Mapping[str, TapSpec]
    needs: DataNeeds

    @property
    def parts(self) -> Mapping[str, nn.Module | nn.Parameter]:
        """See above; a new mapping to the modules as they are now."""
        ...

    def __call__(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """Run one forward pass that computes the taps `want`."""
        ...

    def targets(self, outputs: Outputs, batch: Batch) -> Any:
        """Make the targets of a batch, once per step."""
        ...

    def losses(self, outputs: Outputs, targets: Any, batch: Batch) -> Losses:
        """Compare outputs with the detector's own targets."""
        ...

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """Decode the boxes of each sample; one entry per sample."""
        ...


class Pretraining(Protocol):
    """The objective of a pretraining: an `nn.Module` that trains a part of a detector before the whole.

    Its own parameters are dropped afterwards.

    Attributes:
        needs: Data that a batch must hold.
        summary: Target and source of the supervision in a few words, for the plan and the report.
    """

    needs: DataNeeds
    summary: str

    def __call__(self, detector: DetectorModule, batch: Batch) -> Losses:
        """Compute the losses of one step."""
        ...

    def trained(self, detector: DetectorModule) -> Sequence[nn.Module]:
        """Return the modules of the detector that receive gradients."""
        ...


if TYPE_CHECKING:

    class DetectorModule(nn.Module, Detector):
        """An `nn.Module` that fulfils `Detector`; a name for the type checker alone."""

    class PretrainingModule(nn.Module, Pretraining):
        """An `nn.Module` that fulfils `Pretraining`; a name for the type checker alone."""
