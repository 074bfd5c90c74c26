import pytest
import torch
from bevkd_common.models.necks import SecondFPN
from bevkd_common.models.second import Second
from torch import nn


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def backbone() -> Second:
    return Second(64, (64, 128, 256), (3, 5, 5), (2, 2, 2))


@pytest.fixture
def neck() -> SecondFPN:
    return SecondFPN((64, 128, 256), (128, 128, 128), (0.5, 1.0, 2.0))


def test_paper_sizes(backbone, neck):
    assert parameters(backbone) == 4_207_616
    assert parameters(neck) == 180_992


def test_voxel_sizes():
    assert parameters(Second(256, (128, 256), (5, 5), (1, 2))) == 4_280_832
    assert parameters(SecondFPN((128, 256), (256, 256), (1.0, 2.0))) == 295_936


def test_norms_have_eps_1e_3_and_momentum_0_01(backbone, neck):
    norms = [m for m in [*backbone.modules(), *neck.modules()] if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4 + 6 + 6 + 3
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_stages_halve_the_map_and_stop_where_asked(backbone):
    x = torch.randn(2, 64, 16, 32)
    assert [tuple(stage.shape) for stage in backbone(x)] == [(2, 64, 8, 16), (2, 128, 4, 8), (2, 256, 2, 4)]
    assert [stage.shape[1] for stage in backbone(x, depth=2)] == [64, 128]
    assert backbone(x, depth=0) == []


def test_a_stage_is_convolution_norm_relu_repeated(backbone):
    kinds = [type(layer) for layer in backbone.blocks[0]]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 4
    assert [layer.stride for layer in backbone.blocks[0] if isinstance(layer, nn.Conv2d)] == [(2, 2)] + [(1, 1)] * 3
    assert all(stage.min() >= 0 for stage in backbone(torch.randn(1, 64, 16, 16)))


def test_neck_joins_the_stages_in_order_at_one_resolution(neck):
    stages = [torch.randn(2, 64, 16, 24), torch.randn(2, 128, 8, 12), torch.randn(2, 256, 4, 6)]
    joined = neck(stages)
    assert joined.shape == (2, 384, 8, 12)
    assert joined.min() == 0
    for i, (deblock, stage) in enumerate(zip(neck.deblocks, stages, strict=True)):
        torch.testing.assert_close(deblock(stage), joined[:, 128 * i : 128 * (i + 1)])


def test_neck_layers_are_strided_plain_and_transposed_convolutions(neck):
    layers = [(type(deblock[0]), deblock[0].kernel_size, deblock[0].stride) for deblock in neck.deblocks]
    assert layers == [
        (nn.Conv2d, (2, 2), (2, 2)),
        (nn.Conv2d, (1, 1), (1, 1)),
        (nn.ConvTranspose2d, (2, 2), (2, 2)),
    ]


def test_the_momentum_reaches_every_norm():
    backbone, neck = Second(4, (4, 8), (1, 1), (1, 2), 0.2), SecondFPN((4, 8), (4, 4), (1.0, 2.0), 0.2)
    norms = [part for net in (backbone, neck) for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 6
    assert {norm.momentum for norm in norms} == {0.2}


def test_a_stage_that_keeps_its_resolution_may_be_transposed_too():
    neck = SecondFPN((3, 4, 5), (6, 6, 6), (0.5, 1, 2), transposed_at_one=True)
    layers = [(type(deblock[0]), tuple(deblock[0].weight.shape)) for deblock in neck.deblocks]
    assert layers == [
        (nn.Conv2d, (6, 3, 2, 2)),
        (nn.ConvTranspose2d, (4, 6, 1, 1)),
        (nn.ConvTranspose2d, (5, 6, 2, 2)),
    ]
    assert neck([torch.randn(2, 3, 8, 12), torch.randn(2, 4, 4, 6), torch.randn(2, 5, 2, 3)]).shape == (2, 18, 4, 6)
