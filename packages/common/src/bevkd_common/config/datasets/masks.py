"""Simulated errors of the instance masks of a synthetic world, from which virtual points are lifted."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt

from bevkd_common.config.model import Config

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Spread = Annotated[float, Field(ge=0.0, le=1.0)]
Score = Annotated[float, Field(gt=0.0, le=1.0)]


class MaskErrorsConfig(Config):
    """Simulated errors of a 2D detector on exact synthetic masks; all zeros and `min_pixels: 1` give exact masks.

    MVP's detector reaches a mask AP of 43.3 on nuImages. No table separates its errors by kind; the defaults are
    our estimate: it misses one instance in seven, and gives a similar class to one in fourteen.
    """

    miss: Probability = 0.14
    """Share of the instances in an image that are not found."""
    min_pixels: NonNegativeInt = 4
    """An instance with fewer visible pixels is never found."""
    mislabel: Probability = 0.07
    """Share of the found instances that are given another class of the same group (see `ALIKE`)."""
    jitter: Spread = 0.08
    """Standard deviation of the shift and scale of a mask, as a share of its height and width."""
    false_instances: Annotated[float, Field(ge=0.0, le=20.0)] = 0.2
    """Mean number of false instances, ellipses without an object, in an image."""
    score: Score = 0.75
    """Mean score of an instance with the right class."""
    wrong_score: Score = 0.45
    """Mean score of an instance with another class, and of a false one."""
    score_noise: Spread = 0.15
    """Standard deviation of a score."""

    @property
    def sentence(self) -> str:
        """For the report."""
        return (
            f"masks of the synthetic world, {self.miss:.0%} missed and all of fewer than {self.min_pixels} pixels, "
            f"{self.mislabel:.0%} mislabelled, displaced by {self.jitter:.0%} of their size, "
            f"{self.false_instances:g} false ones an image"
        )


ALIKE = (
    ("car", "truck", "construction_vehicle", "bus", "trailer"),
    ("motorcycle", "bicycle", "pedestrian"),
    ("barrier", "traffic_cone"),
)
"""Groups of classes that are confused with each other."""
