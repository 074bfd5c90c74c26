"""A small report: one metric in points, one in metres, four scenes a seed."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from bevkd_common.distill.panels import MapPanel, MatrixPanel, PointPanel, RegionPanel
from bevkd_common.evaluation.results import COUNT, FRACTION, Counts, Metric, Results, Table
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detector import Detections
from bevkd_common.report.inputs import ArmReport, ArmRun, ReportInput, Scene

UNSEEN = "not observable: one sweep, one key frame"
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


def _results(score, unseen):
    by_class = Table(
        title="score by class",
        rows=("car", "bus"),
        columns=("score", "error"),
        units=(FRACTION, "m"),
        values=((score, 1 - score), (None, None)),
        compared="score",
    )
    error = Metric(value=1 - score, unit="m", higher_is_better=False)
    return Results(
        protocol="Mean over scenes",
        primary="score",
        headline={
            "score": Metric(value=score, unit=FRACTION, higher_is_better=True),
            "error": error.model_copy(update={"value": None, "why": UNSEEN}) if unseen else error,
        },
        tables=(
            by_class,
            Table(
                title="score by distance",
                rows=("0-10 m", "10 m and more"),
                columns=("score",),
                units=(FRACTION,),
                values=((score,), (None,)),
                compared="score",
                note="Metres from the ego.",
            ),
            by_class.model_copy(update={"title": "AP and errors", "compared": None}),
            Table(title="boxes", rows=("car",), columns=("all",), units=(COUNT,), values=((20.0,),)),
        ),
        counts=Counts(samples=8, predictions=100, ground_truths=20),
        groups="scenes",
    )


def _curve(role):
    terms = {"detection/heatmap": {"value": 2.0, "weight": 0.5}}
    if role == "distilled":
        terms["distillation/features"] = {"value": 3.0, "weight": 2.0}
    return [{"step": step, "terms": terms} for step in (1, 10, 20)]


@pytest.fixture
def make_arm():
    def make(role, scenes_by_seed, *, name=None, parameters=1_500_000, steps=20, unseen=False):
        runs = {
            seed: ArmRun(
                results=_results(float(np.mean(scenes)), unseen),
                other_results={},
                evidence=ByScene(scenes),
                curve=_curve(role),
                steps=steps,
                seconds=3.0,
                run_id=f"{name or role}-{seed}",
            )
            for seed, scenes in scenes_by_seed.items()
        }
        return ArmReport(name or role, TITLES.get(role, name), role, f"What {name or role} is.", parameters, runs)

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


EXTENT = (-1.0, 1.0, -1.0, 1.0)
REGIONS = RegionPanel("Regions", "Labels.", torch.tensor([[0, 1], [2, 1]]), ("a", "b", "c"), EXTENT)
MAP = MapPanel("Strength", "Magnitudes.", torch.rand(3, 4), EXTENT)
MATRIX = MatrixPanel("Relations", "Cosines.", torch.arange(6.0).reshape(2, 3), rows="teacher", columns="student")
POINTS = PointPanel(
    "Samples",
    "Sampling points.",
    torch.tensor([[0.5, -0.5], [0.25, 0.75], [-0.5, 0.0]]),
    torch.tensor([0.1, 0.9, 0.4]),
    "metres",
    sizes=torch.tensor([1.0, 2.0, 0.5]),
    background=torch.zeros(4, 4),
    extent=EXTENT,
)


@pytest.fixture
def regions():
    return REGIONS


@pytest.fixture
def strength():
    return MAP


@pytest.fixture
def matrix():
    return MATRIX


@pytest.fixture
def points():
    return POINTS


@pytest.fixture
def make_report(make_arm, scene):
    """Teacher at 0.8, student alone at 0.5, distilled 0.1 better in every scene of every seed."""

    def make(*, seeds=(0,), gain=(0.1, 0.1, 0.1, 0.1), baseline=True, controls=(), unseen=False, **changes):
        alone = [0.3, 0.5, 0.5, 0.7]
        arms = [make_arm("teacher", {seed: [0.8] * 4 for seed in seeds}, parameters=10_000_000, steps=40)]
        if baseline:
            arms.append(make_arm("baseline", dict.fromkeys(seeds, alone), unseen=unseen))
        distilled = {
            seed: [value + (1 + 0.1 * index) * plus for value, plus in zip(alone, gain, strict=True)]
            for index, seed in enumerate(seeds)
        }
        arms += [make_arm("distilled", distilled, unseen=unseen), *controls]
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
            "published": [],
            "panels": [REGIONS, MAP, MATRIX, POINTS],
            "scenes": [scene],
            "bootstrap": 100,
        }
        return ReportInput(arms=arms, **(content | changes))

    return make
