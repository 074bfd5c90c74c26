"""From maps of several resolutions to one: a BEV query per cell attends to all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.attention import DeformableAttention, feed_forward


class BevQueryLayer(nn.Module):
    """Deformable attention to the maps, feed-forward network; a norm after each.

    Args:
        channels: Of queries and maps.
        heads: Attention heads.
        levels: Maps.
        points: Sampling points of a head of a query in each map.
        hidden_channels: Inside the feed-forward network.
        dropout: Of what the blocks add, and inside the feed-forward network.
    """

    def __init__(
        self, channels: int, heads: int, levels: int, points: int, hidden_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, heads, levels, points)
        self.feed_forward = feed_forward(channels, hidden_channels, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor) -> Tensor:
        """Queries [B, Y·X, C] after this layer; arguments as of `DeformableAttention`."""
        seen = self.attention(x, memory, shapes, reference)
        x = self.norms[0](x + self.dropout(seen))
        return self.norms[1](x + self.feed_forward(x))


class BevQueryEncoder(nn.Module):
    """A learned query a cell, layers of attention to maps of the same ground.

    Args:
        channels: Of queries, maps and result.
        grid: Cells of the queries.
        ground: The ground that all maps cover.
        levels: Maps.
        layers: Number of layers.
        heads: See `BevQueryLayer`.
        points: See `BevQueryLayer`.
        hidden_channels: See `BevQueryLayer`.
        dropout: See `BevQueryLayer`.

    Source: DistillBEV, its transformer teachers; after Deformable DETR, arXiv 2010.04159. Queries do not attend to
    each other.
    """

    def __init__(
        self,
        channels: int,
        grid: Grid,
        ground: Grid,
        levels: int,
        *,
        layers: int,
        heads: int,
        points: int,
        hidden_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.shape = (grid.ny, grid.nx)
        self.level_embeddings = nn.Parameter(torch.randn(levels, channels))
        self.queries = nn.Embedding(grid.ny * grid.nx, channels)
        # A random content of each cell would remain in the map, and a student would have to memorise it.
        nn.init.zeros_(self.queries.weight)
        self.layers = nn.ModuleList(
            BevQueryLayer(channels, heads, levels, points, hidden_channels, dropout) for _ in range(layers)
        )
        x0, y0, x1, y1 = ground.extent
        corner = torch.tensor([x0, y0])
        places = (cell_centers(grid).flatten(0, 1) - corner) / (torch.tensor([x1, y1]) - corner)
        self.reference: Tensor
        self.register_buffer("reference", places, persistent=False)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """One map [B, C, Y, X] of maps [B, C, Y_l, X_l]."""
        batch = len(levels[0])
        memory = torch.cat(
            [
                (level + embedding[:, None, None]).flatten(2).transpose(1, 2)
                for level, embedding in zip(levels, self.level_embeddings, strict=True)
            ],
            dim=1,
        )
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        x = self.queries.weight.expand(batch, -1, -1)
        reference = self.reference.expand(batch, -1, -1)
        for layer in self.layers:
            x = layer(x, memory, shapes, reference)
        return x.transpose(1, 2).unflatten(2, self.shape)
