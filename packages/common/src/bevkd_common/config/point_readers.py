"""How points become the map that a LiDAR detector starts from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from bevkd_common.config.model import Config


class PillarReaderConfig(Config):
    """Pillars; defaults are the dynamic pillars of DistillBEV's teachers."""

    kind: Literal["pillars"] = "pillars"
    pillar: PositiveFloat = 0.2
    """Edge of a pillar in metres."""
    max_points: PositiveInt | None = None
    """Points kept in a pillar, the first ones; none given keeps all, and pads none."""
    max_pillars: PositiveInt | None = None
    """Pillars kept in a sample, the first ones, in training and evaluation alike."""
    point_scales: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (1, 1, 1, 1, 1)
    """Factors on x, y, z, intensity and seconds before they enter the network.

    Unscaled, an intensity of 0 to 255 drowns offsets of decimetres until the network has learned otherwise.
    """
    channels: PositiveInt = 64
    norm_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01

    @property
    def cell(self) -> float:
        """Edge of a cell of the map in metres."""
        return self.pillar


PointReaderConfig = PillarReaderConfig
