import math

import pytest
import torch
from bevkd_common.models.sparse_encoder import SparseConvNorm, SparseEncoder, VoxelMeans, VoxelReader
from bevkd_common.ops import sparse_conv
from bevkd_common.ops.voxelize import VoxelSpec, voxelize
from torch import Tensor, nn
from torch.nn import functional as F

CELLS = (16, 8, 10)
"""Along x, y, z; 11 layers become 5, then 2."""


@pytest.fixture
def pure_torch(monkeypatch) -> None:
    monkeypatch.setattr(sparse_conv, "spconv_is_installed", lambda: False)


def tiny(channels=(4, 6), blocks: int = 1) -> SparseEncoder:
    torch.manual_seed(0)
    return SparseEncoder(CELLS, 3, channels, blocks, 0.1)


def voxels(batch: int = 2, share: float = 0.05, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    nx, ny, nz = CELLS
    coordinates = (torch.rand(batch, nz, ny, nx, generator=generator) < share).nonzero()
    return torch.randn(len(coordinates), 3, generator=generator, dtype=dtype), coordinates


def test_paper_size_has_the_parameters_of_the_released_encoder():
    encoder = SparseEncoder((1024, 1024, 40), 5, (16, 32, 64, 128), 2)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 2_694_352
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d)]
    assert len(norms) == 1 + 4 * 4 + 3 + 1
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_paper_size_has_the_grids_of_the_released_encoder():
    encoder = SparseEncoder((1440, 1440, 40), 5, (16, 32, 64, 128), 2).eval()
    shapes = []
    for module in encoder.modules():
        if isinstance(module, SparseConvNorm):
            module.register_forward_hook(lambda _module, _inputs, out: shapes.append(out.shape))
    coordinates = torch.tensor([[0, 0, 0, 0], [0, 39, 1439, 1439], [0, 20, 700, 3]])
    with torch.no_grad():
        bev = encoder(torch.randn(3, 5), coordinates, 1)
    assert shapes == [(41, 1440, 1440), (21, 720, 720), (11, 360, 360), (5, 180, 180), (2, 180, 180)]
    assert bev.shape == (1, 256, 180, 180)
    # 700 / 8 and 3 / 8 lie within the reach of the last strided convolutions.
    assert bev[0, :, 86:89, 0:2].any()
    assert not bev[0, :, 100:, :50].any()


