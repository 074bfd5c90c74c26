"""The toy detector with a pretraining or with the weights of a file, and the toy method under another name."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from bevkd_common.config.plugins import MethodSpec
from bevkd_toy.specs import DETECTOR, ToyDetectorConfig, ToyMethodConfig


class ToyPretrainableConfig(ToyDetectorConfig):
    kind: Literal["toy_pretrainable"] = "toy_pretrainable"


class ToyFinishedConfig(ToyDetectorConfig):
    kind: Literal["toy_finished"] = "toy_finished"
    weights: Path


class ToyEchoConfig(ToyMethodConfig):
    kind: Literal["toy_echo"] = "toy_echo"
    weight: float = 0.5


PRETRAINABLE = replace(
    DETECTOR,
    kind="toy_pretrainable",
    config=ToyPretrainableConfig,
    pretraining="bevkd_toy_variants.detectors:build_pretraining",
)
FINISHED = replace(
    DETECTOR,
    kind="toy_finished",
    config=ToyFinishedConfig,
    build="bevkd_toy_variants.detectors:build_finished",
    finished=lambda config: (config.weights,),
)
ECHO = MethodSpec("toy_echo", "Echo", "another invented paper", ToyEchoConfig, "bevkd_toy.method:build")
