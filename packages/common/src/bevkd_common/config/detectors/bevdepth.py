"""What can be chosen about BEVDepth."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from bevkd_common.config.detectors.bevdet import describe as describe_bevdet
from bevkd_common.config.detectors.bevdet4d import BevDet4dConfig
from bevkd_common.config.detectors.bevdet4d import describe as describe_bevdet4d


class BevDepthConfig(BevDet4dConfig):
    """BEVDepth as the first BEVDet code base has it, with one frame or with two; DistillBEV's has two.

    Source: BEVDepth (arXiv 2206.10092) and the released R50 configurations of that code base.
    """

    kind: Literal["bevdepth"] = "bevdepth"  # type: ignore[assignment]
    frames: Literal[1, 2] = 2
    depth_channels: PositiveInt = 256
    """Of the branch that tells depths."""
    depth_weight: NonNegativeFloat = 100.0
    """Of the loss that compares depths with the LiDAR; 0 leaves it, and the LiDAR, out."""


def describe(config: BevDepthConfig) -> str:
    """What is built, in a few words."""
    base = describe_bevdet4d(config) if config.frames == 2 else describe_bevdet(config)
    supervised = "supervised by LiDAR" if config.depth_weight else "without supervision"
    return f"{base}, depths {supervised}"
