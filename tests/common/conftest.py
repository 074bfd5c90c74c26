"""What tests of several rooms share: boxes in other conventions, and a KITTI result."""

import math

import pytest
import torch
from bevkd_common.evaluation.results import PERCENT, Counts, Metric, Results, Table
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import opposite_yaw, to_mmdet3d_old_info
from bevkd_common.geometry.transforms import rigid, rotation_z, transform_vectors

EGO_T_LIDAR = rigid(rotation_z(-math.pi / 2), torch.tensor([0.94, 0.0, 1.84]))


def parts(boxes, *, centers=None, size=None, yaw=None, velocity=None):
    return Boxes.from_parts(
        boxes.centers if centers is None else centers,
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
        "old yaw": lambda boxes, pose: parts(boxes, yaw=opposite_yaw(boxes.yaw)),
        "heading": lambda boxes, pose: parts(boxes, yaw=boxes.yaw + math.pi),
        "quarter left": lambda boxes, pose: parts(boxes, yaw=boxes.yaw + math.pi / 2),
        "quarter right": lambda boxes, pose: parts(boxes, yaw=boxes.yaw - math.pi / 2),
        "bottom": lambda boxes, pose: parts(boxes, centers=boxes.centers - boxes.size * torch.tensor([0, 0, 0.5])),
    }


@pytest.fixture
def kitti_results() -> Results:
    """Class, difficulty, view and recall positions, in percent; no scenes, no bands, no NDS."""
    classes, levels = ("Pedestrian", "Cyclist", "Car"), ("easy", "moderate", "hard")
    names = [f"{view} AP_{recalls}" for view in ("3D", "BEV") for recalls in ("R40", "R11")]
    return Results(
        protocol="KITTI, IoU 0.7 for cars and 0.5 for others",
        primary="3D AP_R40 moderate",
        headline={
            f"{name} moderate": Metric(value=60.0 + place, unit=PERCENT, higher_is_better=True)
            for place, name in enumerate(names)
        },
        tables=tuple(
            Table(
                title=name,
                rows=classes,
                columns=levels,
                units=(PERCENT,) * 3,
                values=((70.0, 60.5, 50.25),) * 3,
                compared="moderate",
            )
            for name in names
        ),
        counts=Counts(samples=3769, predictions=9, ground_truths=9),
        groups="samples",
    )
