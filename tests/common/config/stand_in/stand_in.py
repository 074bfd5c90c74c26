"""Plug-ins of a distribution that only the tests know."""

from __future__ import annotations

from typing import Annotated, Literal

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import DatasetSpec, DetectorSpec, MethodSpec
from pydantic import Field, PositiveFloat, PositiveInt


class PillarConfig(Config):
    kind: Literal["pillars"] = "pillars"
    cell: PositiveFloat = 0.8
    channels: tuple[PositiveInt, ...] = (32, 64)
    x_range: tuple[float, float] = (-25.6, 25.6)


class LiftConfig(Config):
    kind: Literal["lift"] = "lift"
    image_size: tuple[PositiveInt, PositiveInt] = (64, 176)
    depth: PositiveFloat | Literal["auto"] = "auto"


class CameraConfig(Config):
    height: PositiveInt = 64
    width: PositiveInt = 176
    seed: Annotated[int, Field(ge=0)] = 0


class ToyConfig(Config):
    kind: Literal["toy"] = "toy"
    cameras: CameraConfig = CameraConfig()
    cached: bool = True


class RecordedConfig(Config):
    kind: Literal["recorded"] = "recorded"
    version: str = "v1"


class TapPair(Config):
    teacher: str
    student: str
    weight: PositiveFloat = 1.0


class ImitationConfig(Config):
    kind: Literal["imitation"] = "imitation"
    taps: tuple[TapPair, ...] = (TapPair(teacher="bev_neck", student="bev_neck"),)
    inherit_head: bool = True


def check_image_size(detector: LiftConfig, dataset: Config) -> list[tuple[str, str]]:
    if isinstance(dataset, ToyConfig) and detector.image_size != (dataset.cameras.height, dataset.cameras.width):
        return [("image_size", "must be the size of the data's images")]
    return []


PILLARS = DetectorSpec("pillars", PillarConfig, "nowhere:build", "A LiDAR detector.")
LIFT = DetectorSpec("lift", LiftConfig, "nowhere:build", "A camera detector.", check="stand_in:check_image_size")
TOY = DatasetSpec("toy", ToyConfig, "nowhere:build", "nowhere:build", "A made world.", seed_key="cameras.seed")
RECORDED = DatasetSpec("recorded", RecordedConfig, "nowhere:build", "nowhere:build", "Data on disk.")
IMITATION = MethodSpec(
    "imitation", "Imitation", "Nobody, 2020", ImitationConfig, "nowhere:build", "stand_in_recipes"
)
