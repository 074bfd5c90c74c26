"""Plug-ins of a distribution that only the tests know."""

from __future__ import annotations

from typing import Annotated, Literal

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import DatasetSpec, DetectorSpec, MethodSpec
from pydantic import Field, PositiveFloat, PositiveInt, model_validator


class PillarConfig(Config):
    kind: Literal["pillars"] = "pillars"
    cell: PositiveFloat = 0.8
    channels: tuple[PositiveInt, ...] = (32, 64)
    x_range: tuple[float, float] = (-25.6, 25.6)

    @model_validator(mode="after")
    def _check(self) -> PillarConfig:
        if round((self.x_range[1] - self.x_range[0]) / self.cell) % 2:
            raise ValueError("`x_range` must be an even number of cells")
        return self


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


PILLARS = DetectorSpec(
    kind="pillars",
    config=PillarConfig,
    build="nowhere:build",
    summary="A LiDAR detector.",
    describe=lambda config: f"pillars of {config.cell:g} m",
)
LIFT = DetectorSpec(
    kind="lift",
    config=LiftConfig,
    build="nowhere:build",
    summary="A camera detector.",
    describe=lambda config: f"images of {config.image_size[0]} x {config.image_size[1]}",
    check="stand_in:check_image_size",
)
TOY = DatasetSpec(
    kind="toy",
    config=ToyConfig,
    build="nowhere:build",
    build_evaluator="nowhere:build",
    summary="A made world.",
    classes_of=lambda config: ("car",),
    seed_key="cameras.seed",
)
RECORDED = DatasetSpec(
    kind="recorded",
    config=RecordedConfig,
    build="nowhere:build",
    build_evaluator="nowhere:build",
    summary="Data on disk.",
    classes_of=lambda config: ("car",),
)
IMITATION = MethodSpec(
    kind="imitation",
    title="Imitation",
    paper="Nobody, 2020",
    config=ImitationConfig,
    build="nowhere:build",
    recipes="stand_in_recipes",
)
