"""The synthetic world as a data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.masks import MaskErrorsConfig
from bevkd_common.config.datasets.nuscenes_reading import NuScenesReadingConfig
from bevkd_common.config.datasets.world import WorldConfig


class SyntheticConfig(NuScenesReadingConfig):
    """A world that a seed generates, written and read as nuScenes."""

    kind: Literal["synthetic"] = "synthetic"
    world: WorldConfig = WorldConfig()
    images: ImageInputConfig = ImageInputConfig(
        height=64, width=176, resize=(0.0, 0.0), test_resize=0.0, rotate_degrees=(0.0, 0.0)
    )
    point_range: tuple[float, float, float, float, float, float] = (-25.6, -25.6, -5.0, 25.6, 25.6, 3.0)
    spare_sweeps: Annotated[int, Field(ge=0, le=10)] = 0
    max_range: PositiveFloat | None = 24.0
    cache: bool = True
    virtual_points: MaskErrorsConfig = MaskErrorsConfig()
    """How wrong the masks are from which points are lifted, for detectors that need such points."""
