"""The centre-point head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevkd_common.config.detectors.center_head import CenterHeadConfig
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes, folded
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.deform_conv import DeformConv
from bevkd_common.models.detector import CenterTargets, Detections, Term
from bevkd_common.models.heads.center_code import LAYOUT, branches_of, gather_code
from bevkd_common.models.heads.center_decode import Suppression, best_candidates, collect, thin_out, within
from bevkd_common.models.heads.center_losses import code_loss, gaussian_focal_loss
from bevkd_common.models.heads.center_targets import center_targets
from bevkd_common.models.taps import HeadMaps, Meaning
from bevkd_common.ops.normalizers import mean_over_ranks

HEATMAP_BIAS = -2.19
"""A sigmoid of 0.1: nearly all cells are background."""
DEFORM_GROUPS = 4
"""Channel groups of a deformable convolution."""


@dataclass(frozen=True)
class CenterSupervision:
    """Targets and losses of a centre-point head.

    Attributes:
        gaussian_overlap: See `gaussian_radius`.
        min_radius: Smallest radius of a Gaussian, in cells.
        heatmap_weight: Loss weight of the heat maps.
        box_weight: Loss weight of the boxes.
        code_weights: Weights of the ten numbers of a box code.
        symmetric_classes: Classes whose headings are learned up to half a turn, see `folded`.
    """

    gaussian_overlap: float
    min_radius: int
    heatmap_weight: float
    box_weight: float
    code_weights: tuple[float, ...]
    symmetric_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CenterDecoding:
    """Decoding of a centre-point head.

    Attributes:
        score_threshold: Only boxes with a higher score are kept.
        max_candidates: Number of best cells of a task that are decoded.
        center_range: Lower x, y, z and upper x, y, z in metres of decoded centres.
        suppressions: One rule per task.
        max_detections: Maximum number of boxes of a task.
    """

    score_threshold: float
    max_candidates: int
    center_range: tuple[float, ...]
    suppressions: tuple[Suppression, ...]
    max_detections: int


class CenterHead(nn.Module):
    """Predicts boxes as points: for each task a heat map of centres, and the other box values at each centre.

    Args:
        in_channels: Channels of the input map.
        classes: Classes of the data set; labels index them.
        tasks: Class names of each task; together they are `classes`, in any order.
        grid: Cells of the maps.
        channels: Width of the shared convolution and of the branches.
        supervision: Targets and losses.
        decoding: Decoding of predictions to boxes.
        deformable: Whether deformable convolutions adapt the map to the heat map and to the boxes of each task.
        motion: What the last branch of a task predicts: velocities or displacements.

    Upstream: mmdet3d initialises every convolution alike, which starts training with heat map logits of a
    standard deviation near 8. As in the official CenterPoint the last layers here start small.

    Source: CenterPoint; as in mmdet3d 1.4.
    """

    def __init__(
        self,
        in_channels: int,
        classes: tuple[str, ...],
        tasks: tuple[tuple[str, ...], ...],
        grid: Grid,
        *,
        channels: int,
        supervision: CenterSupervision,
        decoding: CenterDecoding,
        deformable: bool = False,
        motion: Meaning = Meaning.VELOCITY,
    ) -> None:
        super().__init__()
        self.maps = HeadMaps(grid=grid, tasks=tasks, branches=branches_of(motion))
        self.supervision = supervision
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
        self.symmetric: Tensor
        self._constant("symmetric", torch.tensor([name in supervision.symmetric_classes for name in classes]))
        self._constant("code_weights", torch.tensor(supervision.code_weights))
        self._constant("center_range", torch.tensor(decoding.center_range))

        self.shared_conv = _conv_norm_relu(in_channels, channels)
        task_head = DeformableTaskHead if deformable else TaskHead
        self.task_heads = nn.ModuleList(task_head(channels, len(task)) for task in tasks)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Logits of a map [B, C, Y, X]: for each task its branches, then its heat map, [B, k, Y, X]."""
        shared = self.shared_conv(x)
        return [task(shared) for task in self.task_heads]

    @property
    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """See `Detector`."""
        return {"head": self, "head.task_heads": self.task_heads}

    def targets(self, boxes: Boxes, labels: Tensor) -> CenterTargets:
        """Targets of boxes [B, M, 9] with labels [B, M], negative where there is no box."""
        present = labels >= 0
        index = labels.clamp(min=0)
        return center_targets(
            folded(boxes, self.symmetric[index] & present),
            task=torch.where(present, self.task_of_label[index], -1),
            channel=self.channel_of_label[index],
            class_counts=[len(task) for task in self.maps.tasks],
            grid=self.maps.grid,
            overlap=self.supervision.gaussian_overlap,
            min_radius=self.supervision.min_radius,
        )

    def losses(self, predictions: Sequence[Mapping[str, Tensor]], targets: CenterTargets) -> dict[str, Term]:
        """Terms `heatmap` and `boxes`, each task divided by its own positives, summed over tasks."""
        counts = [(heatmap == 1).sum() for heatmap in targets.heatmaps] + [mask.sum() for mask in targets.mask]
        peaks, boxes = mean_over_ranks(torch.stack(counts).float()).chunk(2)
        heatmap_loss = torch.stack(
            [
                gaussian_focal_loss(prediction["heatmap"], heatmap)
                for prediction, heatmap in zip(predictions, targets.heatmaps, strict=True)
            ]
        )
        box_loss = torch.stack(
            [
                code_loss(gather_code(prediction, indices), code, mask, self.code_weights)
                for prediction, code, indices, mask in zip(
                    predictions, targets.regression, targets.indices, targets.mask, strict=True
                )
            ]
        )
        return {
            "heatmap": Term((heatmap_loss / peaks.clamp(min=1)).sum(), self.supervision.heatmap_weight),
            "boxes": Term((box_loss / (boxes + 1e-4)).sum(), self.supervision.box_weight),
        }

    @torch.no_grad()
    def decode(self, predictions: Sequence[Mapping[str, Tensor]]) -> list[Detections]:
        """Boxes above the score threshold after suppression within each task; one entry per sample."""
        rules = self.decoding
        boxes, scores, labels, keep = [], [], [], []
        first_channel = 0
        for prediction, task, rule in zip(predictions, self.maps.tasks, rules.suppressions, strict=True):
            candidates = best_candidates(prediction, self.maps.grid, rules.max_candidates, rules.score_threshold)
            valid = (candidates.scores > rules.score_threshold) & within(candidates.boxes, self.center_range)
            kept = thin_out(candidates, valid, rule)
            keep.append(kept & (kept.cumsum(dim=1) <= rules.max_detections))
            boxes.append(candidates.boxes)
            scores.append(candidates.scores)
            labels.append(self.label_of_channel[first_channel + candidates.channels])
            first_channel += len(task)
        return collect(Boxes.cat(boxes), torch.cat(scores, 1), torch.cat(labels, 1), torch.cat(keep, 1))

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)


