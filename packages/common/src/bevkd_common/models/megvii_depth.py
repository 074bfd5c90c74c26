"""The depth net of Megvii's BEVDepth, and the aggregation of its lifted features.

Source: BEVDepth (arXiv 2206.10092), sections 4.2 and 4.3, numerics of its released R50 detectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from bevkd_common.data.samples import Cameras
from bevkd_common.models.deform_conv import DeformConv

CAMERA_NUMBERS = 27
"""Intrinsics, both augmentations and pose of a camera."""
DILATIONS = (6, 12, 18)
DROPOUT = 0.5
DEFORM_GROUPS = 4
"""Groups of the deformable convolution's channels."""


class MegviiDepthNet(nn.Module):
    """Depth and context from features that the camera's parameters weigh, for each on its own; a `DepthNet`.

    Args:
        in_channels: Of the features.
        bins: Depths.
        out_channels: Of the context.
        channels: Of both branches.
    """

    def __init__(self, in_channels: int, bins: int, out_channels: int, channels: int = 512) -> None:
        super().__init__()
        self.reduce_conv = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.context_conv = nn.Conv2d(channels, out_channels, kernel_size=1)
        self.bn = nn.BatchNorm1d(CAMERA_NUMBERS)
        self.depth_mlp = CameraCode(channels)
        self.depth_se = ChannelGate(channels)
        self.context_mlp = CameraCode(channels)
        self.context_se = ChannelGate(channels)
        self.depth_conv = nn.Sequential(
            *(BasicBlock(channels, channels) for _ in range(3)),
            Aspp(channels),
            DeformConv(channels, channels, groups=DEFORM_GROUPS),
            nn.Conv2d(channels, bins, kernel_size=1),
        )

    def forward(self, features: Tensor, cameras: Cameras, aug_T_lidar: Tensor) -> tuple[Tensor, Tensor]:
        """See `DepthNet`."""
        numbers = self.bn(camera_numbers(cameras, aug_T_lidar).flatten(0, 1))
        x = self.reduce_conv(features.flatten(0, 1))
        context = self.context_conv(self.context_se(x, self.context_mlp(numbers)))
        depth = self.depth_conv(self.depth_se(x, self.depth_mlp(numbers)))
        return depth.unflatten(0, features.shape[:2]), context.unflatten(0, features.shape[:2])


def camera_numbers(cameras: Cameras, aug_T_lidar: Tensor) -> Tensor:
    """Focal lengths and centre 4, image augmentation 6, augmentation of the map 5, pose 12: [B, N, 27].

    The pose leads to the LiDAR axes without augmentation, row by row.
    """
    focal = cameras.intrinsics[..., :2, :2].diagonal(dim1=-2, dim2=-1)
    pinhole = torch.cat([focal, cameras.intrinsics[..., :2, 2]], dim=-1)
    plane = aug_T_lidar[:, :2, :2].flatten(1)
    bev_aug = torch.cat([plane, aug_T_lidar[:, 2, 2:3]], dim=-1)[:, None].expand(*pinhole.shape[:2], -1)
    # In float64, which autocast leaves alone.
    lidar_T_cam = torch.linalg.inv(aug_T_lidar.double())[:, None] @ cameras.lidar_T_cam.double()
    pose = lidar_T_cam[..., :3, :].to(pinhole.dtype).flatten(2)
    return torch.cat([pinhole, cameras.image_aug[..., :2, :].flatten(2), bev_aug, pose], dim=-1)


class CameraCode(nn.Module):
    """Two layers from the numbers of a camera [M, 27] to a code [M, channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(CAMERA_NUMBERS, channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, numbers: Tensor) -> Tensor:
        """The code; not squashed."""
        return self.fc2(self.fc1(numbers).relu())


class ChannelGate(nn.Module):
    """Weighs the channels of a map [M, C, H, W] by a code [M, C]: squeeze-and-excitation without the squeeze."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels, kernel_size=1)
        self.conv_expand = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """The weighed map."""
        gain = self.conv_expand(self.conv_reduce(code[..., None, None]).relu())
        return x * gain.sigmoid()


class Aspp(nn.Module):
    """Four convolutions that look ever further, and the mean of the map, side by side and mixed.

    Args:
        channels: Of the input, of each of the five, and of the output.

    Source: DeepLabv3, arXiv 1706.05587.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.aspp1 = AtrousConv(channels, kernel_size=1, dilation=1)
        self.aspp2, self.aspp3, self.aspp4 = (
            AtrousConv(channels, kernel_size=3, dilation=dilation) for dilation in DILATIONS
        )
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(5 * channels, channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(DROPOUT)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[M, channels, H, W] to the same."""
        mean = self.global_avg_pool(x).expand_as(x)
        seen = torch.cat([self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), mean], dim=1)
        return self.dropout(self.bn1(self.conv1(seen)).relu())


class AtrousConv(nn.Module):
    """A convolution whose samples are `dilation` cells apart, with batch norm and ReLU; keeps channels and size."""

    def __init__(self, channels: int, *, kernel_size: int, dilation: int) -> None:
        super().__init__()
        reach = dilation * (kernel_size // 2)
        self.atrous_conv = nn.Conv2d(channels, channels, kernel_size, padding=reach, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[M, channels, H, W] to the same, non-negative."""
        return self.bn(self.atrous_conv(x)).relu()


class DepthAggregation(nn.Module):
    """Lets the lifted features of one image row mix across columns and depths before they are pooled.

    Args:
        channels: Of the lifted features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce_conv = nn.Sequential(*_conv_norm_relu(channels))
        self.conv = nn.Sequential(*_conv_norm_relu(channels), *_conv_norm_relu(channels))
        self.out_conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, lifted: Tensor) -> Tensor:
        """[M, C, D, H, W] to the same; float32 also under autocast."""
        images, _, _, height, _ = lifted.shape
        with torch.autocast(lifted.device.type, enabled=False):
            x = self.reduce_conv(lifted.float().permute(0, 3, 1, 4, 2).flatten(0, 1))  # [M·H, C, W, D]
            x = self.out_conv(self.conv(x) + x)
        return x.unflatten(0, (images, height)).permute(0, 2, 4, 1, 3)


def _conv_norm_relu(channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
