"""The data sets that come with the project; imports no torch."""

from __future__ import annotations

from bevkd_common.config.datasets import NuScenesConfig, SyntheticConfig, like_nuscenes
from bevkd_common.config.nuscenes_names import CLASSES
from bevkd_common.config.plugins import DatasetSpec

NUSCENES = DatasetSpec(
    kind="nuscenes",
    config=NuScenesConfig,
    build="bevkd_common.data.nuscenes:build",
    build_evaluator="bevkd_common.evaluation.nuscenes_split:build",
    build_submission="bevkd_common.evaluation.nuscenes_submission:build",
    split_keys=("version", "val_split"),
    classes=CLASSES,
    summary="nuScenes from its own folders, ten classes, official metric",
    stand_in=like_nuscenes,
)

SYNTHETIC = DatasetSpec(
    kind="synthetic",
    config=SyntheticConfig,
    build="bevkd_common.data.synthetic_dataset:build",
    build_evaluator="bevkd_common.evaluation.nuscenes_split:build",
    build_submission="bevkd_common.evaluation.nuscenes_submission:build",
    classes=CLASSES,
    seed_key="world.seed",
    summary="a generated world in nuScenes' format, made on first use; no real sensor",
)
