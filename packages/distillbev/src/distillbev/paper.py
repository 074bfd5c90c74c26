"""The paper's tables as data."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from bevkd_common.config.model import Config
from bevkd_common.config.published_rows import PaperRow
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
    text = files("distillbev").joinpath("paper.yaml").read_text("utf-8")
    # libyaml, where PyYAML is built with it, is several times as fast, which `bevkd recipes ls` gains.
    return Paper.model_validate(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


PAPER = "DistillBEV (ICCV 2023)"
README = "README of the released DistillBEV checkpoints"


def published(teacher: str, student: str) -> list[PaperRow]:
    """The rows of a student alone and under a teacher, named as recipes select them; empty for other pairs."""
    rows = _rows()
    if (teacher, student) not in rows:
        return []
    return [rows[pair] for pair in (("none", student), (teacher, student)) if pair in rows]


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


def published_ablations() -> dict[str, PaperRow]:
    """The paper's rows by ablation."""
    tables = load_paper().ablations
    return {
        name: _row(tables[table][row], f"BEVDet4D, {row}", f"ablation of {table}")
        for name, (table, row) in _ROWS.items()
    }


@cache
def _rows() -> dict[tuple[str, str], PaperRow]:
    """By teacher and student, as recipes name them: R50 from the paper, R101 from the released checkpoints.

    Of Swin-B there is one test score, whose teacher is not named: the better one is assumed.
    """
    paper = load_paper()
    rows = {
        (row.teacher.lower(), row.student.lower()): _row(row, _setting(row.teacher, row.student), "main table")
        for row in paper.combinations
    }
    for student, scores in paper.checkpoints["R101"].items():
        for teacher, score in scores.items():
            setting = _setting(teacher, f"{student}-R101")
            rows[teacher.lower(), f"{student.lower()}-r101"] = _row(score, setting, source=README)
    [swin] = [row for row in paper.comparison["test"] if row.method == "DistillBEV-BEVDepth"]
    setting = _setting("MVP", "BEVDepth-Swin-B")
    rows["mvp", "bevdepth-swin-b"] = _row(swin, setting, "comparison on the test set", split="test")
    return rows


def _setting(teacher: str, student: str) -> str:
    return f"{student}, student alone" if teacher == "none" else f"{teacher} to {student}"


def _row(
    scores: Combination | Competitor | Score, setting: str, table: str = "", *, split: str = "val", source: str = ""
) -> PaperRow:
    metrics = {"mAP": scores.mAP, "NDS": scores.NDS}
    return PaperRow(setting, f"nuScenes {split}", metrics, source or f"{PAPER}, {table}")
