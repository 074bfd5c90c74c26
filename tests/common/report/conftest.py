"""A small report: one metric in points, one in metres, four scenes a seed."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from bevkd_common.distill.method import Panel
from bevkd_common.evaluation.results import Counts, Metric, Results, Table
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detector import Detections
from bevkd_common.report.inputs import Arm, ArmRun, ReportInput, Scene

TITLES = {"teacher": "the teacher", "baseline": "student alone", "distilled": "student distilled"}


@dataclass
class ByScene:
    """Evidence whose score is the mean over scenes."""

    values: list[float]

    @property
    def groups(self):
        return tuple(f"scene-{index}" for index in range(len(self.values)))

    def headlines(self, weights):
        mean = weights @ np.asarray(self.values) / weights.sum(axis=1)
        return {"score": mean, "error": 1.0 - mean}


def _results(score):
    by_class = Table(rows=("car", "bus"), columns=("score", "error"), values=((score, 1 - score), (None, None)))
    return Results(
        protocol="Mean over scenes.",
        headline={
            "score": Metric(value=score, unit="", higher_is_better=True),
            "error": Metric(value=1 - score, unit="m", higher_is_better=False),
        },
        tables={"score": by_class, "errors": by_class},
        bands=Table(rows=("0-10 m", "10 m and more"), columns=("score",), values=((score,), (None,))),
        counts=Counts(scenes=4, samples=8, predictions=100, ground_truths=20),
    )


def _curve(role):
    terms = {"detection/heatmap": {"value": 2.0, "weight": 0.5}}
    if role == "distilled":
        terms["distillation/features"] = {"value": 3.0, "weight": 2.0}
    return [{"step": step, "terms": terms} for step in (1, 10, 20)]


@pytest.fixture
def make_arm():
    def make(role, scenes_by_seed, *, name=None, parameters=1_500_000, steps=20):
        runs = {
            seed: ArmRun(
                results=_results(float(np.mean(scenes))),
                other_results={},
                evidence=ByScene(scenes),
                curve=_curve(role),
                steps=steps,
                seconds=3.0,
                run_id=f"{name or role}-{seed}",
            )
            for seed, scenes in scenes_by_seed.items()
        }
        return Arm(name or role, TITLES.get(role, name), role, f"What {name or role} is.", parameters, runs)

    return make


def _boxes(*rows):
    tensor = torch.tensor([[x, y, 0.0, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0] for x, y in rows])
    return Boxes(tensor.reshape(-1, 9))


def _detections(boxes, scores):
    return Detections(boxes, torch.tensor(scores), torch.zeros(len(boxes), dtype=torch.int64))


@pytest.fixture
def scene():
    """Two cameras at the origin: one looks along +x, the other along -x. One true box ahead, 10 m away."""
    img_T_lidar = np.zeros((2, 4, 4))
    for camera, forward in enumerate((1.0, -1.0)):
        # u d = 20 d - 20 y, v d = 10 d - 20 z, d = +x or -x
        img_T_lidar[camera] = [
            [20 * forward, -20, 0, 0],
            [10 * forward, 0, -20, 0],
            [forward, 0, 0, 0],
            [0, 0, 0, 1],
        ]
    ahead = _boxes((10.0, 0.0))
    return Scene(
        token="frame",
        images=np.zeros((2, 20, 40, 3), np.uint8),
        camera_names=("FRONT", "BACK"),
        img_T_lidar=img_T_lidar,
        points=np.zeros((5, 3), np.float32),
        truth=_detections(ahead, [1.0]),
        detections={
            "teacher": _detections(ahead, [0.9]),
            "baseline": _detections(_boxes((10.0, 0.0), (-8.0, 1.0)), [0.8, 0.1]),
            "distilled": _detections(_boxes((10.0, 0.0), (-8.0, 1.0)), [0.8, 0.7]),
        },
        threshold=0.3,
        extent=(-20.0, 20.0, -15.0, 15.0),
    )


REGIONS = Panel(
    "Regions", "Where what is.", "regions", torch.tensor([[0, 1], [2, 1]]), (-1.0, 1.0, -1.0, 1.0), ("a", "b", "c")
)
MAP = Panel("Strength", "How strong.", "map", torch.rand(3, 4), (-1.0, 1.0, -1.0, 1.0))


@pytest.fixture
def regions():
    return REGIONS


@pytest.fixture
def strength():
    return MAP


@pytest.fixture
def make_report(make_arm, scene):
    """Teacher at 0.8, student alone at 0.5, distilled 0.1 better in every scene of every seed."""

    def make(*, seeds=(0,), gain=(0.1, 0.1, 0.1, 0.1), baseline=True, controls=(), **changes):
        alone = [0.3, 0.5, 0.5, 0.7]
        arms = [make_arm("teacher", {seed: [0.8] * 4 for seed in seeds}, parameters=10_000_000, steps=40)]
        if baseline:
            arms.append(make_arm("baseline", dict.fromkeys(seeds, alone)))
        distilled = {
            seed: [value + (1 + 0.1 * index) * plus for value, plus in zip(alone, gain, strict=True)]
            for index, seed in enumerate(seeds)
        }
        arms += [make_arm("distilled", distilled), *controls]
        content = {
            "run": "try",
            "method": "Method",
            "paper": "Somebody 2023",
            "dataset": "Small data.",
            "synthetic": False,
            "classes": ("car", "bus"),
            "plan": ["arms     two"],
            "departures": [],
            "warnings": [],
            "recipe": "summary: try",
            "environment": {"python": "3.11"},
            "panels": [REGIONS, MAP],
            "scenes": [scene],
            "bootstrap": 100,
        }
        return ReportInput(arms=arms, **(content | changes))

    return make
