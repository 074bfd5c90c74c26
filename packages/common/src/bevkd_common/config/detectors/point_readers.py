"""Configurations of point readers, which compute the first feature map of a LiDAR detector."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.detectors.mvp import PAINTED_FEATURES
from bevkd_common.config.model import Config

POINT_FEATURES = 5
"""x, y, z, intensity, time lag."""


class _ReaderConfig(Config):
    max_points: PositiveInt | None
    """Points kept in a pillar or voxel, the first ones; None keeps all."""
    painted: bool = False
    """Read painted points and virtual points, as MVP, instead of the LiDAR points."""
    point_scales: tuple[PositiveFloat, ...] | None = None
    """Factors on the columns of a point before the network: x, y, z, intensity and time lag; of a painted point as
    in `MvpConfig`. None: all are 1.

    Without factors, an intensity of 0 to 255 dominates offsets of decimetres at the beginning of a training.
    """
    norm_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Momentum of the batch norms."""

    @property
    def point_features(self) -> int:
        """Columns of a point."""
        return PAINTED_FEATURES if self.painted else POINT_FEATURES

    @property
    def scales(self) -> tuple[float, ...]:
        """`point_scales`, written out."""
        return self.point_scales or (1.0,) * self.point_features

    @model_validator(mode="after")
    def _check_scales(self) -> Self:
        if len(self.scales) != self.point_features:
            sort = "painted points" if self.painted else "points"
            raise ValueError(
                f"`point_scales` must be {self.point_features} numbers for {sort}, got {len(self.scales)}"
            )
        return self


class PillarReaderConfig(_ReaderConfig):
    """Pillars; defaults are the dynamic pillars of DistillBEV's teachers."""

    kind: Literal["pillars"] = "pillars"
    pillar: PositiveFloat = 0.2
    """Edge of a pillar in metres."""
    max_points: PositiveInt | None = None
    """Points kept in a pillar or voxel, the first ones; None keeps all."""
    max_pillars: PositiveInt | None = None
    """Pillars kept in a sample, the first ones, in training and evaluation alike."""
    channels: PositiveInt = 64
    """Channels of a pillar, and of the map."""
    stride: PositiveInt = 1
    """Pillars per cell of the map along each edge; above 1, a strided convolution follows."""

    @property
    def cell(self) -> float:
        """Edge of a cell of the map in metres."""
        return self.pillar * self.stride

    @property
    def described(self) -> str:
        """A short description of the detector, for the plan."""
        return f"{_sort(self)}pillars of {self.pillar:g} m"


class VoxelReaderConfig(_ReaderConfig):
    """Voxels and a sparse encoder; edges are those of DistillBEV's transformer teachers, the rest CenterPoint's."""

    kind: Literal["voxels"] = "voxels"
    voxel: PositiveFloat = 0.064
    """Edge of a voxel along x and y in metres."""
    voxel_height: PositiveFloat = 0.2
    """Edge of a voxel along z in metres."""
    max_points: PositiveInt | None = 10
    """Points kept in a pillar or voxel, the first ones; None keeps all."""
    max_voxels: PositiveInt | None = 120000
    """Voxels kept in a sample, the first ones, in training and evaluation alike."""
    encoder_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (16, 32, 64, 128)
    """Channels of each stage of the sparse encoder; the edge of a voxel doubles from stage to stage."""
    encoder_blocks: PositiveInt = 2
    """Residual blocks of each stage."""
    encoder_biases: bool = False
    """Whether the convolutions of the residual blocks have biases, as those of UniDistill's released code."""

    @property
    def cell(self) -> float:
        """Edge of a cell of the map in metres: a voxel of the last stage."""
        return float(self.voxel * 2 ** (len(self.encoder_channels) - 1))

    @property
    def described(self) -> str:
        """A short description of the detector, for the plan."""
        widths = "/".join(map(str, self.encoder_channels))
        size = f"{self.voxel:g} x {self.voxel:g} x {self.voxel_height:g} m"
        return f"{_sort(self)}voxels of {size}, sparse encoder {widths}"


PointReaderConfig = Annotated[PillarReaderConfig | VoxelReaderConfig, Field(discriminator="kind")]


def _sort(reader: _ReaderConfig) -> str:
    return "painted and virtual points in " if reader.painted else ""


def encoded_layers(layers: int, stages: int) -> int:
    """Layers of voxels after a sparse encoder, from the layers before it and its stages.

    The encoder adds one layer; each stage but the last and the output halve them; the last two do not pad.
    """
    layers += 1
    for stage in range(stages):
        padding = 1 if stage < stages - 2 else 0
        layers = (layers + 2 * padding - 3) // 2 + 1
    return layers
