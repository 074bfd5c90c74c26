"""Matches of predictions and ground truth, and their nuScenes detection metric for any multiset of scenes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.model import Config
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.curves import RECALLS, Ranking, RecallCurves
from bevkd_common.evaluation.nuscenes.global_boxes import MAX_BOXES_PER_SAMPLE, BoolArray, FloatArray, IntArray
from bevkd_common.files import replaced_when_complete

ERRORS = ("ATE", "ASE", "AOE", "AVE", "AAE")
"""Translation (m), scale (1 - IoU), orientation (rad), velocity (m/s), attribute (1 - accuracy)."""

# Bounds the memory of many multisets at once to about a gigabyte.
MOST_ELEMENTS = 1 << 21

# A cone has no front; neither cones nor barriers move or carry attributes.
UNDEFINED_ERRORS = {"traffic_cone": ("AOE", "AVE", "AAE"), "barrier": ("AVE", "AAE")}


def _official_ranges() -> dict[str, float]:
    near = {"traffic_cone": 30.0, "barrier": 30.0}
    middle = {"pedestrian": 40.0, "motorcycle": 40.0, "bicycle": 40.0}
    return dict.fromkeys(CLASSES, 50.0) | middle | near


class NuScenesMetricConfig(Config):
    """Settings of the detection metric; the defaults are nuScenes' detection_cvpr_2019."""

    class_ranges: dict[str, float] = Field(default_factory=_official_ranges)
    """Metres from the ego vehicle; boxes at or beyond are not scored."""
    distance_thresholds: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Metres between centres in the xy plane; a prediction nearer than this is a match."""
    error_threshold: float = 2.0
    """The one of `distance_thresholds` at which the true-positive errors are taken."""
    min_recall: float = Field(default=0.1, ge=0, le=0.99)
    """Recalls up to this one do not count."""
    min_precision: float = Field(default=0.1, ge=0, lt=1)
    """Only precision above this one counts."""
    mean_ap_weight: float = Field(default=5.0, gt=0)
    """Weight of mAP in NDS; the five other scores have weight 1."""
    max_boxes_per_sample: int = Field(default=MAX_BOXES_PER_SAMPLE, gt=0)
    """Maximum number of predictions in a sample; more are an error."""
    band_edges: tuple[float, ...] = (0.0, 20.0, 30.0, 50.0)
    """Metres from the ego vehicle; edges of the distance bands that are also scored separately."""

    @model_validator(mode="after")
    def _consistent(self) -> "NuScenesMetricConfig":
        if set(self.class_ranges) != set(CLASSES):
            raise ValueError(f"class_ranges must name exactly these classes: {', '.join(CLASSES)}")
        if min(self.class_ranges.values()) <= 0:
            raise ValueError("class_ranges must be above 0")
        if self.error_threshold not in self.distance_thresholds:
            raise ValueError("error_threshold must be one of distance_thresholds")
        if self.band_edges[:1] != (0.0,) or (np.diff(self.band_edges) <= 0).any():
            raise ValueError("band_edges must start at 0 and increase")
        if self.band_edges[-1] < max(self.class_ranges.values()):
            raise ValueError("band_edges must reach the largest of class_ranges")
        return self

    def within(self, limit: float, band_edges: tuple[float, ...]) -> "NuScenesMetricConfig":
        """Return the same settings with no class range above `limit` metres, and other distance bands."""
        ranges = {name: min(reach, limit) for name, reach in self.class_ranges.items()}
        settings = self.model_dump() | {"class_ranges": ranges, "band_edges": band_edges}
        return NuScenesMetricConfig.model_validate(settings)

    @property
    def ranges(self) -> FloatArray:
        """The class ranges in the order of the labels."""
        return np.array([self.class_ranges[name] for name in CLASSES])

    @property
    def bands(self) -> int:
        """Number of distance bands."""
        return len(self.band_edges) - 1

    @property
    def error_column(self) -> int:
        """Index of `error_threshold` among `distance_thresholds`."""
        return self.distance_thresholds.index(self.error_threshold)

    @property
    def first_recall(self) -> int:
        """Index into `RECALLS` of the first that counts: the one above `min_recall`."""
        return round(100 * self.min_recall) + 1


@dataclass(frozen=True, eq=False)
class Scores:
    """The metric's arithmetic for R multisets of scenes.

    Attributes:
        average_precision: [R, C, T], by class and distance threshold.
        errors: [R, C, 5], by class and `ERRORS`; NaN where the class has no such error.
        mean_ap_weight: weight of mAP in NDS.
    """

    average_precision: FloatArray
    errors: FloatArray
    mean_ap_weight: float

    @property
    def headline(self) -> dict[str, FloatArray]:
        """[R] mAP, NDS and the five errors averaged over the classes that have them (mATE to mAAE)."""
        mean_ap = self.average_precision.mean(axis=2).mean(axis=1)
        mean_errors = np.nanmean(self.errors, axis=1)  # [R, 5]
        total = self.mean_ap_weight * mean_ap + np.maximum(1 - mean_errors, 0).sum(axis=1)
        nds = total / (self.mean_ap_weight + len(ERRORS))
        return {"mAP": mean_ap, "NDS": nds} | {f"m{name}": mean_errors[:, i] for i, name in enumerate(ERRORS)}


def prediction_dtype(thresholds: int) -> np.dtype[np.void]:
    """Return the record kept per prediction, 21 bytes at four thresholds.

    `hit` is true for each threshold at which it matched; `band` is the distance band of its match, or its own.
    """
    return np.dtype(
        [
            ("score", np.float64),
            ("scene", np.int32),
            ("label", np.uint8),
            ("hit", np.bool_, (thresholds,)),
            ("band", np.uint8, (thresholds,)),
        ]
    )


@dataclass(eq=False)
class MatchTable:
    """The input of the metric after predictions and ground truth have been matched.

    Attributes:
        config: the settings of the matching and of the metric.
        groups: tokens of the S scenes.
        samples: [S] evaluated samples.
        positives: [S, C, B] ground truths by scene, class and distance band.
        predictions: [P] records of `prediction_dtype`, in the order in which they were evaluated.
        errors: [M, 5] `ERRORS` of the predictions with a hit at `error_threshold`, in their order.
    """

    config: NuScenesMetricConfig
    groups: tuple[str, ...]
    samples: IntArray
    positives: IntArray
    predictions: NDArray[np.void]
    errors: FloatArray

    def scores(self, repeats: IntArray) -> Scores:
        """Compute the metric of R multisets of scenes.

        Args:
            repeats: [R, S] how often each scene counts. A repeated scene counts exactly as if it had been evaluated
                so often, up to the order of predictions of equal score.
        """
        multisets = len(repeats)
        average_precision = np.zeros((multisets, len(CLASSES), len(self.config.distance_thresholds)))
        errors = np.ones((multisets, len(CLASSES), len(ERRORS)))
        most = max(int(matches.hits.sum(axis=1).max(initial=0)) for matches in self._by_class)
        chunk = max(1, MOST_ELEMENTS // (most + 1))
        for first in range(0, multisets, chunk):
            part = slice(first, first + chunk)
            for label in range(len(CLASSES)):
                average_precision[part, label], errors[part, label] = self._class_scores(label, repeats[part])
        for name, undefined in UNDEFINED_ERRORS.items():
            errors[:, CLASSES.index(name), [ERRORS.index(error) for error in undefined]] = np.nan
        return Scores(average_precision, errors, self.config.mean_ap_weight)

    def headlines(self, weights: FloatArray) -> dict[str, FloatArray]:
        """Return [R] mAP, NDS and mean errors with scene s of multiset r counted `weights[r, s]` times.

        Raises:
            ValueError: A weight is not a whole number.
        """
        repeats = weights.astype(np.int64)
        if (repeats != weights).any() or (repeats < 0).any():
            raise ValueError("a scene counts a whole number of times")
        return self.scores(repeats).headline

    def headline(self, weights: FloatArray) -> dict[str, float]:
        """Return the same for one multiset, `weights` [S]."""
        return {name: float(values[0]) for name, values in self.headlines(weights[None]).items()}

    def band_average_precision(self) -> FloatArray:
        """Return AP [B, C, T] by distance band; NaN where the band has no ground truth of the class.

        A match belongs to the band of its ground truth, a false positive to its own.
        """
        positives = self.positives.sum(axis=0)
        shape = (self.config.bands, len(CLASSES), len(self.config.distance_thresholds))
        average_precision = np.full(shape, np.nan)
        once = np.ones((1, len(self.groups)), np.int64)
        for band, label in np.argwhere(positives.T > 0):
            matches = self._by_class[label]
            for column, inside in enumerate(matches.bands == band):
                ranking = Ranking(matches.scores[inside], matches.scenes[inside], matches.hits[column, inside])
                average_precision[band, label, column] = self._average_precision(
                    RecallCurves(ranking, once, positives[label, band][None])
                )[0]
        return average_precision

    def _class_scores(self, label: int, repeats: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return AP [R, T] and errors [R, 5] of a class."""
        matches = self._by_class[label]
        # Without ground truth there is no hit either, and any number but 0 gives the same scores.
        positives = np.maximum(repeats @ self.positives[:, label].sum(axis=1), 1)
        curves = [
            RecallCurves(Ranking(matches.scores, matches.scenes, hits), repeats, positives) for hits in matches.hits
        ]
        average_precision = np.stack([self._average_precision(curve) for curve in curves], axis=1)
        return average_precision, self._errors(curves[self.config.error_column], matches)

    def _average_precision(self, curves: RecallCurves) -> FloatArray:
        """Return AP [R]: the mean of the precision above the minimum, over the recalls that count."""
        counted = curves.precision()[:, self.config.first_recall :]
        average: FloatArray = np.maximum(counted - self.config.min_precision, 0).mean(axis=1)
        return average / (1 - self.config.min_precision)

    def _errors(self, curves: RecallCurves, matches: "_ClassMatches") -> FloatArray:
        """Return errors [R, 5]: the mean of their running means over the recalls that count and are attained."""
        if not len(curves.rows):
            return np.ones((len(curves.repeats), len(ERRORS)))
        confidence = curves.confidence()
        index = np.arange(len(RECALLS))
        last = np.where(confidence != 0, index, 0).max(axis=1, keepdims=True)
        counts = (index >= self.config.first_recall) & (index <= last)
        number = counts.sum(axis=1, keepdims=True)
        values = self.errors[matches.error_rows[curves.rows]]
        total = (curves.running_means(values, confidence) * counts[..., None]).sum(axis=1)
        return np.where(number > 0, total / np.maximum(number, 1), 1.0)

    def save(self, path: Path) -> None:
        """Write to an .npz file that needs no pickle."""
        with replaced_when_complete(path) as part, part.open("wb") as stream:
            np.savez_compressed(
                stream,
                config=np.array(self.config.model_dump_json()),
                groups=np.array(self.groups, dtype=np.str_),
                samples=self.samples,
                positives=self.positives,
                predictions=self.predictions,
                errors=self.errors,
            )

    @classmethod
    def load(cls, path: Path) -> "MatchTable":
        """Read what `save` wrote.

        Raises:
            UserError: the file is not a table of matches.
        """
        try:
            with np.load(path, allow_pickle=False) as columns:
                return cls(
                    config=NuScenesMetricConfig.model_validate_json(columns["config"].item()),
                    groups=tuple(columns["groups"].tolist()),
                    samples=columns["samples"],
                    positives=columns["positives"],
                    predictions=columns["predictions"],
                    errors=columns["errors"],
                )
        except Exception as error:  # zipfile has errors of many types for a damaged file
            raise UserError(
                f"{path} cannot be read as a table of matches; evaluate the checkpoint again to write it."
            ) from error

    @cached_property
    def _by_class(self) -> tuple["_ClassMatches", ...]:
        """The predictions of each class by descending score; of equal scores, the later one is first."""
        error_rows = np.cumsum(self.predictions["hit"][:, self.config.error_column]) - 1
        tables = []
        for label in range(len(CLASSES)):
            rows = np.flatnonzero(self.predictions["label"] == label)
            rows = rows[np.argsort(self.predictions["score"][rows], kind="stable")[::-1]]
            predictions = self.predictions[rows]
            tables.append(
                _ClassMatches(
                    scores=predictions["score"].copy(),
                    scenes=predictions["scene"].astype(np.int64),
                    hits=predictions["hit"].T.copy(),
                    bands=predictions["band"].T.copy(),
                    error_rows=error_rows[rows],
                )
            )
        return tuple(tables)


@dataclass(frozen=True, eq=False)
class _ClassMatches:
    scores: FloatArray  # [P]
    scenes: IntArray  # [P]
    hits: BoolArray  # [T, P]
    bands: NDArray[np.uint8]  # [T, P]
    error_rows: IntArray  # [P] row of `MatchTable.errors`, meaningful for a hit at `error_threshold`
