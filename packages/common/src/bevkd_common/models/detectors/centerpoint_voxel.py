"""CenterPoint over voxels and a sparse encoder."""

from __future__ import annotations

from bevkd_common.config.detectors.centerpoint_voxel import CenterPointVoxelConfig
from bevkd_common.data.needs import LIDAR
from bevkd_common.models.detectors.centerpoint import CenterPoint, assemble, build_head
from bevkd_common.models.sparse_encoder import SparseEncoder, VoxelMeans, VoxelReader
from bevkd_common.ops.voxelize import VoxelSpec


def build(config: CenterPointVoxelConfig, classes: tuple[str, ...]) -> CenterPoint:
    """Unpack a configuration.

    Raises:
        UserError: If the tasks of the head do not fit the classes of the data set.
    """
    spec = VoxelSpec(
        range_min=config.point_range[:3],
        range_max=config.point_range[3:],
        size=(config.voxel, config.voxel, config.voxel_height),
        max_points=config.max_points,
        max_voxels=config.max_voxels,
    )
    head = build_head(config, classes)
    encoder = SparseEncoder(
        spec.cells,
        len(config.point_scales),
        config.encoder_channels,
        config.encoder_blocks,
        config.norm_momentum,
    )
    reader = VoxelReader(VoxelMeans(config.point_scales), encoder)
    return assemble(config, spec, LIDAR, reader, config.bev_channels, head)
