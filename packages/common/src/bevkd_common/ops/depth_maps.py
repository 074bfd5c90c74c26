"""Depths of LiDAR points in images, as maps over cells and as bins of a depth distribution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bevkd_common.data.samples import DepthHits
from bevkd_common.geometry.grid import DepthBins


@torch.no_grad()
def depth_map(
    hits: DepthHits,
    images: int,
    size: tuple[int, int],
    *,
    stride: int = 1,
    rounding: Literal["floor", "truncate", "nearest"] = "floor",
    keep: Literal["nearest", "last"] = "nearest",
    between: tuple[float, float] = (0.0, torch.inf),
    inner: bool = False,
) -> Tensor:
    """The depth that each cell of each image shows.

    Upstream: BEVDet's first release has stride 16, rounding "nearest" and depths from 1 to 60 m (which shifts the
    map by half a cell); its later ones the same with stride 1, to be pooled by `pool_nearest`; Megvii's BEVDepth
    stride 1, rounding "truncate", keeps the last point and leaves out the outermost pixel of the recorded image.

    Args:
        hits: The points.
        images: How many images there are.
        size: Height and width of an image in pixels.
        stride: Pixels per cell.
        rounding: Cell of a pixel: "floor", "truncate" towards zero (half a cell more at the left and the top), or
            the "nearest" whole number, of halves the even one.
        keep: Where several points fall into a cell: the nearest one, or the last in the order of the points.
        between: Depths in metres that count: from the first, below the second.
        inner: Whether only points more than a pixel inside the recorded image count.

    Returns:
        Metres [images, H, W], infinite where no point falls.
    """
    height, width = (edge // stride for edge in size)
    place = hits.pixels / stride
    column, row = {"floor": torch.floor, "truncate": torch.trunc, "nearest": torch.round}[rounding](place).unbind(
        -1
    )
    near, far = between
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    inside &= (hits.depth >= near) & (hits.depth < far)
    if inner:
        inside &= hits.inner
    cell = ((hits.image * height + row.long()) * width + column.long())[inside]
    depth = hits.depth[inside]
    cells = torch.full((images * height * width,), torch.inf, device=depth.device, dtype=depth.dtype)
    if keep == "nearest":
        cells = cells.scatter_reduce(0, cell, depth, "amin")
    else:
        order = torch.arange(len(cell), device=cell.device)
        last = order.new_full(cells.shape, -1).scatter_reduce(0, cell, order, "amax")
        shown = last >= 0
        cells[shown] = depth[last[shown]]
    return cells.unflatten(0, (images, height, width))


def pool_nearest(depth: Tensor, stride: int) -> Tensor:
    """The nearest depth in each block of `stride` x `stride` cells, [images, H, W] to [images, H', W']."""
    return -F.max_pool2d(-depth[:, None], stride)[:, 0]


def depth_labels(depth: Tensor, bins: DepthBins) -> Tensor:
    """Number of the depth bin that begins at or before each depth; -1 where it is outside all.

    Source: BEVDepth, arXiv 2206.10092, section 4.1.
    """
    index = ((depth - bins.start) / bins.step).floor()
    inside = (index >= 0) & (index < bins.count)
    return torch.where(inside, index, -1).long()
