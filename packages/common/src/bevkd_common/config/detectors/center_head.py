"""The centre-point head, which CenterPoint and BEVDet share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.model import Config

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Box6 = tuple[float, float, float, float, float, float]


class NmsConfig(Config):
    """Non-maximum suppression among the detections of one task, whatever their class."""

    kind: Literal["circle", "rotate"] = "circle"
    """Criterion: distance of the centres, or exact IoU of the rotated footprints."""
    threshold: PositiveFloat
    """circle: suppress at this *squared* distance in square metres or less; rotate: above this IoU."""
    size_factors: tuple[PositiveFloat, ...] = ()
    """rotate: one factor per class on length and width, for the IoU only (Scale-NMS); empty, all are 1."""

    @model_validator(mode="after")
    def _check(self) -> NmsConfig:
        if self.kind == "rotate" and self.threshold >= 1:
            raise ValueError(f"`threshold` is an IoU and must be below 1, got {self.threshold}")
        if self.kind == "circle" and self.size_factors:
            raise ValueError("`size_factors` need `kind: rotate`: circles have no size")
        return self


def circles(*squared_distances: float) -> tuple[NmsConfig, ...]:
    """One circle rule per task."""
    return tuple(NmsConfig(kind="circle", threshold=threshold) for threshold in squared_distances)


class CenterHeadConfig(Config):
    """The head of CenterPoint: a heat map of centres and box branches, per group of classes (task).

    Defaults are CenterPoint's on nuScenes, from mmdet3d 1.4.
    """

    tasks: tuple[tuple[str, ...], ...] = (
        ("car",),
        ("truck", "construction_vehicle"),
        ("bus", "trailer"),
        ("barrier",),
        ("motorcycle", "bicycle"),
        ("pedestrian", "traffic_cone"),
    )
    """Classes of each task; together they name every class of the data set once."""
    channels: PositiveInt = 64
    """Width of the shared convolution and of each branch."""
    deformable: bool = False
    """Adapt the feature map to each task with deformable convolutions, as in the `dcn` models of mmdet3d."""
    gaussian_overlap: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Smallest IoU of a ground-truth box with a copy that is shifted by the radius of its Gaussian."""
    min_radius: PositiveInt = 2
    """Smallest radius of a Gaussian, in cells."""
    heatmap_weight: NonNegativeFloat = 1.0
    """Loss weight of the heat map."""
    box_weight: NonNegativeFloat = 0.25
    """Loss weight of the box branches."""
    code_weights: tuple[NonNegativeFloat, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
    """Weights of dx, dy, z, log l, log w, log h, sin yaw, cos yaw, vx, vy in the box loss."""
    symmetric_classes: tuple[str, ...] = ()
    """Classes whose front is like their rear: of their two headings, half a turn apart, one is learned, that in
    [-π/2, π/2). As annotated, nothing tells the two apart. Source: the metric of nuScenes, which scores barriers by
    their heading up to half a turn, and cones by none."""
    score_threshold: Fraction = 0.1
    """Smallest score of a detection."""
    max_candidates: PositiveInt = 500
    """Number of cells of a task, those with the highest scores, that are decoded."""
    center_range: Box6 = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    """Lower x, y, z and upper x, y, z in metres; detections with a centre outside are dropped."""
    nms: tuple[NmsConfig, ...] = circles(4.0, 12.0, 10.0, 1.0, 0.85, 0.175)
    """One rule per task."""
    max_detections: PositiveInt = 83
    """Largest number of detections of a task."""

    @model_validator(mode="after")
    def _check(self) -> CenterHeadConfig:
        names = [name for task in self.tasks for name in task]
        if not names or not all(self.tasks):
            raise ValueError("`tasks` must not be empty, nor may one of them be")
        if len(set(names)) < len(names):
            raise ValueError(f"`tasks` name a class twice: {', '.join(names)}")
        if self.deformable and self.channels % 4:
            raise ValueError(f"`channels` must be a multiple of 4 with `deformable`, got {self.channels}")
        if len(self.code_weights) != 10:
            raise ValueError(f"`code_weights` must be 10 numbers, got {len(self.code_weights)}")
        if unknown := set(self.symmetric_classes) - set(names):
            raise ValueError(f"`symmetric_classes` names {', '.join(sorted(unknown))}, which no task has")
        if len(self.nms) != len(self.tasks):
            raise ValueError(f"`nms` must have one rule per task: {len(self.tasks)} tasks, {len(self.nms)} rules")
        for task, rule in zip(self.tasks, self.nms, strict=True):
            if rule.size_factors and len(rule.size_factors) != len(task):
                raise ValueError(f"`size_factors` of task {', '.join(task)} must be {len(task)} numbers")
        return self
