"""Queries that start where a heat map of the classes peaks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.heads.center_targets import center_targets
from bevkd_common.models.heads.detr_code import inverse_sigmoid

OVERLAP, LEAST_RADIUS = 0.1, 1
"""See `center_targets`; the radius is less than CenterPoint's, as the cells of such maps are coarse."""
RARE = -2.19
"""A sigmoid of 0.1, as of a centre-point head."""


class Start(NamedTuple):
    """How queries enter the decoder.

    Attributes:
        content: [B, Q, C].
        position: [B, Q, C].
        reference: [B, Q, 3] (x, y, z) as shares of the range.
    """

    content: Tensor
    position: Tensor
    reference: Tensor


class HeatmapQueries(nn.Module):
    """The best peaks of a heat map of centres become queries of their class, each with the features of its cell.

    Args:
        channels: Of the map and of the queries.
        grid: Cells of the map.
        classes: How many there are.
        count: Queries of a sample.

    Source: TransFusion, arXiv 2203.11496, section 3.2.
    """

    centers: Tensor

    def __init__(self, channels: int, grid: Grid, classes: int, count: int) -> None:
        super().__init__()
        self.grid = grid
        self.classes = classes
        self.count = count
        self.heatmap = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, classes, kernel_size=3, padding=1),
        )
        nn.init.constant_(self.heatmap[-1].bias, RARE)
        self.class_embedding = nn.Embedding(classes, channels)
        self.heights = nn.Parameter(torch.zeros(classes))
        self.place = nn.Sequential(nn.Linear(2, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels))
        x0, y0, x1, y1 = grid.extent
        shares = (cell_centers(grid).flatten(0, 1) - torch.tensor([x0, y0])) / torch.tensor([x1 - x0, y1 - y0])
        self.register_buffer("centers", shares, persistent=False)

    def forward(self, bev: Tensor) -> tuple[Start, Tensor]:
        """The queries over a map [B, C, Y, X], and the logits [B, K, Y, X] of the heat map."""
        logits = self.heatmap(bev)
        with torch.no_grad():
            scores = logits.float().sigmoid()
            peaks = scores == F.max_pool2d(scores, kernel_size=3, stride=1, padding=1)
            best = (scores * peaks).flatten(1).topk(self.count, dim=1).indices
            cells = logits.shape[2] * logits.shape[3]
            label, cell = best // cells, best % cells
        features = bev.flatten(2).transpose(1, 2)
        content = features.gather(1, cell[..., None].expand(-1, -1, features.shape[2]))
        where = self.centers[cell]
        reference = torch.cat([where, self.heights[label].sigmoid()[..., None]], dim=-1)
        start = Start(content + self.class_embedding(label), self.place(where), reference)
        return start, logits

    def targets(self, boxes: Boxes, labels: Tensor) -> Tensor:
        """Gaussians [B, K, Y, X] at the centres of boxes [B, M, 9] with labels [B, M], negative where there is no box."""
        task = torch.where(labels >= 0, 0, -1)
        drawn = center_targets(boxes, task, labels.clamp(min=0), [self.classes], self.grid, OVERLAP, LEAST_RADIUS)
        return drawn.heatmaps[0]
