"""BEVFormer's encoder: computes a BEV map from image features and an earlier BEV map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bevkd_common.geometry.grid import Grid
from bevkd_common.models.attention import feed_forward, xavier
from bevkd_common.models.bevformer.memory import (
    CAN_BUS_CHANNELS,
    BevMemory,
    Moment,
    can_bus_signals,
    turned_to,
)
from bevkd_common.models.bevformer.spatial import Sightings, SpatialCrossAttention, anchor_points, sightings
from bevkd_common.models.bevformer.temporal import TemporalSelfAttention


class BevPositions(nn.Module):
    """Learned positions of cells: one half of the channels encodes the column, the other the row.

    Args:
        channels: Number of channels.
        grid: Cells of the map.

    Source: BEVFormer; the learned encoding of DETR.
    """

    def __init__(self, channels: int, grid: Grid) -> None:
        super().__init__()
        self.columns = nn.Parameter(torch.rand(grid.nx, channels // 2))
        self.rows = nn.Parameter(torch.rand(grid.ny, channels // 2))

    def forward(self) -> Tensor:
        """[Y · X, channels], row by row."""
        shape = (len(self.rows), len(self.columns), -1)
        across, along = self.columns[None].expand(*shape), self.rows[:, None].expand(*shape)
        return torch.cat([across, along], dim=-1).flatten(0, 1)


class EncoderLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention, feed-forward network; a norm after each.

    Args:
        channels: Channels of queries and maps.
        heads: Attention heads.
        temporal_points: Sampling points per head in the earlier map, and in the present one.
        spatial_points: Sampling points per head in each level of an image.
        levels: Levels of an image.
        hidden_channels: Channels inside the feed-forward network.
        dropout: Dropout of residual branches, and inside the feed-forward network.
        shifted: See `TemporalSelfAttention`.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        temporal_points: int,
        spatial_points: int,
        levels: int,
        hidden_channels: int,
        dropout: float,
        shifted: Literal["history", "both"],
    ) -> None:
        super().__init__()
        self.temporal = TemporalSelfAttention(channels, heads, temporal_points, shifted)
        self.spatial = SpatialCrossAttention(channels, heads, levels, spatial_points)
        self.feed_forward = feed_forward(channels, hidden_channels, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        maps: Tensor,
        shift: Tensor,
        grid_shape: tuple[int, int],
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        seen_by: Sightings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, Q, C] after this layer, and the weights of both attentions.

        Args:
            query: [B, Q, C].
            position: [Q, C].
            maps: See `TemporalSelfAttention`.
            shift: See `TemporalSelfAttention`.
            grid_shape: Y and X.
            tokens: See `SpatialCrossAttention`.
            shapes: See `SpatialCrossAttention`.
            seen_by: See `SpatialCrossAttention`.
        """
        seen, temporal = self.temporal(query, position, maps, shift, grid_shape)
        query = self.norms[0](query + self.dropout(seen))
        seen, spatial = self.spatial(query, tokens, shapes, seen_by)
        query = self.norms[1](query + self.dropout(seen))
        return self.norms[2](query + self.feed_forward(query)), temporal, spatial


