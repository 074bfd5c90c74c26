"""Batches in the axes of a detector that has others than the LiDAR's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bevkd_common.data.samples import Batch, Cameras


def in_axes(batch: Batch, axes_T_lidar: Tensor) -> Batch:
    """A batch as if the LiDAR's axes were others: cameras, history, boxes and augmentation.

    Points are left out.

    Args:
        batch: In LiDAR axes.
        axes_T_lidar: [4, 4], rigid, to the other axes.
    """
    move, back = axes_T_lidar.double(), torch.linalg.inv(axes_T_lidar.double())

    def between(matrices: Tensor) -> Tensor:
        return (move @ matrices.double() @ back).to(matrices.dtype)

    def moved(cameras: Cameras) -> Cameras:
        return replace(cameras, lidar_T_cam=(move @ cameras.lidar_T_cam.double()).to(cameras.lidar_T_cam.dtype))

    history = batch.history
    return replace(
        batch,
        boxes=batch.boxes.transform(axes_T_lidar),
        cameras=moved(batch.cameras) if batch.cameras is not None else None,
        clouds={},
        aug_T_lidar=between(batch.aug_T_lidar),
        global_T_lidar=None if batch.global_T_lidar is None else batch.global_T_lidar @ back,
        history=replace(history, cameras=moved(history.cameras), lidar_T_past=between(history.lidar_T_past))
        if history is not None
        else None,
    )
