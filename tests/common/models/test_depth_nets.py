"""What depth nets know of cameras, and the deformable convolution by hand."""

from __future__ import annotations

import pytest
import torch
from bevkd_common.data.samples import Cameras
from bevkd_common.models.depth_nets import CameraAwareDepthNet, DeformConv, ModulatedDeformConv, camera_numbers


def cameras(batch: int = 1) -> Cameras:
    aug = torch.tensor([[0.5, 0.1, 7.0], [-0.1, 0.4, 8.0], [0.0, 0.0, 1.0]])
    pose = torch.arange(16.0).view(4, 4)
    return Cameras(
        images=torch.zeros(batch, 2, 3, 8, 8),
        intrinsics=torch.tensor([[5.0, 0, 4], [0, 6, 3], [0, 0, 1]]).expand(batch, 2, 3, 3),
        lidar_T_cam=pose.expand(batch, 2, 4, 4),
        image_aug=aug.expand(batch, 2, 3, 3),
    )


def test_the_numbers_of_a_camera_stand_in_the_released_order():
    numbers = camera_numbers(cameras())
    assert numbers.shape == (1, 2, 33)
    intrinsics, aug, shift = [5, 0, 4, 0, 6, 3, 0, 0, 1], [0.5, 0.1, 0, -0.1, 0.4, 0, 0, 0, 1], [7, 8, 0]
    rotation, position = [0, 1, 2, 4, 5, 6, 8, 9, 10], [3, 7, 11]
    assert numbers[0, 0].tolist() == pytest.approx([*intrinsics, *aug, *shift, *rotation, *position])


def test_shapes_and_parameters():
    net = CameraAwareDepthNet(512, 59, 64)
    assert sum(parameter.numel() for parameter in net.parameters()) == 5_097_633 - 3 * 3 - 59 * 16 * 44 * 3
    small = CameraAwareDepthNet(6, 5, 3, channels=8).eval()
    logits, context = small(torch.randn(2, 2, 6, 4, 7), cameras(2), torch.eye(4).expand(2, 4, 4))
    assert (logits.shape, context.shape) == ((2, 2, 5, 4, 7), (2, 2, 3, 4, 7))


def test_a_deformable_convolution_begins_as_half_a_plain_one():
    conv, x = ModulatedDeformConv(3, 4), torch.randn(2, 3, 6, 7)
    plain = torch.nn.functional.conv2d(x, conv.weight, padding=1)
    torch.testing.assert_close(conv(x), 0.5 * plain, atol=1e-5, rtol=1e-5)


def test_offsets_are_vertical_then_horizontal_sample_by_sample():
    """One channel, the middle sample alone, moved by one row down and two columns right."""
    conv = ModulatedDeformConv(1, 1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0
        bias = conv.conv_offset.bias
        bias[2 * 4], bias[2 * 4 + 1] = 1.0, 2.0
        bias[18 + 4] = 50.0  # weight one
    x = torch.arange(30.0).view(1, 1, 5, 6)
    torch.testing.assert_close(conv(x)[0, 0, :-1, :-2], x[0, 0, 1:, 2:])


def test_samples_are_weighed():
    conv = ModulatedDeformConv(1, 1)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.conv_offset.bias[18:] = -50.0
        conv.conv_offset.bias[18] = 0.0  # the upper left sample alone, at half its size
    x = torch.arange(30.0).view(1, 1, 5, 6)
    torch.testing.assert_close(conv(x)[0, 0, 1:, 1:], 0.5 * x[0, 0, :-1, :-1])


def test_it_stays_in_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert ModulatedDeformConv(2, 2)(torch.randn(1, 2, 4, 4).bfloat16()).dtype == torch.float32


def test_a_deformable_convolution_in_groups_begins_as_a_plain_one():
    conv, x = DeformConv(8, 12, groups=4), torch.randn(2, 8, 6, 7)
    assert conv.weight.shape == (12, 2, 3, 3)
    plain = torch.nn.functional.conv2d(x, conv.weight, padding=1, groups=4)
    torch.testing.assert_close(conv(x), plain, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x.bfloat16()).dtype == torch.float32


def test_its_offsets_are_vertical_then_horizontal_sample_by_sample():
    conv = DeformConv(1, 1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0
        conv.conv_offset.bias[2 * 4], conv.conv_offset.bias[2 * 4 + 1] = 1.0, 2.0
    x = torch.arange(30.0).view(1, 1, 5, 6)
    torch.testing.assert_close(conv(x)[0, 0, :-1, :-2], x[0, 0, 1:, 2:])
