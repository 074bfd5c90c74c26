"""The detectors that come with the project; torch-free."""

from __future__ import annotations

from bevkd_common.config.detectors.bevdepth import BevDepthConfig
from bevkd_common.config.detectors.bevdepth import describe as describe_bevdepth
from bevkd_common.config.detectors.bevdet import BevDetConfig
from bevkd_common.config.detectors.bevdet import describe as describe_bevdet
from bevkd_common.config.detectors.bevdet4d import BevDet4dConfig
from bevkd_common.config.detectors.bevdet4d import describe as describe_bevdet4d
from bevkd_common.config.detectors.bevformer import BevFormerConfig
from bevkd_common.config.detectors.bevformer import describe as describe_bevformer
from bevkd_common.config.detectors.centerpoint import CenterPointConfig
from bevkd_common.config.detectors.centerpoint import describe as describe_centerpoint
from bevkd_common.config.detectors.centerpoint_voxel import CenterPointVoxelConfig
from bevkd_common.config.detectors.centerpoint_voxel import describe as describe_centerpoint_voxel
from bevkd_common.config.detectors.lidarformer import LidarFormerConfig
from bevkd_common.config.detectors.lidarformer import describe as describe_lidarformer
from bevkd_common.config.detectors.megvii_bevdepth import MegviiBevDepthConfig
from bevkd_common.config.detectors.megvii_bevdepth import describe as describe_megvii_bevdepth
from bevkd_common.config.detectors.mmdet3d import Mmdet3dConfig
from bevkd_common.config.detectors.mmdet3d import describe as describe_mmdet3d
from bevkd_common.config.detectors.mmdet3d import files as files_of_mmdet3d
from bevkd_common.config.detectors.modalities import (
    CameraConfig,
    FusionConfig,
    LidarConfig,
    describe_camera,
    describe_fusion,
    describe_lidar,
)
from bevkd_common.config.detectors.mvp import MvpConfig
from bevkd_common.config.detectors.mvp import describe as describe_mvp
from bevkd_common.config.plugins import DetectorSpec

_LIDAR, _PAINTED = frozenset({"lidar"}), frozenset({"painted"})

