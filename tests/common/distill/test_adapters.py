"""Adapters: shapes, sizes, and where interpolated samples lie."""

import pytest
import torch
from bevkd_common.distill.adapters import STRIDES, BilinearUpsample, adapted_grid, build_adapter, mlp
from bevkd_common.geometry.grid import Grid
from torch import nn


def learned(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "parameters"),
    [
        ("up4_mlp3", 256, 128, 165_760),
        ("up4_mlp3", 512, 256, 659_200),
        ("conv1x1", 256, 384, 98_688),
        ("conv1x1", 256, 256, 65_792),
        ("up4_mlp2", 256, 128, 165_760 - 66_304),
        ("conv3x3", 4, 6, 4 * 6 * 9 + 6),
        ("mlp1", 4, 6, 4 * 6 + 6 + 12),
        ("down4_mlp2", 4, 6, 4 * 4 * 16 + 4 + 8 + 4 * 6 + 6 + 12),
        ("avgpool2_conv1x1", 4, 6, 30),
        ("identity", 7, 7, 0),
    ],
)
def test_parameters(kind, student, teacher, parameters):
    assert learned(build_adapter(kind, student, teacher)) == parameters


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("up4_mlp3", (2, 256, 32, 32), (2, 128, 128, 128)),
        ("up4_mlp3", (2, 512, 16, 16), (2, 256, 64, 64)),
        ("conv1x1", (2, 256, 128, 128), (2, 384, 128, 128)),
        ("conv3x3", (1, 3, 6, 8), (1, 5, 6, 8)),
        ("up2_mlp2", (2, 3, 6, 8), (2, 5, 12, 16)),
        ("avgpool4_conv1x1", (1, 3, 8, 12), (1, 5, 2, 3)),
        ("down2_mlp3", (2, 3, 8, 12), (2, 5, 4, 6)),
        ("up2_identity", (1, 5, 3, 3), (1, 5, 6, 6)),
    ],
)
def test_shapes_and_grids(kind, before, after):
    grid = Grid(-4.0, 2.0, 0.5, before[3], before[2])
    with torch.no_grad():
        assert build_adapter(kind, before[1], after[1])(torch.randn(before)).shape == after
    adapted = adapted_grid(kind, grid)
    assert (adapted.ny, adapted.nx) == after[2:]
    assert adapted.extent == pytest.approx(grid.extent)


def test_mlp_blocks_are_convolution_norm_relu():
    network = mlp(4, 6, 3)
    assert [type(module) for module in network] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    assert [(layer.in_channels, layer.out_channels) for layer in network[::3]] == [(4, 4), (4, 4), (4, 6)]
    assert network[0].bias is not None


def test_upsampling_comes_before_the_projection():
    adapter = build_adapter("up2_conv1x1", 1, 1, align_corners=True)
    assert isinstance(adapter[0], BilinearUpsample)
    assert isinstance(adapter[1], nn.Conv2d)


def test_bilinear_samples():
    source = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
    aligned = BilinearUpsample(4, align_corners=True)(source)[0, 0]
    assert aligned[0].tolist() == pytest.approx([j * 3 / 7 for j in range(8)], abs=1e-6)
    assert aligned[:, 0].tolist() == pytest.approx([j * 6 / 7 for j in range(8)], abs=1e-6)
    metric = BilinearUpsample(4, align_corners=False)(source)[0, 0]
    assert metric[0].tolist() == pytest.approx([0, 0, 0.375, 1.125, 1.875, 2.625, 3, 3], abs=1e-6)


def test_align_corners_reaches_the_upsampling():
    torch.manual_seed(0)
    source = torch.randn(1, 2, 3, 3)
    results = []
    for align_corners in (True, False):
        adapter = build_adapter("up4_identity", 2, 2, align_corners)
        results.append(adapter(source))
    assert not torch.allclose(*results)
    assert torch.equal(build_adapter("up4_identity", 2, 2)(source), results[0]), "aligned unless asked otherwise"


def test_pooling_averages():
    source = torch.arange(16.0).view(1, 1, 4, 4)
    assert build_adapter("avgpool2_identity", 1, 1)(source)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("identity", "'identity' cannot turn 3 channels into 4"),
        ("conv5x5", "unknown projection 'conv5x5'"),
        ("up3_mlp2", "unknown change of resolution 'up3'"),
        ("down2_conv1x1", "needs an MLP"),
    ],
)
def test_unknown_kinds(kind, message):
    with pytest.raises(ValueError, match=message):
        build_adapter(kind, 3, 4)


def test_every_change_of_resolution_builds():
    built = 0
    for resolution, stride in STRIDES.items():
        adapter = build_adapter(f"{resolution}_mlp2", 2, 3)
        assert adapter(torch.randn(2, 2, 8, 8)).shape == (2, 3, 8 / stride, 8 / stride)
        built += 1
    assert built == 6
