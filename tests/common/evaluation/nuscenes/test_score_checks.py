"""Scores that betray a mistake."""

from collections.abc import Mapping

import pytest
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.evaluation.nuscenes.metric import ERRORS_BY_CLASS
from bevkd_common.evaluation.nuscenes.score_checks import findings
from bevkd_common.evaluation.results import FRACTION, Counts, Metric, Results, Table

VELOCITY_ERRORS = dict.fromkeys(CLASSES, 0.97) | {"barrier": None, "traffic_cone": None}


def _results(
    predictions: int = 10,
    ground_truths: int = 10,
    by_class: Mapping[str, float | None] = VELOCITY_ERRORS,
    **scores: float,
) -> Results:
    values = {"mAP": 0.3, "NDS": 0.4, "mATE": 0.5, "mASE": 0.3, "mAOE": 0.5, "mAVE": 0.4, "mAAE": 0.2} | scores
    return Results(
        protocol="",
        primary="mAP",
        headline={
            name: Metric(value=value, unit=FRACTION, higher_is_better=True) for name, value in values.items()
        },
        tables=(
            Table(
                title=ERRORS_BY_CLASS,
                rows=CLASSES,
                columns=("AVE",),
                units=("m/s",),
                values=tuple((by_class[name],) for name in CLASSES),
            ),
        ),
        counts=Counts(samples=1, predictions=predictions, ground_truths=ground_truths),
        groups="scenes",
    )


@pytest.mark.parametrize(
    ("scores", "causes"),
    [
        ({}, []),
        ({"mASE": 0.71, "mAOE": 1.55}, ["width and length are probably swapped and the yaw a quarter turn off"]),
        ({"mASE": 0.61, "mAOE": 1.31}, ["mASE 0.61 with mAOE 1.31"]),
        ({"mASE": 0.6, "mAOE": 1.55}, []),
        ({"mASE": 0.71, "mAOE": 1.3}, []),
        ({"mAVE": 0.98}, ["its velocities were not rotated to the global axes"]),
        ({"mAVE": 0.9}, ["mAVE 0.90"]),
        ({"mAVE": 1.1}, ["mAVE 1.10"]),
        ({"mAVE": 0.89}, []),
        ({"mAVE": 1.11}, []),
        ({"mASE": 0.71, "mAOE": 1.55, "mAVE": 1.0}, ["swapped", "velocities"]),
        (
            {"mAP": 0.0, "mASE": 1.0, "mAOE": 1.5, "mAVE": 1.0},
            ["mAP is 0.0000: the model has learned nothing yet, or the predictions are in the wrong frame"],
        ),
        ({"mAP": 0.0009}, ["mAP is 0.0009"]),
        ({"mAP": 0.001}, []),
        ({"mAP": 0.0, "predictions": 0}, ["No prediction is left to score"]),
        ({"predictions": 1}, []),
        ({"mAP": 0.0, "predictions": 0, "ground_truths": 0}, ["No ground-truth box is left to score"]),
        ({"ground_truths": 1}, []),
    ],
)
def test_likely_causes(scores: dict[str, float], causes: list[str]) -> None:
    found = findings(_results(**scores))
    assert len(found) == len(causes)
    assert all(cause in sentence for cause, sentence in zip(causes, found, strict=True))


@pytest.mark.parametrize("value", [1.0, None])
@pytest.mark.parametrize("name", ["car", "pedestrian"])
def test_nothing_is_said_of_velocities_where_one_class_has_none(name: str, value: float | None) -> None:
    """A class without velocities, or that was never found, counts as 1 in the metric's mean."""
    assert findings(_results(mAVE=0.98, by_class=VELOCITY_ERRORS | {name: value})) == []


def test_a_velocity_that_is_not_observable_is_not_checked() -> None:
    results = _results(mAVE=1.0)
    assert len(findings(results)) == 1
    hidden = Metric(value=None, unit="m/s", higher_is_better=False, why="not observable: one sweep, one key frame")
    assert findings(results.model_copy(update={"headline": results.headline | {"mAVE": hidden}})) == []
