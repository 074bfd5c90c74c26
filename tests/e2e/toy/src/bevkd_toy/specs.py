"""What the package offers; imports no torch."""

from typing import Literal

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import Ablation, DatasetSpec, DetectorSpec, FolderTools, MethodSpec
from bevkd_common.config.published_rows import PaperRow


class ToyDetectorConfig(Config):
    kind: Literal["toy_detector"] = "toy_detector"
    channels: int = 8


class ToyDataConfig(Config):
    kind: Literal["toy_data"] = "toy_data"
    seed: int = 0
    samples: int = 12


class ToyMethodConfig(Config):
    kind: Literal["toy_method"] = "toy_method"
    weight: float = 1.0
    logits_weight: float = 1.0


DETECTOR = DetectorSpec(
    kind="toy_detector",
    config=ToyDetectorConfig,
    build="bevkd_toy.detector:build",
    summary="Pillars, one convolution, an anchor head.",
    describe=lambda config: f"{config.channels} channels",
    clouds=lambda config: frozenset({"lidar"}),
)
DATASET = DatasetSpec(
    kind="toy_data",
    config=ToyDataConfig,
    build="bevkd_toy.data:build",
    build_evaluator="bevkd_toy.data:ToyEvaluator",
    classes_of=lambda config: ("van", "post"),
    summary="Independent point clouds, generated from a seed.",
    seed_key="seed",
    folder=FolderTools(lambda root: (root / "val.safetensors").is_file(), check="bevkd_toy.data:check"),
)
METHOD = MethodSpec(
    kind="toy_method",
    title="Toy",
    paper="an invented paper",
    config=ToyMethodConfig,
    build="bevkd_toy.method:build",
    recipes="bevkd_toy.recipes",
    ablations={"no_tokens": Ablation("Anchor logits alone.", {"weight": 0.0})},
    published_ablations="bevkd_toy.specs:published_ablations",
)


def published_ablations():
    return {"no_tokens": PaperRow("big to small, no tokens", "toys", {"AP": 12.3}, "an invented paper")}
