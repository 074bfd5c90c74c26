"""Detections of one split as the official nuScenes submission; annotations are not needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bevkd_common.config.datasets.nuscenes_reading import NuScenesReadingConfig
from bevkd_common.data.dataset import SplitName
from bevkd_common.data.nuscenes.dataset import NuScenesDataset
from bevkd_common.data.samples import Batch
from bevkd_common.data.virtual_points.lifting import PAINTED_CLOUD
from bevkd_common.evaluation.nuscenes.split import SplitRows, global_detections
from bevkd_common.evaluation.nuscenes.submission import SubmissionMeta, submission_boxes
from bevkd_common.models.detector import Detections


class NuScenesSubmission:
    """See `bevkd_common.evaluation.evaluator.Submission`."""

    def __init__(self, dataset: NuScenesDataset, split: SplitName) -> None:
        self._rows = SplitRows(dataset, split)
        self._results: dict[str, list[dict[str, Any]]] = {}
        self._sensors = {"use_camera": False, "use_lidar": False}

    def update(self, batch: Batch, detections: Sequence[Detections]) -> None:
        """Take the detections of an unaugmented batch, in its LiDAR axes.

        Raises:
            ValueError: If the batch is augmented, or a sample is not of the split.
        """
        # Painted and virtual points are made of images too.
        self._sensors["use_camera"] |= batch.cameras is not None or PAINTED_CLOUD in batch.clouds
        self._sensors["use_lidar"] |= bool(batch.clouds)
        for token, row, found in self._rows.of(batch, detections):
            self._results[token] = submission_boxes(token, global_detections(found, self._rows.pose(row)))

    def content(self) -> dict[str, Any]:
        """The submission; the sensors are those that the batches carried.

        Raises:
            ValueError: If samples of the split are missing.
        """
        self._rows.check_complete(len(self._results))
        meta = SubmissionMeta(**self._sensors, use_radar=False, use_map=False, use_external=False)
        return {"meta": meta.model_dump(), "results": self._results}


def build(config: NuScenesReadingConfig, dataset: NuScenesDataset, split: SplitName) -> NuScenesSubmission:
    """The submission of a split."""
    return NuScenesSubmission(dataset, split)
