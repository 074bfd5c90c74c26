"""Megvii's BEVDepth: a camera-aware depth net supervised by LiDAR depths, over one key frame or two."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from bevkd_common.config.detectors.megvii_bevdepth import STEM_STRIDE, LidarMountConfig, MegviiBevDepthConfig
from bevkd_common.geometry.transforms import rigid, rotation_z
from bevkd_common.models.depth_losses import softmax_depth_loss
from bevkd_common.models.detectors.bevdet import BevDet, image_taps
from bevkd_common.models.earlier_frame import EarlierKeyFrame
from bevkd_common.models.heads.center_head import build_center_head
from bevkd_common.models.image_backbones import ImageNormalizer, build_image_backbone
from bevkd_common.models.lift_splat import LiftSplat
from bevkd_common.models.megvii_depth import DepthAggregation, MegviiDepthNet
from bevkd_common.models.necks import SecondFPN
from bevkd_common.models.taps import BevMap


def build(config: MegviiBevDepthConfig, classes: tuple[str, ...]) -> BevDet:
    """Unpack a configuration.

    Raises:
        UserError: If the image backbone or its checkpoint cannot be had, or the tasks of the head do not fit the
            classes of the data set.
    """
    image_backbone = build_image_backbone(config.image_backbone)
    levels = len(image_backbone.channels)
    lifted, stages = config.frames * config.lift_channels, config.bev_stages
    channels = [lifted, *(stage.channels for stage in stages)]
    neck_channels = config.bev_neck_channels * len(channels)
    head = build_center_head(config.head, neck_channels, config.grid, classes)
    taps = image_taps(config, config.lift_stride) | {"bev_in": BevMap(lifted, config.grid)}
    for depth, (stage, stride) in enumerate(zip(stages, config.bev_strides, strict=True)):
        taps[f"bev_block{depth}"] = BevMap(stage.channels, config.grid.coarsened(stride), "relu")
    taps["bev_neck"] = BevMap(neck_channels, config.grid, "relu")
    taps["head"] = head.maps
    return BevDet(
        normalizer=ImageNormalizer(config.normalization),
        image_backbone=image_backbone,
        image_neck=SecondFPN(
            image_backbone.channels,
            [config.image_neck_channels // levels] * levels,
            [stride / config.lift_stride for stride in image_backbone.strides],
            transposed_at_one=True,
        ),
        lift_splat=LiftSplat(
            depth_net=MegviiDepthNet(
                config.image_neck_channels, config.depth_bins.count, config.lift_channels, config.depth_channels
            ),
            image_size=config.image_size,
            stride=config.lift_stride,
            depth_bins=config.depth_bins,
            grid=config.grid,
            z_range=config.z_range,
            index_mode=config.index_mode,
            aggregation=DepthAggregation(config.lift_channels) if config.depth_aggregation else None,
        ),
        bev_stages=[
            bev_stage(inputs, stage.channels, stage.blocks, stage.stride, stem=depth == 0)
            for depth, (inputs, stage) in enumerate(zip(channels, stages, strict=False))
        ],
        bev_neck=SecondFPN(
            channels, [config.bev_neck_channels] * len(channels), [1, *config.bev_strides], transposed_at_one=True
        ),
        head=head,
        image_size=config.image_size,
        taps=taps,
        earlier=EarlierKeyFrame() if config.frames == 2 else None,
        depth_weight=config.depth_weight or None,
        depth_loss=softmax_depth_loss,
        float32_bev=True,
        axes_T_lidar=None if config.mount is None else ego_T_lidar(config.mount),
    )


def ego_T_lidar(mount: LidarMountConfig) -> Tensor:  # noqa: N802 - named like every matrix
    """From LiDAR to ego axes, [4, 4] float32."""
    turn = rotation_z(torch.tensor(math.radians(mount.yaw_degrees), dtype=torch.float64))
    return rigid(turn, torch.tensor([mount.x, mount.y, mount.z], dtype=torch.float64)).float()


def bev_stage(in_channels: int, channels: int, blocks: int, stride: int, *, stem: bool) -> nn.Sequential:
    """One stage of a ResNet over the bird's-eye view, the first with the stem, which has no pooling behind it."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if stem:
        parts["conv1"] = nn.Conv2d(in_channels, channels, 7, STEM_STRIDE, padding=3, bias=False)
        parts["bn1"] = nn.BatchNorm2d(channels)
        parts["relu"] = nn.ReLU(inplace=True)
        in_channels = channels
    parts["blocks"] = nn.Sequential(
        _first_block(in_channels, channels, stride), *(BasicBlock(channels, channels) for _ in range(blocks - 1))
    )
    stage = nn.Sequential(parts)
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return stage


def _first_block(in_channels: int, channels: int, stride: int) -> BasicBlock:
    if stride == 1 and in_channels == channels:
        return BasicBlock(channels, channels)
    shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    return BasicBlock(in_channels, channels, stride, shortcut)
