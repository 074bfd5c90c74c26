"""DistillBEV as a method: the maps that it compares, its adapters, and the losses of a step.

Source: DistillBEV, ICCV 2023, arXiv 2309.15109.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from bevkd_common.data.samples import Batch
from bevkd_common.distill.inherit import copy_part
from bevkd_common.distill.method import ParamGroup
from bevkd_common.distill.panels import MapPanel, Panel, RegionPanel
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Deferred, HeatmapTargets, Losses, Outputs, Term
from torch import Tensor, nn
from torch.nn import functional as F

from distillbev.losses import (
    AttentionMap,
    AttentionSource,
    Overlap,
    Regions,
    SamplePoint,
    attention_imitation,
    channel_attention,
    combined_attention,
    decompose,
    false_positive_mask,
    feature_imitation,
    foreground_and_scale,
    ground_truth_heatmap,
    level_scale,
    level_weight,
    resample_heatmap,
    squared_error,
    teacher_heatmap,
)

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule

LEGEND = ("background", "foreground: in a ground-truth box", "false positive: only the teacher predicts an object")


class LayerWeights(NamedTuple):
    """Weights of one layer's terms: equation 7's alpha and beta, that of the false positives, and lambda."""

    alpha: float
    beta: float
    w_fp: float
    lam: float


class Layer(nn.Module):
    """A pair of maps, with the adapter that makes them comparable.

    Args:
        name: Prefix of its terms.
        teacher_tap: Name of the teacher's map.
        student_tap: Name of the student's map.
        grid: Cells of the teacher's map, and of the student's after the adapter.
        adapter: From the student's map to the teacher's shape.
        kernel: K of equation 8.
        weights: Of the terms.
        false_positives: Whether false positives are a region of their own here.
        normalized: Whether both maps are divided by the teacher's root mean square, which must be measured first.
    """

    def __init__(
        self,
        name: str,
        teacher_tap: str,
        student_tap: str,
        grid: Grid,
        *,
        adapter: nn.Module,
        kernel: nn.Module,
        weights: LayerWeights,
        false_positives: bool,
        normalized: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self.teacher_tap = teacher_tap
        self.student_tap = student_tap
        self.grid = grid
        self.adapter = adapter
        self.kernel = kernel
        self.weights = weights
        self.false_positives = false_positives
        self.teacher_rms: Tensor | None
        # NaN until measured: the loss of a map that was not measured is NaN and stops the training.
        self.register_buffer("teacher_rms", torch.tensor(torch.nan) if normalized else None)

    def maps(self, teacher: Outputs, student: Outputs) -> tuple[Tensor, Tensor]:
        """The teacher's map and the student's adapted one, [B, C, Y, X] in full precision."""
        target = _full_precision(teacher.taps[self.teacher_tap].detach())
        adapted = _full_precision(self.adapter(student.taps[self.student_tap]))
        if self.teacher_rms is None:
            return target, adapted
        return target / self.teacher_rms, adapted / self.teacher_rms


class Comparison(NamedTuple):
    """The inputs of the losses of a layer.

    Attributes:
        layer: The pair.
        teacher: [B, C, Y, X] map, without gradient.
        student: [B, C, Y, X] map, adapted.
        regions: Of the layer's grid.
    """

    layer: Layer
    teacher: Tensor
    student: Tensor
    regions: Regions


@dataclass(frozen=True)
class RegionSettings:
    """How the cells of a layer are divided into regions and weighted; see `DistillBevConfig`.

    Attributes:
        decomposition: Whether regions are weighted apart.
        adaptive_scaling: Whether foreground cells count by the size of their object.
        gamma_teacher: Probability above which the teacher predicts an object.
        gamma_ground_truth: Value below which the ground truth has none.
        sample_point: Point of a cell that must lie in a box.
        overlap: Which of several boxes owns a cell.
        ensure_center_cell: Whether a box without a sample point gets the cell of its centre.
    """

    decomposition: bool
    adaptive_scaling: bool
    gamma_teacher: float
    gamma_ground_truth: float
    sample_point: SamplePoint
    overlap: Overlap
    ensure_center_cell: bool


@dataclass(frozen=True)
class AttentionSettings:
    """How attention weighs cells and is imitated; see `DistillBevConfig`.

    Attributes:
        source: Whose spatial attention weighs the cells.
        imitated: The channel mean of equation 8; None leaves that term out.
        tau: Temperature.
        student_ratio: Weight of the student's attention relative to the teacher's.
        false_positive_channels: Whether the teacher's channel attention weighs the false positives.
    """

    source: AttentionSource
    imitated: AttentionMap | None
    tau: float
    student_ratio: float
    false_positive_channels: bool


class DistillBev(nn.Module):
    """Feature and attention imitation by region, at several layers; a `Method`.

    Args:
        layers: The pairs of maps.
        inherit: Name in `Detector.parts` of what starts as the teacher's; None leaves the student as it is.
        weight: Factor on all terms.
        regions: How cells are divided and weighted.
        attention: How attention weighs cells and is imitated.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        inherit: str | None,
        weight: float,
        regions: RegionSettings,
        attention: AttentionSettings,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.inherit = inherit
        self.weight = weight
        self.regions = regions
        self.attention = attention
        head = {"head"} if any(layer.false_positives for layer in layers) else set()
        self.teacher_taps = frozenset(layer.teacher_tap for layer in layers) | head
        self.student_taps = frozenset(layer.student_tap for layer in layers)
        self.student_parts = frozenset() if inherit is None else frozenset({inherit})

    def forward(self, teacher: Outputs, student: Outputs, targets: object, batch: Batch) -> Losses:
        """Equation 9 without the detection losses.

        Terms of a layer are `{layer}/fg`, `/tn`, `/fp` where false positives are a region, and `/attention`;
        without region decomposition the first three are one, `/all`. Metrics of a layer are the cells of each
        region (mean over the samples), the root mean square of either map, and their cosine similarity.
        """
        comparisons = list(self._comparisons(teacher, student, targets, batch))
        terms = {
            f"{comparison.layer.name}/{key}": Term(term.value, term.weight * self.weight)
            for comparison in comparisons
            for key, term in self._terms(comparison).items()
        }
        return Losses(terms, Deferred(lambda: _all_metrics(comparisons)))

    def prepare(self, teacher: DetectorModule, student: DetectorModule, calibration: Iterable[Batch]) -> None:
        """Copy the head, and measure the teacher's maps that are to be normalised.

        Source: the released code copies the branches of convolutional students and leaves the shared convolution,
        whose input differs, alone; for BEVFormer it copies the decoder and leaves the queries alone. A temporal
        student regresses displacements where the teacher regresses velocities; its velocity branch is merely
        initialised.

        Args:
            teacher: The trained detector, in eval mode.
            student: The detector that is going to be trained.
            calibration: Batches on the teacher's device; read only where a layer is normalised.

        Raises:
            UserError: If the student's head does not have the teacher's shapes, or a map is zero everywhere.
            ValueError: If the teacher is in training mode, or batches are needed and there are none.
        """
        if self.inherit is not None:
            smaller = "task_heads" if self.inherit == "head" else "none"
            remedy = f"give both heads the same sizes, or set `inherit: {smaller}`"
            copy_part(teacher, student, self.inherit, "distillbev `inherit`", remedy)
        normalized = [layer for layer in self._layers if layer.teacher_rms is not None]
        if normalized:
            names = frozenset(layer.teacher_tap for layer in normalized)
            measured = root_mean_squares(teacher, names, calibration)
            for layer in normalized:
                assert layer.teacher_rms is not None
                layer.teacher_rms.fill_(measured[layer.teacher_tap])

    def param_groups(self) -> list[ParamGroup]:
        """Adapters and attention kernels, at the student's learning rate and weight decay."""
        parameters = list(self.parameters())
        return [ParamGroup(parameters)] if parameters else []

    @torch.no_grad()
    def explain(self, teacher: Outputs, student: Outputs, targets: object, batch: Batch) -> list[Panel]:
        """For each layer its regions, the attention, and the magnitudes of both maps, of the first sample."""
        training = self.training
        self.eval()
        panels = [
            panel
            for comparison in self._comparisons(teacher, student, targets, batch)
            for panel in _panels(comparison, self._attention(comparison))
        ]
        self.train(training)
        return panels

    @property
    def _layers(self) -> Sequence[Layer]:
        return cast("Sequence[Layer]", self.layers)

    def _comparisons(
        self, teacher: Outputs, student: Outputs, targets: object, batch: Batch
    ) -> Iterator[Comparison]:
        """One for each layer; the boxes are laid on each grid once."""
        rules = self.regions
        foregrounds: dict[Grid, tuple[Tensor, Tensor]] = {}
        heatmaps = self._heatmaps(teacher, targets)
        for layer in self._layers:
            target, adapted = layer.maps(teacher, student)
            if layer.grid not in foregrounds:
                foregrounds[layer.grid] = foreground_and_scale(
                    batch.boxes,
                    batch.valid,
                    layer.grid,
                    rules.sample_point,
                    rules.overlap,
                    rules.ensure_center_cell,
                )
            regions = self._regions(layer, *foregrounds[layer.grid], heatmaps)
            yield Comparison(layer, target, adapted, regions)

    def _heatmaps(self, teacher: Outputs, targets: object) -> tuple[Tensor, ...]:
        """The teacher's and the true class-agnostic heat map, where a layer asks for false positives."""
        if "head" not in self.teacher_taps:
            return ()
        assert isinstance(targets, HeatmapTargets), "`build` refuses students without heat maps"
        logits = [_full_precision(heatmap) for heatmap in teacher.heatmaps]
        return teacher_heatmap(logits), ground_truth_heatmap(targets.heatmaps)

    def _regions(self, layer: Layer, mask: Tensor, scale: Tensor, heatmaps: tuple[Tensor, ...]) -> Regions:
        false_positive = None
        if layer.false_positives:
            seen, truth = (resample_heatmap(heatmap, layer.grid.ny, layer.grid.nx) for heatmap in heatmaps)
            false_positive = false_positive_mask(
                seen, truth, mask, self.regions.gamma_teacher, self.regions.gamma_ground_truth
            )
        regions = decompose(mask, scale, false_positive)
        return regions if self.regions.adaptive_scaling else level_scale(regions)

    def _attention(self, comparison: Comparison) -> Tensor:
        return combined_attention(
            comparison.teacher,
            comparison.student,
            self.attention.source,
            self.attention.tau,
            self.attention.student_ratio,
        )

    def _terms(self, comparison: Comparison) -> dict[str, Term]:
        layer, teacher, student, _ = comparison
        # Half precision loses the small shares of a softmax over thousands of cells.
        with torch.autocast(teacher.device.type, enabled=False):
            terms = self._feature_terms(comparison, self._attention(comparison))
            if self.attention.imitated is not None:
                imitated = attention_imitation(teacher, student, self.attention.imitated, layer.kernel)
                terms["attention"] = Term(imitated, layer.weights.lam)
        return terms

    def _feature_terms(self, comparison: Comparison, attention: Tensor) -> dict[str, Term]:
        layer, teacher, student, regions = comparison
        alpha, beta, w_fp, _ = layer.weights
        error = squared_error(teacher, student)
        if not self.regions.decomposition:
            return {"all": Term(feature_imitation(error, level_weight(regions, alpha, w_fp, beta), attention))}
        terms = {
            "fg": Term(feature_imitation(error, regions.foreground * regions.scale, attention), alpha),
            "tn": Term(feature_imitation(error, regions.background * regions.scale, attention), beta),
        }
        if layer.false_positives:
            if self.attention.false_positive_channels:
                error = squared_error(teacher, student, channel_attention(teacher, self.attention.tau))
            weight = regions.false_positive * regions.scale
            terms["fp"] = Term(feature_imitation(error, weight, attention), w_fp)
        return terms