CENTERPOINT = DetectorSpec(
    kind="centerpoint",
    config=CenterPointConfig,
    build="bevkd_common.models.detectors.centerpoint:build",
    summary="CenterPoint over LiDAR pillars: SECOND, SECONDFPN, centre-point head.",
    describe=describe_centerpoint,
    clouds=lambda config: _LIDAR,
    released="bevkd_common.models.weights.centerpoint:FORMS",
)
LIDARFORMER = DetectorSpec(
    kind="lidarformer",
    config=LidarFormerConfig,
    build="bevkd_common.models.detectors.lidarformer:build",
    summary="LidarFormer over LiDAR points: SECOND, BEV queries, BEVFormer's decoder.",
    describe=describe_lidarformer,
    clouds=lambda config: _PAINTED if config.reader.painted else _LIDAR,
)
MVP = DetectorSpec(
    kind="mvp",
    config=MvpConfig,
    build="bevkd_common.models.detectors.mvp:build",
    summary="MVP: CenterPoint over pillars of LiDAR points and virtual ones that cameras add.",
    describe=describe_mvp,
    clouds=lambda config: _PAINTED,
)
CENTERPOINT_VOXEL = DetectorSpec(
    kind="centerpoint_voxel",
    config=CenterPointVoxelConfig,
    build="bevkd_common.models.detectors.centerpoint_voxel:build",
    summary="CenterPoint over LiDAR voxels: sparse encoder, SECOND, SECONDFPN, centre-point head.",
    describe=describe_centerpoint_voxel,
    clouds=lambda config: _LIDAR,
    released="bevkd_common.models.weights.centerpoint_voxel:FORMS",
)
BEVDET = DetectorSpec(
    kind="bevdet",
    config=BevDetConfig,
    build="bevkd_common.models.detectors.bevdet:build",
    summary="BEVDet over six cameras: image backbone, lift-splat, BEV encoder, centre-point head.",
    describe=describe_bevdet,
    check="bevkd_common.config.detectors.bevdet:check",
    pretraining="bevkd_common.models.image_pretraining:build",
    released="bevkd_common.models.weights.bevdet:FORMS",
)
BEVDET4D = DetectorSpec(
    kind="bevdet4d",
    config=BevDet4dConfig,
    build="bevkd_common.models.detectors.bevdet4d:build",
    summary="BEVDet4D: BEVDet with the map of an earlier frame, moved with the ego.",
    describe=describe_bevdet4d,
    check="bevkd_common.config.detectors.bevdet:check",
    pretraining="bevkd_common.models.image_pretraining:build",
    released="bevkd_common.models.weights.bevdet4d:FORMS",
)
BEVDEPTH = DetectorSpec(
    kind="bevdepth",
    config=BevDepthConfig,
    build="bevkd_common.models.detectors.bevdepth:build",
    summary="BEVDepth: BEVDet4D with camera-aware depths supervised by the LiDAR.",
    describe=describe_bevdepth,
    check="bevkd_common.config.detectors.bevdet:check",
    pretraining="bevkd_common.models.image_pretraining:build",
    released="bevkd_common.models.weights.bevdepth:FORMS",
)
BEVFORMER = DetectorSpec(
    kind="bevformer",
    config=BevFormerConfig,
    build="bevkd_common.models.detectors.bevformer:build",
    summary="BEVFormer: BEV queries attend to the cameras and to the BEV map of the key frame before.",
    describe=describe_bevformer,
    check="bevkd_common.config.detectors.bevdet:check",
    pretraining="bevkd_common.models.image_pretraining:build_of_features",
    released="bevkd_common.models.weights.bevformer:FORMS",
)
MEGVII_BEVDEPTH = DetectorSpec(
    kind="megvii_bevdepth",
    config=MegviiBevDepthConfig,
    build="bevkd_common.models.detectors.megvii_bevdepth:build",
    summary="BEVDepth as Megvii released it, over one key frame or two.",
    describe=describe_megvii_bevdepth,
    check="bevkd_common.config.detectors.bevdet:check",
    pretraining="bevkd_common.models.image_pretraining:build",
    released="bevkd_common.models.weights.megvii_bevdepth:FORMS",
)
MMDET3D = DetectorSpec(
    kind="mmdet3d",
    config=Mmdet3dConfig,
    build="bevkd_common.models.detectors.mmdet3d:build",
    summary="A pretrained detector of mmdetection3d, as a teacher.",
    describe=describe_mmdet3d,
    clouds=lambda config: _LIDAR if config.sweeps else frozenset(),
    finished=files_of_mmdet3d,
)
CAMERA = DetectorSpec(
    kind="camera",
    config=CameraConfig,
    build="bevkd_common.models.detectors.modalities:build_camera",
    summary="UniDistill's detector of six cameras: lift-splat, SECOND, IoU-aware head.",
    describe=describe_camera,
    check="bevkd_common.config.detectors.bevdet:check",
    pretraining="bevkd_common.models.image_pretraining:build",
)
LIDAR = DetectorSpec(
    kind="lidar",
    config=LidarConfig,
    build="bevkd_common.models.detectors.modalities:build_lidar",
    summary="UniDistill's detector of LiDAR points: voxels, sparse encoder, SECOND, IoU-aware head.",
    describe=describe_lidar,
    clouds=lambda config: _PAINTED if config.reader.painted else _LIDAR,
)
FUSION = DetectorSpec(
    kind="fusion",
    config=FusionConfig,
    build="bevkd_common.models.detectors.modalities:build_fusion",
    summary="UniDistill's detector of LiDAR and six cameras: both maps gated by channel, SECOND, IoU-aware head.",
    describe=describe_fusion,
    check="bevkd_common.config.detectors.bevdet:check",
    clouds=lambda config: _PAINTED if config.reader.painted else _LIDAR,
    pretraining="bevkd_common.models.image_pretraining:build",
)
