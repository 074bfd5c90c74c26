"""Convolution over the occupied voxels of a grid: what is empty is neither stored nor multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bevkd_common.ops.sparse_tensor import SparseTensor, Triple, linear_index

Pairs = tuple[Tensor, Tensor]
"""Rows of the input and rows of the output, [P] int64 each, that one cell of a kernel connects."""

CPU_BLOCK = 4096
"""Pairs that are multiplied at once on a CPU, so that they stay in its cache."""


def submanifold_conv(x: SparseTensor, weight: Tensor, bias: Tensor | None, key: str) -> SparseTensor:
    """Evaluate a convolution at the occupied voxels alone; they stay as they are.

    Like `sparse_conv` it runs in the precision of the weights, also under autocast: the time goes into moving
    rows, and spconv has no bfloat16.

    Args:
        x: Voxels with I features.
        weight: [O, kz, ky, kx, I] as in spconv 2.x; as in torch it is not flipped.
        bias: [O], or none.
        key: Convolutions with equal keys must see the same voxels with kernels of one size.

    Raises:
        ValueError: If an edge of the kernel is even, or a voxel is there twice.

    Source: Submanifold Sparse Convolutional Networks, arXiv 1706.01307.
    """
    kernel = _kernel(weight)
    if not all(edge % 2 for edge in kernel):
        raise ValueError(f"a submanifold convolution needs a kernel with a centre, got {kernel}")
    with torch.autocast(weight.device.type, enabled=False):
        x = x.with_features(x.features.to(weight.dtype))
        known = x.rulebooks.get(key)
        if uses_spconv(x, kernel):
            from bevkd_common.ops import spconv_runtime

            if known is None:
                _refuse_repeats(linear_index(x.coordinates, x.shape).sort()[0])
            out = spconv_runtime.submanifold_conv(x, weight, key)
        else:
            ours = isinstance(known, Rulebook)
            rulebook = known if ours else submanifold_rulebook(x.coordinates, x.shape, kernel)
            features: Tensor = _Convolution.apply(x.features, weight, rulebook)
            out = replace(x, features=features, rulebooks={**x.rulebooks, key: rulebook})
        return _biased(out, bias)


def sparse_conv(
    x: SparseTensor, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple
) -> SparseTensor:
    """Evaluate a convolution wherever its kernel meets a voxel; elsewhere the output is empty, whatever the bias.

    Args:
        x: Voxels with I features.
        weight: [O, kz, ky, kx, I] as in spconv 2.x; as in torch it is not flipped.
        bias: [O], or none.
        stride: Cells from one evaluation to the next, along z, y, x.
        padding: Empty cells on both sides, along z, y, x.

    Raises:
        ValueError: If the kernel is larger than the padded grid.

    Source: SECOND, Sensors 2018; the grid of the output is that of a dense convolution.
    """
    kernel = _kernel(weight)
    shape = output_shape(x.shape, kernel, stride, padding)
    with torch.autocast(weight.device.type, enabled=False):
        x = x.with_features(x.features.to(weight.dtype))
        if uses_spconv(x, kernel):
            from bevkd_common.ops import spconv_runtime

            out = spconv_runtime.sparse_conv(x, weight, stride, padding)
        else:
            rulebook, coordinates = strided_rulebook(x.coordinates, x.shape, kernel, stride, padding)
            features: Tensor = _Convolution.apply(x.features, weight, rulebook)
            out = SparseTensor(features, coordinates, shape, x.batch)
        return _biased(out, bias)


def output_shape(shape: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Cells along z, y, x after a strided convolution.

    Raises:
        ValueError: If there are none.
    """
    z, y, x = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True))
    if min(z, y, x) < 1:
        raise ValueError(f"a kernel of {kernel} does not fit into {shape} cells with a padding of {padding}")
    return z, y, x


def uses_spconv(x: SparseTensor, kernel: Triple) -> bool:
    """Whether spconv computes this: wherever it is installed.

    It does not support an empty tensor and bfloat16, and release 2.3.6 reads the weight of a kernel of one cell
    transposed.
    """
    supported = x.features.dtype != torch.bfloat16 and len(x.features) > 0 and prod(kernel) > 1
    return supported and spconv_is_installed()


@cache
def spconv_is_installed() -> bool:
    """Whether there is an spconv; it is not imported."""
    return find_spec("spconv") is not None


@dataclass(frozen=True, eq=False)
class Rulebook:
    """Which rows of the input meet which rows of the output.

    Attributes:
        pairs: For each cell of the kernel, x running fastest, in the order of the output's voxels; None connects
            each row with itself.
        rows: Rows of the output.
    """

    pairs: Sequence[Pairs | None]
    rows: int

    @property
    def center(self) -> int | None:
        """The cell of the kernel that connects each row with itself."""
        return self.pairs.index(None) if None in self.pairs else None

    @cached_property
    def blocks(self) -> Sequence[tuple[int, Tensor, Tensor]]:
        """Cell of the kernel, rows of the input and rows of the output, for as many pairs as suit the device."""
        blocks = []
        for cell, pairs in enumerate(self.pairs):
            if pairs is not None and len(pairs[0]) > 0:
                size = CPU_BLOCK if pairs[0].device.type == "cpu" else len(pairs[0])
                for inputs, outputs in zip(pairs[0].split(size), pairs[1].split(size), strict=True):
                    blocks.append((cell, inputs, outputs))
        return blocks


