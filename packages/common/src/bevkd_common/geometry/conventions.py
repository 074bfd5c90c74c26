"""Box conventions of other code bases and data sets: the only place where they are known.

Each convention is a pair `to_x` / `from_x` between `Boxes` and its own form; `CONVENTIONS` lists all of them.
Where they differ from ours:

- mmdetection3d stores the bottom centre in its box tensors, the gravity centre in its info files;
- mmdetection3d below 1.0 and det3d (CenterPoint, MVP) put width before length and measure yaw clockwise from
  -y: `-yaw - π/2`, which is its own inverse;
- nuScenes annotations and submissions are global, with full quaternions;
- KITTI labels stand at the bottom centre in the rectified camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.transforms import (
    inverse_rigid,
    quaternion_to_rotation,
    rigid,
    rotation_to_quaternion,
    rotation_z,
    transform_points,
    transform_vectors,
    wrap_angle,
    yaw_of,
)


@dataclass(frozen=True, eq=False)
class DevkitBoxes:
    """Boxes as the nuScenes devkit writes them, in the global frame.

    Attributes:
        translation: gravity centres [M, 3], metres.
        size: width, length, height [M, 3], metres.
        rotation: unit quaternions w, x, y, z [M, 4].
        velocity: [M, 3], metres per second, NaN if unknown; a submission carries the first two.
    """

    translation: Tensor
    size: Tensor
    rotation: Tensor
    velocity: Tensor


@dataclass(frozen=True, eq=False)
class KittiBoxes:
    """Boxes as KITTI labels write them, in the rectified camera 0.

    Attributes:
        dimensions: height, width, length [M, 3], metres.
        location: bottom centres [M, 3], metres.
        rotation_y: [M], radians about the camera's y axis (down), 0 along the camera's +x, in [-π, π).
    """

    dimensions: Tensor
    location: Tensor
    rotation_y: Tensor


def opposite_yaw(yaw: Tensor) -> Tensor:
    """Convert yaw between counter-clockwise from +x and clockwise from -y, in either direction."""
    return wrap_angle(-yaw - math.pi / 2)


def to_mmdet3d(boxes: Boxes) -> Tensor:
    """mmdetection3d >= 1.0 `LiDARInstance3DBoxes.tensor`: x, y, bottom z, l, w, h, yaw, vx, vy."""
    return torch.cat([_bottom(boxes), boxes.size, boxes.yaw[..., None], boxes.velocity], dim=-1)


def from_mmdet3d(tensor: Tensor) -> Boxes:
    """Inverse of `to_mmdet3d`; [..., M, 7] has no velocity."""
    bottom, size, yaw, velocity = _split_yaw_first(tensor)
    return Boxes.from_parts(_raise(bottom, size[..., 2]), size, yaw, velocity)


def to_mmdet3d_info(boxes: Boxes) -> Tensor:
    """`gt_boxes` of mmdetection3d >= 1.0 info files and of OpenPCDet: x, y, z, l, w, h, yaw, vx, vy."""
    return boxes.tensor


def from_mmdet3d_info(tensor: Tensor) -> Boxes:
    """Inverse of `to_mmdet3d_info`; [..., M, 7] has no velocity."""
    return Boxes.from_parts(*_split_yaw_first(tensor))


def to_mmdet3d_old(boxes: Boxes) -> Tensor:
    """mmdetection3d < 1.0 box tensor (BEVDet, DistillBEV): x, y, bottom z, w, l, h, -yaw - π/2, vx, vy."""
    yaw = opposite_yaw(boxes.yaw)[..., None]
    return torch.cat([_bottom(boxes), _swap(boxes.size), yaw, boxes.velocity], dim=-1)


def from_mmdet3d_old(tensor: Tensor) -> Boxes:
    """Inverse of `to_mmdet3d_old`; [..., M, 7] has no velocity."""
    bottom, size, yaw, velocity = _split_yaw_first(tensor)
    return Boxes.from_parts(_raise(bottom, size[..., 2]), _swap(size), opposite_yaw(yaw), velocity)


def to_mmdet3d_old_info(boxes: Boxes) -> Tensor:
    """`gt_boxes` of mmdetection3d < 1.0 info files: x, y, z, w, l, h, -yaw - π/2, vx, vy."""
    yaw = opposite_yaw(boxes.yaw)[..., None]
    return torch.cat([boxes.centers, _swap(boxes.size), yaw, boxes.velocity], dim=-1)


def from_mmdet3d_old_info(tensor: Tensor) -> Boxes:
    """Inverse of `to_mmdet3d_old_info`; [..., M, 7] has no velocity."""
    centers, size, yaw, velocity = _split_yaw_first(tensor)
    return Boxes.from_parts(centers, _swap(size), opposite_yaw(yaw), velocity)


def to_det3d(boxes: Boxes) -> Tensor:
    """`gt_boxes` of det3d (CenterPoint, MVP): x, y, z, w, l, h, vx, vy, -yaw - π/2."""
    yaw = opposite_yaw(boxes.yaw)[..., None]
    return torch.cat([boxes.centers, _swap(boxes.size), boxes.velocity, yaw], dim=-1)


def from_det3d(tensor: Tensor) -> Boxes:
    """Inverse of `to_det3d`."""
    centers, size, velocity, yaw = tensor.split([3, 3, 2, 1], dim=-1)
    return Boxes.from_parts(centers, _swap(size), opposite_yaw(yaw[..., 0]), velocity)


def to_ego(boxes: Boxes, ego_T_lidar: Tensor) -> Tensor:
    """`gt_boxes` of BEVDepth: x, y, z, l, w, h, yaw, vx, vy in the ego frame that the caller's matrix leads to.

    BEVDepth's ego frame is the mean of the six cameras' poses, that of BEVDet 2.0 and later is the front
    camera's. Roll and pitch of the mount change yaw and velocity in the second order, and are dropped there.
    """
    return boxes.transform(ego_T_lidar).tensor


def from_ego(tensor: Tensor, ego_T_lidar: Tensor) -> Boxes:
    """Inverse of `to_ego`."""
    return Boxes(tensor).transform(inverse_rigid(ego_T_lidar))


def to_devkit(boxes: Boxes, global_T_lidar: Tensor) -> DevkitBoxes:
    """Boxes of the nuScenes devkit, in float64: global positions are kilometres.

    The quaternion is that of the whole chain, tilt included.
    """
    global_T_lidar = global_T_lidar.double()
    boxes = boxes.to(torch.float64)
    rotation = global_T_lidar[:3, :3] @ rotation_z(boxes.yaw)
    return DevkitBoxes(
        translation=transform_points(global_T_lidar, boxes.centers),
        size=_swap(boxes.size),
        rotation=rotation_to_quaternion(rotation),
        velocity=transform_vectors(global_T_lidar, torch.nn.functional.pad(boxes.velocity, (0, 1))),
    )


def from_devkit(devkit: DevkitBoxes, global_T_lidar: Tensor) -> Boxes:
    """Inverse of `to_devkit`, in float64."""
    lidar_T_global = inverse_rigid(global_T_lidar.double())
    rotation = lidar_T_global[:3, :3] @ quaternion_to_rotation(devkit.rotation.double())
    return Boxes.from_parts(
        centers=transform_points(lidar_T_global, devkit.translation.double()),
        size=_swap(devkit.size.double()),
        yaw=yaw_of(rotation),
        velocity=transform_vectors(lidar_T_global, devkit.velocity.double())[..., :2],
    )


def to_kitti(boxes: Boxes, cam_T_velo: Tensor) -> KittiBoxes:
    """KITTI labels of boxes in velodyne axes (x forward); KITTI has no velocity.

    Upstream: as everywhere in the field, rotation_y is `-yaw - π/2`, as if the camera looked exactly along
    the velodyne's x axis.

    Args:
        boxes: [M, 9] in the velodyne frame.
        cam_T_velo: [4, 4] into the rectified camera, `R0_rect · Tr_velo_to_cam`.
    """
    return KittiBoxes(
        dimensions=boxes.size.flip(-1),
        location=transform_points(cam_T_velo, _bottom(boxes)),
        rotation_y=opposite_yaw(boxes.yaw),
    )


def from_kitti(kitti: KittiBoxes, cam_T_velo: Tensor) -> Boxes:
    """Inverse of `to_kitti`; the velocity is unknown."""
    bottom = transform_points(inverse_rigid(cam_T_velo), kitti.location)
    size = kitti.dimensions.flip(-1)
    return Boxes.from_parts(_raise(bottom, size[..., 2]), size, opposite_yaw(kitti.rotation_y))


def to_mmdet3d_camera(boxes: Boxes) -> Tensor:
    """mmdetection3d >= 1.0 `CameraInstance3DBoxes.tensor`: -y, -bottom z, x, l, h, w, -yaw - π/2.

    The camera sits in the LiDAR and looks along its x axis; there is no velocity.
    """
    x, y, z = _bottom(boxes).unbind(-1)
    return torch.stack([-y, -z, x, boxes.l, boxes.h, boxes.w, opposite_yaw(boxes.yaw)], dim=-1)


def from_mmdet3d_camera(tensor: Tensor) -> Boxes:
    """Inverse of `to_mmdet3d_camera`; the velocity is unknown."""
    right, down, forward, length, height, width, yaw = tensor.unbind(-1)
    bottom = torch.stack([forward, -right, -down], dim=-1)
    size = torch.stack([length, width, height], dim=-1)
    return Boxes.from_parts(_raise(bottom, height), size, opposite_yaw(yaw))


def kitti_T_nuscenes() -> Tensor:  # noqa: N802 - named like every matrix
    """Turn nuScenes LIDAR_TOP axes (x right, y forward) into velodyne axes (x forward, y left), float64 [4, 4]."""
    rotation = torch.tensor([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    return rigid(rotation, torch.zeros(3, dtype=torch.float64))


@dataclass(frozen=True)
class Convention:
    """One foreign form of boxes.

    Attributes:
        export: from `Boxes` to the foreign form.
        load: from the foreign form to `Boxes`.
        frame: the matrix both take as their second argument, by name; none if the frame stays the LiDAR's.
        has_velocity: whether velocity survives.
    """

    export: Callable[..., Any]
    load: Callable[..., Boxes]
    frame: str | None = None
    has_velocity: bool = True


CONVENTIONS = {
    "mmdet3d": Convention(to_mmdet3d, from_mmdet3d),
    "mmdet3d_info": Convention(to_mmdet3d_info, from_mmdet3d_info),
    "mmdet3d_old": Convention(to_mmdet3d_old, from_mmdet3d_old),
    "mmdet3d_old_info": Convention(to_mmdet3d_old_info, from_mmdet3d_old_info),
    "det3d": Convention(to_det3d, from_det3d),
    "ego": Convention(to_ego, from_ego, frame="ego_T_lidar"),
    "devkit": Convention(to_devkit, from_devkit, frame="global_T_lidar"),
    "kitti": Convention(to_kitti, from_kitti, frame="cam_T_velo", has_velocity=False),
    "mmdet3d_camera": Convention(to_mmdet3d_camera, from_mmdet3d_camera, has_velocity=False),
}


def _bottom(boxes: Boxes) -> Tensor:
    x, y, z = boxes.centers.unbind(-1)
    return torch.stack([x, y, z - boxes.h / 2], dim=-1)


def _raise(bottom: Tensor, height: Tensor) -> Tensor:
    x, y, z = bottom.unbind(-1)
    return torch.stack([x, y, z + height / 2], dim=-1)


def _swap(size: Tensor) -> Tensor:
    """Exchange length and width."""
    return size[..., [1, 0, 2]]


def _split_yaw_first(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Split [..., 7 or 9] into centres, sizes, yaw and the velocity if there is one."""
    if tensor.shape[-1] == 7:
        centers, size, yaw = tensor.split([3, 3, 1], dim=-1)
        return centers, size, yaw[..., 0], None
    centers, size, yaw, velocity = tensor.split([3, 3, 1, 2], dim=-1)
    return centers, size, yaw[..., 0], velocity
