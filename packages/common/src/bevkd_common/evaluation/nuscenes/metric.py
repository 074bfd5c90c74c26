"""The nuScenes detection metric, streaming: mAP over centre distances, five true-positive errors, NDS.

Equal to nuscenes-devkit 1.2 (`DetectionEval` with its loaders' filters) to rounding. The devkit walks through the
predictions of the whole split once per class and threshold. Here each sample is matched on its own, which gives the
same matches, because a prediction can only match a ground truth of its own sample.
"""

import numpy as np
from numpy.typing import NDArray

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.data.needs import DataNeeds
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.global_boxes import (
    ATTRIBUTES,
    NO_ATTRIBUTE,
    BoolArray,
    Cuboids,
    DetectionArrays,
    FloatArray,
    IntArray,
    TruthArrays,
)
from bevkd_common.evaluation.nuscenes.matches import (
    ERRORS,
    MatchTable,
    NuScenesMetricConfig,
    prediction_dtype,
)
from bevkd_common.evaluation.results import COUNT, FRACTION, Counts, Metric, Results, Table

__all__ = [
    "ATTRIBUTES",
    "CLASSES",
    "NO_ATTRIBUTE",
    "Cuboids",
    "DetectionArrays",
    "MatchTable",
    "NuScenesEvaluator",
    "NuScenesMetricConfig",
    "TruthArrays",
    "nuscenes_results",
]

BARRIER = CLASSES.index("barrier")
CYCLES = (CLASSES.index("bicycle"), CLASSES.index("motorcycle"))

UNITS = {
    "mAP": FRACTION,
    "NDS": FRACTION,
    "mATE": "m",
    "mASE": "1 - IoU",
    "mAOE": "rad",
    "mAVE": "m/s",
    "mAAE": "1 - accuracy",
}
OF_MOTION = ("mAVE", "mAAE")
"""Errors that a detector can only keep small if it observes more than one instant."""

AVERAGE_PRECISION = "average precision by class"
BY_DISTANCE = "average precision by distance from the ego"
ERRORS_BY_CLASS = "true-positive errors by class"
GROUND_TRUTHS = "ground-truth boxes by class"
"""Titles of the tables."""


class NuScenesEvaluator:
    """Matches sample by sample and keeps 21 bytes a prediction, 40 more for a match."""

    def __init__(self, config: NuScenesMetricConfig | None = None) -> None:
        self.config = config or NuScenesMetricConfig()
        self._edges = np.array(self.config.band_edges)
        self._ranges = self.config.ranges
        self._samples: set[str] = set()
        self._scenes: dict[str, int] = {}
        self._samples_of_scene: list[int] = []
        self._positives: list[IntArray] = []
        self._predictions = [np.zeros(0, prediction_dtype(len(self.config.distance_thresholds)))]
        self._errors = [np.zeros((0, len(ERRORS)))]

    def update(self, sample_token: str, predictions: DetectionArrays, truth: TruthArrays) -> None:
        """Filter and match one sample.

        Samples may come in any order. It decides ties only: of equal scores, the prediction that came later counts
        as the higher one.

        Raises:
            UserError: There are too many predictions, or values that cannot be scored.
            ValueError: The sample was given before.
        """
        where = f"sample {sample_token}"
        if sample_token in self._samples:
            raise ValueError(f"{where} was evaluated before")
        if len(predictions) > self.config.max_boxes_per_sample:
            raise UserError(
                f"{where} has {len(predictions)} predictions; nuScenes allows "
                f"{self.config.max_boxes_per_sample}, so keep those of the highest scores."
            )
        predictions.check(where)
        truth.check(where)
        self._samples.add(sample_token)
        predictions = predictions.take(self._scored(predictions.cuboids, predictions.labels, truth))
        truth = truth.take(self._scored(truth.cuboids, truth.labels, truth) & (truth.num_points != 0))

        scene = self._scene(truth.scene_token)
        bands = self._bands(truth.cuboids, truth)
        np.add.at(self._positives[scene], (truth.labels, bands), 1)
        taken = self._match(predictions, truth)
        rows = np.empty(len(predictions), self._predictions[0].dtype)
        rows["score"] = predictions.scores
        rows["scene"] = scene
        rows["label"] = predictions.labels
        rows["hit"] = taken >= 0
        rows["band"] = self._bands(predictions.cuboids, truth)[:, None]
        rows["band"][taken >= 0] = bands[taken[taken >= 0]]
        self._predictions.append(rows)
        found = taken[:, self.config.error_column]
        self._errors.append(_true_positive_errors(predictions.take(found >= 0), truth, found[found >= 0]))

    def matches(self) -> MatchTable:
        """Return what was matched so far; it scores any multiset of the scenes.

        Raises:
            ValueError: No sample was given.
        """
        if not self._samples:
            raise ValueError("nothing was evaluated")
        self._predictions = [np.concatenate(self._predictions)]
        self._errors = [np.concatenate(self._errors)]
        return MatchTable(
            config=self.config,
            groups=tuple(self._scenes),
            samples=np.array(self._samples_of_scene),
            positives=np.stack(self._positives),
            predictions=self._predictions[0],
            errors=self._errors[0],
        )

    def compute(self) -> Results:
        """Score everything given so far."""
        return nuscenes_results(self.matches())

    def _scene(self, token: str) -> int:
        if token not in self._scenes:
            self._scenes[token] = len(self._scenes)
            self._samples_of_scene.append(0)
            self._positives.append(np.zeros((len(CLASSES), self.config.bands), np.int64))
        scene = self._scenes[token]
        self._samples_of_scene[scene] += 1
        return scene

    def _scored(self, cuboids: Cuboids, labels: IntArray, truth: TruthArrays) -> BoolArray:
        """Whether a box [K] is nearer than its class range and no cycle in a bicycle rack."""
        scored = _distance_to_ego(cuboids, truth) < self._ranges[labels]
        if len(truth.bicycle_racks):
            scored &= ~(np.isin(labels, CYCLES) & truth.bicycle_racks.contain(cuboids.translation))
        return scored

    def _bands(self, cuboids: Cuboids, truth: TruthArrays) -> IntArray:
        return np.searchsorted(self._edges, _distance_to_ego(cuboids, truth), side="right") - 1

    def _match(self, predictions: DetectionArrays, truth: TruthArrays) -> IntArray:
        """Return by prediction and threshold [K, T] the ground truth taken, or -1."""
        thresholds = self.config.distance_thresholds
        taken = np.full((len(predictions), len(thresholds)), -1)
        order = np.argsort(predictions.scores, kind="stable")[::-1]
        offset = predictions.cuboids.translation.T[:2, order, None] - truth.cuboids.translation.T[:2, None]
        same_class = predictions.labels[order, None] == truth.labels
        distance = np.where(same_class, _length(*offset), np.inf)
        for column, threshold in enumerate(thresholds):
            taken[order, column] = match(distance, threshold)
        return taken


