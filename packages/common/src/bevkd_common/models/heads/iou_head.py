"""The IoU-aware centre head of UniDistill's detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from bevkd_common.config.detectors.iou_head import IouHeadConfig
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Detections, Term
from bevkd_common.models.heads.center_code import BRANCHES, decode, gather_code
from bevkd_common.models.heads.center_decode import collect, within
from bevkd_common.models.heads.center_head import HEATMAP_BIAS, check_tasks
from bevkd_common.models.heads.iou_losses import hard_focal_loss, snapped_iou, uncertainty_weighted, upright_iou
from bevkd_common.models.heads.iou_targets import IouTargets, iou_targets
from bevkd_common.models.taps import Branch, HeadMaps, Meaning
from bevkd_common.ops.nms import rotated_overlaps, suppress
from bevkd_common.ops.normalizers import mean_over_ranks

IOU = Branch("iou", 1, Meaning.IOU)
LEARNED_WEIGHTS = 12
"""Learned loss weights that are allocated; three are read. Source: the released code."""
SMALLEST_SIZE = 1e-3
"""Smallest edge of a detection in metres."""
CLIP = 1e-4
"""Added to the number of positives."""


@dataclass(frozen=True)
class IouDecoding:
    """Decoding of predictions; see `IouHeadConfig`."""

    score_threshold: float
    max_candidates: int
    center_range: tuple[float, ...]
    iou_power: float
    nms_threshold: float
    max_detections: int
    max_size: float


class IouHead(nn.Module):
    """For each task a heat map, the box code, and twice the IoU of the box minus one.

    Args:
        in_channels: Channels of the input map.
        classes: Classes of the data set; labels index them.
        tasks: Class names of each task; together they are `classes`, in any order.
        grid: Cells of the maps.
        channels: Width of the shared convolution and of the branches.
        positives: Cells of a box.
        code_weights: Weights of the ten numbers of a box code.
        iou_loss_weight: Weight of 1 - IoU.
        swap_width_and_height: See `upright_iou`.
        decoding: Decoding of predictions to boxes.

    Source: UniDistill's released code.
    """

    def __init__(
        self,
        in_channels: int,
        classes: tuple[str, ...],
        tasks: tuple[tuple[str, ...], ...],
        grid: Grid,
        *,
        channels: int,
        positives: int,
        code_weights: tuple[float, ...],
        iou_loss_weight: float,
        swap_width_and_height: bool,
        decoding: IouDecoding,
    ) -> None:
        super().__init__()
        self.maps = HeadMaps(grid=grid, tasks=tasks, branches=(*BRANCHES, IOU))
        self.positives = positives
        self.iou_loss_weight = iou_loss_weight
        self.swap_width_and_height = swap_width_and_height
        self.decoding = decoding
        place = {name: (t, c) for t, task in enumerate(tasks) for c, name in enumerate(task)}
        self.task_of_label: Tensor
        self.channel_of_label: Tensor
        self.label_of_channel: Tensor
        self.code_weights: Tensor
        self.center_range: Tensor
        self._constant("task_of_label", torch.tensor([place[name][0] for name in classes]))
        self._constant("channel_of_label", torch.tensor([place[name][1] for name in classes]))
        self._constant("label_of_channel", torch.tensor([classes.index(name) for task in tasks for name in task]))
        self._constant("code_weights", torch.tensor(code_weights))
        self._constant("center_range", torch.tensor(decoding.center_range))
        self.shared_conv = _conv_norm_relu(in_channels, channels)
        self.task_heads = nn.ModuleList(
            nn.ModuleDict(
                {name: _branch(channels, count) for name, count in (*self.maps.layout, ("heatmap", len(task)))}
            )
            for task in tasks
        )
        for task_head in self.task_heads:
            nn.init.constant_(task_head.get_parameter("heatmap.1.bias"), HEATMAP_BIAS)
        self.loss_weights = nn.Parameter(torch.ones(LEARNED_WEIGHTS))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Predictions of a map [B, C, Y, X]: for each task its branches and its heat map, [B, k, Y, X]."""
        shared = self.shared_conv(x)
        tasks = cast("Sequence[nn.ModuleDict]", self.task_heads)
        return [{name: branch(shared) for name, branch in task.items()} for task in tasks]

    @property
    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """See `Detector`."""
        return {"head": self, "head.task_heads": self.task_heads}

    def targets(self, boxes: Boxes, labels: Tensor) -> IouTargets:
        """Targets of boxes [B, M, 9] with labels [B, M], negative where there is no box."""
        index = labels.clamp(min=0)
        return iou_targets(
            boxes,
            task=torch.where(labels >= 0, self.task_of_label[index], -1),
            channel=self.channel_of_label[index],
            class_counts=[len(task) for task in self.maps.tasks],
            grid=self.maps.grid,
            positives=self.positives,
        )

    def losses(self, predictions: Sequence[Mapping[str, Tensor]], targets: IouTargets) -> dict[str, Term]:
        """Terms `heatmap`, `boxes` and `iou` under learned weights, their `penalty`, and `overlap`, 1 - IoU.

        Each task is divided by its own positives, averaged over the processes, and the tasks are added.
        """
        tasks = len(predictions)
        sample, task, cell = targets.place.unbind(1)
        own = mean_over_ranks(torch.bincount(task, minlength=tasks).float())
        code = torch.stack([gather_all(prediction) for prediction in predictions])[task, sample, :, cell].float()
        iou = torch.stack([p["iou"].flatten(2) for p in predictions])[task, sample, 0, cell].float()
        with torch.no_grad():
            decoded = self._boxes(code, cell)
            wanted = Boxes(targets.boxes)
            quality = 2 * snapped_iou(decoded, wanted) - 1

        def per_task(values: Tensor) -> Tensor:
            return values.new_zeros(tasks).index_add(0, task, values) / (own + CLIP)

        focal = torch.stack(
            [
                hard_focal_loss(prediction["heatmap"], heatmap)
                for prediction, heatmap in zip(predictions, targets.heatmaps, strict=True)
            ]
        ) / own.clamp(min=1)
        located = per_task(_code_distance(code, targets.code, self.code_weights))
        losses = torch.stack([focal, located, per_task((iou - quality).abs())], dim=1)
        weighted, penalty = uncertainty_weighted(losses, self.loss_weights[:3])
        overlap = upright_iou(self._boxes(code, cell), wanted, swap_width_and_height=self.swap_width_and_height)
        close = (located.detach() < 1).float()
        return {
            "heatmap": Term(weighted[0]),
            "boxes": Term(weighted[1]),
            "iou": Term(weighted[2]),
            "penalty": Term(penalty),
            "overlap": Term((per_task(1 - overlap) * close).sum(), self.iou_loss_weight),
        }

    @torch.no_grad()
    def decode(self, predictions: Sequence[Mapping[str, Tensor]]) -> list[Detections]:
        """Boxes above the score threshold after suppression within each task; one entry per sample."""
        rules = self.decoding
        boxes, scores, labels, keep = [], [], [], []
        first_channel = 0
        cells = self.maps.grid.ny * self.maps.grid.nx
        for prediction, task in zip(predictions, self.maps.tasks, strict=True):
            best, flat = (
                prediction["heatmap"]
                .float()
                .sigmoid()
                .flatten(1)
                .topk(min(rules.max_candidates, len(task) * cells), dim=1)
            )
            cell = flat % cells
            iou = prediction["iou"].float().flatten(1).gather(1, cell)
            order = rectified(best, iou, rules.iou_power).argsort(dim=1, descending=True, stable=True)
            best, flat, cell = (value.gather(1, order) for value in (best, flat, cell))
            found = self._boxes(gather_code(prediction, cell).float(), cell)
            valid = (best > rules.score_threshold) & within(found, self.center_range)
            kept = suppress(found, valid, partial(rotated_overlaps, iou=rules.nms_threshold))
            keep.append(kept & (kept.cumsum(dim=1) <= rules.max_detections))
            boxes.append(found)
            scores.append(best)
            labels.append(self.label_of_channel[first_channel + flat // cells])
            first_channel += len(task)
        return collect(Boxes.cat(boxes), torch.cat(scores, 1), torch.cat(labels, 1), torch.cat(keep, 1))

    def _boxes(self, code: Tensor, cell: Tensor) -> Boxes:
        found = decode(code, cell, self.maps.grid)
        size = found.size.clamp(SMALLEST_SIZE, self.decoding.max_size)
        return Boxes.from_parts(found.centers, size, found.yaw, found.velocity)

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)


def rectified(scores: Tensor, iou: Tensor, power: float) -> Tensor:
    """Scores by which boxes are ordered for suppression: score^(1 - a) · IoU^a of the predicted IoU in [-1, 1]."""
    return scores.pow(1 - power) * (iou / 2 + 0.5).clamp(0, 1).pow(power)


def gather_all(prediction: Mapping[str, Tensor]) -> Tensor:
    """The box code of every cell of a task, [B, 10, Y·X]."""
    return torch.cat([prediction[branch.name] for branch in BRANCHES], dim=1).flatten(2)


def _code_distance(code: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted L1 distance of each code, [P]; numbers whose target is not finite do not count."""
    known = target.isfinite()
    return torch.where(known, (code - target.nan_to_num(0.0, 0.0, 0.0)).abs() * weights, 0.0).sum(dim=1)


def _conv_norm_relu(in_channels: int, channels: int) -> nn.Sequential:
    # Upstream: the convolutions have biases although batch norms follow.
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )


def _branch(channels: int, outputs: int) -> nn.Sequential:
    last = nn.Conv2d(channels, outputs, 3, padding=1)
    nn.init.kaiming_normal_(last.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(_conv_norm_relu(channels, channels), last)


def build_iou_head(config: IouHeadConfig, in_channels: int, grid: Grid, classes: tuple[str, ...]) -> IouHead:
    """Unpack a configuration.

    Args:
        config: The configuration.
        in_channels: Channels of the input map.
        grid: Cells of the maps.
        classes: Classes of the data set in label order.

    Raises:
        UserError: If the tasks do not name every class of the data set once.
    """
    check_tasks(config.tasks, classes)
    return IouHead(
        in_channels,
        classes,
        config.tasks,
        grid,
        channels=config.channels,
        positives=config.positives,
        code_weights=config.code_weights,
        iou_loss_weight=config.iou_loss_weight,
        swap_width_and_height=config.swap_width_and_height,
        decoding=IouDecoding(
            score_threshold=config.score_threshold,
            max_candidates=config.max_candidates,
            center_range=config.center_range,
            iou_power=config.iou_power,
            nms_threshold=config.nms_threshold,
            max_detections=config.max_detections,
            max_size=config.max_size,
        ),
    )
