"""Configuration of BEVDet4D."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.detectors.bevdet import SCALE_NMS, BevDetConfig
from bevkd_common.config.detectors.bevdet import describe as describe_bevdet
from bevkd_common.config.detectors.center_head import CenterHeadConfig


class BevDet4dConfig(BevDetConfig):
    """BEVDet whose BEV map is joined with that of an earlier frame.

    Source: BEVDet4D (arXiv 2203.17054) and its released R50 configuration.
    """

    kind: Literal["bevdet4d"] = "bevdet4d"  # type: ignore[assignment]
    head: CenterHeadConfig = CenterHeadConfig(nms=SCALE_NMS, code_weights=(1.0,) * 10)
    """The centre-point head; displacements have the same loss weight as the rest of a box."""
    frame_blocks: PositiveInt = 2
    """Residual blocks on the BEV map of each frame, before the maps are joined."""
    nearest_s: PositiveFloat = 0.75
    """Training draws the earlier frame from a window; its end, seconds before the key frame."""
    farthest_s: PositiveFloat = 2.25
    """Start of the window, seconds before the key frame; evaluation takes the frame in the middle."""
    scene_start: Literal["later_frame", "key_frame"] = "later_frame"
    """Replacement where there is no earlier frame, in evaluation too: a later one, as in BEVDet4D, or the key frame
    itself, as in DistillBEV."""
    alignment: Literal["corner", "center"] = "corner"
    """Point of a cell that is moved with the ego. Released weights were trained with the corner, which shifts the
    map when the ego turns."""
    motion: Literal["displacement", "velocity"] = "displacement"
    """What the head predicts: metres between the two frames, divided by their time lag in decoding, or m/s."""

    @model_validator(mode="after")
    def _check_window(self) -> BevDet4dConfig:
        if self.nearest_s >= self.farthest_s:
            raise ValueError(f"`nearest_s` {self.nearest_s:g} must be below `farthest_s` {self.farthest_s:g}")
        return self


def describe(config: BevDet4dConfig) -> str:
    """A short description of the detector, for the plan."""
    return f"{describe_bevdet(config)}, and a frame {config.nearest_s:g} to {config.farthest_s:g} s before"
