"""Scores detections in LiDAR axes against the annotations of one split, with the nuScenes metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevkd_common.config.datasets import ReadingConfig
from bevkd_common.data.dataset import SplitName
from bevkd_common.data.index import BICYCLE_RACK, Annotations, NuScenesIndex
from bevkd_common.data.nuscenes import NuScenesDataset
from bevkd_common.data.samples import Batch
from bevkd_common.errors import UserError
from bevkd_common.evaluation.fingerprints import findings
from bevkd_common.evaluation.matches import MatchTable
from bevkd_common.evaluation.nuscenes import (
    ATTRIBUTES,
    NO_ATTRIBUTE,
    Cuboids,
    DetectionArrays,
    NuScenesEvaluator,
    NuScenesMetricConfig,
    TruthArrays,
)
from bevkd_common.evaluation.results import Results
from bevkd_common.evaluation.submission import SubmissionMeta, default_attributes, submission_boxes
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import to_devkit
from bevkd_common.models.detector import Detections

ATTRIBUTE_CODE = {b"": NO_ATTRIBUTE} | {name.encode(): code for code, name in enumerate(ATTRIBUTES)}


@dataclass(frozen=True, eq=False)
class _Kept:
    """Detections of one sample as they are kept, 41 bytes each."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]


class NuScenesSplitEvaluator:
    """See `bevkd_common.evaluation.evaluator.Evaluator`; keeps what a submission needs beside the matches."""

    def __init__(self, dataset: NuScenesDataset, split: SplitName, metric: NuScenesMetricConfig) -> None:
        self.index = dataset.index
        rows = self.index.split(dataset.splits[split]).tolist()
        self._rows = {self.index.key_frames.token[row].decode(): row for row in rows}
        self._metric = NuScenesEvaluator(metric)
        self._kept: dict[str, _Kept] = {}
        self._sensors = {"use_camera": False, "use_lidar": False}

    def update(self, batch: Batch, detections: Sequence[Detections]) -> None:
        """Take the detections of an unaugmented batch, in its LiDAR axes.

        Raises:
            ValueError: If the batch is augmented, or a sample comes twice or is not of the split.
        """
        if not torch.equal(batch.aug_T_lidar, torch.eye(4).expand_as(batch.aug_T_lidar)):
            raise ValueError("detections of an augmented batch cannot be compared with the annotations")
        self._sensors["use_camera"] |= batch.cameras is not None
        self._sensors["use_lidar"] |= batch.points is not None
        for token, found in zip(batch.tokens, detections, strict=True):
            if token not in self._rows:
                raise ValueError(f"sample {token} is not of this split")
            kept = _Kept(
                found.boxes.tensor.detach().float().cpu().numpy(),
                found.scores.detach().float().cpu().numpy(),
                found.labels.cpu().numpy().astype(np.uint8),
            )
            self._metric.update(token, self._global(token, kept), truth_arrays(self.index, self._rows[token]))
            self._kept[token] = kept

    def compute(self) -> Results:
        """Score the whole split.

        Raises:
            ValueError: If samples of the split are missing.
        """
        self._check_complete()
        return self._metric.compute()

    def evidence(self) -> MatchTable:
        """The matches, which a paired bootstrap over scenes resamples."""
        self._check_complete()
        return self._metric.matches()

    def load_evidence(self, path: Path) -> MatchTable:
        """Read what `evidence` saved.

        Raises:
            UserError: If the file is missing or damaged.
        """
        return MatchTable.load(path)

    def findings(self, results: Results) -> list[str]:
        """One sentence for each likely mistake outside the model that the scores betray."""
        return findings(results)

    def submission(self) -> dict[str, Any]:
        """The official submission; the sensors are those that the batches carried."""
        self._check_complete()
        meta = SubmissionMeta(**self._sensors, use_radar=False, use_map=False, use_external=False)
        results = {token: submission_boxes(token, self._global(token, kept)) for token, kept in self._kept.items()}
        return {"meta": meta.model_dump(), "results": results}

    def _check_complete(self) -> None:
        if len(self._kept) != len(self._rows):
            raise ValueError(f"{len(self._kept)} of {len(self._rows)} samples of the split were evaluated")

    def _global(self, token: str, kept: _Kept) -> DetectionArrays:
        pose = torch.tensor(self.index.key_frames.global_T_lidar[self._rows[token]])
        devkit = to_devkit(Boxes(torch.from_numpy(kept.boxes)), pose)
        labels = kept.labels.astype(np.int64)
        velocity = devkit.velocity[:, :2].numpy()
        return DetectionArrays(
            cuboids=cuboids(devkit.translation.numpy(), devkit.size.numpy(), devkit.rotation.numpy()),
            labels=labels,
            velocity=velocity,
            attributes=default_attributes(labels, velocity),
            scores=kept.scores.astype(np.float64),
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


def build(config: ReadingConfig, dataset: NuScenesDataset, split: SplitName) -> NuScenesSplitEvaluator:
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
