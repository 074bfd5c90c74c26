"""BEVDepth: BEVDet with a camera-aware depth net that is supervised by LiDAR depths."""

from __future__ import annotations

from bevkd_common.config.detectors.bevdepth import BevDepthConfig
from bevkd_common.models.depth_nets import CameraAwareDepthNet
from bevkd_common.models.detectors import bevdet
from bevkd_common.models.detectors.bevdet import BevDet
from bevkd_common.models.detectors.bevdet4d import build_earlier_frame


def build(config: BevDepthConfig, classes: tuple[str, ...]) -> BevDet:
    """Unpack a configuration; see BEVDet's."""
    depth_net = CameraAwareDepthNet(
        config.image_neck_channels, config.depth_bins.count, config.lift_channels, config.depth_channels
    )
    earlier = build_earlier_frame(config) if config.frames == 2 else None
    return bevdet.build(config, classes, earlier, depth_net=depth_net, depth_weight=config.depth_weight or None)
