"""Builders of small detection problems; a box is a keyword away from a plain car at the origin."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pytest
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.evaluation.nuscenes.metric import (
    ATTRIBUTES,
    NO_ATTRIBUTE,
    Cuboids,
    DetectionArrays,
    NuScenesEvaluator,
    NuScenesMetricConfig,
    TruthArrays,
)

Box = dict[str, Any]


def _cuboids(boxes: Sequence[Box]) -> Cuboids:
    yaw = np.array([box.get("yaw", 0.0) for box in boxes])
    size = np.array([box.get("lwh", (4.0, 2.0, 1.5)) for box in boxes]).reshape(-1, 3)
    zero = np.zeros_like(yaw)
    turned = np.stack([np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)], axis=-1)
    given = [box.get("rotation", turn) for box, turn in zip(boxes, turned, strict=True)]
    return Cuboids(
        translation=np.array([(*box.get("xy", (0.0, 0.0)), box.get("z", 0.0)) for box in boxes]).reshape(-1, 3),
        length=size[:, 0],
        width=size[:, 1],
        height=size[:, 2],
        rotation=np.array(given).reshape(-1, 4),
    )


def _labels(boxes: Sequence[Box]) -> np.ndarray:
    return np.array([CLASSES.index(box.get("name", "car")) for box in boxes], np.int64)


def _velocity(boxes: Sequence[Box]) -> np.ndarray:
    return np.array([box.get("velocity", (0.0, 0.0)) for box in boxes]).reshape(-1, 2)


def _attributes(boxes: Sequence[Box]) -> np.ndarray:
    names = [box.get("attribute", "") for box in boxes]
    return np.array([ATTRIBUTES.index(name) if name else NO_ATTRIBUTE for name in names], np.int64)


def detections_of(boxes: Sequence[Box]) -> DetectionArrays:
    scores = np.array([box.get("score", 0.5) for box in boxes], np.float64)
    return DetectionArrays(_cuboids(boxes), _labels(boxes), _velocity(boxes), _attributes(boxes), scores)


def truth_of(
    boxes: Sequence[Box],
    scene: str = "scene-a",
    ego: tuple[float, float, float] = (0.0, 0.0, 0.0),
    racks: Sequence[Box] = (),
) -> TruthArrays:
    points = np.array([box.get("points", 1) for box in boxes], np.int64)
    return TruthArrays(
        _cuboids(boxes),
        _labels(boxes),
        _velocity(boxes),
        _attributes(boxes),
        points,
        scene,
        np.array(ego),
        _cuboids(racks),
    )


def evaluator_of(
    samples: Sequence[tuple[Sequence[Box], TruthArrays]], config: NuScenesMetricConfig | None = None
) -> NuScenesEvaluator:
    evaluator = NuScenesEvaluator(config)
    for number, (predictions, truth) in enumerate(samples):
        evaluator.update(f"sample-{number}", detections_of(predictions), truth)
    return evaluator


@pytest.fixture(scope="session")
def make_detections() -> Callable[[Sequence[Box]], DetectionArrays]:
    """Boxes as dicts to predictions."""
    return detections_of


class MakeTruth(Protocol):
    def __call__(self, boxes: Sequence[Box], scene: str = ..., **sample: Any) -> TruthArrays: ...


@pytest.fixture(scope="session")
def make_truth() -> MakeTruth:
    """Boxes as dicts to the truth of a sample."""
    return truth_of


@pytest.fixture(scope="session")
def make_evaluator() -> Callable[..., NuScenesEvaluator]:
    """Predictions (as dicts) and truth of each sample to an evaluator that has seen them."""
    return evaluator_of
