"""The convolutions of `sparse_conv` computed by spconv 2.x; imported only where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor
from torch.func import functional_call

from bevkd_common.ops.sparse_tensor import SparseTensor, Triple

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of torch, about decorators that spconv uses
    from spconv.core import ConvAlgo
    from spconv.pytorch import SparseConvTensor
    from spconv.pytorch.conv import SparseConvolution
    from spconv.pytorch.core import ImplicitGemmIndiceData, IndiceData


def submanifold_conv(x: SparseTensor, weight: Tensor, key: str) -> SparseTensor:
    """See `sparse_conv.submanifold_conv`; without a bias."""
    return _run(x, weight, {"subm": True, "indice_key": key})


def sparse_conv(x: SparseTensor, weight: Tensor, stride: Triple, padding: Triple) -> SparseTensor:
    """See `sparse_conv.sparse_conv`; without a bias. The order of the output's voxels is spconv's."""
    return _run(x, weight, {"stride": stride, "padding": padding})


def _run(x: SparseTensor, weight: Tensor, settings: Mapping[str, Any]) -> SparseTensor:
    layer = _layer(tuple(weight.shape), weight.is_cuda, **settings)
    # Those of the pure-torch convolution, which computes what spconv does not support, are of another type.
    known = {
        key: book for key, book in x.rulebooks.items() if isinstance(book, IndiceData | ImplicitGemmIndiceData)
    }
    voxels = SparseConvTensor(x.features, x.coordinates.int(), list(x.shape), x.batch, indice_dict=known)
    out = functional_call(layer, {"weight": weight}, (voxels,))
    z, y, x_ = out.spatial_shape
    return SparseTensor(out.features, out.indices.long(), (z, y, x_), x.batch, out.indice_dict)


@cache
def _layer(shape: tuple[int, ...], on_gpu: bool, **settings: Any) -> Any:
    """A layer without memory or state, into which each call puts its own weight [O, kz, ky, kx, I]."""
    # On a CPU spconv has one algorithm, which must be named; elsewhere it chooses.
    algorithm = None if on_gpu else ConvAlgo.Native
    return SparseConvolution(
        3, shape[-1], shape[0], shape[1:4], bias=False, algo=algorithm, device="meta", **settings
    )