def match(distance: FloatArray, threshold: float) -> IntArray:
    """Give each prediction the nearest ground truth that no better prediction takes.

    The outcome of walking through the predictions by falling score, each taking the nearest ground truth still
    free, if that is near enough. It is reached by deferred acceptance: every prediction asks for its nearest
    ground truth, each ground truth keeps the best that asks, the others go on to their next, until nobody is
    refused. That takes as many rounds as one prediction is refused, not one a prediction.

    Args:
        distance: [K, G] metres, predictions by falling score; infinite where the classes differ.
        threshold: metres; a match is strictly nearer.

    Returns:
        [K] index of the ground truth taken, or -1.
    """
    near = np.flatnonzero((distance < threshold).any(axis=1))
    taken = np.full(len(distance), -1)
    open_to = np.where(distance[near] < threshold, distance[near], np.inf)
    rank = np.arange(len(near))
    while len(near):
        choice = open_to.argmin(axis=1)
        asks = np.isfinite(open_to[rank, choice])
        best = np.full(distance.shape[1], len(near))
        np.minimum.at(best, choice[asks], rank[asks])
        refused = asks & (best[choice] != rank)
        if not refused.any():
            taken[near[asks]] = choice[asks]
            break
        open_to[rank[refused], choice[refused]] = np.inf
    return taken


def nuscenes_results(matches: MatchTable) -> Results:
    """Score all scenes once: headline, tables by class, and average precision by distance."""
    config = matches.config
    scores = matches.scores(np.ones((1, len(matches.groups)), np.int64))
    average_precision, errors = scores.average_precision[0], scores.errors[0]
    thresholds = tuple(f"{threshold:g} m" for threshold in config.distance_thresholds)
    bands = tuple(
        f"{near:g}-{far:g} m" for near, far in zip(config.band_edges, config.band_edges[1:], strict=False)
    )
    by_class = matches.band_average_precision().mean(axis=2)  # [B, C]
    by_band = np.array([row[~np.isnan(row)].mean() if not np.isnan(row).all() else np.nan for row in by_class])
    average = average_precision.mean(axis=1, keepdims=True)
    positives = matches.positives.sum(axis=0)
    reach = ", ".join(f"{name} {metres:g} m" for name, metres in config.class_ranges.items())
    return Results(
        protocol=f"nuScenes detection metric, centre distance below {', '.join(thresholds)}; ranges: {reach}",
        primary="mAP",
        headline={
            name: Metric(value=float(values[0]), unit=UNITS[name], higher_is_better=name in ("mAP", "NDS"))
            for name, values in scores.headline.items()
        },
        tables=(
            Table(
                title=AVERAGE_PRECISION,
                rows=CLASSES,
                columns=("mean", *thresholds),
                units=(FRACTION,) * (1 + len(thresholds)),
                values=_cells(np.c_[average, average_precision]),
                compared="mean",
                note=f"Mean over the distance thresholds {', '.join(thresholds)}.",
            ),
            Table(
                title=BY_DISTANCE,
                rows=bands,
                columns=("mAP", *CLASSES),
                units=(FRACTION,) * (1 + len(CLASSES)),
                values=_cells(np.c_[by_band, by_class]),
                compared="mAP",
                note="mAP over the classes that have ground-truth boxes in the band.",
            ),
            Table(
                title=ERRORS_BY_CLASS,
                rows=CLASSES,
                columns=ERRORS,
                units=tuple(UNITS[f"m{name}"] for name in ERRORS),
                values=_cells(errors),
            ),
            Table(
                title=GROUND_TRUTHS,
                rows=CLASSES,
                columns=("all", *bands),
                units=(COUNT,) * (1 + len(bands)),
                values=_cells(np.c_[positives.sum(axis=1), positives].astype(float)),
            ),
        ),
        counts=Counts(
            samples=int(matches.samples.sum()),
            predictions=len(matches.predictions),
            ground_truths=int(positives.sum()),
        ),
        groups="scenes",
    )


