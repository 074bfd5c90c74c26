"""The parts of Megvii's depth net and its aggregation, against their equations in float64."""

from __future__ import annotations

import math

import pytest
import torch
from bevkd_common.data.samples import Cameras
from bevkd_common.geometry.grid import DepthBins, Grid
from bevkd_common.geometry.transforms import rigid, rotation_z
from bevkd_common.models.lift_splat import LiftSplat
from bevkd_common.models.megvii_depth import Aspp, ChannelGate, DepthAggregation, MegviiDepthNet, camera_numbers
from torch import Tensor, nn
from torch.nn import functional as F

PLAIN = torch.eye(4)


def cameras(batch: int = 2, count: int = 2) -> Cameras:
    """Each of another pose and focal length."""
    number = torch.arange(batch * count).view(batch, count)
    intrinsics = torch.tensor([[20.0, 0, 12], [0, 18, 8], [0, 0, 1]]).repeat(batch, count, 1, 1)
    intrinsics[..., 0, 0] += number
    ahead = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    return Cameras(
        images=torch.zeros(batch, count, 3, 16, 24),
        intrinsics=intrinsics,
        lidar_T_cam=rigid(rotation_z(0.7 * number.float()) @ ahead, torch.tensor([0.1, 0.2, -0.3])),
        image_aug=torch.eye(3).expand(batch, count, 3, 3),
    )


def randomised(module: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, every norm with statistics of its own."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return module.double().eval()


def normed(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    shape = (1, -1, 1, 1)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


def test_the_numbers_of_a_camera_stand_in_the_released_order():
    aug = torch.tensor([[0.5, 0.1, 7.0], [-0.1, 0.4, 8.0], [0.0, 0.0, 1.0]])
    known = Cameras(
        images=torch.zeros(1, 1, 3, 8, 8),
        intrinsics=torch.tensor([[5.0, 0, 4], [0, 6, 3], [0, 0, 1]]).view(1, 1, 3, 3),
        lidar_T_cam=rigid(torch.eye(3), torch.tensor([1.0, 2.0, 3.0])).view(1, 1, 4, 4),
        image_aug=aug.view(1, 1, 3, 3),
    )
    # A quarter turn to the left, twice the size, mirrored top and bottom, and a shift.
    turn = torch.tensor([[0.0, -2, 0, 9], [2, 0, 0, 8], [0, 0, -2, 7], [0, 0, 0, 1]])[None]
    known = Cameras(known.images, known.intrinsics, turn[:, None] @ known.lidar_T_cam, known.image_aug)
    numbers = camera_numbers(known, turn)
    pinhole, image_aug, bev_aug = [5, 6, 4, 3], [0.5, 0.1, 7, -0.1, 0.4, 8], [0, -2, 2, 0, -2]
    pose = [1, 0, 0, 1, 0, 1, 0, 2, 0, 0, 1, 3]
    assert numbers.shape == (1, 1, 27)
    assert numbers[0, 0].tolist() == pytest.approx([*pinhole, *image_aug, *bev_aug, *pose], abs=1e-6)


def test_the_released_depth_net_has_its_parameters(parameters):
    assert parameters(MegviiDepthNet(512, 112, 80)) == 27_817_736


def test_depth_and_context_have_gates_of_their_own():
    torch.manual_seed(0)
    net = randomised(MegviiDepthNet(6, 5, 3, channels=8))
    known = Cameras(**{name: value.double() for name, value in vars(cameras()).items()})
    features, plain = torch.randn(2, 2, 6, 4, 7, dtype=torch.float64), PLAIN.double().expand(2, 4, 4)
    logits, context = net(features, known, plain)
    assert (logits.shape, context.shape) == ((2, 2, 5, 4, 7), (2, 2, 3, 4, 7))

    numbers = camera_numbers(known, plain).flatten(0, 1)
    numbers = (numbers - net.bn.running_mean) / (net.bn.running_var + 1e-5).sqrt() * net.bn.weight + net.bn.bias
    x = F.conv2d(features.flatten(0, 1), net.reduce_conv[0].weight, net.reduce_conv[0].bias, padding=1)
    x = normed(x, net.reduce_conv[1]).relu()

    def gated(code: nn.Module, gate: ChannelGate) -> Tensor:
        hidden = (numbers @ code.fc1.weight.T + code.fc1.bias).relu() @ code.fc2.weight.T + code.fc2.bias
        squeezed = (hidden @ gate.conv_reduce.weight[..., 0, 0].T + gate.conv_reduce.bias).relu()
        gain = (squeezed @ gate.conv_expand.weight[..., 0, 0].T + gate.conv_expand.bias).sigmoid()
        return x * gain[..., None, None]

    expected = F.conv2d(gated(net.context_mlp, net.context_se), net.context_conv.weight, net.context_conv.bias)
    torch.testing.assert_close(context.flatten(0, 1), expected)
    torch.testing.assert_close(logits.flatten(0, 1), net.depth_conv(gated(net.depth_mlp, net.depth_se)))
    other, _ = net(features, known, torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])).double().expand(2, 4, 4))
    assert not torch.allclose(other, logits)


