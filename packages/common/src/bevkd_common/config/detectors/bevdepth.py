"""Configuration of BEVDepth."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from bevkd_common.config.detectors.bevdet import describe as describe_bevdet
from bevkd_common.config.detectors.bevdet4d import BevDet4dConfig
from bevkd_common.config.detectors.bevdet4d import describe as describe_bevdet4d


class BevDepthConfig(BevDet4dConfig):
    """BEVDepth as in the first BEVDet code base, with one frame or with two; that of DistillBEV has two.

    Source: BEVDepth (arXiv 2206.10092) and the released R50 configurations of that code base.
    """

    kind: Literal["bevdepth"] = "bevdepth"  # type: ignore[assignment]
    frames: Literal[1, 2] = 2
    """Frames, the present one included."""
    depth_channels: PositiveInt = 256
    """Channels of the branch that predicts depths."""
    depth_weight: NonNegativeFloat = 100.0
    """Loss weight of the depths against LiDAR points; 0 reads no LiDAR."""


def describe(config: BevDepthConfig) -> str:
    """A short description of the detector, for the plan."""
    base = describe_bevdet4d(config) if config.frames == 2 else describe_bevdet(config)
    supervised = "supervised by LiDAR" if config.depth_weight else "without supervision"
    return f"{base}, depths {supervised}"
