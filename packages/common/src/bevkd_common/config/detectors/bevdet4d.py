"""What can be chosen about BEVDet4D."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.detectors.bevdet import SCALE_NMS, BevDetConfig
from bevkd_common.config.detectors.bevdet import describe as describe_bevdet
from bevkd_common.config.detectors.center_head import CenterHeadConfig


class BevDet4dConfig(BevDetConfig):
    """BEVDet with the map of an earlier frame beside the present one.

    Source: BEVDet4D (arXiv 2203.17054) and its released R50 configuration.
    """

    kind: Literal["bevdet4d"] = "bevdet4d"  # type: ignore[assignment]
    head: CenterHeadConfig = CenterHeadConfig(nms=SCALE_NMS, code_weights=(1.0,) * 10)
    """BEVDet's, but that displacements weigh as much as the other numbers of a box."""
    frame_blocks: PositiveInt = 2
    """Residual blocks that the map of each frame passes before the two are joined."""
    nearest_s: PositiveFloat = 0.75
    """Near end of the window from which training draws the earlier frame, seconds before the key frame."""
    farthest_s: PositiveFloat = 2.25
    """Its far end; evaluation takes the frame in the middle."""
    scene_start: Literal["later_frame", "key_frame"] = "later_frame"
    """What stands in for the earlier frame where there is none, in evaluation too: a later one, as in BEVDet4D, or
    the key frame itself, as in DistillBEV."""
    alignment: Literal["corner", "center"] = "corner"
    """Point of a cell that moves with the ego. Released weights expect the corner, which shifts maps in turns."""
    motion: Literal["displacement", "velocity"] = "displacement"
    """What the head learns: metres between the two frames, divided by their gap when boxes are decoded, or m/s."""

    @model_validator(mode="after")
    def _check_window(self) -> BevDet4dConfig:
        if self.nearest_s >= self.farthest_s:
            raise ValueError(f"`nearest_s` {self.nearest_s:g} must be below `farthest_s` {self.farthest_s:g}")
        return self


def describe(config: BevDet4dConfig) -> str:
    """What is built, in a few words."""
    return f"{describe_bevdet(config)}, and a frame {config.nearest_s:g} to {config.farthest_s:g} s before"
