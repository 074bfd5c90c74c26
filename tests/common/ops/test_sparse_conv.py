from importlib.util import find_spec

import pytest
import torch
from bevkd_common.ops import sparse_conv as ops
from bevkd_common.ops.sparse_conv import output_shape, sparse_conv, submanifold_conv
from bevkd_common.ops.sparse_tensor import SparseTensor
from torch import Tensor
from torch.nn import functional as F

needs_spconv = pytest.mark.skipif(find_spec("spconv") is None, reason="needs spconv")
SHAPE = (5, 7, 9)
STRIDED = [
    ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((3, 3, 3), (2, 2, 2), (0, 1, 1)),
    ((3, 1, 1), (2, 1, 1), (0, 0, 0)),
    ((2, 3, 5), (1, 2, 3), (1, 0, 2)),
    ((1, 2, 2), (1, 2, 2), (0, 0, 0)),
]


@pytest.fixture(params=["torch", pytest.param("spconv", marks=needs_spconv)])
def backend(request, monkeypatch) -> str:
    """Both ways to compute, one after the other."""
    monkeypatch.setattr(ops, "spconv_is_installed", lambda: request.param == "spconv")
    return request.param


@pytest.fixture
def pure_torch(monkeypatch) -> None:
    monkeypatch.setattr(ops, "spconv_is_installed", lambda: False)


def voxels(channels: int = 3, batch: int = 2, shape=SHAPE, share: float = 0.2, seed: int = 0, dtype=torch.float64):
    """Occupied cells in random order."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = (torch.rand(batch, *shape, generator=generator) < share).nonzero()
    coordinates = coordinates[torch.randperm(len(coordinates), generator=generator)]
    features = torch.randn(len(coordinates), channels, generator=generator, dtype=dtype)
    return SparseTensor(features.requires_grad_(), coordinates, shape, batch)


def layer(out_channels: int, kernel, in_channels: int = 3, seed: int = 1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_channels, *kernel, in_channels, generator=generator, dtype=dtype)
    bias = torch.randn(out_channels, generator=generator, dtype=dtype)
    return weight.requires_grad_(), bias.requires_grad_()


def occupancy(x: SparseTensor) -> Tensor:
    return x.with_features(torch.ones_like(x.features[:, :1])).to_dense()


def dense_weight(weight: Tensor) -> Tensor:
    return weight.permute(0, 4, 1, 2, 3)


def gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a weighted sum, so that no entry's gradient is another's."""
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weights).sum(), inputs)


def assert_all_close(ours, expected):
    assert len(ours) == len(expected) > 0
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 5), (5, 1, 3), (1, 1, 1), (7, 3, 1)])
def test_submanifold_is_the_dense_convolution_at_the_voxels(backend, kernel):
    x, (weight, bias) = voxels(), layer(4, kernel)
    out = submanifold_conv(x, weight, bias, "a")
    assert torch.equal(out.coordinates, x.coordinates)
    padding = [edge // 2 for edge in kernel]
    dense = F.conv3d(x.to_dense(), dense_weight(weight), bias, padding=padding) * occupancy(x)
    torch.testing.assert_close(out.to_dense(), dense, rtol=1e-9, atol=1e-9)
    inputs = (x.features, weight, bias)
    assert_all_close(gradients(out.to_dense(), *inputs), gradients(dense, *inputs))


@pytest.mark.parametrize(("kernel", "stride", "padding"), STRIDED)
def test_strided_is_the_dense_convolution_wherever_a_voxel_is_met(backend, kernel, stride, padding):
    x, (weight, bias) = voxels(share=0.03), layer(4, kernel)
    out = sparse_conv(x, weight, bias, stride, padding)
    met = F.conv3d(occupancy(x), torch.ones(1, 1, *kernel, dtype=torch.float64), stride=stride, padding=padding) > 0
    assert torch.equal(occupancy(out) > 0, met)
    assert len(out.coordinates) == met.sum() < met.numel()
    dense = F.conv3d(x.to_dense(), dense_weight(weight), bias, stride, padding) * met
    torch.testing.assert_close(out.to_dense(), dense, rtol=1e-9, atol=1e-9)
    inputs = (x.features, weight, bias)
    assert_all_close(gradients(out.to_dense(), *inputs), gradients(dense, *inputs))


def test_a_kernel_is_not_flipped(backend):
    """Two voxels side by side: the left one sees the right one through the last column of the kernel."""
    x = SparseTensor(torch.tensor([[10.0], [1.0]]), torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2]]), (3, 3, 4), 1)
    weight = torch.arange(27.0).view(1, 3, 3, 3, 1)
    out = submanifold_conv(x, weight, None, "a")
    # The centre is number 13, its right neighbour 14, its left one 12.
    assert out.features.flatten().tolist() == [13 * 10 + 14 * 1, 12 * 10 + 13 * 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 0, 0, 4), (0, 0, 1, 0)),  # end of a line, start of the next
        ((0, 0, 3, 4), (0, 1, 0, 0)),  # end of a plane
        ((0, 0, 3, 1), (0, 1, 0, 1)),
        ((0, 2, 3, 4), (1, 0, 0, 0)),  # end of a sample
        ((0, 2, 1, 1), (1, 0, 1, 1)),
    ],
)
def test_borders_of_the_grid_do_not_touch(backend, one, other):
    x = SparseTensor(torch.ones(2, 1), torch.tensor([one, other]), (3, 4, 5), 2)
    weight = torch.ones(1, 3, 3, 3, 1)
    assert submanifold_conv(x, weight, None, "a").features.flatten().tolist() == [1, 1]