def observable(results: Results, needs: DataNeeds) -> Results:
    """Results without the numbers that a detector cannot observe from its input.

    Velocity is a change over time. A detector that reads one sweep or none, and no earlier frame, observes a single
    instant; its velocities are guesses from the appearance, and so are the attributes, which this project derives
    from the speed. For such a detector mAVE and mAAE have a reason instead of a value, and their columns are empty.
    mAP and NDS keep the official formula, in which the errors count as they were scored.

    Args:
        results: Scores of all metrics.
        needs: What the detector reads.
    """
    if (needs.clouds and needs.sweeps > 1) or needs.history is not None:
        return results
    read = (["one sweep"] if needs.clouds else []) + ["one key frame"]
    why = f"not observable: {', '.join(read)}"
    headline = {
        name: metric.model_copy(update={"value": None, "why": why}) if name in OF_MOTION else metric
        for name, metric in results.headline.items()
    }
    tables = tuple(_without_motion(table, why) for table in results.tables)
    return results.model_copy(update={"headline": headline, "tables": tables})


def _without_motion(table: Table, why: str) -> Table:
    if table.title != ERRORS_BY_CLASS:
        return table
    hidden = [f"m{column}" in OF_MOTION for column in table.columns]
    values = tuple(
        tuple(None if hide else value for hide, value in zip(hidden, row, strict=True)) for row in table.values
    )
    return table.model_copy(update={"values": values, "note": f"{' and '.join(OF_MOTION)}: {why}."})


def _distance_to_ego(cuboids: Cuboids, truth: TruthArrays) -> FloatArray:
    offset = cuboids.translation - truth.ego_translation
    return _length(offset[:, 0], offset[:, 1])


def _length(x: FloatArray, y: FloatArray) -> FloatArray:
    """Length of vectors given by their components, any one shape."""
    # Not np.hypot: it rounds otherwise than the devkit's norm, which decides matches exactly at a threshold.
    return np.sqrt(x**2 + y**2)


def _true_positive_errors(predictions: DetectionArrays, truth: TruthArrays, taken: IntArray) -> FloatArray:
    """Return `ERRORS` [M, 5] of matched predictions; NaN where a velocity or the true attribute is unknown.

    Args:
        predictions: M predictions.
        truth: of the same sample.
        taken: [M] the ground truth of each.
    """
    ours, theirs = predictions.cuboids, truth.cuboids
    size = np.stack([ours.length, ours.width, ours.height])
    true_size = np.stack([theirs.length, theirs.width, theirs.height])[:, taken]
    common = np.minimum(size, true_size).prod(axis=0)
    union = size.prod(axis=0) + true_size.prod(axis=0) - common
    period = np.where(predictions.labels == BARRIER, np.pi, 2 * np.pi)  # the front of a barrier is its rear
    turn = theirs.yaw()[taken] - ours.yaw()
    attribute = truth.attributes[taken]
    wrong = np.where(attribute == NO_ATTRIBUTE, np.nan, attribute != predictions.attributes)
    return np.stack(
        [
            _length(*(ours.translation - theirs.translation[taken]).T[:2]),
            1 - common / union,
            np.abs((turn + period / 2) % period - period / 2),
            _length(*(predictions.velocity - truth.velocity[taken]).T),
            wrong,
        ],
        axis=-1,
    )


def _cells(values: NDArray[np.float64]) -> tuple[tuple[float | None, ...], ...]:
    """Rows of a table; NaN becomes None."""
    return tuple(tuple(None if np.isnan(x) else x for x in row) for row in values.tolist())
