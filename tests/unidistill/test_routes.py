"""The four routes of the paper between the detectors of its code, in a size that a CPU takes."""

from __future__ import annotations

import pytest
import torch
import yaml
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.detectors.modalities import CameraConfig, FusionConfig, LidarConfig
from bevkd_common.config.recipes import load_named
from bevkd_common.models.detectors.modalities import build_camera, build_fusion, build_lidar
from bevkd_common.models.taps import Taps
from unidistill.build import build
from unidistill.config import UniDistillConfig

BEHIND = """
backbone_channels: [8, 12]
backbone_layers: [1, 1]
neck_channels: [8, 8]
head: {channels: 8}
"""
IMAGES = """
image_size: [32, 80]
image_backbone: {kind: small_resnet, stem_channels: 8, channels: [8, 16, 24], blocks: [1, 1, 1], strides: [8, 16]}
image_neck_channels: 16
lift_stride: 8
lift_channels: 8
grid: {x0: -12.8, y0: -6.4, cell: 0.8, nx: 32, ny: 16}
"""
POINTS = """
sweeps: 1
point_range: [-12.8, -6.4, -5.0, 12.8, 6.4, 3.0]
reader: {kind: pillars, pillar: 0.8, channels: 8}
"""


@pytest.fixture(scope="module")
def taps() -> dict[str, Taps]:
    def read(*texts: str) -> dict[str, object]:
        return yaml.safe_load("".join(texts))

    torch.manual_seed(0)
    detectors = {
        "camera": build_camera(CameraConfig.model_validate(read(BEHIND, IMAGES)), CLASSES),
        "lidar": build_lidar(LidarConfig.model_validate(read(BEHIND, POINTS)), CLASSES),
        "fusion": build_fusion(
            FusionConfig.model_validate(read(BEHIND, IMAGES, POINTS, "fused_channels: 8")), CLASSES
        ),
    }
    return {name: Taps(name, detector.taps) for name, detector in detectors.items()}


@pytest.mark.parametrize(
    ("teacher", "student"), [("lidar", "camera"), ("camera", "lidar"), ("fusion", "camera"), ("fusion", "lidar")]
)
def test_all_six_branches_are_compared_on_every_route(taps, teacher, student):
    method = build(UniDistillConfig(), taps[teacher], taps[student])
    assert [ours for _, ours in method.response.branches] == ["reg", "height", "dim", "rot", "vel", "iou"]
    assert method.teacher_taps == method.student_taps == {"bev_in", "bev_neck", "head"}


def test_the_recipe_fits():
    recipe = load_named("unidistill/lidar-camera.synthetic", [])
    assert isinstance(recipe.teacher, LidarConfig)
    assert isinstance(recipe.student, CameraConfig)
    assert recipe.teacher.points_grid.matches(recipe.student.grid)
    teacher, student = build_lidar(recipe.teacher, CLASSES), build_camera(recipe.student, CLASSES)
    method = build(recipe.method, Taps("lidar", teacher.taps), Taps("camera", student.taps))
    assert len(method.response.branches) == 6
