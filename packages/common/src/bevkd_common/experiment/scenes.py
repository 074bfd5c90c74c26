"""From a loaded batch to the sample that a report draws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from bevkd_common.data.samples import Batch, Cameras
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detector import Detections
from bevkd_common.report import inputs

DRAWN_SCORE = 0.3


def scene_of(
    batch: Batch,
    found: Mapping[str, Detections],
    cameras_in_order: tuple[str, ...],
    extent: tuple[float, float, float, float],
) -> inputs.Scene:
    """The first sample of a batch with the detections of several models.

    Args:
        batch: Input of the models.
        found: Detections by name of the arm.
        cameras_in_order: Names of the cameras, in the order of the images.
        extent: x0, x1, y0, y1 of the picture from above, metres.
    """
    truth = Detections(Boxes(batch.boxes.tensor[0]), torch.ones(batch.labels.shape[1]), batch.labels[0])
    cameras = batch.cameras
    points = next((cloud.split()[0][:, :3] for cloud in batch.clouds.values()), None)
    return inputs.Scene(
        token=batch.tokens[0],
        images=cameras.images[0].permute(0, 2, 3, 1).cpu().numpy() if cameras else None,
        camera_names=cameras_in_order if cameras else (),
        img_T_lidar=_img_T_lidar(cameras) if cameras else None,
        points=points.cpu().numpy() if points is not None else None,
        truth=truth,
        detections=found,
        threshold=DRAWN_SCORE,
        extent=extent,
    )


def _img_T_lidar(cameras: Cameras) -> npt.NDArray[np.float64]:  # noqa: N802 - named like every matrix
    """[N, 4, 4] of the first sample: LiDAR axes to (u d, v d, d, 1) of the augmented image."""
    pixels_T_cam = torch.eye(4, dtype=torch.float64).repeat(cameras.images.shape[1], 1, 1)
    pixels_T_cam[:, :3, :3] = (cameras.image_aug[0] @ cameras.intrinsics[0]).cpu()
    return (pixels_T_cam @ torch.linalg.inv(cameras.lidar_T_cam[0].double().cpu())).numpy()
