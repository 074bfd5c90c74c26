"""Configuration of LidarFormer."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from bevkd_common.config.detectors.center_head import Box6
from bevkd_common.config.detectors.detr_head import DetrHeadConfig
from bevkd_common.config.detectors.point_readers import PointReaderConfig, VoxelReaderConfig, encoded_layers
from bevkd_common.config.model import Config
from bevkd_common.geometry.grid import Grid


class LidarFormerConfig(Config):
    """A LiDAR detector with BEVFormer's decoder: LidarFormer of DistillBEV, and MVPFormer with virtual points.

    Source: DistillBEV, the released teachers of BEVFormer.
    """

    kind: Literal["lidarformer"] = "lidarformer"
    sweeps: PositiveInt = 10
    """LiDAR sweeps, that of the key frame included."""
    point_range: Box6 = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    """Lower x, y, z and upper x, y, z in metres; points outside are dropped."""
    reader: PointReaderConfig = VoxelReaderConfig()
    """Computes the BEV map that the backbone reads."""
    backbone_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 256)
    """Channels of each stage of SECOND."""
    backbone_layers: tuple[Annotated[int, Field(ge=0)], ...] = (5, 5)
    """Convolutions of each stage after the strided one."""
    backbone_strides: tuple[PositiveInt, ...] = (1, 2)
    """Stride of each stage."""
    norm_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Momentum of the backbone's batch norms. Source: mmdet3d; trainings of a few hundred steps need more."""
    levels: PositiveInt = 4
    """Feature maps that the encoder reads; maps beyond the backbone's stages are computed from the last one."""
    channels: PositiveInt = 256
    """Channels of these maps, of the BEV queries and of the BEV map."""
    grid: Grid = Grid(-51.2, -51.2, 0.512, 200, 200)
    """The BEV grid, one query per cell; that of BEVFormer, so that the two maps can be compared."""
    encoder_layers: PositiveInt = 6
    """Layers of the encoder."""
    attention_heads: PositiveInt = 8
    """Attention heads of the encoder."""
    points: PositiveInt = 4
    """Sampling points of an attention head of the encoder on each map."""
    hidden_channels: PositiveInt = 512
    """Width inside the encoder's feed-forward networks."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout probability in the encoder."""
    head: DetrHeadConfig = DetrHeadConfig()
    """The query head."""

    @property
    def cells(self) -> tuple[int, int]:
        """Cells of the reader's map along x and y."""
        x0, y0, _, x1, y1, _ = self.point_range
        return round((x1 - x0) / self.reader.cell), round((y1 - y0) / self.reader.cell)

    @model_validator(mode="after")
    def _check(self) -> LidarFormerConfig:
        if len({len(self.backbone_channels), len(self.backbone_layers), len(self.backbone_strides)}) > 1:
            raise ValueError("`backbone_*` must have the same length, one number per stage")
        if self.levels < len(self.backbone_channels):
            raise ValueError(f"`levels` is {self.levels}, but there are {len(self.backbone_channels)} stages")
        if self.channels % self.attention_heads:
            raise ValueError(
                f"`channels` {self.channels} is not a multiple of the {self.attention_heads} `attention_heads`"
            )
        self._check_range()
        return self

    def _check_range(self) -> None:
        low, high = self.point_range[:3], self.point_range[3:]
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError("`point_range` must be lower x, y, z, then upper x, y, z")
        if isinstance(self.reader, VoxelReaderConfig):
            layers = round((high[2] - low[2]) / self.reader.voxel_height)
            if encoded_layers(layers, len(self.reader.encoder_channels)) < 1:
                raise ValueError(
                    f"`point_range` holds {layers} layers of voxels, too few for the stages of `encoder_channels`"
                )
        stride = prod(self.backbone_strides)
        for axis, cells, start, end in zip("xy", self.cells, low[:2], high[:2], strict=True):
            if abs(cells * self.reader.cell - (end - start)) > 1e-6 * (end - start) or cells % stride:
                raise ValueError(
                    f"`point_range` along {axis} must be a multiple of {stride} cells of {self.reader.cell:g} m "
                    f"(the strides' product), got {end - start:g} m"
                )
        x_min, y_min, x_max, y_max = self.grid.extent
        if x_max <= low[0] or y_max <= low[1] or x_min >= high[0] or y_min >= high[1]:
            raise ValueError("`grid` and `point_range` do not overlap")


def describe(config: LidarFormerConfig) -> str:
    """A short description of the detector, for the plan."""
    widths = "/".join(map(str, config.backbone_channels))
    queries = f"{config.grid.nx} x {config.grid.ny} queries, {config.encoder_layers} + {config.head.layers} layers"
    return f"{config.reader.described}, SECOND {widths}, {queries}, {config.sweeps} sweeps"