class TaskHead(nn.ModuleDict):
    """The branches of a task, then its heat map.

    Args:
        channels: Channels of the shared map and of each branch.
        classes: Number of classes of the task.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(_branches(channels, (*LAYOUT, ("heatmap", classes))))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits [B, k, Y, X] by name, of the shared map [B, C, Y, X]."""
        return {name: branch(x) for name, branch in self.items()}


class DeformableTaskHead(nn.Module):
    """A task with separate deformable convolutions of the shared map for its heat map and for its branches.

    Args:
        channels: Channels of the shared map and of each branch.
        classes: Number of classes of the task.

    Source: mmdet3d's `DCNSeparateHead`.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.feature_adapt_cls = DeformConv(channels, channels, DEFORM_GROUPS)
        self.feature_adapt_reg = DeformConv(channels, channels, DEFORM_GROUPS)
        self.cls_head = _branches(channels, (("heatmap", classes),))["heatmap"]
        self.task_head = nn.ModuleDict(_branches(channels, LAYOUT))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See `TaskHead`."""
        adapted = self.feature_adapt_reg(x)
        branches = {name: branch(adapted) for name, branch in self.task_head.items()}
        return {**branches, "heatmap": self.cls_head(self.feature_adapt_cls(x))}


def _branches(channels: int, outputs: Sequence[tuple[str, int]]) -> dict[str, nn.Module]:
    last = {name: nn.Conv2d(channels, count, 3, padding=1) for name, count in outputs}
    if "heatmap" in last:
        nn.init.constant_(last["heatmap"].get_parameter("bias"), HEATMAP_BIAS)
    return {name: nn.Sequential(_conv_norm_relu(channels, channels), conv) for name, conv in last.items()}


def _conv_norm_relu(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True)))


def build_center_head(
    config: CenterHeadConfig,
    in_channels: int,
    grid: Grid,
    classes: tuple[str, ...],
    motion: Meaning = Meaning.VELOCITY,
) -> CenterHead:
    """Unpack a configuration.

    Args:
        config: The configuration.
        in_channels: Channels of the input map.
        grid: Cells of the maps.
        classes: Classes of the data set in label order.
        motion: See `CenterHead`.

    Raises:
        UserError: If the tasks do not name every class of the data set once.
    """
    check_tasks(config.tasks, classes)
    return CenterHead(
        in_channels,
        classes,
        config.tasks,
        grid,
        channels=config.channels,
        supervision=CenterSupervision(
            gaussian_overlap=config.gaussian_overlap,
            min_radius=config.min_radius,
            heatmap_weight=config.heatmap_weight,
            box_weight=config.box_weight,
            code_weights=config.code_weights,
            symmetric_classes=config.symmetric_classes,
        ),
        decoding=CenterDecoding(
            score_threshold=config.score_threshold,
            max_candidates=config.max_candidates,
            center_range=config.center_range,
            suppressions=tuple(Suppression(rule.kind, rule.threshold, rule.size_factors) for rule in config.nms),
            max_detections=config.max_detections,
        ),
        deformable=config.deformable,
        motion=motion,
    )


def check_tasks(tasks: Sequence[Sequence[str]], classes: Sequence[str]) -> None:
    """Check that the tasks of a head name every class of the data set.

    Raises:
        UserError: If a class is missing or unknown.
    """
    named = {name for task in tasks for name in task}
    if named != set(classes):
        missing = ", ".join(sorted(set(classes) - named)) or "none"
        foreign = ", ".join(sorted(named - set(classes))) or "none"
        raise UserError(
            f"the tasks of the centre-point head must name every class of the data set: missing are {missing}, "
            f"unknown are {foreign}; change `head.tasks`"
        )
