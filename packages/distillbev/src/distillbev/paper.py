"""The paper's tables as data."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from bevkd_common.config.model import Config
from pydantic import model_validator


class Score(Config):
    """Percent, nuScenes."""

    mAP: float
    NDS: float


class Combination(Config):
    """A student under a teacher, nuScenes val; errors in hundredths."""

    teacher: str
    student: str
    mAP: float
    NDS: float
    mATE: float
    mASE: float
    mAOE: float
    mAVE: float
    mAAE: float

    @property
    def computed_nds(self) -> float:
        """NDS from the other columns: (5 mAP + the sum of 100 - min(100, error)) / 10."""
        errors = (self.mATE, self.mASE, self.mAOE, self.mAVE, self.mAAE)
        return (5 * self.mAP + sum(100 - min(100.0, error) for error in errors)) / 10


class Competitor(Config):
    """A row of the comparison with other methods."""

    method: str
    backbone: str
    mAP: float
    NDS: float


class ForegroundWeight(Config):
    """Scores under one weight of the foreground."""

    alpha: float
    mAP: float
    NDS: float


class Curve(Config):
    """Scores after the epochs of `Curves.epochs`."""

    mAP: tuple[float, ...]
    NDS: tuple[float, ...]


class Curves(Config):
    """Scores during training, from a figure and from the authors' log."""

    epochs: tuple[int, ...]
    figure: dict[str, Curve]
    log: dict[str, Curve]


class Paper(Config):
    """All tables."""

    combinations: tuple[Combination, ...]
    """Every teacher with every student."""
    ablations: dict[str, dict[str, Score]]
    """By table, then row: `layers` and `components`."""
    comparison: dict[str, tuple[Competitor, ...]]
    """By split."""
    checkpoints: dict[str, dict[str, dict[str, Score]]]
    """By backbone, student, teacher."""
    curves: Curves
    development: dict[str, Score]
    """BEVDepth with one frame, by layers."""
    foreground_weights: tuple[ForegroundWeight, ...]
    """By alpha."""

    @model_validator(mode="before")
    @classmethod
    def _name_columns(cls, data: Any) -> Any:
        table = data["combinations"]
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        return {**data, "combinations": rows}


@cache
def load_paper() -> Paper:
    """Read the tables that come with the package."""
    return Paper.model_validate(yaml.safe_load(files("distillbev").joinpath("paper.yaml").read_text("utf-8")))


def published(teacher: str, student: str) -> str:
    """Scores of a student alone and under a teacher, named as recipes select them; nothing for other pairs."""
    scores = _scores()
    alone, distilled = scores.get(("none", student)), scores.get((teacher, student))
    if distilled is None:
        return ""
    if alone is None:
        return f"nuScenes test: mAP {distilled.mAP:g}, NDS {distilled.NDS:g}"
    return f"nuScenes val: mAP {alone.mAP:g} -> {distilled.mAP:g}, NDS {alone.NDS:g} -> {distilled.NDS:g}"


_ROWS = {
    "layers_none": ("layers", "none"),
    "layers_h": ("layers", "H"),
    "layers_b2_h": ("layers", "B2+H"),
    "layers_b1_b2_h": ("layers", "B1+B2+H"),
    "layers_b0_b1_b2_h": ("layers", "B0+B1+B2+H"),
    "plain": ("components", "plain"),
    "fgbg": ("components", "fgbg"),
    "fgbg_attention": ("components", "fgbg+attention"),
    "fgbg_attention_scaling": ("components", "fgbg+attention+scaling"),
}


def published_ablations() -> dict[str, str]:
    """Scores of the paper's rows, by ablation, on nuScenes val."""
    tables = load_paper().ablations
    scores = {name: tables[table][row] for name, (table, row) in _ROWS.items()}
    return {name: f"BEVDet4D mAP {score.mAP:g}, NDS {score.NDS:g}" for name, score in scores.items()}


def _scores() -> dict[tuple[str, str], Combination | Competitor | Score]:
    """By teacher and student, as recipes name them: R50 from the paper, R101 from the released checkpoints.

    Of Swin-B there is one test score, whose teacher is not named: the better one is assumed.
    """
    paper = load_paper()
    scores: dict[tuple[str, str], Combination | Competitor | Score] = {
        (row.teacher.lower(), row.student.lower()): row for row in paper.combinations
    }
    for student, rows in paper.checkpoints["R101"].items():
        scores |= {(teacher.lower(), f"{student.lower()}-r101"): score for teacher, score in rows.items()}
    [swin] = [row for row in paper.comparison["test"] if row.method == "DistillBEV-BEVDepth"]
    scores["mvp", "bevdepth-swin-b"] = swin
    return scores
