"""Box conventions that are mistaken for ours, and the repair of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import from_mmdet3d_old_info, opposite_yaw
from bevkd_common.geometry.transforms import rigid, rotation_z, transform_vectors, wrap_angle

# nuScenes' mount: the LiDAR 0.94 m ahead of the rear axle and 1.84 m above the ground, its y axis forward.
_LIDAR_T_EGO = rigid(rotation_z(math.pi / 2), torch.tensor([0.0, -0.94, -1.84]))


@dataclass(frozen=True)
class ConventionCheck:
    """One mistaken convention.

    A data set or a submission fails the check if its boxes score clearly better after the repair.

    Attributes:
        sentence: The mistake, in words.
        repair: `repair(boxes, global_T_lidar)` returns the boxes in our convention if they were written in the
            mistaken one. Boxes before and after are in LiDAR axes.
    """

    sentence: str
    repair: Callable[[Boxes, Tensor], Boxes]


def _swapped(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
    return Boxes.from_parts(boxes.centers, boxes.size[..., [1, 0, 2]], boxes.yaw, boxes.velocity)


def _mirrored(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
    return Boxes.from_parts(boxes.centers, boxes.size, -boxes.yaw, boxes.velocity)


def _mirrored_globally(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
    forward = global_T_lidar[:2, 0]
    lidar_yaw = torch.atan2(forward[1], forward[0]).to(boxes.tensor.dtype)
    return Boxes.from_parts(boxes.centers, boxes.size, -boxes.yaw - 2 * lidar_yaw, boxes.velocity)


def _old_mmdet3d(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
    return from_mmdet3d_old_info(boxes.tensor)


def _ego(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
    return boxes.transform(_LIDAR_T_EGO.to(boxes.tensor.dtype))


def _global_velocity(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
    lidar_T_global = torch.linalg.inv(global_T_lidar).to(boxes.tensor.dtype)
    upright = torch.cat([boxes.velocity, torch.zeros_like(boxes.velocity[..., :1])], dim=-1)
    velocity = transform_vectors(lidar_T_global[:3, :3], upright)[..., :2]
    return Boxes.from_parts(boxes.centers, boxes.size, boxes.yaw, velocity)


def _turned(by: float) -> Callable[[Boxes, Tensor], Boxes]:
    def repair(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
        return Boxes.from_parts(boxes.centers, boxes.size, wrap_angle(boxes.yaw + by), boxes.velocity)

    return repair


def _old_yaw(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
    return Boxes.from_parts(boxes.centers, boxes.size, opposite_yaw(boxes.yaw), boxes.velocity)


def _raised(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
    up = torch.zeros_like(boxes.centers)
    up[..., 2] = boxes.size[..., 2] / 2
    return Boxes.from_parts(boxes.centers + up, boxes.size, boxes.yaw, boxes.velocity)


_BOX_CHECKS = {
    "sizes": ConventionCheck("width and length of the boxes are swapped", _swapped),
    "yaw": ConventionCheck("the yaw of the boxes runs clockwise instead of counter-clockwise", _mirrored),
    "global yaw": ConventionCheck(
        "the yaw of the boxes runs clockwise instead of counter-clockwise, in global axes", _mirrored_globally
    ),
    "old mmdetection3d": ConventionCheck(
        "the boxes are in the convention of mmdetection3d before 1.0: width before length, yaw -yaw - pi/2",
        _old_mmdet3d,
    ),
    "old yaw": ConventionCheck(
        "the yaw of the boxes is that of mmdetection3d before 1.0, -yaw - pi/2, with length before width", _old_yaw
    ),
    "ego axes": ConventionCheck("the boxes are in the axes of the ego instead of those of the LiDAR", _ego),
    "velocity": ConventionCheck(
        "the velocities are in global axes, they were not rotated with the boxes", _global_velocity
    ),
    "heading": ConventionCheck("the boxes point backwards", _turned(math.pi)),
    "quarter left": ConventionCheck("the boxes are turned a quarter counter-clockwise", _turned(-math.pi / 2)),
    "quarter right": ConventionCheck("the boxes are turned a quarter clockwise", _turned(math.pi / 2)),
}

CONVENTION_CHECKS = _BOX_CHECKS | {
    # The nuScenes metric does not read heights, so that no score can tell.
    "bottom": ConventionCheck("the centres of the boxes are at the bottom instead of half a height up", _raised),
}
"""Checks of boxes that are stored in LiDAR axes, by a short name."""


def _never_moved(boxes: Boxes, global_T_lidar: Tensor) -> Boxes:
    return boxes.transform(global_T_lidar.to(boxes.tensor.dtype))


GLOBAL_CONVENTION_CHECKS = _BOX_CHECKS | {
    "frame": ConventionCheck("the boxes are in LiDAR axes instead of global axes", _never_moved),
}
"""Checks of boxes that are stored in global axes and were transformed to LiDAR axes."""
