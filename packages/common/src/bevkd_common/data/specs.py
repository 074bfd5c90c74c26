"""The data sets that come with the project; imports no torch."""

from __future__ import annotations

from bevkd_common.config.datasets.nuscenes import NuScenesConfig, like_nuscenes
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.datasets.synthetic import SyntheticConfig
from bevkd_common.config.plugins import DatasetSpec, FolderTools
from bevkd_common.data.nuscenes.folder import foreign, recognize

NUSCENES = DatasetSpec(
    kind="nuscenes",
    config=NuScenesConfig,
    build="bevkd_common.data.nuscenes.dataset:build",
    build_evaluator="bevkd_common.evaluation.nuscenes.split:build",
    build_submission="bevkd_common.evaluation.nuscenes.benchmark:build",
    split_keys=("version", "val_split"),
    classes_of=lambda config: CLASSES,
    summary="nuScenes from its own folders, ten classes, official metric",
    stand_in=like_nuscenes,
    folder=FolderTools(
        recognize=recognize,
        foreign=foreign,
        diagnose="bevkd_common.data.nuscenes.folder:diagnose",
        index="bevkd_common.data.nuscenes.folder:index",
        check="bevkd_common.data.nuscenes.check:check",
        score_file="bevkd_common.evaluation.nuscenes.foreign:score_file",
        virtual_points="bevkd_common.data.virtual_points.choice:make",
    ),
)

SYNTHETIC = DatasetSpec(
    kind="synthetic",
    config=SyntheticConfig,
    build="bevkd_common.data.synthetic.dataset:build",
    build_evaluator="bevkd_common.evaluation.nuscenes.split:build",
    build_submission="bevkd_common.evaluation.nuscenes.benchmark:build",
    classes_of=lambda config: CLASSES,
    seed_key="world.seed",
    summary="a generated world in nuScenes' format, made on first use; no real sensor",
)