def test_aspp_looks_at_four_reaches_and_at_the_mean():
    torch.manual_seed(0)
    aspp, x = randomised(Aspp(4)), torch.randn(2, 4, 9, 11, dtype=torch.float64)
    seen = []
    for branch, dilation in ((aspp.aspp1, 1), (aspp.aspp2, 6), (aspp.aspp3, 12), (aspp.aspp4, 18)):
        weight = branch.atrous_conv.weight
        padding = dilation if weight.shape[-1] == 3 else 0
        seen.append(normed(F.conv2d(x, weight, padding=padding, dilation=dilation), branch.bn).relu())
    _, conv, norm, _ = aspp.global_avg_pool
    mean = x.mean(dim=(2, 3), keepdim=True)
    seen.append(normed(F.conv2d(mean, conv.weight), norm).relu().expand_as(x))
    expected = normed(F.conv2d(torch.cat(seen, dim=1), aspp.conv1.weight), aspp.bn1).relu()
    torch.testing.assert_close(aspp(x), expected)
    assert [branch.atrous_conv.kernel_size for branch in (aspp.aspp1, aspp.aspp2)] == [(1, 1), (3, 3)]
    dropped = (aspp.train()(torch.ones(8, 4, 16, 16).double()) == 0).double().mean()
    assert dropped > 0.4


def test_aggregation_is_a_residual_stack_over_columns_and_depths_of_each_row():
    torch.manual_seed(0)
    # A map of no two equal sides: channels, depths, rows, columns.
    net, lifted = DepthAggregation(3), torch.randn(2, 3, 6, 4, 5)
    randomised(net).float()
    out = net(lifted)
    assert out.shape == lifted.shape

    def step(x: Tensor, layers: nn.Sequential, first: int) -> Tensor:
        return normed(F.conv2d(x, layers[first].weight, padding=1), layers[first + 1]).relu()

    for image in range(2):
        for row in range(4):
            plane = lifted[image : image + 1, :, :, row].transpose(2, 3)  # [1, C, W, D]
            x = step(plane, net.reduce_conv, 0)
            x = x + step(step(x, net.conv, 0), net.conv, 3)
            x = F.conv2d(x, net.out_conv[0].weight, net.out_conv[0].bias, padding=1)
            torch.testing.assert_close(out[image, :, :, row], x[0].transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_aggregation_stays_in_float32_under_autocast():
    net, lifted = DepthAggregation(2).eval(), torch.randn(1, 2, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(lifted), net(lifted.float()))
        assert net(lifted.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(net(lifted).detach(), net(lifted.double()).detach())


def lift_splat(aggregation: nn.Module | None) -> LiftSplat:
    torch.manual_seed(0)
    return LiftSplat(
        depth_net=MegviiDepthNet(6, 8, 3, channels=8),
        image_size=(16, 24),
        stride=8,
        depth_bins=DepthBins(1.0, 9.0, 1.0),
        grid=Grid(-6.4, -8.0, 0.8, 16, 20),
        z_range=(-5.0, 3.0),
        aggregation=aggregation,
    ).eval()


def test_aggregation_that_does_nothing_changes_nothing():
    features, known, plain = torch.randn(2, 2, 6, 2, 3), cameras(), PLAIN.expand(2, 4, 4)
    expected, depths = lift_splat(None)(features, known, plain)
    lifted, told = lift_splat(nn.Identity())(features, known, plain)
    torch.testing.assert_close(lifted, expected)
    assert torch.equal(told, depths)
    assert expected.abs().max() > 0.01
    other, _ = lift_splat(DepthAggregation(3))(features, known, plain)
    assert (other - expected).abs().max() > 0.01


def test_gradients_pass_the_aggregation():
    lift, features = lift_splat(DepthAggregation(3)), torch.randn(2, 2, 6, 2, 3)
    lift(features, cameras(), PLAIN.expand(2, 4, 4))[0].square().sum().backward()
    without = [name for name, p in lift.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert math.isfinite(sum(float(p.grad.abs().sum()) for p in lift.parameters()))
