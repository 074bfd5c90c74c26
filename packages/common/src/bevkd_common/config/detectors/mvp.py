"""Configuration of MVP."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.detectors.centerpoint import CenterPointConfig
from bevkd_common.config.detectors.centerpoint import describe as describe_centerpoint

PAINTED_FEATURES = 17
"""Columns of a painted point; see `bevkd_common.data.virtual_points.lifting`."""


class MvpConfig(CenterPointConfig):
    """CenterPoint with pillars of painted points and virtual points.

    Source: MVP (arXiv 2111.06881) in the form of the released DistillBEV configurations, a CenterPoint with pillars
    of 0.2 m that keep all their points.
    """

    kind: Literal["mvp"] = "mvp"  # type: ignore[assignment]
    max_points: PositiveInt | None = None
    """Points kept in a pillar, the first ones; None keeps all, without padding."""
    max_pillars: PositiveInt | None = None
    """Pillars kept in a sample, the first ones; None keeps all."""
    point_scales: tuple[PositiveFloat, ...] = (1,) * PAINTED_FEATURES  # type: ignore[assignment]
    """Factors on the columns of a painted point before the network: x, y, z, reflectance, ten classes, score, tag,
    time lag."""

    @model_validator(mode="after")
    def _check_scales(self) -> MvpConfig:
        if len(self.point_scales) != PAINTED_FEATURES:
            raise ValueError(f"`point_scales` must be {PAINTED_FEATURES} numbers, got {len(self.point_scales)}")
        return self


def describe(config: MvpConfig) -> str:
    """A short description of the detector, for the plan."""
    return f"painted and virtual points in {describe_centerpoint(config)}"