def submanifold_rulebook(coordinates: Tensor, shape: Triple, kernel: Triple) -> Rulebook:
    """The voxels [V, 4] that lie within an odd kernel of each other.

    In sorted voxels the neighbours within a line along x follow each other: one search finds the first. Half of
    the lines suffice, because the relation of left and right neighbours is symmetric.

    Raises:
        ValueError: If a voxel is there twice.
    """
    depth, height, width = (edge // 2 for edge in kernel)
    # As many empty cells behind each line and each plane as keep a kernel from seeing the next one.
    plane, line = shape[1] + height, shape[2] + width
    key, order = linear_index(coordinates, (shape[0] + depth, plane, line)).sort()
    _refuse_repeats(key)
    before: list[Pairs] = []
    for dz, dy in product(range(-depth, depth + 1), range(-height, height + 1)):
        if (dz, dy) > (0, 0):
            break
        wanted = key + ((dz * plane + dy) * line - width)
        place = torch.searchsorted(key, wanted)
        for _ in range(2 * width + 1 if (dz, dy) < (0, 0) else width):
            found = key[place.clamp(max=len(key) - 1)] == wanted
            before.append((order[place[found]], order[found]))
            place, wanted = place + found, wanted + 1
    after = [(outputs, inputs) for inputs, outputs in reversed(before)]
    return Rulebook((*before, None, *after), rows=len(key))


def _refuse_repeats(key: Tensor) -> None:
    """Raise for sorted indices of voxels [V] of which two are equal."""
    if bool((key[1:] == key[:-1]).any()):
        raise ValueError("a voxel is there twice; a sparse tensor has each once")


def strided_rulebook(
    coordinates: Tensor, shape: Triple, kernel: Triple, stride: Triple, padding: Triple
) -> tuple[Rulebook, Tensor]:
    """What a strided convolution connects voxels [V, 4] with, and the voxels [V', 4] of its output, sorted."""
    nz, ny, nx = out_shape = output_shape(shape, kernel, stride, padding)
    reached: list[list[tuple[Tensor, Tensor]]] = []  # place in the output and whether there is one: axis, cell
    for axis, (size, edge, step, margin) in enumerate(zip(out_shape, kernel, stride, padding, strict=True)):
        shifted = [coordinates[:, axis + 1] + margin - cell for cell in range(edge)]
        reached.append([(s // step, (s % step == 0) & (s >= 0) & (s < size * step)) for s in shifted])
    inputs, keys = [], []
    for (z, z_fits), (y, y_fits), (x, x_fits) in product(*reached):
        rows = (z_fits & y_fits & x_fits).nonzero().squeeze(1)
        place = torch.stack([coordinates[:, 0], z, y, x], dim=1)
        inputs.append(rows)
        keys.append(linear_index(place[rows], out_shape))
    key, outputs = torch.cat(keys).unique(return_inverse=True)
    pairs = tuple(zip(inputs, outputs.split([len(rows) for rows in inputs]), strict=True))
    found = torch.stack([key // (nz * ny * nx), key // (ny * nx) % nz, key // nx % ny, key % nx], dim=1)
    return Rulebook(pairs, rows=len(key)), found


class _Convolution(torch.autograd.Function):
    """Gather rows, multiply them, add them to rows, block by block; nothing but the input is kept.

    Arguments are the features [V, I], the weight [O, kz, ky, kx, I] and the rulebook.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, rulebook: Rulebook) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.rulebook = rulebook
        matrices = weight.flatten(1, 3).permute(1, 2, 0).unbind()
        out = _first_sum(features, matrices, rulebook.center, rulebook.rows)
        for cell, inputs, outputs in rulebook.blocks:
            out.index_add_(0, outputs, features.index_select(0, inputs) @ matrices[cell])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        features, weight = ctx.saved_tensors
        rulebook: Rulebook = ctx.rulebook
        with torch.autocast(grad.device.type, enabled=False):
            matrices = weight.flatten(1, 3).unbind(1)
            grad_weight = weight.new_zeros(len(matrices), *matrices[0].shape)
            grad_matrices = grad_weight.unbind()
            grad_features = None
            if ctx.needs_input_grad[0]:
                grad_features = _first_sum(grad, matrices, rulebook.center, len(features))
            if rulebook.center is not None:
                torch.mm(grad.T, features, out=grad_matrices[rulebook.center])
            for cell, inputs, outputs in rulebook.blocks:
                grad_rows = grad.index_select(0, outputs)
                grad_matrices[cell].addmm_(grad_rows.T, features.index_select(0, inputs))
                if grad_features is not None:
                    grad_features.index_add_(0, inputs, grad_rows @ matrices[cell])
        return grad_features, grad_weight.transpose(0, 1).reshape(weight.shape), None


def _first_sum(rows: Tensor, matrices: Sequence[Tensor], center: int | None, count: int) -> Tensor:
    """What each of `count` rows receives from itself, as the start of a sum."""
    return rows.new_zeros(count, matrices[0].shape[1]) if center is None else rows @ matrices[center]


def _biased(x: SparseTensor, bias: Tensor | None) -> SparseTensor:
    return x if bias is None else x.with_features(x.features + bias)


def _kernel(weight: Tensor) -> Triple:
    z, y, x = weight.shape[1:4]
    return z, y, x
