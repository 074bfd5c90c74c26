"""BEVDet4D: BEVDet with an earlier frame."""

from __future__ import annotations

from bevkd_common.config.detectors.bevdet4d import BevDet4dConfig
from bevkd_common.data.needs import AdjacentFrames
from bevkd_common.models.bev_encoders import bev_stage
from bevkd_common.models.detectors import bevdet
from bevkd_common.models.detectors.bevdet import BevDet
from bevkd_common.models.earlier_frame import EarlierFrame
from bevkd_common.models.taps import Meaning


def build(config: BevDet4dConfig, classes: tuple[str, ...]) -> BevDet:
    """Unpack a configuration; see BEVDet's."""
    return bevdet.build(config, classes, build_earlier_frame(config))


def build_earlier_frame(config: BevDet4dConfig) -> EarlierFrame:
    """What joins the earlier frame."""
    return EarlierFrame(
        stage=bev_stage(config.lift_channels, config.lift_channels, config.frame_blocks, 1),
        grid=config.grid,
        alignment=config.alignment,
        motion=Meaning[config.motion.upper()],
        history=AdjacentFrames(
            nearest_s=config.nearest_s,
            farthest_s=config.farthest_s,
            later=config.scene_start == "later_frame",
        ),
    )
