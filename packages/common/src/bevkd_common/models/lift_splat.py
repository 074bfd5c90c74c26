"""From image features to the bird's-eye view by a predicted distribution over depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevkd_common.data.samples import Cameras
from bevkd_common.geometry.cameras import frustum, lift
from bevkd_common.geometry.grid import DepthBins, Grid
from bevkd_common.ops.bev_pool import IndexMode, bev_cells, bev_pool


class LiftSplat(nn.Module):
    """Predict a depth distribution and a context vector per feature cell, lift them, and sum them on the ground.

    Args:
        depth_net: From image features to depths and context vectors, whose channels are those of the map.
        image_size: Height and width of the images in pixels.
        stride: Pixels per feature cell.
        depth_bins: The discrete depths.
        grid: Cells of the map.
        z_range: Lower and upper border of the single slice, metres.
        index_mode: How coordinates become indices, see `bev_cells`.
        aggregation: What the lifted features [M, C, D, H, W] of each image pass before they are pooled.

    Source: BEVDet (arXiv 2112.11790), view transformer; Lift, Splat, Shoot (arXiv 2008.05711).
    """

    frustum: Tensor

    def __init__(
        self,
        *,
        depth_net: nn.Module,
        image_size: tuple[int, int],
        stride: int,
        depth_bins: DepthBins,
        grid: Grid,
        z_range: tuple[float, float],
        index_mode: IndexMode = "truncate",
        aggregation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.z_range = z_range
        self.index_mode: IndexMode = index_mode
        self.stride = stride
        self.depth_bins = depth_bins
        self.depth_net = depth_net
        self.aggregation = aggregation
        self.register_buffer("frustum", frustum(image_size, stride, depth_bins), persistent=False)

    def forward(
        self, features: Tensor, cameras: Cameras, aug_T_lidar: Tensor, known: Cameras | None = None
    ) -> tuple[Tensor, Tensor]:
        """Lift image features: the map [B, C, Y, X], float32, and depth logits [B, N, D, H, W].

        Args:
            features: [B, N, F, H, W].
            cameras: Where the features are.
            aug_T_lidar: [B, 4, 4], the augmentation in the poses.
            known: The cameras whose parameters the depth net reads, if they are others.
        """
        logits, context = self.depth_net(features, cameras if known is None else known, aug_T_lidar)
        return self.splat(logits, context, cameras), logits

    def splat(self, logits: Tensor, context: Tensor, cameras: Cameras) -> Tensor:
        """Sum lifted features on the ground: the map [B, C, Y, X], float32.

        Args:
            logits: [B, N, D, H, W] of the depths.
            context: [B, N, C, H, W].
            cameras: Position of the features.
        """
        depth, cells = logits.float().softmax(dim=2), self.cells(cameras)
        if self.aggregation is not None:
            lifted = self.aggregation((depth[:, :, None] * context[:, :, :, None]).flatten(0, 1))
            # One image a depth, all of whose features are there.
            context = lifted.unflatten(0, logits.shape[:2]).movedim(3, 2).flatten(1, 2)
            cells = cells.flatten(1, 2)[:, :, None]
            depth = torch.ones_like(cells, dtype=depth.dtype)
        return bev_pool(depth, context, cells, self.grid)

    @torch.no_grad()
    def cells(self, cameras: Cameras) -> Tensor:
        """The cell of every frustum point, int64 [B, N, D, H, W]; see `bev_cells`."""
        points = lift(self.frustum, cameras.intrinsics, cameras.lidar_T_cam, cameras.image_aug)
        return bev_cells(points, self.grid, self.z_range, self.index_mode)
