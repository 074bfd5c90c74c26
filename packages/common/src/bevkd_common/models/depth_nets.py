"""Networks that predict a depth distribution and a context vector for each cell of an image."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from bevkd_common.data.samples import Cameras
from bevkd_common.models.bev_encoders import bev_stage
from bevkd_common.models.deform_conv import ModulatedDeformConv

CAMERA_NUMBERS = 33
"""Intrinsics, image augmentation and pose of a camera."""


class DepthNet(Protocol):
    """An `nn.Module` that predicts depths and context."""

    def __call__(self, features: Tensor, cameras: Cameras, aug_T_lidar: Tensor) -> tuple[Tensor, Tensor]:
        """Depth logits [B, N, D, H, W] and context [B, N, C, H, W].

        Args:
            features: [B, N, F, H, W].
            cameras: Calibration that the net may read.
            aug_T_lidar: [B, 4, 4], the augmentation in their poses.
        """
        ...


class JointDepthNet(nn.Module):
    """Both from one 1x1 convolution.

    Args:
        in_channels: Of the features.
        bins: Depths.
        out_channels: Of the context.

    Source: BEVDet (arXiv 2112.11790).
    """

    def __init__(self, in_channels: int, bins: int, out_channels: int) -> None:
        super().__init__()
        self.bins = bins
        self.joint = nn.Conv2d(in_channels, bins + out_channels, kernel_size=1)

    def forward(self, features: Tensor, cameras: Cameras, aug_T_lidar: Tensor) -> tuple[Tensor, Tensor]:
        """See `DepthNet`; the cameras do not matter."""
        predicted = self.joint(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        logits, context = predicted.tensor_split([self.bins], dim=2)
        return logits, context


class CameraAwareDepthNet(nn.Module):
    """Depth from features that the camera's parameters weigh, residual blocks and a deformable convolution.

    Args:
        in_channels: Of the features.
        bins: Depths.
        out_channels: Of the context.
        channels: Of the depth branch.

    Source: BEVDepth (arXiv 2206.10092), as the first BEVDet code base has it.
    """

    def __init__(self, in_channels: int, bins: int, out_channels: int, channels: int = 256) -> None:
        super().__init__()
        self.context = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.reduce = nn.Conv2d(in_channels, channels, kernel_size=1)
        self.camera_norm = nn.BatchNorm1d(CAMERA_NUMBERS)
        self.camera_gain = nn.Linear(CAMERA_NUMBERS, channels)
        self.blocks = bev_stage(channels, channels, blocks=3, stride=1)
        self.deform = ModulatedDeformConv(channels, channels)
        # Upstream: no activation between this norm and the last convolution.
        self.norm = nn.BatchNorm2d(channels)
        self.depth = nn.Conv2d(channels, bins, kernel_size=1)

    def forward(self, features: Tensor, cameras: Cameras, aug_T_lidar: Tensor) -> tuple[Tensor, Tensor]:
        """See `DepthNet`; reads the augmented poses."""
        flat = features.flatten(0, 1)
        gain = self.camera_gain(self.camera_norm(camera_numbers(cameras).flatten(0, 1))).sigmoid()
        branch = self.reduce(flat) * gain[..., None, None]
        branch = self.norm(self.deform(self.blocks(branch)))
        shape = features.shape[:2]
        return self.depth(branch).unflatten(0, shape), self.context(flat).unflatten(0, shape)


def camera_numbers(cameras: Cameras) -> Tensor:
    """Intrinsics 9, linear part of the image augmentation 9, its shift 3, rotation 9 and position 3: [B, N, 33].

    The pose leads to the augmented LiDAR axes. Upstream: raw numbers, which batch norm brings to one size.
    """
    linear = torch.eye(3, device=cameras.image_aug.device).repeat(*cameras.image_aug.shape[:2], 1, 1)
    linear[..., :2, :2] = cameras.image_aug[..., :2, :2]
    shift = torch.zeros_like(linear[..., 0])
    shift[..., :2] = cameras.image_aug[..., :2, 2]
    rotation, position = cameras.lidar_T_cam[..., :3, :3], cameras.lidar_T_cam[..., :3, 3]
    parts = (cameras.intrinsics.flatten(2), linear.flatten(2), shift, rotation.flatten(2), position)
    return torch.cat(parts, dim=-1)
