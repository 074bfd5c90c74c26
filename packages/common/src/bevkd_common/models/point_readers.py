"""From a batch's points to the map that a LiDAR detector starts from."""

from __future__ import annotations

from torch import Tensor, nn

from bevkd_common.config.center_head import Box6
from bevkd_common.config.point_readers import PointReaderConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.pillars import PillarFeatureNet, PillarReader
from bevkd_common.models.taps import BevMap
from bevkd_common.ops.voxelize import VoxelSpec

POINT_FEATURES = 5
"""x, y, z, intensity, seconds before the key frame."""


class PointReader(nn.Module):
    """Cuts a batch's points into voxels and makes a map of them.

    Args:
        spec: How points become voxels.
        needs: What the batch must bring.
        network: Called with the voxels and the number of samples; gives the map.
        bev: What the map is.
    """

    def __init__(self, spec: VoxelSpec, needs: DataNeeds, network: nn.Module, bev: BevMap) -> None:
        super().__init__()
        self.spec = spec
        self.needs = needs
        self.network = network
        self.bev = bev

    def forward(self, batch: Batch) -> Tensor:
        """The map [B, C, Y, X] of a batch with points."""
        return self.network(batch.voxels(self.spec), len(batch))


def build_point_reader(config: PointReaderConfig, point_range: Box6, sweeps: int) -> PointReader:
    """Unpack a configuration.

    Args:
        config: The reader.
        point_range: Lower x, y, z and upper x, y, z in metres; points outside are dropped.
        sweeps: LiDAR sweeps in all.
    """
    x0, y0, z0, x1, y1, z1 = point_range
    spec = VoxelSpec(
        range_min=(x0, y0, z0),
        range_max=(x1, y1, z1),
        size=(config.pillar, config.pillar, z1 - z0),
        max_points=config.max_points,
        max_voxels=config.max_pillars,
    )
    nx, ny, _ = spec.cells
    pillars = PillarFeatureNet(spec, POINT_FEATURES, config.channels, config.point_scales, config.norm_momentum)
    bev = BevMap(config.channels, Grid(x0, y0, config.pillar, nx, ny), "relu")
    return PointReader(spec, DataNeeds(sweeps=sweeps), PillarReader(pillars, ny, nx), bev)
