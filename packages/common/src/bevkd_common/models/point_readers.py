"""From a batch's points to the map that a LiDAR detector starts from."""

from __future__ import annotations

from torch import Tensor, nn

from bevkd_common.config.detectors.center_head import Box6
from bevkd_common.config.detectors.point_readers import (
    PillarReaderConfig,
    PointReaderConfig,
    VoxelReaderConfig,
    encoded_layers,
)
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.data.virtual_points.lifting import PAINTED_CLOUD
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.painted_points import VOXEL_FEATURES, MixedMeans
from bevkd_common.models.pillars import PillarFeatureNet, PillarReader
from bevkd_common.models.second import Second
from bevkd_common.models.sparse_encoder import SparseEncoder, VoxelMeans, VoxelReader
from bevkd_common.models.taps import BevMap
from bevkd_common.ops.voxelize import Voxels, VoxelSpec


class PointReader(nn.Module):
    """Cuts a batch's points into pillars or voxels and makes a map of them.

    Args:
        cloud: Name of the point cloud that is read.
        sweeps: LiDAR sweeps in it.
        spec: How points become voxels.
        network: Called with the voxels and the number of samples; gives the map.
        bev: What the map is.
    """

    def __init__(self, cloud: str, sweeps: int, spec: VoxelSpec, network: nn.Module, bev: BevMap) -> None:
        super().__init__()
        self.cloud = cloud
        self.needs = DataNeeds(clouds=frozenset({cloud}), sweeps=sweeps)
        self.spec = spec
        self.network = network
        self.bev = bev

    def forward(self, batch: Batch) -> Tensor:
        """The map [B, C, Y, X] of a batch with points."""
        return self.network(batch.cloud(self.cloud).voxels(self.spec), len(batch))


def build_point_reader(config: PointReaderConfig, point_range: Box6, sweeps: int) -> PointReader:
    """Unpack a configuration.

    Args:
        config: The reader.
        point_range: Lower x, y, z and upper x, y, z in metres; points outside are dropped.
        sweeps: LiDAR sweeps in all.
    """
    low, high = point_range[:3], point_range[3:]
    cloud = PAINTED_CLOUD if config.painted else LIDAR
    nx, ny = (round((high[axis] - low[axis]) / config.cell) for axis in (0, 1))
    grid = Grid(low[0], low[1], config.cell, nx, ny)
    match config:
        case PillarReaderConfig():
            size = (config.pillar, config.pillar, high[2] - low[2])
            spec = VoxelSpec(low, high, size, config.max_points, config.max_pillars)
            network, channels = _pillars(config, spec, grid), config.channels
        case VoxelReaderConfig():
            size = (config.voxel, config.voxel, config.voxel_height)
            spec = VoxelSpec(low, high, size, config.max_points, config.max_voxels)
            layers = encoded_layers(spec.cells[2], len(config.encoder_channels))
            network, channels = _voxels(config, spec), config.encoder_channels[-1] * layers
    return PointReader(cloud, sweeps, spec, network, BevMap(channels, grid, "relu"))


def _pillars(config: PillarReaderConfig, spec: VoxelSpec, grid: Grid) -> nn.Module:
    pillars = PillarFeatureNet(spec, config.point_features, config.channels, config.scales, config.norm_momentum)
    reader = PillarReader(pillars, grid.ny * config.stride, grid.nx * config.stride)
    if config.stride == 1:
        return reader
    return StridedPillars(reader, config.channels, config.stride, config.norm_momentum)


class StridedPillars(nn.Module):
    """A map of pillars, and a strided 3x3 convolution to wider cells.

    Args:
        reader: Makes the map of pillars.
        channels: Of both maps.
        stride: Pillars per cell along each edge.
        norm_momentum: Of the batch norm.
    """

    def __init__(self, reader: PillarReader, channels: int, stride: int, norm_momentum: float) -> None:
        super().__init__()
        self.reader = reader
        self.down = Second(channels, [channels], [0], [stride], norm_momentum)

    def forward(self, voxels: Voxels, batch: int) -> Tensor:
        """The map [B, C, Y, X] of the pillars of `batch` samples, not negative."""
        return self.down(self.reader(voxels, batch))[0]


def _voxels(config: VoxelReaderConfig, spec: VoxelSpec) -> nn.Module:
    features = VOXEL_FEATURES if config.painted else config.point_features
    encoder = SparseEncoder(
        spec.cells,
        features,
        config.encoder_channels,
        config.encoder_blocks,
        config.norm_momentum,
        biases=config.encoder_biases,
    )
    means = MixedMeans(config.scales) if config.painted else VoxelMeans(config.scales)
    return VoxelReader(means, encoder)
