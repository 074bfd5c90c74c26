"""UniDistill as a method: its adapters, and the losses of a step.

Source: UniDistill, CVPR 2023, arXiv 2303.15083.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from bevkd_common.data.samples import Batch
from bevkd_common.distill.method import ParamGroup
from bevkd_common.distill.panels import Extent, MapPanel, MatrixPanel, Panel, PointPanel
from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Deferred, Losses, Outputs, Term
from torch import Tensor, nn

from unidistill.losses import (
    class_maximum,
    crucial_points,
    feature_loss,
    masked_mean,
    relation_loss,
    relations,
    response_mask,
    sample_map,
)

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule

DRAWN_BOXES = 3
"""Boxes whose relations are drawn."""
CORNERS = ("corner", "centre", "midpoint of an edge")
_KINDS = (0, 0, 0, 0, 1, 2, 2, 2, 2)


class PairedMaps(nn.Module):
    """A map of the teacher and the map of the student that imitates it, each on its own grid.

    Args:
        teacher_tap: Name of the teacher's map.
        student_tap: Name of the student's map.
        teacher_grid: Cells of the teacher's map.
        student_grid: Cells of the student's map.
        before: Applied to the student's map before it is sampled, [B, C, Y, X].
        after: Applied to its samples, [..., C].
    """

    def __init__(
        self,
        teacher_tap: str,
        student_tap: str,
        teacher_grid: Grid,
        student_grid: Grid,
        before: nn.Module,
        after: nn.Module,
    ) -> None:
        super().__init__()
        self.teacher_tap = teacher_tap
        self.student_tap = student_tap
        self.teacher_grid = teacher_grid
        self.student_grid = student_grid
        self.before = before
        self.after = after

    def samples(
        self, teacher: Outputs, student: Outputs, points: Tensor, *, transposed: bool
    ) -> tuple[Tensor, Tensor]:
        """Samples [B, M, P, C] of the teacher's map and of the student's adapted one, float32 or float64.

        Args:
            teacher: With the teacher's map.
            student: With the student's.
            points: [B, M, P, 2] metres.
            transposed: See `sample_map`.
        """
        target = _full_precision(teacher.taps[self.teacher_tap].detach())
        source = self.before(_full_precision(student.taps[self.student_tap]))
        sampled = self.after(sample_map(source, points, self.student_grid, transposed=transposed))
        return sample_map(target, points, self.teacher_grid, transposed=transposed), sampled


@dataclass(frozen=True)
class Response:
    """How the predictions of two heads are compared.

    Attributes:
        weight: Lambda 3.
        teacher_grid: Cells of the teacher's maps.
        grid: Cells of the student's maps, on which the comparison takes place.
        branches: Names of a branch in teacher and student that mean the same; compared in every task. Without any,
            class maxima are compared alone.
        overlap: See `response_mask`.
        temperature: Of the teacher.
        clamp: See `class_maximum`.
        padding_stamps: See `response_mask`.
    """

    weight: float
    teacher_grid: Grid
    grid: Grid
    branches: tuple[tuple[str, str], ...]
    overlap: float
    temperature: float
    clamp: float
    padding_stamps: bool


class UniDistill(nn.Module):
    """Feature, relation and response distillation; a `Method`.

    Args:
        low: The maps whose features are compared; None leaves the term out.
        high: The maps whose relations are compared; None leaves the term out.
        response: How heads are compared; None leaves the terms out.
        feature_weight: Lambda 1.
        relation_weight: Lambda 2.
        area: Where features are compared.
        overlap: See `response_mask`; read where `area` is "gaussian".
        transposed: See `sample_map`.
        batch_statistics: Whether the teacher's batch norm takes the statistics of the batch.
    """

    student_parts: frozenset[str] = frozenset()

    def __init__(
        self,
        low: PairedMaps | None,
        high: PairedMaps | None,
        response: Response | None,
        *,
        feature_weight: float,
        relation_weight: float,
        area: Literal["nine_points", "whole_map", "gaussian"],
        overlap: float,
        transposed: bool,
        batch_statistics: bool,
    ) -> None:
        super().__init__()
        self.low = low
        self.high = high
        self.response = response
        self.feature_weight = feature_weight
        self.relation_weight = relation_weight
        self.area = area
        self.overlap = overlap
        self.transposed = transposed
        self.batch_statistics = batch_statistics
        pairs = [pair for pair in (low, high) if pair is not None]
        head = frozenset() if response is None else frozenset({"head"})
        self.teacher_taps = frozenset(pair.teacher_tap for pair in pairs) | head
        self.student_taps = frozenset(pair.student_tap for pair in pairs) | head

    def forward(self, teacher: Outputs, student: Outputs, targets: object, batch: Batch) -> Losses:
        """The three distillation losses of a step.

        Terms are `feature`, `relation`, `response/classes` and `response/boxes`. Metrics are the number of boxes in
        a sample, and the mean absolute feature of either model at the points that are compared.
        """
        del targets
        terms: dict[str, Term] = {}
        compared: dict[str, Tensor] = {}
        # Float16 loses norms below 6e-8 and overflows above 65504; both occur in low-level maps.
        with torch.autocast(batch.device.type, enabled=False):
            points = crucial_points(batch.boxes)
            if self.low is not None:
                at_boxes = self.area == "nine_points"
                where = points if at_boxes else _cells(self.low.teacher_grid, points)
                wanted, features = self.low.samples(teacher, student, where, transposed=self.transposed)
                if at_boxes:
                    loss = feature_loss(wanted, features, batch.valid)
                else:
                    loss = masked_mean((features - wanted).abs().mean(dim=-1), self._area_mask(batch))
                terms["feature"] = Term(loss, self.feature_weight)
                compared = {"teacher": wanted.detach(), "student": features.detach()}
            if self.high is not None:
                samples = self.high.samples(teacher, student, points, transposed=self.transposed)
                terms["relation"] = Term(relation_loss(*samples, batch.valid), self.relation_weight)
            if self.response is not None:
                terms |= self._response_terms(self.response, teacher, student, batch)
        return Losses(terms, Deferred(lambda: _metrics(compared, batch)))

    def prepare(self, teacher: DetectorModule, student: DetectorModule, calibration: Iterable[Batch]) -> None:
        """Let the teacher's batch norm take the statistics of the batch, if that is asked for; see `Method`."""
        del student, calibration
        if not self.batch_statistics:
            return
        for module in teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean, module.running_var = None, None

    def param_groups(self) -> list[ParamGroup]:
        """Adapters, at the student's learning rate and weight decay."""
        parameters = list(self.parameters())
        return [ParamGroup(parameters)] if parameters else []

    @torch.no_grad()
    def explain(self, teacher: Outputs, student: Outputs, targets: object, batch: Batch) -> list[Panel]:
        """The nine points, the relations of a few boxes, and the response mask, of the first sample."""
        del targets
        training = self.training
        self.eval()
        points = crucial_points(batch.boxes)
        valid = batch.valid[0].nonzero()[:, 0]
        panels: list[Panel] = [_points_panel(points[0, valid], self._extent)] if len(valid) else []
        if self.high is not None:
            both = self.high.samples(teacher, student, points, transposed=self.transposed)
            for model, samples in zip(("teacher", "student"), both, strict=True):
                matrices = relations(samples[0, valid[:DRAWN_BOXES]])
                panels += [_relation_panel(model, box, matrix) for box, matrix in enumerate(matrices)]
        if self.response is not None:
            rules = self.response
            mask = response_mask(batch.boxes, batch.valid, rules.grid, overlap=rules.overlap)[0]
            panels.append(
                MapPanel(
                    "response mask",
                    "Weight of each cell in the comparison of both heads.",
                    mask.cpu(),
                    _extent(rules.grid),
                )
            )
        self.train(training)
        return panels

    @property
    def _extent(self) -> Extent:
        """Of the student's maps."""
        grids = [pair.student_grid for pair in (self.low, self.high) if pair is not None]
        return _extent(grids[0] if self.response is None else self.response.grid)

    def _area_mask(self, batch: Batch) -> Tensor:
        """Weights [B, 1, Y·X] of the cells of the teacher's low-level map."""
        assert self.low is not None
        grid = self.low.teacher_grid
        if self.area == "whole_map":
            return batch.boxes.tensor.new_ones(len(batch), 1, grid.ny * grid.nx)
        return response_mask(batch.boxes, batch.valid, grid, overlap=self.overlap).flatten(1)[:, None]

    def _response_terms(self, rules: Response, teacher: Outputs, student: Outputs, batch: Batch) -> dict[str, Term]:
        mask = response_mask(
            batch.boxes, batch.valid, rules.grid, overlap=rules.overlap, padding_stamps=rules.padding_stamps
        )
        theirs = [_full_precision(heatmap.detach()) for heatmap in teacher.heatmaps]
        wanted = class_maximum(theirs, temperature=rules.temperature, clamp=rules.clamp)
        wanted = _resampled(wanted[:, None], rules)[:, 0]
        ours = [_full_precision(heatmap) for heatmap in student.heatmaps]
        error = (class_maximum(ours, temperature=1.0, clamp=STUDENT_CLAMP) - wanted).abs()
        terms = {"response/classes": Term(masked_mean(error, mask.to(error.dtype)), rules.weight)}
        if rules.branches:
            given = _resampled(_branches(teacher, [name for name, _ in rules.branches]).detach(), rules)
            predicted = _branches(student, [name for _, name in rules.branches])
            error = (predicted - given).abs().mean(dim=1)
            terms["response/boxes"] = Term(masked_mean(error, mask.to(error.dtype)), rules.weight)
        return terms


