"""Our metric against nuscenes-devkit 1.2 itself: its filters, its matching, its arithmetic."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.evaluation.nuscenes.metric import (
    ATTRIBUTES,
    AVERAGE_PRECISION,
    ERRORS_BY_CLASS,
    NO_ATTRIBUTE,
    Cuboids,
    DetectionArrays,
    NuScenesEvaluator,
    NuScenesMetricConfig,
    TruthArrays,
)
from bevkd_common.evaluation.results import Results

pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed for this Python")

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig, DetectionMetrics
from nuscenes.eval.detection.evaluate import DetectionEval

SEEDS = range(11)
OURS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}


@dataclass(frozen=True)
class Kind:
    """What is special about a family of generated cases."""

    classes: tuple[str, ...] = CLASSES
    truths: int = 25
    predictions: int = 40
    near: float = 0.8  # share of the predictions that are noisy copies of a truth
    noise: float = 1.0
    spread: float = 45.0
    grid: float | None = None
    scores: int | None = None
    unknown_velocity: float = 0.05
    no_attribute: float = 0.1
    no_points: float = 0.1
    racks: int = 0
    at_range: bool = False
    duplicates: bool = False
    tilt: float = 0.02
    config: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "plain": Kind(),
    "equal scores": Kind(scores=3, classes=("car", "pedestrian", "barrier"), spread=12),
    "all scores equal": Kind(scores=1, classes=("car",), spread=8),
    "scores of zero": Kind(scores=2, classes=("car", "bus")),
    "crowd on a grid": Kind(
        grid=0.5, spread=5, classes=("pedestrian", "car"), truths=40, predictions=80, noise=0.7
    ),
    "crowd": Kind(spread=6, classes=("car",), truths=30, predictions=80, noise=2.0, near=0.9),
    "unknown velocities": Kind(unknown_velocity=0.6),
    "no velocity at all": Kind(unknown_velocity=1.0, no_attribute=1.0),
    "at the range limit": Kind(at_range=True, grid=0.25, noise=0.3),
    "bicycle racks": Kind(racks=3, classes=("bicycle", "motorcycle", "car"), spread=15),
    "few predictions": Kind(predictions=3, truths=60, classes=("car", "truck")),
    "any recall counts": Kind(
        predictions=2, truths=150, classes=("car", "truck"), scores=2, config={"min_recall": 0.0}
    ),
    "no predictions": Kind(predictions=0),
    "no ground truth": Kind(truths=0, near=0.0),
    "nothing": Kind(truths=0, predictions=0),
    "duplicates": Kind(duplicates=True, classes=("car", "traffic_cone", "barrier"), spread=20),
    "barriers alone": Kind(classes=("barrier",), spread=15),
    "cones alone": Kind(classes=("traffic_cone",), spread=15),
    "exact": Kind(noise=0.0, near=1.0, predictions=60),
    "steep": Kind(tilt=0.5),
    "other settings": Kind(
        config={
            "class_ranges": {name: 18.0 + 2 * i for i, name in enumerate(CLASSES)},
            "distance_thresholds": (0.25, 1.5, 3.0),
            "error_threshold": 1.5,
            "min_recall": 0.25,
            "min_precision": 0.3,
            "mean_ap_weight": 3.0,
        },
        spread=25,
    ),
}


@dataclass(frozen=True)
class Sample:
    token: str
    predictions: DetectionArrays
    truth: TruthArrays


def _rotations(rng: np.random.Generator, count: int, tilt: float) -> np.ndarray:
    yaw = rng.uniform(-np.pi, np.pi, count)
    flat = np.stack([np.cos(yaw / 2), np.zeros(count), np.zeros(count), np.sin(yaw / 2)], axis=-1)
    return (flat + rng.normal(0, tilt, (count, 4))) * rng.choice([1.0, -1.0, 1.7], (count, 1))


def _cuboids(rng: np.random.Generator, translation: np.ndarray, tilt: float) -> Cuboids:
    size = rng.uniform(0.5, 5, (len(translation), 3))
    return Cuboids(translation, *size.T, _rotations(rng, len(translation), tilt))


def _velocity(rng: np.random.Generator, count: int, unknown: float) -> np.ndarray:
    velocity = rng.normal(0, 2, (count, 2))
    velocity[rng.random(count) < unknown] = np.nan
    return velocity


def _generate(kind: Kind, seed: int) -> list[Sample]:
    rng = np.random.default_rng([seed, list(KINDS.values()).index(kind)])
    names = np.array([CLASSES.index(name) for name in kind.classes])
    samples = []
    for number in range(3):
        ego = np.round(np.append(rng.uniform(-1000, 1000, 2), 0))
        count = rng.poisson(kind.truths)
        centre = np.concatenate(
            [rng.uniform(-kind.spread, kind.spread, (count, 2)), rng.normal(0, 1, (count, 1))], 1
        )
        labels = rng.choice(names, count)
        if kind.at_range:
            reach = NuScenesMetricConfig(**kind.config).ranges[labels, None]
            some = rng.random(count) < 0.5
            direction = rng.choice([[0.6, 0.8], [-0.8, 0.6], [1.0, 0.0], [0.0, -1.0]], count)
            centre[some, :2] = np.round(direction * reach * 4)[some] / 4
        if kind.grid:
            centre[:, :2] = np.round(centre[:, :2] / kind.grid) * kind.grid
        guesses = rng.poisson(kind.predictions)
        source = rng.integers(0, max(count, 1), guesses)
        near = (rng.random(guesses) < kind.near) & (count > 0)
        guess = rng.uniform(-kind.spread, kind.spread, (guesses, 3))
        guess_labels = rng.choice(names, guesses)
        if count:
            shifted = centre[source] + rng.normal(0, kind.noise, (guesses, 3))
            guess = np.where(near[:, None], shifted, guess)
            guess_labels = np.where(near, labels[source], guess_labels)
        if kind.grid:
            guess[:, :2] = np.round(guess[:, :2] / kind.grid) * kind.grid
        if kind.duplicates:
            twin = rng.integers(0, max(guesses, 1), guesses)
            guess, guess_labels = guess[twin], guess_labels[twin]
        scores = rng.random(guesses)
        if kind.scores:
            scores = np.floor(scores * kind.scores) / kind.scores + (0.5 if kind.scores != 2 else 0.0)
        predictions = DetectionArrays(
            cuboids=_cuboids(rng, guess + ego, kind.tilt),
            labels=guess_labels,
            velocity=_velocity(rng, guesses, kind.unknown_velocity / 2),
            attributes=rng.integers(NO_ATTRIBUTE, len(ATTRIBUTES), guesses),
            scores=scores,
        )
        attributes = rng.integers(0, len(ATTRIBUTES), count)
        attributes[rng.random(count) < kind.no_attribute] = NO_ATTRIBUTE
        truth = TruthArrays(
            cuboids=_cuboids(rng, centre + ego, kind.tilt),
            labels=labels,
            velocity=_velocity(rng, count, kind.unknown_velocity),
            attributes=attributes,
            num_points=np.where(rng.random(count) < kind.no_points, 0, rng.integers(-1, 5, count)),
            scene_token=f"scene-{number % 2}",
            ego_translation=ego,
            bicycle_racks=_racks(rng, kind, ego),
        )
        samples.append(Sample(f"sample-{number}", predictions, truth))
    return samples


def _racks(rng: np.random.Generator, kind: Kind, ego: np.ndarray) -> Cuboids:
    centre = ego + np.append(rng.uniform(-kind.spread, kind.spread, (kind.racks, 2)), np.zeros((kind.racks, 1)), 1)
    size = rng.uniform(3, 12, (kind.racks, 3))
    return Cuboids(centre, *size.T, _rotations(rng, kind.racks, kind.tilt))


class _Tables:
    """As much of a NuScenes object as the devkit's filters ask for."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = {sample.token: sample for sample in samples}

    def get(self, table: str, token: str) -> dict[str, Any]:
        name, _, number = token.partition("/")
        truth = self.samples[name].truth
        if table == "sample":
            racks = [f"{token}/{i}" for i in range(len(truth.bicycle_racks))]
            return {"data": {"LIDAR_TOP": token}, "anns": racks}
        if table == "sample_data":
            return {"ego_pose_token": token}
        if table == "ego_pose":
            return {"translation": truth.ego_translation.tolist()}
        rack = truth.bicycle_racks
        row = int(number)
        return {
            "category_name": "static_object.bicycle_rack",
            "translation": rack.translation[row].tolist(),
            "size": [rack.width[row], rack.length[row], rack.height[row]],
            "rotation": rack.rotation[row].tolist(),
        }


