"""The detectors that come with the project; torch-free."""

from __future__ import annotations

from bevkd_common.config.bevdepth import BevDepthConfig
from bevkd_common.config.bevdepth import describe as describe_bevdepth
from bevkd_common.config.bevdet import BevDetConfig
from bevkd_common.config.bevdet import describe as describe_bevdet
from bevkd_common.config.bevdet4d import BevDet4dConfig
from bevkd_common.config.bevdet4d import describe as describe_bevdet4d
from bevkd_common.config.centerpoint import CenterPointConfig
from bevkd_common.config.centerpoint import describe as describe_centerpoint
from bevkd_common.config.plugins import DetectorSpec

CENTERPOINT = DetectorSpec(
    kind="centerpoint",
    config=CenterPointConfig,
    build="bevkd_common.models.detectors.centerpoint:build",
    summary="CenterPoint over LiDAR pillars: SECOND, SECONDFPN, centre-point head.",
    describe=describe_centerpoint,
    released="bevkd_common.models.weights:CENTERPOINT_FORMS",
)
BEVDET = DetectorSpec(
    kind="bevdet",
    config=BevDetConfig,
    build="bevkd_common.models.detectors.bevdet:build",
    summary="BEVDet over six cameras: image backbone, lift-splat, bird's-eye-view encoder, centre-point head.",
    describe=describe_bevdet,
    check="bevkd_common.config.bevdet:check",
    pretraining="bevkd_common.models.image_pretraining:build",
    released="bevkd_common.models.weights:BEVDET_FORMS",
)
BEVDET4D = DetectorSpec(
    kind="bevdet4d",
    config=BevDet4dConfig,
    build="bevkd_common.models.detectors.bevdet4d:build",
    summary="BEVDet4D: BEVDet with the map of an earlier frame, moved with the ego.",
    describe=describe_bevdet4d,
    check="bevkd_common.config.bevdet:check",
    pretraining="bevkd_common.models.image_pretraining:build",
    released="bevkd_common.models.weights:BEVDET4D_FORMS",
)
BEVDEPTH = DetectorSpec(
    kind="bevdepth",
    config=BevDepthConfig,
    build="bevkd_common.models.detectors.bevdepth:build",
    summary="BEVDepth: BEVDet4D whose depths know the camera and learn from the LiDAR.",
    describe=describe_bevdepth,
    check="bevkd_common.config.bevdet:check",
    pretraining="bevkd_common.models.image_pretraining:build",
    released="bevkd_common.models.weights:BEVDEPTH_FORMS",
)
