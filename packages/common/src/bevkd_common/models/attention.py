"""The blocks of transformers over maps; each returns what its caller adds to the queries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevkd_common.ops.deformable_attention import deformable_attention


class DeformableAttention(nn.Module):
    """Deformable attention: each query samples feature maps at a few points around its reference point.

    At initialisation each head has a direction of its own; its sampling point p lies p + 1 pixels away, at all
    levels alike, with equal weights.

    Args:
        channels: Of queries, maps and result; a multiple of `heads`.
        heads: Heads.
        levels: Maps.
        points: Sampling points of a head in each map.

    Source: Deformable DETR, arXiv 2010.04159.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.samples = (heads, levels, points)
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        start_looking(self.sampling_offsets, self.attention_weights, self.samples)
        self.value_proj = projection(channels)
        self.output_proj = projection(channels)

    def forward(self, query: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor) -> Tensor:
        """Sample and combine the values of the maps.

        Args:
            query: [B, Q, C], their positions added.
            value: [B, S, C], the maps one behind the other, each row by row.
            shapes: Height and width of each map.
            reference: (x, y) as shares of the maps' width and height, [B, Q, 2].

        Returns:
            [B, Q, C].
        """
        heads, levels, points = self.samples
        offsets = as_shares(self.sampling_offsets(query), self.samples, shapes)
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * points)).softmax(dim=-1)
        locations = reference[:, :, None, None, None] + offsets
        values = self.value_proj(value).unflatten(-1, (heads, -1))
        seen = deformable_attention(values, shapes, locations, weights.unflatten(-1, (levels, points)))
        return self.output_proj(seen)


def as_shares(offsets: Tensor, samples: tuple[int, int, int], shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Offsets in pixels of each map, as shares of its width and height, [..., heads, levels, points, 2].

    Args:
        offsets: [..., heads · levels · points · 2] (x, y), in this order.
        samples: Heads, levels and points.
        shapes: Height and width of each map.
    """
    heads, _, points = samples
    # One long vector: a division that is broadcast over the two coordinates takes several times as long.
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    size = offsets.new_tensor([(width, height) for height, width in shapes], dtype=dtype)
    sizes = size[:, None].expand(-1, points, -1).flatten().repeat(heads)
    return (offsets / sizes).unflatten(-1, (*samples, 2))


@torch.no_grad()
def start_looking(sampling_offsets: nn.Linear, attention_weights: nn.Linear, samples: tuple[int, int, int]) -> None:
    """Initialise a deformable attention with the same sampling points and equal weights for every query.

    Args:
        sampling_offsets: To two numbers a sample.
        attention_weights: To one number a sample.
        samples: Heads, maps and points.
    """
    for layer in (sampling_offsets, attention_weights):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    sampling_offsets.bias.copy_(first_offsets(*samples).flatten())


def projection(channels: int) -> nn.Linear:
    """A linear layer that starts Xavier-uniform, with a bias of zero."""
    layer = nn.Linear(channels, channels)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def first_offsets(heads: int, levels: int, points: int) -> Tensor:
    """Offsets (x, y) in pixels that attention starts with, [heads, levels, points, 2].

    The directions of the heads are evenly spaced counter-clockwise from +x and end on the unit square.
    """
    angle = torch.arange(heads) * (2 * math.pi / heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    direction = direction / direction.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, points + 1)
    return (direction[:, None, None] * steps[:, None]).expand(heads, levels, points, 2)


def feed_forward(channels: int, hidden_channels: int, dropout: float) -> nn.Sequential:
    """Two linear layers, applied to each query alone."""
    layers = nn.Sequential(
        nn.Linear(channels, hidden_channels),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden_channels, channels),
        nn.Dropout(dropout),
    )
    xavier(layers)
    return layers


def xavier(module: nn.Module) -> None:
    """Start every matrix of a module Xavier-uniform, as transformers do."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
