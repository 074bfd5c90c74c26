"""What depth nets know of cameras, and the deformable convolution by hand."""

from __future__ import annotations

import pytest
import torch
from bevkd_common.data.samples import Cameras
from bevkd_common.models.depth_nets import CameraAwareDepthNet, camera_numbers


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
