"""Configuration of CenterPoint with voxels and a sparse encoder."""

from __future__ import annotations

from math import prod
from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.detectors.centerpoint import LidarDetectorConfig
from bevkd_common.config.detectors.point_readers import encoded_layers
from bevkd_common.geometry.grid import Grid


class CenterPointVoxelConfig(LidarDetectorConfig):
    """CenterPoint with voxels; defaults are those of mmdet3d's 0.1 m model for nuScenes.

    Its other model has a `point_range` of 54 m in all directions, voxels of 0.075 m, and head cells of 0.6 m.
    """

    kind: Literal["centerpoint_voxel"] = "centerpoint_voxel"
    voxel: PositiveFloat = 0.1
    """Edge of a voxel along x and y in metres."""
    voxel_height: PositiveFloat = 0.2
    """Edge of a voxel along z in metres."""
    max_points: PositiveInt | None = 10
    """Points kept in a pillar or voxel, the first ones; None keeps all."""
    max_voxels: PositiveInt | None = 120000
    """Voxels kept in a sample, the first ones, in training and evaluation alike. Upstream: 90000 in training."""
    encoder_channels: tuple[PositiveInt, ...] = (16, 32, 64, 128)
    """Channels of each stage of the sparse encoder; the edge of a voxel doubles from stage to stage."""
    encoder_blocks: PositiveInt = 2
    """Residual blocks of each stage."""
    backbone_channels: tuple[PositiveInt, ...] = (128, 256)
    """Channels of each stage of SECOND."""
    backbone_layers: tuple[int, ...] = (5, 5)
    """Convolutions of each stage after the strided one."""
    backbone_strides: tuple[PositiveInt, ...] = (1, 2)
    """Stride of each stage."""
    neck_channels: tuple[PositiveInt, ...] = (256, 256)
    """Channels to which SECONDFPN brings each stage."""
    neck_upsampling: tuple[PositiveFloat, ...] = (1.0, 2.0)
    """Upsampling factor from each stage to the resolution of the head."""

    @property
    def bev(self) -> Grid:
        """One cell per voxel of the last stage."""
        return self._grid(self.voxel * self.encoder_stride)

    @property
    def encoder_stride(self) -> int:
        """Edge of a voxel of the last stage, in input voxels."""
        return int(2 ** (len(self.encoder_channels) - 1))

    @property
    def bev_channels(self) -> int:
        """Channels of the BEV map: those of the remaining layers of voxels, concatenated."""
        return self.encoder_channels[-1] * self._layers()

    def _layers(self) -> int:
        """Layers of voxels after the encoder."""
        layers = round((self.point_range[5] - self.point_range[2]) / self.voxel_height)
        return encoded_layers(layers, len(self.encoder_channels))

    @model_validator(mode="after")
    def _check_voxels(self) -> CenterPointVoxelConfig:
        if not self.encoder_channels:
            raise ValueError("`encoder_channels` must not be empty")
        stride = prod(self.backbone_strides) * self.encoder_stride
        self._check_axes("xy", self.voxel, "voxels", stride, "the product of all strides")
        self._check_axes("z", self.voxel_height, "voxels", 1, "`voxel_height`")
        if self._layers() < 1:
            raise ValueError(
                f"{len(self.encoder_channels)} stages of `encoder_channels` need more layers of voxels than "
                "`point_range` and `voxel_height` make"
            )
        return self


def describe(config: CenterPointVoxelConfig) -> str:
    """A short description of the detector, for the plan."""
    encoder, backbone = ("/".join(map(str, w)) for w in (config.encoder_channels, config.backbone_channels))
    size = f"{config.voxel:g} x {config.voxel:g} x {config.voxel_height:g} m"
    return f"voxels of {size}, sparse encoder {encoder}, SECOND {backbone}, {config.sweeps} sweeps"