def test_dense_cells_run_along_z_y_x():
    x = SparseTensor(torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1, 0, 2, 3], [0, 1, 0, 0]]), (2, 3, 4), 2)
    dense = x.to_dense()
    assert dense.shape == (2, 2, 2, 3, 4)
    assert dense[1, :, 0, 2, 3].tolist() == [1, 2]
    assert dense[0, :, 1, 0, 0].tolist() == [3, 4]
    assert dense.count_nonzero() == 4


def test_the_grids_of_the_released_encoder():
    down, last = ((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 3, 3), (2, 2, 2), (0, 1, 1))
    shape, shapes = (41, 1440, 1440), []
    for arguments in (down, down, last, ((3, 1, 1), (2, 1, 1), (0, 0, 0))):
        shape = output_shape(shape, *arguments)
        shapes.append(shape)
    assert shapes == [(21, 720, 720), (11, 360, 360), (5, 180, 180), (2, 180, 180)]


def test_impossible_kernels_are_refused():
    x = voxels()
    with pytest.raises(ValueError, match=r"a centre, got \(3, 2, 3\)"):
        submanifold_conv(x, layer(4, (3, 2, 3))[0], None, "a")
    with pytest.raises(ValueError, match=r"does not fit into \(5, 7, 9\) cells"):
        sparse_conv(x, layer(4, (6, 1, 1))[0], None, (1, 1, 1), (0, 0, 0))


def test_a_voxel_that_is_there_twice_is_refused(backend):
    x = SparseTensor(torch.ones(3, 1), torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]]), SHAPE, 1)
    with pytest.raises(ValueError, match="a voxel is there twice"):
        submanifold_conv(x, torch.ones(1, 3, 3, 3, 1), None, "a")


@pytest.mark.parametrize("batch", [1, 3])
def test_nothing_gives_nothing(backend, batch):
    x = SparseTensor(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 4, dtype=torch.int64), SHAPE, batch)
    weight, bias = layer(4, (3, 3, 3), dtype=torch.float32)
    kept = submanifold_conv(x, weight, bias, "a")
    out = sparse_conv(kept, layer(5, (3, 3, 3), 4, dtype=torch.float32)[0], None, (2, 2, 2), (1, 1, 1))
    assert (kept.features.shape, out.features.shape, out.coordinates.shape) == ((0, 4), (0, 5), (0, 4))
    assert out.to_dense().shape == (batch, 5, 3, 4, 5)
    out.to_dense().sum().backward()
    assert not weight.grad.any()
    assert x.features.grad.shape == (0, 3)


def test_an_empty_sample_among_others_stays_empty(backend):
    x = voxels(batch=3)
    kept = x.coordinates[:, 0] != 1
    x = SparseTensor(x.features[kept], x.coordinates[kept], SHAPE, 3)
    out = sparse_conv(x, layer(4, (3, 3, 3))[0], None, (2, 2, 2), (1, 1, 1)).to_dense()
    assert [bool(sample.any()) for sample in out] == [True, False, True]


