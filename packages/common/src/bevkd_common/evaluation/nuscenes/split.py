"""Scores detections in LiDAR axes against the annotations of one split, with the nuScenes metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevkd_common.config.datasets.nuscenes_reading import NuScenesReadingConfig
from bevkd_common.data.dataset import SplitName
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.nuscenes.dataset import NuScenesDataset
from bevkd_common.data.nuscenes.index import BICYCLE_RACK, Annotations, NuScenesIndex
from bevkd_common.data.samples import Batch
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.matches import MatchTable
from bevkd_common.evaluation.nuscenes.metric import (
    ATTRIBUTES,
    NO_ATTRIBUTE,
    Cuboids,
    DetectionArrays,
    NuScenesEvaluator,
    NuScenesMetricConfig,
    TruthArrays,
    observable,
)
from bevkd_common.evaluation.nuscenes.score_checks import findings
from bevkd_common.evaluation.nuscenes.submission import default_attributes
from bevkd_common.evaluation.results import Results
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import to_devkit
from bevkd_common.models.detector import Detections

ATTRIBUTE_CODE = {b"": NO_ATTRIBUTE} | {name.encode(): code for code, name in enumerate(ATTRIBUTES)}


class SplitRows:
    """Key frames of a split by token."""

    def __init__(self, dataset: NuScenesDataset, split: SplitName) -> None:
        self.index = dataset.index
        rows = self.index.split(dataset.splits[split]).tolist()
        self._rows = {self.index.key_frames.token[row].decode(): row for row in rows}

    def of(self, batch: Batch, detections: Sequence[Detections]) -> Iterator[tuple[str, int, Detections]]:
        """Token, row in the index and detections of each sample of an unaugmented batch.

        Raises:
            ValueError: If the batch is augmented, or a sample is not of the split.
        """
        if not torch.equal(batch.aug_T_lidar, torch.eye(4).expand_as(batch.aug_T_lidar)):
            raise ValueError("detections of an augmented batch cannot be compared with the annotations")
        for token, found in zip(batch.tokens, detections, strict=True):
            if token not in self._rows:
                raise ValueError(f"sample {token} is not of this split")
            yield token, self._rows[token], found

    def pose(self, row: int) -> Tensor:
        """`global_T_lidar` [4, 4] of a key frame."""
        return torch.tensor(self.index.key_frames.global_T_lidar[row])

    def check_complete(self, seen: int) -> None:
        """See that all samples were seen.

        Raises:
            ValueError: If some are missing.
        """
        if seen != len(self._rows):
            raise ValueError(f"{seen} of {len(self._rows)} samples of the split were evaluated")


class NuScenesSplitEvaluator:
    """See `bevkd_common.evaluation.evaluator.Evaluator`."""

    def __init__(self, dataset: NuScenesDataset, split: SplitName, metric: NuScenesMetricConfig) -> None:
        self._rows = SplitRows(dataset, split)
        self._metric = NuScenesEvaluator(metric)
        self._seen = 0

    def update(self, batch: Batch, detections: Sequence[Detections]) -> None:
        """Take the detections of an unaugmented batch, in its LiDAR axes.

        Raises:
            ValueError: If the batch is augmented, or a sample comes twice or is not of the split.
        """
        for token, row, found in self._rows.of(batch, detections):
            truth = truth_arrays(self._rows.index, row)
            self._metric.update(token, global_detections(found, self._rows.pose(row)), truth)
            self._seen += 1

    def compute(self, needs: DataNeeds) -> Results:
        """Score the whole split.

        Args:
            needs: What the detector reads; see `observable`.

        Raises:
            ValueError: If samples of the split are missing.
        """
        self._rows.check_complete(self._seen)
        return observable(self._metric.compute(), needs)

    def evidence(self) -> MatchTable:
        """The matches of the whole split, by scene."""
        self._rows.check_complete(self._seen)
        return self._metric.matches()

    def load_evidence(self, path: Path) -> MatchTable:
        """Read a saved table of matches.

        Raises:
            UserError: If the file is missing or damaged.
        """
        return MatchTable.load(path)

    def findings(self, results: Results) -> list[str]:
        """One sentence for each score that points to a mistake outside the model."""
        return findings(results)


def global_detections(found: Detections, global_T_lidar: Tensor) -> DetectionArrays:
    """Detections in LiDAR axes as the metric and the submission take them."""
    devkit = to_devkit(Boxes(found.boxes.tensor.detach().float().cpu()), global_T_lidar)
    labels = found.labels.cpu().numpy().astype(np.int64)
    velocity = devkit.velocity[:, :2].numpy()
    return DetectionArrays(
        cuboids=cuboids(devkit.translation.numpy(), devkit.size.numpy(), devkit.rotation.numpy()),
        labels=labels,
        velocity=velocity,
        attributes=default_attributes(labels, velocity),
        scores=found.scores.detach().float().cpu().numpy().astype(np.float64),
    )


def truth_arrays(index: NuScenesIndex, row: int) -> TruthArrays:
    """What is annotated in one key frame, as the metric takes it."""
    annotations = index.annotations
    rows = np.arange(*annotations.rows(row).indices(len(annotations.label)))
    scored = rows[annotations.label[rows] >= 0]
    racks = rows[annotations.label[rows] == BICYCLE_RACK]
    return TruthArrays(
        cuboids=_annotated(annotations, scored),
        labels=annotations.label[scored],
        velocity=annotations.global_velocity[scored],
        attributes=_attribute_codes(annotations, scored),
        num_points=annotations.lidar_points[scored] + annotations.radar_points[scored],
        scene_token=index.key_frames.scene[row].decode(),
        ego_translation=index.key_frames.global_T_ego[row, :3, 3],
        bicycle_racks=_annotated(annotations, racks),
    )


def build(config: NuScenesReadingConfig, dataset: NuScenesDataset, split: SplitName) -> NuScenesSplitEvaluator:
    """The evaluator of a split; `config.max_range` limits the official class ranges, and the bands with them."""
    metric = NuScenesMetricConfig()
    limit = config.max_range
    if limit is not None and limit < max(metric.class_ranges.values()):
        metric = metric.within(limit, tuple(limit * third / 3 for third in range(4)))
    return NuScenesSplitEvaluator(dataset, split, metric)


def _annotated(annotations: Annotations, rows: npt.NDArray[np.int64]) -> Cuboids:
    return cuboids(
        annotations.global_center[rows], annotations.global_size[rows], annotations.global_rotation[rows]
    )


def cuboids(
    center: npt.NDArray[np.float64], size: npt.NDArray[np.float64], rotation: npt.NDArray[np.float64]
) -> Cuboids:
    """From sizes in the devkit's order: width, length, height."""
    return Cuboids(center, length=size[:, 1], width=size[:, 0], height=size[:, 2], rotation=rotation)


def _attribute_codes(annotations: Annotations, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    names = annotations.attribute[rows].tolist()
    unknown = [name.decode() for name in names if name not in ATTRIBUTE_CODE]
    if unknown:
        raise UserError(f"{unknown[0]!r} in attribute.json is no attribute of the nuScenes detection task")
    return np.array([ATTRIBUTE_CODE[name] for name in names], dtype=np.int64)
