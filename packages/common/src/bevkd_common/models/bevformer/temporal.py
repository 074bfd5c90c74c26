"""Temporal self-attention of BEV queries to the BEV map of an earlier key frame, and to each other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bevkd_common.models.attention import as_shares, projection, start_looking
from bevkd_common.ops.deformable_attention import deformable_attention

SLOTS = 2
"""The earlier map, and the present queries."""


class TemporalSelfAttention(nn.Module):
    """Deformable attention of BEV queries to two maps, each weighted by one half.

    The softmax of the weights runs over the points of one map, not over both maps.

    Upstream: in the code that trained the public checkpoints, the ego's shift moves the sampling points in both
    maps.

    Args:
        channels: Channels of queries and maps; a multiple of `heads`.
        heads: Attention heads.
        points: Sampling points per head in each map.
        shifted: The maps in which sampling points move with the ego.

    Source: BEVFormer, arXiv 2203.17270, equation 5.
    """

    def __init__(self, channels: int, heads: int, points: int, shifted: Literal["history", "both"]) -> None:
        super().__init__()
        self.samples = (heads, SLOTS, points)
        self.shifted = shifted
        self.sampling_offsets = nn.Linear(SLOTS * channels, heads * SLOTS * points * 2)
        self.attention_weights = nn.Linear(SLOTS * channels, heads * SLOTS * points)
        start_looking(self.sampling_offsets, self.attention_weights, self.samples)
        self.value_proj = projection(channels)
        self.output_proj = projection(channels)

    def forward(
        self, query: Tensor, position: Tensor, maps: Tensor, shift: Tensor, shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The attended features, and the attention weights.

        Args:
            query: [B, Q, C], the cells row by row.
            position: [Q, C].
            maps: [B, 2, Q, C], the earlier one first.
            shift: [B, 2] (x, y): position of a point in the earlier map minus its position in the present map, as
                a share of the map's extent.
            shape: Y and X.

        Returns:
            [B, Q, C], and the weights [B, Q, heads, 2, points].
        """
        context = torch.cat([maps[:, 0], query + position], dim=-1)
        offsets = as_shares(self.sampling_offsets(context), self.samples, [shape] * SLOTS)
        weights = self.attention_weights(context).unflatten(-1, self.samples).softmax(dim=-1)
        present = shift if self.shifted == "both" else torch.zeros_like(shift)
        reference = _centers(shape, shift) + torch.stack([shift, present], dim=1)[:, :, None]
        locations = reference[:, :, :, None, None] + offsets.movedim(3, 1)
        values = self.value_proj(maps).unflatten(-1, (self.samples[0], -1))
        seen = deformable_attention(
            values.flatten(0, 1),
            [shape],
            locations.flatten(0, 1).unsqueeze(3),
            weights.movedim(3, 1).flatten(0, 1).unsqueeze(3),
        )
        return self.output_proj(seen.unflatten(0, (-1, SLOTS)).mean(dim=1)), weights


def _centers(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Centres (x, y) of the cells as shares of the extent, [Q, 2]."""
    y, x = ((torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size for size in shape)
    return torch.cartesian_prod(y, x).flip(-1)
