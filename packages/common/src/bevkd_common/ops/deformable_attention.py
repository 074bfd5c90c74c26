"""Multi-scale deformable attention: each query samples a few points of each feature map.

On the CPU one compiled pass does the whole sum, in about 0.4 of the time (`benchmarks/ops.py`); elsewhere, and in a
graph that torch compiles, `grid_sample` does the sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bevkd_common.ops.deformable_kernels import FusedDeformableAttention

MOST_SAMPLES = 1 << 24
"""Sampled features of a level that `grid_sample` holds at one time, 64 MB in float32.

Queries beyond that are done in turn, and sampled again in the backward pass.
"""


def deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples, head by head.

    `out[b, q, h] = Σ_l Σ_p weights[b, q, h, l, p] · value_l[b, h](locations[b, q, h, l, p])`, where (0, 0) is the
    outer corner of the first pixel, (1, 1) that of the last, and what lies outside is zero. Computed in float32 or
    wider, also under autocast.

    Args:
        value: [B, S, heads, C], the levels one behind the other, each row by row.
        shapes: Height and width of each of the L levels; their products sum to S.
        locations: (x, y) as shares of width and height, [B, Q, heads, L, P, 2].
        weights: [B, Q, heads, L, P].

    Returns:
        [B, Q, heads · C], heads outermost.

    Raises:
        ValueError: If the levels do not add up to S.

    Source: Deformable DETR, arXiv 2010.04159, equation 3.
    """
    if sum(height * width for height, width in shapes) != value.shape[1]:
        raise ValueError(f"levels of {list(shapes)} do not add up to {value.shape[1]} positions")
    dtype = torch.promote_types(value.dtype, torch.float32)
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        out: Tensor = FusedDeformableAttention.apply(
            value.to(dtype), locations.to(dtype), weights.to(dtype), shapes
        )
        return out
    return _with_grid_sample(value, shapes, locations, weights, dtype)


def _with_grid_sample(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor, dtype: torch.dtype
) -> Tensor:
    with torch.autocast(value.device.type, enabled=False):
        maps = _maps(value.to(dtype), shapes)
        batch, queries, heads, _, points, _ = locations.shape
        step = max(1, MOST_SAMPLES // (batch * heads * value.shape[3] * points))
        turns = [
            (locations[:, start : start + step].to(dtype), weights[:, start : start + step].to(dtype), *maps)
            for start in range(0, queries, step)
        ]
        again = len(turns) > 1 and torch.is_grad_enabled()
        parts = [_attend_again(*turn) if again else _attend(*turn) for turn in turns]
    return torch.cat(parts, dim=1) if parts else value.new_zeros(batch, 0, heads * value.shape[3], dtype=dtype)


def _maps(value: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The levels as maps, [B · heads, C, H, W] each."""
    levels = value.split([height * width for height, width in shapes], dim=1)
    return [
        level.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, shape)
        for level, shape in zip(levels, shapes, strict=True)
    ]


def _attend_again(*inputs: Tensor) -> Tensor:
    """As `_attend`; the backward pass samples once more. An enclosing checkpoint would keep tensors in a list."""
    out: Tensor = checkpoint(_attend, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out


def _attend(locations: Tensor, weights: Tensor, *maps: Tensor) -> Tensor:
    batch, queries, heads = weights.shape[:3]
    total = None
    for level, features in enumerate(maps):
        # grid_sample counts from -1 to 1 over the outer borders.
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        sampled = F.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        summed = (sampled * share).sum(dim=-1)
        total = summed if total is None else total + summed
    assert total is not None
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).reshape(batch, queries, -1)
