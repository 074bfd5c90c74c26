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
    ) -> None:
        super().__init__()
        self.grid = grid
        self.z_range = z_range
        self.index_mode: IndexMode = index_mode
        self.stride = stride
        self.depth_bins = depth_bins
        self.depth_net = depth_net
        self.register_buffer("frustum", frustum(image_size, stride, depth_bins), persistent=False)

    def forward(self, features: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Lift image features [B, N, F, H, W]: the map [B, C, Y, X], float32, and depth logits [B, N, D, H, W]."""
        logits, context = self.depth_net(features, cameras)
        return bev_pool(logits.float().softmax(dim=2), context, self.cells(cameras), self.grid), logits

    @torch.no_grad()
    def cells(self, cameras: Cameras) -> Tensor:
        """The cell of every frustum point, int64 [B, N, D, H, W]; see `bev_cells`."""
        points = lift(self.frustum, cameras.intrinsics, cameras.lidar_T_cam, cameras.image_aug)
        return bev_cells(points, self.grid, self.z_range, self.index_mode)
