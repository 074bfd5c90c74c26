"""Input of a report: plain data that names no method and no data set in code. The experiment fills it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bevkd_common.config.published_rows import PaperRow
from bevkd_common.distill.panels import Panel
from bevkd_common.evaluation.evaluator import Evidence
from bevkd_common.evaluation.results import Results
from bevkd_common.models.detector import Detections

Role = Literal["teacher", "baseline", "distilled", "control"]


@dataclass(frozen=True, eq=False)
class ArmRun:
    """One arm trained with one seed.

    Attributes:
        results: Scores of the weights by which the arm is judged.
        other_results: Scores of other weights of the same training, such as "raw" beside "ema", by name.
        evidence: Matches for the paired bootstrap; None where `results.groups` is None.
        curve: The lines of `metrics.jsonl`: step, lr, loss, terms {name: {value, weight}}, metrics, grad_norm,
            data_s, step_s.
        steps: Optimizer steps.
        seconds: Wall-clock time of the training.
        run_id: Name of the stage folder.
        notes: Sentences on this training and its data that a reader must see, such as the number of damaged samples
            that were skipped; shown as warnings.
    """

    results: Results
    other_results: Mapping[str, Results]
    evidence: Evidence | None
    curve: Sequence[Mapping[str, Any]]
    steps: int
    seconds: float
    run_id: str
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class ArmReport:
    """One arm: a row of the comparison.

    Attributes:
        name: Short, as in the run folder.
        title: As printed.
        role: Its part in the comparison; a gain is the arm minus the baseline.
        summary: One sentence: what was trained, and how it differs from the baseline.
        parameters: Learned parameters at inference.
        runs: By experiment seed, in order.
    """

    name: str
    title: str
    role: Role
    summary: str
    parameters: int
    runs: Mapping[int, ArmRun]


@dataclass(frozen=True, eq=False)
class Scene:
    """One validation sample with the boxes of several models.

    Attributes:
        token: Of the sample.
        images: [N, H, W, 3] uint8, the input of the models.
        camera_names: N names; the pictures are laid out in this order, in two rows.
        img_T_lidar: [N, 4, 4] LiDAR axes to homogeneous pixels (u d, v d, d, 1) of `images`.
        points: [P, 3] of the key frame's sweep, LiDAR axes.
        truth: Ground-truth boxes.
        detections: By name of the arm; those scored `threshold` or more are drawn.
        threshold: Score below which boxes are not drawn.
        extent: x0, x1, y0, y1 of the picture in metres.
    """

    token: str
    images: npt.NDArray[np.uint8] | None
    camera_names: tuple[str, ...]
    img_T_lidar: npt.NDArray[np.float64] | None
    points: npt.NDArray[np.float32] | None
    truth: Detections
    detections: Mapping[str, Detections]
    threshold: float
    extent: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class ReportInput:
    """Content of one page.

    Attributes:
        run: Name of the run.
        method: Title of the method.
        paper: Citation in one line.
        dataset: One sentence on the data.
        synthetic: Whether the data are generated; the page then says so in a banner.
        classes: Class names in label order.
        arms: Teacher first, then baseline, distilled, controls.
        published: Rows of the paper's tables, shown apart from our numbers.
        plan: The printed plan, line by line.
        departures: One sentence for each setting that differs from the paper's recipe.
        warnings: What a reader must take into account before quoting a number, such as a batch other than the
            recipe's, overrides, or scores that point to a mistake.
        recipe: The resolved recipe as YAML.
        environment: Versions, machine, git state, data fingerprint.
        panels: The method's own pictures.
        scenes: Samples to draw.
        bootstrap: Number of resamples; 0 leaves the bootstrap out.
    """

    run: str
    method: str
    paper: str
    dataset: str
    synthetic: bool
    classes: tuple[str, ...]
    arms: Sequence[ArmReport]
    published: Sequence[PaperRow]
    plan: Sequence[str]
    departures: Sequence[str]
    warnings: Sequence[str]
    recipe: str
    environment: Mapping[str, str]
    panels: Sequence[Panel]
    scenes: Sequence[Scene]
    bootstrap: int = 1000
