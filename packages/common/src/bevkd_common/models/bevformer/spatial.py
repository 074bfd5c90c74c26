"""Spatial cross-attention of BEV queries to the cameras in which they are visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevkd_common.data.samples import Cameras
from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.cameras import project
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import inverse
from bevkd_common.models.attention import as_shares, projection, start_looking
from bevkd_common.ops.deformable_attention import deformable_attention

NEAREST = 1e-5
"""Minimum depth in metres of a point that is visible in a camera."""
FAR_OUTSIDE = 10.0
"""Bound of image coordinates in widths or heights: outside the image, and representable in half precision."""


class Sightings(NamedTuple):
    """The queries that project into each camera, at most K per camera.

    Attributes:
        row: [B · N, K] int64, query of a sample as b · Q + q; entries beyond the visible ones are arbitrary.
        seen: [B · N, K] bool.
        anchors: [B · N, K, Z, 2] (x, y) of the query's anchors as shares of the image.
        cameras: [B, Q] number of cameras in which a query is visible.
    """

    row: Tensor
    seen: Tensor
    anchors: Tensor
    cameras: Tensor


def anchor_points(grid: Grid, z_range: tuple[float, float], count: int) -> Tensor:
    """Points above the centre of each cell, [Y · X, count, 3] metres.

    Upstream: the highest point is half a metre below the top and the lowest half a metre above the bottom, for
    every count.
    """
    low, high = z_range
    z = torch.linspace(low + 0.5, high - 0.5, count)
    ground = cell_centers(grid).flatten(0, 1)
    return torch.cat([ground[:, None].expand(-1, count, 2), z.expand(len(ground), count)[..., None]], dim=-1)


@torch.no_grad()
def sightings(points: Tensor, cameras: Cameras, image_size: tuple[int, int]) -> Sightings:
    """Project anchors; a query is visible in a camera if one of its anchors is in front of it and inside its image.

    Args:
        points: Anchors [Q, Z, 3] in the LiDAR axes of `cameras`.
        cameras: [B, N, ...].
        image_size: Height and width in pixels of the input of the backbone, padding included.
    """
    queries, count = points.shape[:2]
    cam_T_lidar = inverse(cameras.lidar_T_cam)
    pixels, depth = project(points.flatten(0, 1), cameras.intrinsics, cam_T_lidar, cameras.image_aug)
    share = pixels / pixels.new_tensor([image_size[1], image_size[0]])
    ahead = depth > NEAREST
    inside = ahead & ((share > 0) & (share < 1)).all(dim=-1)
    share = torch.where(ahead[..., None], share, FAR_OUTSIDE).clamp(-FAR_OUTSIDE, FAR_OUTSIDE)
    visible = inside.unflatten(-1, (queries, count)).any(dim=-1)
    # The visible queries come first.
    most = queries if torch.compiler.is_compiling() else max(1, int(visible.sum(dim=-1).max()))
    seen, query = visible.flatten(0, 1).int().sort(dim=-1, descending=True, stable=True)
    query = query[:, :most]
    anchors = share.flatten(0, 1).unflatten(1, (queries, count))
    sample = torch.arange(len(query), device=query.device)[:, None] // visible.shape[1]
    return Sightings(
        row=sample * queries + query,
        seen=seen[:, :most].bool(),
        anchors=anchors.gather(1, query[..., None, None].expand(-1, -1, count, 2)),
        cameras=visible.sum(dim=1),
    )


class SpatialCrossAttention(nn.Module):
    """Deformable attention of BEV queries to the images, around the projections of their anchors.

    The result is averaged over the cameras in which a query is visible; a query visible in none gets the bias of
    the projection. The sampling points of a head are assigned to the anchors in turn, including those outside the
    image, where all values are zero.

    Args:
        channels: Channels of queries and image features; a multiple of `heads`.
        heads: Attention heads.
        levels: Feature maps per image.
        points: Sampling points per head in each map; a multiple of the number of anchors.

    Source: BEVFormer, arXiv 2203.17270, equation 4.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.samples = (heads, levels, points)
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        start_looking(self.sampling_offsets, self.attention_weights, self.samples)
        self.value_proj = projection(channels)
        self.output_proj = projection(channels)

    def forward(
        self, query: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]], sightings: Sightings
    ) -> tuple[Tensor, Tensor]:
        """The attended features, and the attention weights.

        Args:
            query: [B, Q, C].
            tokens: [B · N, S, C], the concatenated maps of an image, each row by row.
            shapes: Height and width of each map.
            sightings: Visible queries of each camera.

        Returns:
            [B, Q, C], and the weights [B, Q, heads, levels, points], which are the same for all cameras.
        """
        heads, levels, points = self.samples
        offsets = as_shares(self.sampling_offsets(query), self.samples, shapes)
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * points)).softmax(dim=-1)
        weights = weights.unflatten(-1, (levels, points))
        values = self.value_proj(tokens).unflatten(-1, (heads, -1))
        seen = deformable_attention(
            values,
            shapes,
            _around(sightings.anchors, _rows(offsets, sightings.row)),
            _rows(weights, sightings.row),
        )
        seen = (seen * sightings.seen[..., None]).flatten(0, 1)
        total = seen.new_zeros(query.shape[0] * query.shape[1], seen.shape[-1])
        total = total.index_add(0, sightings.row.flatten(), seen).view(*query.shape[:2], -1)
        return self.output_proj(total / sightings.cameras.clamp(min=1)[..., None]), weights


def _rows(values: Tensor, row: Tensor) -> Tensor:
    """Values [B, Q, ...] of queries, as [B · N, K, ...]."""
    return values.flatten(0, 1).index_select(0, row.flatten()).unflatten(0, row.shape)


def _around(anchors: Tensor, offsets: Tensor) -> Tensor:
    """Places [B · N, K, heads, levels, points, 2] at offsets from anchors [B · N, K, Z, 2]; all are shares."""
    steps = offsets.unflatten(-2, (-1, anchors.shape[2]))
    return (anchors[:, :, None, None, None] + steps).flatten(-3, -2)
