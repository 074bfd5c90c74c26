"""What the toy package offers; imports no torch."""

from pathlib import Path
from typing import Literal

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import Ablation, DatasetSpec, DetectorSpec, MethodSpec
from bevkd_common.config.published_rows import PaperRow


class ToyDetectorConfig(Config):
    kind: Literal["toy_detector"] = "toy_detector"
    channels: int = 4


class ToyFinishedConfig(Config):
    kind: Literal["toy_finished"] = "toy_finished"
    channels: int = 4
    weights: Path


class ToyDataConfig(Config):
    kind: Literal["toy_data"] = "toy_data"
    seed: int = 0
    samples: int = 12


class ToyMethodConfig(Config):
    kind: Literal["toy_method"] = "toy_method"
    weight: float = 1.0


class ToyEchoConfig(ToyMethodConfig):
    kind: Literal["toy_echo"] = "toy_echo"
    weight: float = 0.5


DETECTOR = DetectorSpec(
    kind="toy_detector",
    config=ToyDetectorConfig,
    build="bevkd_toy.detector:build",
    summary="One convolution over counted points.",
    describe=lambda config: f"{config.channels} channels",
    pretraining="bevkd_toy.detector:build_pretraining",
)
FINISHED = DetectorSpec(
    kind="toy_finished",
    config=ToyFinishedConfig,
    build="bevkd_toy.detector:build_finished",
    summary="The same with the weights of a file.",
    describe=lambda config: config.weights.name,
    finished=lambda config: (config.weights,),
)
DATASET = DatasetSpec(
    kind="toy_data",
    config=ToyDataConfig,
    build="bevkd_toy.data:build",
    build_evaluator="bevkd_toy.data:build_evaluator",
    classes_of=lambda config: ("thing",),
    summary="Clusters of points.",
    seed_key="seed",
)
METHOD = MethodSpec(
    kind="toy_method",
    title="Toy",
    paper="nobody, nowhere",
    config=ToyMethodConfig,
    build="bevkd_toy.method:build",
    recipes="bevkd_toy.recipes",
    ablations={"off": Ablation("No imitation.", {"weight": 0.0})},
    published_ablations="bevkd_toy.specs:published_ablations",
)
ECHO = MethodSpec(
    kind="toy_echo",
    title="Echo",
    paper="nobody, nowhere else",
    config=ToyEchoConfig,
    build="bevkd_toy.method:build",
)


def published_ablations():
    """The paper's row of the ablation."""
    return {"off": PaperRow("toy to toy, no imitation", "toys", {"mAP": 12.3}, "nowhere")}
