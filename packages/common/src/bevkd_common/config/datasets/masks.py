"""How wrong the instance masks of a synthetic world are made before points are lifted from them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt

from bevkd_common.config.model import Config

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Spread = Annotated[float, Field(ge=0.0, le=1.0)]
Score = Annotated[float, Field(gt=0.0, le=1.0)]


class MaskErrorsConfig(Config):
    """What a 2D detector does to the exact masks of a synthetic image; all zeros and `min_pixels: 1` keep them.

    MVP's own detector reaches a mask AP of 43.3 on nuImages. No table tells its errors apart; the defaults are our
    guess at such a detector: it misses one instance in seven, and one in fourteen it calls by a similar class.
    """

    miss: Probability = 0.14
    """Share of the instances in an image that are not found."""
    min_pixels: NonNegativeInt = 4
    """An instance that shows fewer pixels is never found."""
    mislabel: Probability = 0.07
    """Share of the found instances that are given another class of the same sort (see `ALIKE`)."""
    jitter: Spread = 0.08
    """Standard deviation by which a mask is moved and scaled, as a share of its height and width."""
    false_instances: Annotated[float, Field(ge=0.0, le=20.0)] = 0.2
    """Mean number of ellipses in an image that are taken for an object and are none."""
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
"""Classes that are taken for each other."""
