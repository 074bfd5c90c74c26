"""Queries that start at the peaks of a heat map of the classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.heads.center_targets import center_targets
from bevkd_common.models.heads.detr_code import HEADING

OVERLAP, LEAST_RADIUS = 0.1, 1
"""See `center_targets`; the radius is smaller than CenterPoint's because the cells of a query head are coarse."""
CLASS_BIAS = -2.19
"""A sigmoid of 0.1, as in a centre-point head."""


class Start(NamedTuple):
    """Initial queries of the decoder.

    Attributes:
        content: [B, Q, C].
        position: [B, Q, C].
        reference: [B, Q, 3] (x, y, z) as shares of the range.
        heading: [B, Q, 2] sine and cosine of the initial yaw, or None.
    """

    content: Tensor
    position: Tensor
    reference: Tensor
    heading: Tensor | None = None


class HeatmapQueries(nn.Module):
    """Queries from the best peaks of a heat map of centres, each with the class and the features of its cell.

    Args:
        channels: Channels of the map and of the queries.
        grid: Cells of the map.
        classes: Number of classes.
        count: Queries per sample.
        headings: Whether each cell also predicts the heading of an object centred in it, to initialise its query.

    Source: TransFusion, arXiv 2203.11496, section 3.2.
    """

    centers: Tensor

    def __init__(self, channels: int, grid: Grid, classes: int, count: int, headings: bool = False) -> None:
        super().__init__()
        self.grid = grid
        self.classes = classes
        self.count = count
        self.heatmap = _branch(channels, classes)
        nn.init.constant_(self.heatmap[-1].bias, CLASS_BIAS)  # type: ignore[arg-type]
        self.class_embedding = nn.Embedding(classes, channels)
        self.headings = _branch(channels, 2) if headings else None
        self.heights = nn.Parameter(torch.zeros(classes))
        self.place = nn.Sequential(nn.Linear(2, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels))
        x0, y0, x1, y1 = grid.extent
        shares = (cell_centers(grid).flatten(0, 1) - torch.tensor([x0, y0])) / torch.tensor([x1 - x0, y1 - y0])
        self.register_buffer("centers", shares, persistent=False)

    def forward(self, bev: Tensor) -> tuple[Start, dict[str, Tensor]]:
        """The queries of a map [B, C, Y, X], best first, and the maps from which they are taken.

        The maps are the `heatmap` [B, K, Y, X] of logits, and `headings` [B, 2, Y, X], sine and cosine, if cells
        predict them. No gradient flows through the initial headings and positions of the queries.
        """
        logits = self.heatmap(bev)
        label, cell = _peaks(logits.detach().float(), self.count)
        content = _at(bev, cell)
        where = self.centers[cell]
        reference = torch.cat([where, self.heights[label].sigmoid()[..., None]], dim=-1)
        maps = {"heatmap": logits}
        heading = None
        if self.headings is not None:
            maps["headings"] = self.headings(bev)
            heading = _at(maps["headings"].detach().to(where.dtype), cell)
        return Start(content + self.class_embedding(label), self.place(where), reference, heading), maps

    def targets(self, boxes: Boxes, labels: Tensor) -> Tensor:
        """Gaussians [B, K, Y, X] at the centres of boxes [B, M, 9] with labels [B, M], negative for none."""
        task = torch.where(labels >= 0, 0, -1)
        drawn = center_targets(boxes, task, labels.clamp(min=0), [self.classes], self.grid, OVERLAP, LEAST_RADIUS)
        return drawn.heatmaps[0]

    def heading_loss(self, headings: Tensor, code: Tensor, learned: Tensor) -> Tensor:
        """L1 distance of sine and cosine in the cells of the boxes' centres, summed.

        Args:
            headings: [B, 2, Y, X] predicted.
            code: [B, M, 10] of the boxes, see `detr_code.encode`.
            learned: [B, M] bool, the boxes that count; their centres lie on the map.
        """
        corner = code.new_tensor([self.grid.x0, self.grid.y0])
        column, row = ((code[..., :2] - corner) / self.grid.cell).floor().unbind(-1)
        cell = torch.where(learned, row * self.grid.nx + column, 0.0).long()
        distance = (_at(headings, cell) - code[..., HEADING]).abs()
        return torch.where(learned[..., None], distance, 0.0).sum()


def _branch(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, outputs, kernel_size=3, padding=1),
    )


def _at(bev: Tensor, cell: Tensor) -> Tensor:
    """Features [B, N, C] of a map [B, C, Y, X] at flat cells [B, N]."""
    features = bev.flatten(2).transpose(1, 2)
    return features.gather(1, cell[..., None].expand(-1, -1, features.shape[2]))


def _peaks(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Class and cell [B, Q] of the highest local maxima, filled up with any other cells if there are fewer."""
    peaks = logits == F.max_pool2d(logits, kernel_size=3, stride=1, padding=1)
    best = torch.where(peaks, logits.sigmoid(), 0.0).flatten(1).topk(count, dim=1).indices
    cells = logits.shape[2] * logits.shape[3]
    return best // cells, best % cells