def _devkit_boxes(token: str, arrays: DetectionArrays | TruthArrays) -> list[DetectionBox]:
    cuboids = arrays.cuboids
    scores = arrays.scores if isinstance(arrays, DetectionArrays) else np.full(len(arrays), -1.0)
    points = arrays.num_points if isinstance(arrays, TruthArrays) else np.full(len(arrays), -1)
    return [
        DetectionBox(
            sample_token=token,
            translation=tuple(cuboids.translation[i].tolist()),
            size=(float(cuboids.width[i]), float(cuboids.length[i]), float(cuboids.height[i])),
            rotation=tuple(cuboids.rotation[i].tolist()),
            velocity=tuple(arrays.velocity[i].tolist()),
            num_pts=int(points[i]),
            detection_name=CLASSES[arrays.labels[i]],
            detection_score=float(scores[i]),
            attribute_name=ATTRIBUTES[arrays.attributes[i]] if arrays.attributes[i] != NO_ATTRIBUTE else "",
        )
        for i in range(len(arrays))
    ]


def _devkit(samples: list[Sample], config: NuScenesMetricConfig) -> DetectionMetrics:
    settings = DetectionConfig(
        class_range=config.class_ranges,
        dist_fcn="center_distance",
        dist_ths=list(config.distance_thresholds),
        dist_th_tp=config.error_threshold,
        min_recall=config.min_recall,
        min_precision=config.min_precision,
        max_boxes_per_sample=config.max_boxes_per_sample,
        mean_ap_weight=config.mean_ap_weight,
    )
    tables = _Tables(samples)
    sides = []
    for arrays in ("truth", "predictions"):
        boxes = EvalBoxes()
        for sample in samples:
            boxes.add_boxes(sample.token, _devkit_boxes(sample.token, getattr(sample, arrays)))
        boxes = add_center_dist(tables, boxes)
        sides.append(filter_eval_boxes(tables, boxes, settings.class_range) if boxes.all else boxes)
    run = DetectionEval.__new__(DetectionEval)  # its constructor wants a whole data set
    run.cfg, run.verbose = settings, False
    run.gt_boxes, run.pred_boxes = sides
    return run.evaluate()[0]


