"""Which predictions found an object, and the nuScenes detection metric of them, for any multiset of scenes."""

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from bevkd_common.config.model import Config
from bevkd_common.errors import UserError
from bevkd_common.evaluation.atomic import replaced_when_complete
from bevkd_common.evaluation.global_boxes import CLASSES, MAX_BOXES_PER_SAMPLE, BoolArray, FloatArray, IntArray

ERRORS = ("ATE", "ASE", "AOE", "AVE", "AAE")
"""Translation (m), scale (1 - IoU), orientation (rad), velocity (m/s), attribute (1 - accuracy)."""

RECALLS = np.linspace(0, 1, 101)

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
    """Weight of mAP in NDS, beside five scores of weight 1."""
    max_boxes_per_sample: int = Field(default=MAX_BOXES_PER_SAMPLE, gt=0)
    """More predictions are refused."""
    band_edges: tuple[float, ...] = (0.0, 20.0, 30.0, 50.0)
    """Metres from the ego vehicle; between them lie the distance bands that are also scored on their own."""

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
    """The metric's arithmetic for one set of scenes.

    Attributes:
        average_precision: [C, T], by class and distance threshold.
        errors: [C, 5], by class and `ERRORS`; NaN where the class has no such error.
        mean_ap_weight: weight of mAP in NDS.
    """

    average_precision: FloatArray
    errors: FloatArray
    mean_ap_weight: float

    @property
    def headline(self) -> dict[str, float]:
        """MAP, NDS and the five errors averaged over the classes that have them (mATE to mAAE)."""
        mean_ap = float(self.average_precision.mean(axis=1).mean())
        mean_errors = np.nanmean(self.errors, axis=0)
        total = self.mean_ap_weight * mean_ap + np.maximum(1 - mean_errors, 0).sum()
        nds = float(total / (self.mean_ap_weight + len(ERRORS)))
        means = {f"m{name}": float(value) for name, value in zip(ERRORS, mean_errors, strict=True)}
        return {"mAP": mean_ap, "NDS": nds} | means


def prediction_dtype(thresholds: int) -> np.dtype[np.void]:
    """Return the record kept per prediction, 21 bytes at four thresholds.

    `hit` says by threshold whether it matched; `band` is the distance band of the ground truth matched, or its own.
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
    """All that the metric needs once predictions and ground truth have been matched.

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

    def scores(self, repeats: IntArray | None = None) -> Scores:
        """Compute the metric.

        Args:
            repeats: [S] how often each scene counts; once by default. A repeated scene counts exactly as if it had
                been evaluated so often, up to the order of predictions of equal score.
        """
        if repeats is None:
            repeats = np.ones(len(self.groups), np.int64)
        positives = np.einsum("s,scb->c", repeats, self.positives)
        average_precision = np.zeros((len(CLASSES), len(self.config.distance_thresholds)))
        errors = np.ones((len(CLASSES), len(ERRORS)))
        for label, matches in enumerate(self._by_class):
            rows = np.repeat(np.arange(len(matches.scores)), repeats[matches.scenes])
            if positives[label] and len(rows):
                hits = matches.hits[:, rows]
                average_precision[label] = _average_precision(hits, int(positives[label]), self.config)
                found = rows[hits[self.config.error_column]]
                errors[label] = _mean_errors(
                    matches.scores[rows],
                    hits[self.config.error_column],
                    matches.errors[matches.error_rows[found]],
                    int(positives[label]),
                    self.config,
                )
            errors[label, [ERRORS.index(name) for name in UNDEFINED_ERRORS.get(CLASSES[label], ())]] = np.nan
        return Scores(average_precision, errors, self.config.mean_ap_weight)

    def headline(self, weights: FloatArray) -> dict[str, float]:
        """Return mAP, NDS and the mean errors with scene s counted `weights[s]` times, a whole number."""
        repeats = weights.astype(np.int64)
        if (repeats != weights).any() or (repeats < 0).any():
            raise ValueError("a scene counts a whole number of times")
        return self.scores(repeats).headline

    def band_average_precision(self) -> FloatArray:
        """Return AP [B, C, T] by distance band; NaN where the band has no ground truth of the class.

        A match belongs to the band of its ground truth, a false positive to its own.
        """
        positives = self.positives.sum(axis=0)
        shape = (self.config.bands, len(CLASSES), len(self.config.distance_thresholds))
        average_precision = np.full(shape, np.nan)
        for band, label in np.argwhere(positives.T > 0):
            matches = self._by_class[label]
            for column in range(shape[2]):
                hits = matches.hits[column : column + 1, matches.bands[column] == band]
                average_precision[band, label, column] = (
                    _average_precision(hits, int(positives[label, band]), self.config)[0] if hits.size else 0.0
                )
        return average_precision

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
            UserError: the file cannot be read as one.
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
        except (OSError, KeyError, EOFError, BadZipFile, zlib.error, TypeError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read as a table of matches; evaluate the checkpoint again to write it."
            ) from error

    @cached_property
    def _by_class(self) -> tuple["_ClassMatches", ...]:
        """The predictions of each class by falling score, of equal scores the later one first."""
        hit = self.predictions["hit"][:, self.config.error_column]
        error_row = np.cumsum(hit) - 1
        tables = []
        for label in range(len(CLASSES)):
            rows = np.flatnonzero(self.predictions["label"] == label)
            rows = rows[np.argsort(self.predictions["score"][rows], kind="stable")[::-1]]
            tables.append(
                _ClassMatches(
                    scores=np.ascontiguousarray(self.predictions["score"][rows]),
                    scenes=np.ascontiguousarray(self.predictions["scene"][rows]),
                    hits=np.ascontiguousarray(self.predictions["hit"][rows].T),
                    bands=np.ascontiguousarray(self.predictions["band"][rows].T),
                    errors=self.errors,
                    error_rows=error_row[rows],
                )
            )
        return tuple(tables)


