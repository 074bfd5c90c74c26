"""Deformable attention on the CPU in one pass over the samples, compiled by numba when it is first called.

`grid_sample` writes every sample of every channel to memory, and the backward pass does so three times. Here a
sample is read, weighted and added while it is in registers. Channels are innermost, so that a corner is one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

Array = NDArray[Any]
_COMPILED = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
_INLINED = njit(nogil=True, inline="always", error_model="numpy")


class FusedDeformableAttention(torch.autograd.Function):
    """The sum of `ops.deformable_attention` over all levels, for tensors on the CPU of one floating-point type.

    The batch is shared among `torch.get_num_threads()` threads; the result does not depend on their number.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return [B, Q, heads · C]; the arguments are those of `deformable_attention`."""
        value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
        ctx.save_for_backward(value, locations, weights)
        ctx.levels = _levels(shapes)
        out = value.new_empty(*locations.shape[:3], value.shape[3])
        _share_batch(attend, ctx.levels, value, locations, weights, out)
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of value, locations and weights."""
        value, locations, weights = ctx.saved_tensors
        found = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
        given = gradient.contiguous().view(*locations.shape[:3], value.shape[3])
        _share_batch(attend_backward, ctx.levels, value, locations, weights, given, *found)
        return *found, None


def _levels(shapes: Sequence[tuple[int, int]]) -> Array:
    """Height, width and first position of each level, [L, 3]."""
    ends = np.cumsum([height * width for height, width in shapes])
    return np.array([(*shape, end - shape[0] * shape[1]) for shape, end in zip(shapes, ends, strict=True)])


def _share_batch(kernel: Callable[..., None], levels: Array, *tensors: Tensor) -> None:
    """Call a kernel on parts of the batch, which is the first dimension of every tensor."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    batch = len(arrays[0])
    parts = min(torch.get_num_threads(), batch)
    if parts <= 1:
        kernel(levels, *arrays)
        return
    edges = [batch * part // parts for part in range(parts + 1)]
    # A pool that outlives the call would not survive the fork of a data loader.
    with ThreadPoolExecutor(parts) as pool:
        started = [
            pool.submit(kernel, levels, *(array[first:last] for array in arrays)) for first, last in pairwise(edges)
        ]
    for one in started:
        one.result()


@_INLINED
def _corners(x: Any, y: Any, height: Any, width: Any) -> Any:
    """The corners around a place (x, y) in pixels: columns, rows, and the share of each, 0 outside the map."""
    one, nothing = x - x + 1, x - x
    left, top = int(np.floor(x)), int(np.floor(y))
    right_share, bottom_share = x - left, y - top
    left_share = one - right_share if left >= 0 else nothing
    top_share = one - bottom_share if top >= 0 else nothing
    right_share = right_share if left + 1 < width else nothing
    bottom_share = bottom_share if top + 1 < height else nothing
    columns = max(left, 0), min(left + 1, width - 1)
    rows = max(top, 0), min(top + 1, height - 1)
    return columns, rows, (left_share, right_share), (top_share, bottom_share)


@_COMPILED
def attend(levels: Array, value: Array, locations: Array, weights: Array, out: Array) -> None:
    """Write the sums to `out` [B, Q, heads, C].

    Args:
        levels: Height, width and first position of each level, [L, 3].
        value: [B, S, heads, C].
        locations: [B, Q, heads, L, P, 2].
        weights: [B, Q, heads, L, P].
        out: Written to.
    """
    batch, queries, heads, channels = out.shape
    points = weights.shape[4]
    half = value.dtype.type(0.5)
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                total = out[b, q, h]
                total[:] = 0
                for level in range(len(levels)):
                    height, width, first = levels[level]
                    tall, wide = value.dtype.type(height), value.dtype.type(width)
                    for p in range(points):
                        x = locations[b, q, h, level, p, 0] * wide - half
                        y = locations[b, q, h, level, p, 1] * tall - half
                        if not (x > -1 and y > -1 and x < width and y < height):
                            if x != x or y != y:
                                total[:] = x + y
                            continue
                        columns, rows, across, along = _corners(x, y, height, width)
                        weight = weights[b, q, h, level, p]
                        s0, s1 = along[0] * across[0] * weight, along[0] * across[1] * weight
                        s2, s3 = along[1] * across[0] * weight, along[1] * across[1] * weight
                        upper, lower = first + rows[0] * width, first + rows[1] * width
                        v0, v1 = value[b, upper + columns[0], h], value[b, upper + columns[1], h]
                        v2, v3 = value[b, lower + columns[0], h], value[b, lower + columns[1], h]
                        # One loop for four corners takes half the time of four loops.
                        for c in range(channels):
                            total[c] += s0 * v0[c] + s1 * v1[c] + s2 * v2[c] + s3 * v3[c]


@_COMPILED
def attend_backward(
    levels: Array,
    value: Array,
    locations: Array,
    weights: Array,
    gradient: Array,
    value_gradient: Array,
    location_gradient: Array,
    weight_gradient: Array,
) -> None:
    """Write the gradients of `attend`.

    Args:
        levels: See `attend`.
        value: See `attend`.
        locations: See `attend`.
        weights: See `attend`.
        gradient: Of the sums, [B, Q, heads, C].
        value_gradient: Added to.
        location_gradient: Written to.
        weight_gradient: Written to.
    """
    batch, queries, heads, channels = gradient.shape
    points = weights.shape[4]
    half, nothing = value.dtype.type(0.5), value.dtype.type(0)
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                given = gradient[b, q, h]
                for level in range(len(levels)):
                    height, width, first = levels[level]
                    tall, wide = value.dtype.type(height), value.dtype.type(width)
                    for p in range(points):
                        x = locations[b, q, h, level, p, 0] * wide - half
                        y = locations[b, q, h, level, p, 1] * tall - half
                        by_x, by_y, by_weight = nothing, nothing, nothing
                        if x > -1 and y > -1 and x < width and y < height:
                            left, top = int(np.floor(x)), int(np.floor(y))
                            weight = weights[b, q, h, level, p]
                            for row in range(max(top, 0), min(top + 2, height)):
                                down = 1 if row > top else -1
                                along = 1 - abs(y - row)
                                for column in range(max(left, 0), min(left + 2, width)):
                                    right = 1 if column > left else -1
                                    across = 1 - abs(x - column)
                                    share, dot = along * across, nothing
                                    scale = share * weight
                                    place = first + row * width + column
                                    seen, gained = value[b, place, h], value_gradient[b, place, h]
                                    for c in range(channels):
                                        dot += seen[c] * given[c]
                                        gained[c] += scale * given[c]
                                    by_weight += share * dot
                                    by_x += right * along * dot
                                    by_y += down * across * dot
                            by_x *= weight * wide
                            by_y *= weight * tall
                        elif x != x or y != y:
                            by_x = by_y = by_weight = x + y
                        location_gradient[b, q, h, level, p, 0] = by_x
                        location_gradient[b, q, h, level, p, 1] = by_y
                        weight_gradient[b, q, h, level, p] = by_weight
