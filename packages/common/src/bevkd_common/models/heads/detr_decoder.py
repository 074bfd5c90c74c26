"""The decoder of the query head: queries attend to each other and to the BEV map, and refine their boxes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from bevkd_common.models.attention import DeformableAttention, feed_forward, xavier
from bevkd_common.models.heads.detr_code import CENTER, CODE_CHANNELS, HEADING, inverse_sigmoid, turned, with_center

CLASS_BIAS = -4.595
"""A sigmoid of 0.01: nearly all queries are background."""


class DecoderLayer(nn.Module):
    """Self-attention, deformable attention to the map, feed-forward network; a norm after each.

    Args:
        channels: Channels of queries and map.
        heads: Attention heads.
        points: Sampling points per head and query.
        hidden_channels: Channels inside the feed-forward network.
        dropout: Dropout of attention weights, of residual branches, and inside the feed-forward network.

    Source: Deformable DETR, as in BEVFormer.
    """

    def __init__(self, channels: int, heads: int, points: int, hidden_channels: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        xavier(self.self_attention)
        self.cross_attention = DeformableAttention(channels, heads, levels=1, points=points)
        self.feed_forward = feed_forward(channels, hidden_channels, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, position: Tensor, memory: Tensor, shape: tuple[int, int], reference: Tensor
    ) -> Tensor:
        """Queries [B, Q, C] after this layer.

        Args:
            x: [B, Q, C] contents of the queries.
            position: [B, Q, C] positions of the queries.
            memory: [B, Y·X, C] the map, row by row.
            shape: Y and X.
            reference: [B, Q, 2] reference points, (x, y) as shares of the map.
        """
        placed = x + position
        seen = self.self_attention(placed, placed, x, need_weights=False)[0]
        x = self.norms[0](x + self.dropout(seen))
        seen = self.cross_attention(x + position, memory, [shape], reference)
        x = self.norms[1](x + self.dropout(seen))
        return self.norms[2](x + self.feed_forward(x))


class Decoder(nn.Module):
    """Decoder layers, each with its own branches that predict classes and boxes and move the reference points.

    Args:
        layers: Number of layers.
        channels: Channels of queries and map.
        classes: Number of classes.
        heads: See `DecoderLayer`.
        points: See `DecoderLayer`.
        hidden_channels: See `DecoderLayer`.
        dropout: See `DecoderLayer`.
    """

    def __init__(
        self,
        layers: int,
        channels: int,
        classes: int,
        *,
        heads: int,
        points: int,
        hidden_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(channels, heads, points, hidden_channels, dropout) for _ in range(layers)
        )
        self.class_branches = nn.ModuleList(_class_branch(channels, classes) for _ in range(layers))
        self.box_branches = nn.ModuleList(_box_branch(channels) for _ in range(layers))

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, bev: Tensor, heading: Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """For each layer `class_logits` [B, Q, K] and `box_code` [B, Q, 10], its centres as shares of the range.

        Boxes are computed in float32 or wider, also under autocast: bfloat16 would round to half metres.

        Args:
            x: [B, Q, C] contents of the queries.
            position: [B, Q, C] positions of the queries.
            reference: [B, Q, 3] initial reference points, (x, y, z) as shares of the range.
            bev: [B, C, Y, X].
            heading: [B, Q, 2] initial sine and cosine, corrected by each layer; None predicts them in each layer.
        """
        memory, shape = bev.flatten(2).transpose(1, 2), (bev.shape[2], bev.shape[3])
        predictions = []
        for layer, class_branch, box_branch in zip(
            cast(Iterable[DecoderLayer], self.layers), self.class_branches, self.box_branches, strict=True
        ):
            x = layer(x, position, memory, shape, reference[..., :2])
            with torch.autocast(x.device.type, enabled=False):
                code = box_branch(x.to(reference.dtype))
            if heading is not None:
                code = turned(code, heading)
                heading = code[..., HEADING].detach()
            center = (inverse_sigmoid(reference) + code[..., CENTER]).sigmoid()
            predictions.append({"class_logits": class_branch(x), "box_code": with_center(code, center)})
            # Each layer learns its own step.
            reference = center.detach()
        return predictions


def _class_branch(channels: int, classes: int) -> nn.Sequential:
    branch = nn.Sequential(*_hidden(channels, normalized=True), *_hidden(channels, normalized=True))
    last = nn.Linear(channels, classes)
    nn.init.constant_(last.bias, CLASS_BIAS)
    return branch.append(last)


def _box_branch(channels: int) -> nn.Sequential:
    return nn.Sequential(
        *_hidden(channels, normalized=False),
        *_hidden(channels, normalized=False),
        nn.Linear(channels, CODE_CHANNELS),
    )


def _hidden(channels: int, normalized: bool) -> list[nn.Module]:
    norm: list[nn.Module] = [nn.LayerNorm(channels)] if normalized else []
    return [nn.Linear(channels, channels), *norm, nn.ReLU(inplace=True)]