def dense(encoder: SparseEncoder, features: Tensor, coordinates: Tensor, batch: int) -> Tensor:
    """The same encoder over all cells, those without a voxel set to zero after each layer."""

    def conv(layer: nn.Module, x: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
        weight = layer.weight.permute(0, 4, 1, 2, 3)
        if hasattr(layer, "key"):
            return F.conv3d(x, weight, padding=1), met
        size = layer.weight.shape[1:4]
        ones = torch.ones(1, 1, *size, dtype=x.dtype)
        met = (F.conv3d(met, ones, None, layer.stride, layer.padding) > 0).to(x.dtype)
        return F.conv3d(x, weight, None, layer.stride, layer.padding), met

    def norm(layer: nn.BatchNorm1d, x: Tensor) -> Tensor:
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)

    def conv_norm_relu(module: SparseConvNorm, x: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
        x, met = conv(module.conv, x, met)
        return norm(module.norm, x).relu() * met, met

    nz, ny, nx = encoder.shape
    b, z, y, x_ = coordinates.unbind(1)
    x = features.new_zeros(batch, nz, ny, nx, features.shape[1])
    x[b, z, y, x_] = features
    x = x.permute(0, 4, 1, 2, 3)
    met = features.new_zeros(batch, 1, nz, ny, nx)
    met[b, 0, z, y, x_] = 1
    x, met = conv_norm_relu(encoder.stem, x, met)
    for stage in encoder.stages:
        for module in stage:
            if isinstance(module, SparseConvNorm):
                x, met = conv_norm_relu(module, x, met)
            else:
                inner = norm(module.bn1, conv(module.conv1, x, met)[0]).relu() * met
                x = (norm(module.bn2, conv(module.conv2, inner, met)[0]) + x).relu() * met
    x, _ = conv_norm_relu(encoder.output, x, met)
    return torch.stack([x[:, c, layer] for c in range(x.shape[1]) for layer in range(x.shape[2])], dim=1)


def test_the_encoder_is_its_dense_form(pure_torch):
    encoder = tiny(blocks=2).double().eval()
    generator = torch.Generator().manual_seed(1)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    features, coordinates = voxels(dtype=torch.float64)
    features.requires_grad_()
    ours, expected = encoder(features, coordinates, 2), dense(encoder, features, coordinates, 2)
    assert ours.shape == (2, 12, 4, 8)
    torch.testing.assert_close(ours, expected)
    inputs = [features, *encoder.parameters()]
    slopes = [torch.autograd.grad(out.square().sum(), inputs) for out in (ours, expected)]
    assert len(slopes[0]) == 1 + 3 * (1 + 8 + 1 + 1)
    for one, other in zip(*slopes, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other)


def test_the_order_of_voxels_does_not_matter():
    encoder, (features, coordinates) = tiny().eval(), voxels()
    order = torch.randperm(len(features))
    torch.testing.assert_close(encoder(features[order], coordinates[order], 2), encoder(features, coordinates, 2))


def test_samples_do_not_see_each_other():
    encoder, (features, coordinates) = tiny().eval(), voxels()
    together = encoder(features, coordinates, 2)
    for sample in range(2):
        rows = coordinates[:, 0] == sample
        alone = encoder(features[rows], coordinates[rows] - torch.tensor([sample, 0, 0, 0]), 1)
        torch.testing.assert_close(together[sample : sample + 1], alone)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_voxels_for_statistics_train_on_the_running_ones(count):
    encoder, (features, coordinates) = tiny().train(), voxels()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    bev = encoder(features[:count], coordinates[:count], 1)
    assert bev.shape == (1, 12, 4, 8)
    assert bev.isfinite().all()
    bev.sum().backward()
    unmoved = [key for key, value in encoder.stem.state_dict().items() if torch.equal(value, before[f"stem.{key}"])]
    assert len(unmoved) == 6
    torch.testing.assert_close(bev, encoder.eval()(features[:count], coordinates[:count], 1))
    if count == 0:
        assert not bev.any()


def test_weights_start_as_a_convolution_starts():
    encoder = SparseEncoder((16, 16, 10), 5, (16, 32), 1)
    weight = encoder.stages[0][1].conv.weight
    assert weight.shape == (32, 3, 3, 3, 16)
    assert weight.abs().max().item() == pytest.approx(1 / math.sqrt(16 * 27), rel=1e-2)


SPEC = VoxelSpec((-51.2, -51.2, -5.0), (51.2, 51.2, 3.0), (0.1, 0.1, 0.2), max_points=3)


def test_a_voxel_is_the_mean_of_the_points_that_it_keeps():
    points = torch.tensor(
        [
            [0.05, 0.05, -1.0, 10.0, 0.0],
            [0.07, 0.03, -0.9, 20, 0.5],
            [9, 9, 1, 7, 0.1],
            [0.06, 0.04, -0.95, 60, 0.1],
        ]
    )
    points = torch.cat([points, points[:1] * 1.1])  # the fourth of its voxel is not kept
    voxels = voxelize(points, (5,), SPEC)
    # (51.25 / 0.1, 51.25 / 0.1, 4 / 0.2), rounded down.
    assert voxels.coordinates[0].tolist() == [0, 20, 512, 512]
    means = VoxelMeans([1.0, 1.0, 1.0, 0.1, 2.0])(voxels)
    assert means[0].tolist() == pytest.approx([0.06, 0.04, -0.95, 3.0, 0.4])
    assert means[1].tolist() == pytest.approx([9, 9, 1, 0.7, 0.2])


def test_the_reader_puts_a_point_where_it_lies():
    spec = VoxelSpec((-8.0, -4.0, -1.0), (8.0, 4.0, 1.0), (1.0, 1.0, 0.2))
    reader = VoxelReader(VoxelMeans([1.0, 1.0, 1.0]), tiny()).eval()
    assert spec.cells == CELLS
    bev = reader(voxelize(torch.tensor([[4.5, -3.5, 0.3]]), (0, 1), spec), 2)
    # x (4.5 + 8) / 2 = 6.25, y (-3.5 + 4) / 2 = 0.25.
    cells = bev.any(dim=1).nonzero().tolist()
    assert [1, 0, 6] in cells
    assert all(sample == 1 and row <= 1 and 5 <= column <= 7 for sample, row, column in cells)
