"""Boxes as tools with other conventions write them, for the tests that must recognise each."""

import math

import pytest
import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import opposite_yaw, to_mmdet3d_old_info
from bevkd_common.geometry.transforms import rigid, rotation_z, transform_vectors

EGO_T_LIDAR = rigid(rotation_z(-math.pi / 2), torch.tensor([0.94, 0.0, 1.84]))


def parts(boxes, *, size=None, yaw=None, velocity=None):
    return Boxes.from_parts(
        boxes.centers,
        boxes.size if size is None else size,
        boxes.yaw if yaw is None else yaw,
        boxes.velocity if velocity is None else velocity,
    )


def mirrored_globally(boxes, global_T_lidar):
    lidar_yaw = torch.atan2(global_T_lidar[1, 0], global_T_lidar[0, 0]).to(boxes.tensor.dtype)
    return parts(boxes, yaw=-boxes.yaw - 2 * lidar_yaw)


def in_global_axes(boxes, global_T_lidar):
    upright = torch.nn.functional.pad(boxes.velocity, (0, 1))
    rotation = global_T_lidar[:3, :3].to(boxes.tensor.dtype)
    return parts(boxes, velocity=transform_vectors(rotation, upright)[:, :2])


@pytest.fixture
def wrong_conventions():
    """By name of the convention check: from right boxes [M, 9] in LiDAR axes and `global_T_lidar` to wrong ones."""
    return {
        "sizes": lambda boxes, pose: parts(boxes, size=boxes.size[:, [1, 0, 2]]),
        "yaw": lambda boxes, pose: parts(boxes, yaw=-boxes.yaw),
        "global yaw": mirrored_globally,
        "old mmdetection3d": lambda boxes, pose: Boxes(to_mmdet3d_old_info(boxes)),
        "ego axes": lambda boxes, pose: boxes.transform(EGO_T_LIDAR.to(boxes.tensor.dtype)),
        "velocity": in_global_axes,
        "heading": lambda boxes, pose: parts(boxes, yaw=opposite_yaw(boxes.yaw)),
    }