def _ours(samples: list[Sample], config: NuScenesMetricConfig) -> NuScenesEvaluator:
    evaluator = NuScenesEvaluator(config)
    for sample in samples:
        evaluator.update(sample.token, sample.predictions, sample.truth)
    return evaluator


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _assert_equal(ours: Results, devkit: DetectionMetrics, config: NuScenesMetricConfig) -> None:
    compared = []
    details = devkit.serialize()
    ap, errors = ours.table(AVERAGE_PRECISION), ours.table(ERRORS_BY_CLASS)
    for name in CLASSES:
        for threshold in config.distance_thresholds:
            compared.append((ap.at(name, f"{threshold:g} m"), details["label_aps"][name][threshold]))
        compared.append((ap.at(name, "mean"), details["mean_dist_aps"][name]))
        for metric in TP_METRICS:
            compared.append((errors.at(name, OURS[metric]), details["label_tp_errors"][name][metric]))
    for metric in TP_METRICS:
        compared.append((ours.headline[f"m{OURS[metric]}"].value, details["tp_errors"][metric]))
    compared.append((ours.headline["mAP"].value, details["mean_ap"]))
    compared.append((ours.headline["NDS"].value, details["nd_score"]))
    assert len(compared) == 10 * (len(config.distance_thresholds) + 6) + 7
    mine, theirs = np.array([[_number(a), b] for a, b in compared]).T
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)


def test_defaults_are_the_official_settings() -> None:
    ours, official = NuScenesMetricConfig(), config_factory("detection_cvpr_2019").serialize()
    assert ours.class_ranges == official["class_range"]
    assert list(ours.distance_thresholds) == official["dist_ths"]
    assert ours.error_threshold == official["dist_th_tp"]
    names = ("min_recall", "min_precision", "mean_ap_weight", "max_boxes_per_sample")
    assert [getattr(ours, name) for name in names] == [official[name] for name in names]


def test_there_are_at_least_200_cases() -> None:
    assert len(KINDS) * len(SEEDS) >= 200


@pytest.mark.parametrize("name", KINDS)
def test_every_number_equals_the_devkit(name: str) -> None:
    config = NuScenesMetricConfig(**KINDS[name].config)
    for seed in SEEDS:
        samples = _generate(KINDS[name], seed)
        _assert_equal(_ours(samples, config).compute(), _devkit(samples, config), config)
