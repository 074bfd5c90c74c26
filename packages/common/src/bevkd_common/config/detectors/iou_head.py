"""The IoU-aware centre head of UniDistill's detectors."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.detectors.center_head import Box6, CenterHeadConfig, Fraction
from bevkd_common.config.model import Config


class IouHeadConfig(Config):
    """A centre head with nine positive cells a box, and a branch that predicts the IoU of the box.

    Defaults are those of UniDistill's released code on nuScenes.
    """

    tasks: tuple[tuple[str, ...], ...] = CenterHeadConfig().tasks
    """Classes of each task; together they name every class of the data set once."""
    channels: PositiveInt = 64
    """Width of the shared convolution and of each branch."""
    positives: PositiveInt = 9
    """Cells nearest to the centre of a box that predict it."""
    code_weights: tuple[NonNegativeFloat, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
    """Weights of dx, dy, z, log l, log w, log h, sin yaw, cos yaw, vx, vy in the box loss."""
    iou_loss_weight: NonNegativeFloat = 5.0
    """Weight of 1 - IoU of the predicted boxes, once the box loss of a task is below 1."""
    swap_width_and_height: bool = False
    """Whether that IoU exchanges width and height. Upstream: the released code does, a defect."""
    score_threshold: Fraction = 0.1
    """Smallest score of a detection."""
    max_candidates: PositiveInt = 1500
    """Number of cells of a task, those with the highest scores, that are decoded."""
    center_range: Box6 = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    """Lower x, y, z and upper x, y, z in metres; detections with a centre outside are dropped."""
    iou_power: Fraction = 0.65
    """a in score^(1 - a) · IoU^a, by which boxes are ordered for suppression; detections keep their score."""
    nms_threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """IoU of footprints above which the box that comes later is suppressed, among the classes of a task."""
    max_detections: PositiveInt = 83
    """Largest number of detections of a task. The released code keeps 100, 600 in all; nuScenes allows 500."""
    max_size: PositiveFloat = 30.0
    """Largest edge of a detection in metres."""

    @model_validator(mode="after")
    def _check(self) -> IouHeadConfig:
        names = [name for task in self.tasks for name in task]
        if not names or not all(self.tasks):
            raise ValueError("`tasks` must not be empty, nor may one of them be")
        if len(set(names)) < len(names):
            raise ValueError(f"`tasks` name a class twice: {', '.join(names)}")
        if len(self.code_weights) != 10:
            raise ValueError(f"`code_weights` must be 10 numbers, got {len(self.code_weights)}")
        return self