@dataclass(frozen=True, eq=False)
class _ClassMatches:
    scores: FloatArray  # [P]
    scenes: NDArray[np.int32]  # [P]
    hits: BoolArray  # [T, P]
    bands: NDArray[np.uint8]  # [T, P]
    errors: FloatArray  # [M, 5] of all classes
    error_rows: IntArray  # [P] row of `errors`, meaningful where there is a hit


def _average_precision(hits: BoolArray, positives: int, config: NuScenesMetricConfig) -> FloatArray:
    """Average precision [T] of `hits` [T, P] in order of falling score, P and `positives` above 0."""
    found = np.cumsum(hits, axis=1)
    recall = found / positives
    precision = found / np.arange(1, hits.shape[1] + 1)
    sampled = np.stack([np.interp(RECALLS, r, p, right=0) for r, p in zip(recall, precision, strict=True)])
    counted = np.maximum(sampled[:, config.first_recall :] - config.min_precision, 0)
    average: FloatArray = counted.mean(axis=1) / (1 - config.min_precision)
    return average


def _mean_errors(
    scores: FloatArray,
    hits: BoolArray,
    errors: FloatArray,
    positives: int,
    config: NuScenesMetricConfig,
) -> FloatArray:
    """True-positive errors [5]: the running mean over the matches, averaged over the recalls achieved.

    Args:
        scores: [P] falling.
        hits: [P].
        errors: [M, 5] of the hits, in their order.
        positives: number of ground truths, above 0.
        config: the metric's settings.
    """
    confidence = np.interp(RECALLS, np.cumsum(hits) / positives, scores, right=0)
    achieved = np.flatnonzero(confidence)
    if not len(errors) or not len(achieved) or achieved[-1] < config.first_recall:
        return np.ones(len(ERRORS))
    counted = confidence[config.first_recall : achieved[-1] + 1]
    known = ~np.isnan(errors)
    seen = np.cumsum(known, axis=0)
    # Before the first known value the mean counts as 0; a column that is never known counts as 1.
    running = np.divide(np.nancumsum(errors, axis=0), seen, out=np.zeros_like(errors), where=seen > 0)
    running[:, ~known.any(axis=0)] = 1.0
    rising = scores[hits][::-1]
    return np.array([np.interp(counted, rising, column[::-1]).mean() for column in running.T])
