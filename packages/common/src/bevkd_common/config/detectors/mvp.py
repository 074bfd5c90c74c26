"""What can be chosen about MVP."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.detectors.centerpoint import CenterPointConfig
from bevkd_common.config.detectors.centerpoint import describe as describe_centerpoint

PAINTED_FEATURES = 17
"""Numbers of a painted point; see `bevkd_common.data.virtual_points.lifting`."""


class MvpConfig(CenterPointConfig):
    """CenterPoint over pillars of points that are painted with instance masks, and of virtual ones.

    Source: MVP (arXiv 2111.06881) in the form of the released DistillBEV configurations, a CenterPoint of 0.2 m
    whose pillars keep all their points.
    """

    kind: Literal["mvp"] = "mvp"  # type: ignore[assignment]
    max_points: PositiveInt | None = None
    max_pillars: PositiveInt | None = None
    point_scales: tuple[PositiveFloat, ...] = (1,) * PAINTED_FEATURES  # type: ignore[assignment]
    """Factors on the numbers of a painted point before they enter the network: x, y, z, reflectance, ten classes,
    score, tag, seconds."""

    @model_validator(mode="after")
    def _check_scales(self) -> MvpConfig:
        if len(self.point_scales) != PAINTED_FEATURES:
            raise ValueError(f"`point_scales` must be {PAINTED_FEATURES} numbers, got {len(self.point_scales)}")
        return self


def describe(config: MvpConfig) -> str:
    """What is built, in a few words."""
    return f"painted and virtual points in {describe_centerpoint(config)}"
