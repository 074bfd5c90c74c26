"""Decoding of the dense predictions of the centre-point head to lists of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Detections
from bevkd_common.models.heads.center_code import decode, gather_code
from bevkd_common.ops.nms import circle_overlaps, rotated_overlaps, suppress


class Suppression(NamedTuple):
    """Suppression of overlapping boxes of one task.

    Attributes:
        kind: "circle" uses the distance of the centres, "rotate" the IoU of the footprints.
        threshold: Squared metres, or IoU.
        size_factors: For "rotate": factor on length and width of each class during suppression; empty: all 1.
    """

    kind: Literal["circle", "rotate"]
    threshold: float
    size_factors: tuple[float, ...] = ()


class Candidates(NamedTuple):
    """The best cells of one task: boxes [B, K, 9], scores [B, K], class within the task [B, K]; best first."""

    boxes: Boxes
    scores: Tensor
    channels: Tensor


def best_candidates(prediction: Mapping[str, Tensor], grid: Grid, most: int, score_threshold: float) -> Candidates:
    """Decode the cells with the highest scores, over all classes of a task.

    K is `most`, or less if no sample has that many scores above the threshold.
    """
    scores = prediction["heatmap"].float().sigmoid().flatten(1)
    scores, flat = scores.topk(min(most, scores.shape[1]), dim=1)
    used = int((scores > score_threshold).sum(dim=1).max())
    scores, flat = scores[:, :used], flat[:, :used]
    cells = flat % (grid.ny * grid.nx)
    boxes = decode(gather_code(prediction, cells).float(), cells, grid)
    return Candidates(boxes, scores, flat // (grid.ny * grid.nx))


def thin_out(candidates: Candidates, valid: Tensor, rule: Suppression) -> Tensor:
    """Return which of the candidates that are `valid` [B, K] remain after suppression, [B, K] bool."""
    boxes = candidates.boxes
    if rule.kind == "circle":
        return suppress(boxes, valid, lambda first, second, _: circle_overlaps(first, second, rule.threshold))
    if rule.size_factors:
        factor = boxes.tensor.new_tensor(rule.size_factors)[candidates.channels]
        size = torch.stack([boxes.l * factor, boxes.w * factor, boxes.h], dim=-1)
        boxes = Boxes.from_parts(boxes.centers, size, boxes.yaw, boxes.velocity)
    return suppress(boxes, valid, partial(rotated_overlaps, iou=rule.threshold))


def within(boxes: Boxes, center_range: Tensor) -> Tensor:
    """Whether centres [..., M] lie in a range [6], lower x, y, z and upper x, y, z, borders included."""
    low, high = center_range.split(3)
    return ((boxes.centers >= low) & (boxes.centers <= high)).all(dim=-1)


def collect(boxes: Boxes, scores: Tensor, labels: Tensor, keep: Tensor) -> list[Detections]:
    """Collect the boxes [B, K, 9], scores and labels where `keep` [B, K] in one list per sample, best first."""
    order = torch.where(keep, scores, -1.0).argsort(dim=1, descending=True, stable=True)
    counts: Sequence[int] = keep.sum(dim=1).tolist()
    detections = []
    for sample, count in enumerate(counts):
        rows = order[sample, :count]
        detections.append(Detections(Boxes(boxes.tensor[sample, rows]), scores[sample, rows], labels[sample, rows]))
    return detections