def test_samples_do_not_see_each_other(backend):
    x, (weight, bias) = voxels(batch=2), layer(3, (3, 3, 3))

    def run(t: SparseTensor) -> Tensor:
        return sparse_conv(submanifold_conv(t, weight, bias, "a"), weight, bias, (2, 2, 2), (1, 1, 1)).to_dense()

    alone = []
    for sample in range(2):
        rows = x.coordinates[:, 0] == sample
        coordinates = x.coordinates[rows] - torch.tensor([sample, 0, 0, 0])
        alone.append(run(SparseTensor(x.features[rows], coordinates, SHAPE, 1)))
    torch.testing.assert_close(run(x), torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_the_order_of_voxels_does_not_matter(backend):
    x, (weight, bias) = voxels(), layer(4, (3, 3, 3))
    order = torch.randperm(len(x.features))
    shuffled = SparseTensor(x.features[order], x.coordinates[order], SHAPE, 2)
    torch.testing.assert_close(
        submanifold_conv(shuffled, weight, bias, "a").features,
        submanifold_conv(x, weight, bias, "a").features[order],
        rtol=1e-12,
        atol=1e-12,
    )
    strided = [sparse_conv(t, weight, bias, (2, 2, 2), (1, 1, 1)).to_dense() for t in (x, shuffled)]
    torch.testing.assert_close(*strided, rtol=1e-12, atol=1e-12)


def test_convolutions_of_one_key_share_their_rulebook(pure_torch, monkeypatch):
    built = []
    build = ops.submanifold_rulebook
    monkeypatch.setattr(ops, "submanifold_rulebook", lambda *args: built.append(args) or build(*args))
    x, (weight, _) = voxels(), layer(3, (3, 3, 3))
    first = submanifold_conv(x, weight, None, "a")
    second = submanifold_conv(first.with_features(first.features.relu()), weight, None, "a")
    assert second.rulebooks["a"] is first.rulebooks["a"]
    assert len(built) == 1
    submanifold_conv(second, layer(3, (1, 3, 3))[0], None, "b")
    coarse = sparse_conv(second, weight, None, (2, 2, 2), (1, 1, 1))
    submanifold_conv(coarse, weight, None, "a")
    assert len(built) == 3


def test_half_a_rulebook_serves_both_directions():
    x = voxels()
    rulebook = ops.submanifold_rulebook(x.coordinates, SHAPE, (3, 3, 3))
    assert (len(rulebook.pairs), rulebook.center) == (27, 13)
    assert all(len(pairs[0]) for pairs in rulebook.pairs if pairs is not None)
    for cell in range(13):
        (inputs, outputs), (mirrored_inputs, mirrored_outputs) = rulebook.pairs[cell], rulebook.pairs[26 - cell]
        assert mirrored_inputs is outputs
        assert mirrored_outputs is inputs


def test_the_size_of_blocks_does_not_matter(pure_torch, monkeypatch):
    x, (weight, bias) = voxels(), layer(4, (3, 3, 3))
    inputs = (x.features, weight, bias)
    at_once = [submanifold_conv(x, weight, bias, "a"), sparse_conv(x, weight, bias, (2, 2, 2), (1, 1, 1))]
    expected = [gradients(out.features, *inputs) for out in at_once]
    monkeypatch.setattr(ops, "CPU_BLOCK", 7)
    blocked = [submanifold_conv(x, weight, bias, "a"), sparse_conv(x, weight, bias, (2, 2, 2), (1, 1, 1))]
    for ours, whole, slopes in zip(blocked, at_once, expected, strict=True):
        torch.testing.assert_close(ours.features, whole.features, rtol=1e-12, atol=1e-12)
        assert_all_close(gradients(ours.features, *inputs), slopes)


def test_features_without_gradients_still_teach_the_weight(backend):
    x, (weight, _) = voxels(), layer(4, (3, 3, 3))
    (expected,) = gradients(submanifold_conv(x, weight, None, "a").features, weight)
    fixed = x.with_features(x.features.detach())
    assert_all_close(gradients(submanifold_conv(fixed, weight, None, "a").features, weight), (expected,))


def test_autocast_leaves_the_precision_of_the_weight(backend):
    x, (weight, bias) = voxels(dtype=torch.float32), layer(4, (3, 3, 3), dtype=torch.float32)
    inputs = (x.features, weight, bias)

    def run(t: SparseTensor) -> Tensor:
        kept = submanifold_conv(t, weight, bias, "a")
        return sparse_conv(
            kept, layer(4, (3, 3, 3), 4, dtype=torch.float32)[0], None, (2, 2, 2), (1, 1, 1)
        ).features

    plain = run(x)
    slopes = gradients(plain, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(x)
        rounded = run(x.with_features(x.features.bfloat16()))
    assert torch.equal(out, plain)
    for ours, expected in zip(gradients(out, *inputs), slopes, strict=True):
        assert torch.equal(ours, expected)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, plain, rtol=0.05, atol=0.2)


@needs_spconv
def test_bfloat16_is_computed_alike_and_beside_other_types(monkeypatch):
    """What spconv does not support is computed without it, from and to its results."""
    results = {}
    for installed in (False, True):
        monkeypatch.setattr(ops, "spconv_is_installed", lambda installed=installed: installed)
        x = voxels(4, dtype=torch.float32)
        small, large = (layer(4, (3, 3, 3), 4, seed, torch.float32)[0].detach() for seed in (1, 2))
        out = submanifold_conv(x, small, None, "a")
        out = submanifold_conv(out, large.bfloat16(), None, "a")
        assert out.features.dtype == torch.bfloat16
        out = submanifold_conv(out, small, None, "a")
        out = sparse_conv(out, large.bfloat16(), None, (2, 2, 2), (1, 1, 1))
        results[installed] = out.to_dense().float()
    torch.testing.assert_close(results[True], results[False], rtol=2e-2, atol=1.0)
    assert results[True].abs().max() > 100


def cloud() -> SparseTensor:
    """A rough surface: voxels that have as many neighbours as those of a LiDAR."""
    y, x = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")
    z = (3 + 2 * torch.sin(x / 5.0) + torch.rand(40, 50, generator=torch.Generator().manual_seed(0))).long()
    coordinates = torch.stack([(x + y) % 2, z, y, x], dim=-1).view(-1, 4)
    features = torch.randn(len(coordinates), 16, generator=torch.Generator().manual_seed(1))
    return SparseTensor(features.requires_grad_(), coordinates, (8, 40, 50), 2)


@needs_spconv
def test_both_backends_agree(monkeypatch):
    results = {}
    for installed in (False, True):
        monkeypatch.setattr(ops, "spconv_is_installed", lambda installed=installed: installed)
        x = cloud()
        assert ops.uses_spconv(x, (3, 3, 3)) == installed
        weights = [layer(16, (3, 3, 3), 16, seed, torch.float32) for seed in range(3)]
        scaled = [(weight * 0.05, bias) for weight, bias in weights]
        out = submanifold_conv(x, *scaled[0], "a")
        out = submanifold_conv(out, *scaled[1], "a")
        out = sparse_conv(out, *scaled[2], (2, 2, 2), (0, 1, 1)).to_dense()
        inputs = (x.features, *(tensor for pair in weights for tensor in pair))
        results[installed] = (out, *torch.autograd.grad(out.square().sum() / 100, inputs))
    assert len(results[True]) == 1 + 1 + 6
    for ours, theirs in zip(results[False], results[True], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert theirs.abs().max() > 1e-3


@needs_spconv
def test_weights_of_spconv_layers_are_ours(pure_torch):
    from spconv.core import ConvAlgo
    from spconv.pytorch import SparseConv3d, SparseConvTensor, SubMConv3d

    x = cloud()
    theirs = SparseConvTensor(x.features, x.coordinates.int(), list(x.shape), x.batch)
    kept = SubMConv3d(16, 5, (3, 1, 3), algo=ConvAlgo.Native, indice_key="a")
    ours = submanifold_conv(x, kept.weight, kept.bias, "a")
    torch.testing.assert_close(ours.features, kept(theirs).features, rtol=1e-5, atol=1e-5)
    strided = SparseConv3d(16, 5, (3, 2, 1), (2, 1, 3), (1, 0, 0), algo=ConvAlgo.Native)
    ours = sparse_conv(x, strided.weight, strided.bias, (2, 1, 3), (1, 0, 0))
    torch.testing.assert_close(ours.to_dense(), strided(theirs).dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_the_same(backend):
    x, (weight, bias) = voxels(16, dtype=torch.float32), layer(16, (3, 3, 3), 16, dtype=torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        t = SparseTensor(x.features.to(device), x.coordinates.to(device), SHAPE, 2)
        out = submanifold_conv(t, weight.to(device), bias.to(device), "a")
        out = sparse_conv(out, weight.to(device), None, (2, 2, 2), (1, 1, 1)).to_dense().cpu()
        results.append((out, *gradients(out, x.features, weight, bias)))
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