class BevFormerEncoder(nn.Module):
    """BEV queries, one per cell, that pass through the layers.

    Args:
        channels: Channels of queries and image features; even.
        grid: Cells of the map.
        z_range: Lowest and highest point of interest, metres.
        anchors: Points above a cell that are projected into the images.
        layers: Number of layers.
        make_layer: Makes a layer; it is called last, so that the other parts have the same initial weights whatever
            the layers are.
        cameras: Images per moment.
        levels: Feature maps per image.
        rotation_center: See `turned_to`.
        wrap_yaw: See `can_bus_signals`.
        recompute: Whether activations of layers are recomputed in the backward pass instead of stored.

    Source: BEVFormer, arXiv 2203.17270, section 3; numerics of its released code.
    """

    anchors: Tensor

    def __init__(
        self,
        channels: int,
        grid: Grid,
        z_range: tuple[float, float],
        *,
        anchors: int,
        layers: int,
        make_layer: Callable[[], EncoderLayer],
        cameras: int,
        levels: int,
        rotation_center: tuple[float, float] | None,
        wrap_yaw: bool,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.rotation_center = rotation_center
        self.wrap_yaw = wrap_yaw
        self.recompute = recompute
        self.queries = nn.Parameter(torch.randn(grid.ny * grid.nx, channels))
        self.positions = BevPositions(channels, grid)
        self.camera_embeddings = nn.Parameter(torch.randn(cameras, channels))
        self.level_embeddings = nn.Parameter(torch.randn(levels, channels))
        self.can_bus = nn.Sequential(
            nn.Linear(CAN_BUS_CHANNELS, channels // 2),
            nn.ReLU(inplace=True),
            nn.Linear(channels // 2, channels),
            nn.ReLU(inplace=True),
            nn.LayerNorm(channels),
        )
        xavier(self.can_bus)
        self.layers = nn.ModuleList(make_layer() for _ in range(layers))
        self.register_buffer("anchors", anchor_points(grid, z_range, anchors), persistent=False)

    def forward(
        self, features: Sequence[Tensor], image_size: tuple[int, int], moment: Moment, memory: BevMemory | None
    ) -> Tensor:
        """The map [B, C, Y, X]; see `maps`."""
        *_, (_, bev) = self.maps(features, image_size, moment, memory)
        return bev

    def maps(
        self, features: Sequence[Tensor], image_size: tuple[int, int], moment: Moment, memory: BevMemory | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield `tsa{i}` and `sca{i}` of each layer, then `bev_neck`, each computed on request.

        Args:
            features: Maps [B · N, C, H, W] of the images, finest first.
            image_size: Height and width of the images that the backbone received.
            moment: The present moment.
            memory: The earlier map; None, or not `known`, where there is none.

        Yields:
            Weights [B, Q, heads, 2, points] and [B, Q, heads, levels, points], and the map [B, C, Y, X].
        """
        shape = (self.grid.ny, self.grid.nx)
        signals = can_bus_signals(moment, memory, wrap_yaw=self.wrap_yaw)
        initial = self.queries + self.can_bus(signals.to(self.queries.dtype))[:, None]
        known, earlier, shift = self._earlier(moment, memory, initial)
        position = self.positions()
        tokens = self._tokens(features, len(initial))
        shapes = [(level.shape[2], level.shape[3]) for level in features]
        seen_by = sightings(self.anchors, moment.cameras, image_size)
        query = initial
        for index, layer in enumerate(cast(Iterable[EncoderLayer], self.layers)):
            # Without a memory, both maps are this layer's queries; with one, the present map is the first queries.
            maps = torch.stack([torch.where(known, earlier, query), torch.where(known, initial, query)], dim=1)
            given = (query, position, maps, shift, shape, tokens, shapes, seen_by)
            if self.recompute and torch.is_grad_enabled():
                query, temporal, spatial = checkpoint(layer, *given, use_reentrant=False)
            else:
                query, temporal, spatial = layer(*given)
            yield f"tsa{index}", temporal
            yield f"sca{index}", spatial
        yield "bev_neck", query.transpose(1, 2).unflatten(2, shape)

    def _earlier(self, moment: Moment, memory: BevMemory | None, initial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether an earlier map exists [B, 1, 1], the rotated map [B, Q, C], and the shift [B, 2]."""
        if memory is None:
            nothing = initial.new_zeros(len(initial), 2)
            return torch.zeros_like(nothing[:, :1, None], dtype=torch.bool), initial, nothing
        turned, shift = turned_to(moment, memory, self.grid, self.rotation_center)
        shift = torch.where(memory.known[:, None], shift, 0.0)
        return memory.known[:, None, None], turned.flatten(2).transpose(1, 2), shift.to(initial.dtype)

    def _tokens(self, features: Sequence[Tensor], batch: int) -> Tensor:
        """Return [B · N, S, C], with the embeddings of camera and level added."""
        cameras = self.camera_embeddings.repeat(batch, 1)[:, None]
        return torch.cat(
            [
                level.flatten(2).transpose(1, 2) + cameras + embedding
                for level, embedding in zip(features, self.level_embeddings, strict=True)
            ],
            dim=1,
        )
