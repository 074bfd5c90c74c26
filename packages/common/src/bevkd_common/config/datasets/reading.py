"""How samples are made of recorded key frames: augmentation, filters, and what happens to damaged ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bevkd_common.config.datasets.images import Bounds, ImageInputConfig
from bevkd_common.config.model import Config

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Spread = Annotated[float, Field(ge=0.0)]


class BevAugmentationConfig(Config):
    """Rotation, scale, translation and mirrors of the whole scene, drawn once a sample in training.

    The defaults are those of CenterPoint in mmdetection3d 1.4 and of the released DistillBEV configurations.
    """

    rotation: Bounds = (-0.3925, 0.3925)
    """Radians about the vertical, uniform."""
    scale: Bounds = (0.95, 1.05)
    """Uniform."""
    translation: tuple[Spread, Spread, Spread] = (0.0, 0.0, 0.0)
    """Standard deviation along x, y, z in metres."""
    flip_x: Probability = 0.5
    """Probability of negating x."""
    flip_y: Probability = 0.5
    """Probability of negating y, independent of `flip_x`."""
    order: Literal["flip_last", "flip_first"] = "flip_last"
    """Rotate, scale and translate, then flip (mmdetection3d, BEVDet); or flip first (CenterPoint's own code)."""

    @model_validator(mode="after")
    def _check(self) -> BevAugmentationConfig:
        if self.scale[0] <= 0:
            raise ValueError(f"`scale` must be positive, its lower bound is {self.scale[0]:g}")
        return self


class ReadingConfig(Config):
    """How samples are made of what a reader returns, for any data set."""

    images: ImageInputConfig = ImageInputConfig()
    bev_augmentation: BevAugmentationConfig | None = BevAugmentationConfig()
    """None leaves the scene as recorded, in training too."""
    point_range: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    """x, y, z of the lower and of the upper corner in metres of the augmented LiDAR axes; points outside are
    dropped, and so are training boxes whose centre, seen from above, is outside."""
    unknown_velocity: Literal["mask", "zero"] = "mask"
    """What a velocity that the annotations do not give becomes: NaN, which the losses skip, or zero.

    Upstream: mmdetection3d sets it to zero.
    """
    damaged: Literal["stop", "skip"] = "stop"
    """What happens where a training sample cannot be read: the training stops; or it takes the next sample of the
    data set instead, and counts that in the log and the report. Evaluation always stops."""
    cache: bool = False
    """Keep decoded images and sweeps in memory, for data that fit there; each loader process keeps its own."""

    @model_validator(mode="after")
    def _check(self) -> ReadingConfig:
        for axis, low, high in zip("xyz", self.point_range[:3], self.point_range[3:], strict=True):
            if low >= high:
                raise ValueError(f"`point_range` is empty along {axis}: {low:g} to {high:g}")
        return self