STUDENT_CLAMP = 1e-4
"""Distance of the student's probabilities from 0 and 1, as its own loss keeps them. Source: the released code."""


def _branches(outputs: Outputs, names: Sequence[str]) -> Tensor:
    """The regression of all tasks side by side, [B, C, Y, X]."""
    return torch.cat([_full_precision(task[name]) for task in outputs.head for name in names], dim=1)


def _resampled(maps: Tensor, rules: Response) -> Tensor:
    """Maps of the teacher's head at the cells of the student's."""
    if rules.teacher_grid.matches(rules.grid):
        return maps
    centers = cell_centers(rules.grid, maps.device, maps.dtype)
    return sample_map(maps, centers.expand(len(maps), *centers.shape), rules.teacher_grid).permute(0, 3, 1, 2)


def _cells(grid: Grid, like: Tensor) -> Tensor:
    """Centres of all cells as the points of one box, [B, 1, Y·X, 2]."""
    centers = cell_centers(grid, like.device, like.dtype).flatten(0, 1)
    return centers.expand(len(like), 1, *centers.shape)


def _full_precision(features: Tensor) -> Tensor:
    """Half precision to float32; float64 stays."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def _metrics(compared: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    magnitudes = {
        f"feature/{model}": samples.abs().mean() for model, samples in compared.items() if samples.numel()
    }
    return {"boxes": batch.valid.sum().float() / len(batch), **magnitudes}


def _points_panel(points: Tensor, extent: Extent) -> PointPanel:
    kinds = torch.tensor(_KINDS).repeat(len(points))
    caption = "The nine points of each box at which both models are compared."
    return PointPanel(
        "crucial points", caption, points.flatten(0, 1).cpu(), kinds, "metres", extent=extent, legend=CORNERS
    )


def _relation_panel(model: str, box: int, matrix: Tensor) -> MatrixPanel:
    caption = "Cosine similarity between the nine points of a box: four corners, the centre, four midpoints."
    return MatrixPanel(f"relations of the {model}, box {box}", caption, matrix.cpu(), "points", "points")


def _extent(grid: Grid) -> Extent:
    x0, y0, x1, y1 = grid.extent
    return x0, x1, y0, y1
