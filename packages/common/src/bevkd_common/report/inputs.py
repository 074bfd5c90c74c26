"""What a report is made of. The experiment fills it in; the report draws it and knows no method and no data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bevkd_common.distill.method import Panel
from bevkd_common.evaluation.evaluator import Evidence
from bevkd_common.evaluation.results import Results
from bevkd_common.models.detector import Detections

Role = Literal["teacher", "baseline", "distilled", "control"]


@dataclass(frozen=True, eq=False)
class ArmRun:
    """One arm trained with one seed.

    Attributes:
        results: The score of the weights that the arm is judged by.
        other_results: Scores of further weights of the same training (say "raw" beside "ema"), by name.
        evidence: What the paired bootstrap resamples.
        curve: The lines of `metrics.jsonl`: step, lr, loss, terms {name: {value, weight}}, metrics, grad_norm,
            data_s, step_s.
        steps: Optimizer steps.
        seconds: Wall-clock time of the training.
        run_id: Name of the stage folder; a number without one is not printed.
        skipped: Damaged samples in whose place another was trained on.
        unlifted: Sweeps that were read without the virtual points that a detector asks for.
    """

    results: Results
    other_results: Mapping[str, Results]
    evidence: Evidence
    curve: Sequence[Mapping[str, Any]]
    steps: int
    seconds: float
    run_id: str
    skipped: int = 0
    unlifted: int = 0


@dataclass(frozen=True, eq=False)
class Arm:
    """One row of the comparison.

    Attributes:
        name: Short, as in the run folder.
        title: As the reader sees it.
        role: What it is compared as; the gain is always distilled minus baseline.
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
    """One validation key frame with the boxes of several models.

    Attributes:
        token: Key frame.
        images: [N, H, W, 3] uint8, as the models saw them.
        camera_names: N names, in reading order for a 2 x 3 mosaic.
        img_T_lidar: [N, 4, 4] LiDAR axes to homogeneous pixels (u d, v d, d, 1) of `images`.
        points: [P, 3] of the key frame's sweep, LiDAR axes.
        truth: Annotated boxes.
        detections: By arm name; the report shows those above `threshold`.
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
    """Everything on one page.

    Attributes:
        run: Name of the run.
        method: Title of the method.
        paper: Citation in one line.
        dataset: One sentence on the data.
        synthetic: Whether no sensor ever saw it; then no reader may miss it.
        classes: Class names in label order.
        arms: Teacher first, then baseline, distilled, controls.
        plan: The printed plan, line by line.
        departures: One sentence for each setting that differs from the paper's recipe.
        warnings: Things a reader must know before quoting a number (non-standard batch, overrides, fingerprints).
        recipe: The resolved recipe as YAML.
        environment: Versions, machine, git state, data fingerprint.
        panels: The method's own pictures.
        scenes: Pictures of key frames.
        bootstrap: Number of resamples.
    """

    run: str
    method: str
    paper: str
    dataset: str
    synthetic: bool
    classes: tuple[str, ...]
    arms: Sequence[Arm]
    plan: Sequence[str]
    departures: Sequence[str]
    warnings: Sequence[str]
    recipe: str
    environment: Mapping[str, str]
    panels: Sequence[Panel]
    scenes: Sequence[Scene]
    bootstrap: int = 1000
    notes: Sequence[str] = field(default_factory=tuple)
