"""Configurations of UniDistill's detectors: cameras, LiDAR, or both, and the same network behind their maps."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.datasets.images import Bounds
from bevkd_common.config.detectors.bevdet import LiftConfig
from bevkd_common.config.detectors.bevdet import describe as describe_lift
from bevkd_common.config.detectors.center_head import Box6
from bevkd_common.config.detectors.image_backbones import ImageBackboneConfig, TimmBackboneConfig
from bevkd_common.config.detectors.iou_head import IouHeadConfig
from bevkd_common.config.detectors.point_readers import PointReaderConfig, VoxelReaderConfig
from bevkd_common.config.model import Config
from bevkd_common.geometry.grid import DepthBins, Grid

GRID = Grid(-54.0, -54.0, 0.6, 180, 180)


class BehindMapConfig(Config):
    """What every modality has behind its low-level map; defaults are those of UniDistill's released code."""

    backbone_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 256)
    """Channels of each stage of SECOND."""
    backbone_layers: tuple[Annotated[int, Field(ge=0)], ...] = (5, 5)
    """Convolutions of each stage after the strided one."""
    backbone_strides: tuple[PositiveInt, ...] = (1, 2)
    """Stride of each stage."""
    neck_channels: tuple[PositiveInt, ...] = (256, 256)
    """Channels to which SECONDFPN brings each stage."""
    neck_upsampling: tuple[PositiveFloat, ...] = (1.0, 2.0)
    """Upsampling factor from each stage to the resolution of the head, that of the low-level map."""
    norm_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Momentum of the batch norms behind the low-level map."""
    head: IouHeadConfig = IouHeadConfig()
    """The IoU-aware head."""

    @model_validator(mode="after")
    def _check_stages(self) -> BehindMapConfig:
        count = len(self.backbone_channels)
        others = (self.backbone_layers, self.backbone_strides, self.neck_channels, self.neck_upsampling)
        if any(len(values) != count for values in others):
            raise ValueError(f"backbone and neck need one number for each of the {count} stages")
        for depth, factor in enumerate(self.neck_upsampling):
            stride = prod(self.backbone_strides[: depth + 1])
            if abs(stride - factor) > 1e-9:
                raise ValueError(
                    f"`neck_upsampling` of stage {depth} must undo its stride {stride}, got {factor:g}"
                )
        return self


class PointsConfig(Config):
    """The LiDAR of a detector."""

    sweeps: PositiveInt = 11
    """LiDAR sweeps, that of the key frame included. Source: the released code reads ten earlier ones."""
    point_range: Box6 = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
    """Lower x, y, z and upper x, y, z in metres; points outside are dropped."""
    reader: PointReaderConfig = VoxelReaderConfig(voxel=0.075, encoder_biases=True)
    """Computes the low-level map."""

    @property
    def points_grid(self) -> Grid:
        """Cells of the reader's map."""
        x0, y0, _, x1, y1, _ = self.point_range
        cell = self.reader.cell
        return Grid(x0, y0, cell, round((x1 - x0) / cell), round((y1 - y0) / cell))

    @model_validator(mode="after")
    def _check_cells(self) -> PointsConfig:
        for axis, name in enumerate("xy"):
            cells = (self.point_range[axis + 3] - self.point_range[axis]) / self.reader.cell
            if abs(cells - round(cells)) > 1e-3 or round(cells) < 1:
                raise ValueError(
                    f"`point_range` along {name} is not a whole number of cells of {self.reader.cell:g} m"
                )
        return self


class CameraConfig(LiftConfig, BehindMapConfig):
    """Cameras: features lifted by predicted depths, without supervision of the depths, of one frame.

    Source: UniDistill (arXiv 2303.15083), the released code.
    """

    kind: Literal["camera"] = "camera"
    image_backbone: ImageBackboneConfig = TimmBackboneConfig(strides=(4, 8, 16, 32), frozen_stages=0)
    """The image backbone."""
    lift_stride: PositiveInt = 16
    """Pixels per cell of the lifted features; every level of the backbone is resampled to it, and the
    `image_neck_channels` are divided among the levels."""
    depth_bins: DepthBins = DepthBins(2.0, 58.0, 0.5)
    """Depths for which a probability is predicted."""
    lift_channels: PositiveInt = 256
    """Channels of the lifted features."""
    grid: Grid = GRID
    """Cells of the low-level map."""
    z_range: Bounds = (-5.0, 3.0)
    """Lower and upper z of the features that are pooled into the BEV map, metres."""
    index_mode: Literal["truncate", "floor"] = "floor"
    """Rounding of coordinates to cells. Upstream: the released code truncates, which extends the grid by a cell at
    its lower borders."""

    @property
    def feature_stride(self) -> int:
        """Pixels per cell of the features that are lifted."""
        return self.lift_stride

    @model_validator(mode="after")
    def _check_levels(self) -> CameraConfig:
        strides = self.image_backbone.strides
        if any(max(stride, self.lift_stride) % min(stride, self.lift_stride) for stride in strides):
            raise ValueError(f"`lift_stride` {self.lift_stride} is not in whole steps from the strides {strides}")
        if self.image_neck_channels % len(strides):
            raise ValueError(
                f"`image_neck_channels` {self.image_neck_channels} cannot be divided among {len(strides)} levels"
            )
        return self


class LidarConfig(PointsConfig, BehindMapConfig):
    """LiDAR: voxels and a sparse encoder.

    Source: UniDistill (arXiv 2303.15083), the released code.
    """

    kind: Literal["lidar"] = "lidar"


class FusionConfig(CameraConfig, PointsConfig):
    """LiDAR and cameras: both low-level maps side by side, weighed by channel, and a convolution.

    Source: UniDistill (arXiv 2303.15083), the released code.
    """

    kind: Literal["fusion"] = "fusion"  # type: ignore[assignment]
    fused_channels: PositiveInt = 256
    """Channels of the fused map."""

    @model_validator(mode="after")
    def _check_grids(self) -> FusionConfig:
        if not self.points_grid.matches(self.grid):
            raise ValueError(
                f"the maps of points and images must have the same cells: {self.points_grid}, {self.grid}"
            )
        return self


def describe_camera(config: CameraConfig) -> str:
    """A short description of the detector, for the plan."""
    return describe_lift(config)


def describe_lidar(config: LidarConfig) -> str:
    """A short description of the detector, for the plan."""
    widths = "/".join(map(str, config.backbone_channels))
    return f"{config.reader.described}, SECOND {widths}, {config.sweeps} sweeps"


def describe_fusion(config: FusionConfig) -> str:
    """A short description of the detector, for the plan."""
    return f"{config.reader.described}, {config.sweeps} sweeps; {describe_lift(config)}"