def root_mean_squares(detector: nn.Module, names: frozenset[str], batches: Iterable[Batch]) -> dict[str, float]:
    """Root mean square of a trained detector's maps, by tap name, over all cells and channels of the batches.

    Raises:
        UserError: If a map is zero everywhere.
        ValueError: If the detector is in training mode, or there are no batches.
    """
    if detector.training:
        raise ValueError("the teacher must be in eval mode, or measuring it moves its batch norm")
    squares, count = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    with torch.no_grad():
        for batch in batches:
            taps = detector(batch, names).taps
            for name in names:
                squares[name] += taps[name].double().square().sum().item()
                count[name] += taps[name].numel()
    if not all(count.values()):
        raise ValueError("normalising by the teacher's root mean square needs calibration batches, there are none")
    for name in sorted(names):
        if squares[name] == 0:
            raise UserError(
                f"the teacher's map {name!r} is zero in all calibration batches and cannot be normalised; train "
                "the teacher longer, or set `normalize: none`"
            )
    return {name: (squares[name] / count[name]) ** 0.5 for name in names}


def _full_precision(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _all_metrics(comparisons: Sequence[Comparison]) -> dict[str, Tensor]:
    return {
        f"{comparison.layer.name}/{key}": metric
        for comparison in comparisons
        for key, metric in _metrics(comparison).items()
    }


def _metrics(comparison: Comparison) -> dict[str, Tensor]:
    _, teacher, student, regions = comparison
    student = student.detach()
    return {
        "cells_fg": _mean_count(regions.foreground),
        "cells_fp": _mean_count(regions.false_positive),
        "cells_tn": _mean_count(regions.background),
        "teacher_rms": teacher.square().mean().sqrt(),
        "student_rms": student.square().mean().sqrt(),
        "cosine": F.cosine_similarity(teacher.flatten(1), student.flatten(1)).mean(),
    }


def _mean_count(mask: Tensor) -> Tensor:
    return mask.sum().to(torch.float32) / len(mask)


def _panels(comparison: Comparison, attention: Tensor) -> list[Panel]:
    layer, teacher, student, regions = comparison
    x_min, y_min, x_max, y_max = layer.grid.extent
    extent = (x_min, x_max, y_min, y_max)
    parts = regions.foreground[0].long() + 2 * regions.false_positive[0].long()

    def magnitude(features: Tensor, title: str, caption: str) -> Panel:
        return MapPanel(f"{layer.name}: {title}", caption, features[0].abs().mean(dim=0).cpu(), extent)

    return [
        RegionPanel(
            f"{layer.name}: regions",
            "Foreground, false positives and background have loss weights of their own.",
            parts.cpu(),
            LEGEND,
            extent,
        ),
        MapPanel(
            f"{layer.name}: attention",
            "Factor on each cell's error; its mean is one.",
            attention[0].cpu(),
            extent,
        ),
        magnitude(teacher, "teacher", "Mean absolute value of the teacher's features."),
        magnitude(student, "student", "Mean absolute value of the student's features, adapted."),
    ]
