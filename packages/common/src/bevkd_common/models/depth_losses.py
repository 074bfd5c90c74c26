"""Losses between predicted depths and those of LiDAR points."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bevkd_common.data.samples import DepthHits
from bevkd_common.geometry.grid import DepthBins
from bevkd_common.ops.depth_maps import depth_labels, depth_map, pool_nearest
from bevkd_common.ops.normalizers import mean_over_ranks


class DepthLoss(Protocol):
    """Compares depth distributions with points."""

    def __call__(self, logits: Tensor, hits: DepthHits, bins: DepthBins, image_size: tuple[int, int]) -> Tensor:
        """A scalar.

        Args:
            logits: [B, N, D, H, W].
            hits: Points in the B x N images.
            bins: The D depths.
            image_size: Height and width in pixels.
        """
        ...


def sigmoid_depth_loss(logits: Tensor, hits: DepthHits, bins: DepthBins, image_size: tuple[int, int]) -> Tensor:
    """Binary cross entropy of each depth bin, averaged over all bins of all cells; see `DepthLoss`.

    Upstream: cells without a LiDAR point count as nothing, but are averaged over; the depths of a cell compete
    in the lift, which takes a softmax, and not here. Points are rounded to the nearest cell.

    Source: BEVDepth of the first BEVDet code base.
    """
    depth = depth_map(
        hits,
        logits.shape[0] * logits.shape[1],
        image_size,
        stride=image_size[0] // logits.shape[-2],
        rounding="nearest",
        between=(bins.start, bins.stop),
    )
    known, wanted = _one_hot(depth_labels(depth, bins), bins)
    return F.binary_cross_entropy_with_logits(logits.flatten(0, 1).float(), wanted, weight=known)


def softmax_depth_loss(logits: Tensor, hits: DepthHits, bins: DepthBins, image_size: tuple[int, int]) -> Tensor:
    """Binary cross entropy of a cell's distribution, averaged over the cells with a depth; see `DepthLoss`.

    The cross entropies of all bins of a cell are added. Float32 also under autocast.

    Upstream: of the points that share a pixel the last one counts, and of the pixels of a cell the nearest; points
    in the outermost pixel of the recorded image are left out.

    Source: BEVDepth (arXiv 2206.10092), section 4.1, and its released code.
    """
    images = logits.shape[0] * logits.shape[1]
    pixels = depth_map(hits, images, image_size, rounding="truncate", keep="last", inner=True)
    label = depth_labels(pool_nearest(pixels, image_size[0] // logits.shape[-2]), bins)
    known, wanted = _one_hot(label, bins)
    with torch.autocast(logits.device.type, enabled=False):
        told = logits.flatten(0, 1).float().softmax(dim=1)
        total = F.binary_cross_entropy(told, wanted, weight=known, reduction="sum")
    return total / mean_over_ranks((label >= 0).sum().float()).clamp(min=1)


def _one_hot(label: Tensor, bins: DepthBins) -> tuple[Tensor, Tensor]:
    """Which bins count and what they should be, both float32 [M, D, H, W], of labels [M, H, W]."""
    wanted = F.one_hot(label.clamp(min=0), bins.count).movedim(-1, 1).float()
    return (label >= 0)[:, None].float().expand_as(wanted), wanted
