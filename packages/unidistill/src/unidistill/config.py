"""What can be chosen about UniDistill; torch-free.

Defaults are those of the released code with its quirks corrected; the weights depend on the route, and a recipe
states them. `preset: official` fills in the quirks.
"""

from __future__ import annotations

from typing import Literal

from bevkd_common.config.model import Config
from pydantic import NonNegativeFloat, PositiveFloat, model_validator

AdapterKind = Literal["none", "conv1x1", "conv3x3_bn_relu"]
Area = Literal["nine_points", "whole_map", "gaussian"]

OFFICIAL = {
    "transpose_points": True,
    "padding_stamps": True,
    "temperature": 2.0,
    "teacher_batch_norm": "batch",
}
"""Where the released code does otherwise than the defaults below; `preset: official` starts from these."""


class MapPair(Config):
    """A map of the teacher, and the map of the student that imitates it."""

    teacher: str
    """Tap of the teacher."""
    student: str
    """Tap of the student."""
    adapter: AdapterKind = "none"
    """Brings the student's map to the teacher's channels; dropped after training. With equal channels `conv1x1`
    starts as the identity.

    Source: the paper has one layer where the teacher is weaker than the student (camera to LiDAR); the released
    code has none.
    """


class UniDistillConfig(Config):
    """UniDistill; a term with weight 0 is left out, and its taps are not computed."""

    kind: Literal["unidistill"] = "unidistill"
    preset: Literal["clean", "official"] = "clean"
    """Which defaults the quirks take: corrected, or as the released code has them."""

    feature_weight: NonNegativeFloat = 100.0
    """Lambda 1, of the feature distillation. Source: the released code, LiDAR to camera."""
    relation_weight: NonNegativeFloat = 40.0
    """Lambda 2, of the relation distillation. Source: the released code, LiDAR to camera."""
    response_weight: NonNegativeFloat = 10.0
    """Lambda 3, of the response distillation. Source: the released code, LiDAR to camera."""

    low: MapPair = MapPair(teacher="bev_in", student="bev_in")
    """The low-level maps, whose features are compared: what a detector brings to the bird's-eye view."""
    high: MapPair = MapPair(teacher="bev_neck", student="bev_neck")
    """The high-level maps, whose relations are compared: the input of the head."""
    area: Area = "nine_points"
    """Where features are compared: at nine points of each box, everywhere, or around the centres of boxes.

    Source: the paper compares all three and takes the nine points.
    """

    overlap: PositiveFloat = 0.7
    """IoU that sets the radius of the Gaussians of the response mask. Source: the released code."""
    temperature: PositiveFloat = 1.0
    """Divides the teacher's logits, and not the student's. `official`: 2, which pulls its scores towards 0.5."""
    clamp: PositiveFloat = 1e-4
    """Distance of probabilities from 0 and 1. Source: the released code; 1e-3 for the teacher from LiDAR and camera
    to camera."""

    transpose_points: bool = False
    """Whether maps are read at the points with x and y exchanged. `official`: yes, a defect."""
    padding_stamps: bool = False
    """Whether padded boxes mark the cell of the ego in the response mask. `official`: yes, a defect."""
    teacher_batch_norm: Literal["eval", "batch"] = "eval"
    """Statistics of the teacher's batch norm: those of its training, or of the batch. `official`: of the batch."""

    @model_validator(mode="after")
    def _fill_in_preset(self) -> UniDistillConfig:
        # Not a validator of the raw input: strict JSON lists would reach tuples as Python lists and be refused.
        for name, value in OFFICIAL.items() if self.preset == "official" else ():
            if name not in self.model_fields_set:
                object.__setattr__(self, name, value)
        return self

    @model_validator(mode="after")
    def _check(self) -> UniDistillConfig:
        if not (self.feature_weight or self.relation_weight or self.response_weight):
            raise ValueError("all three weights are 0: nothing would be distilled")
        if self.clamp >= 0.5 or self.overlap >= 1:
            raise ValueError("`clamp` must be below 0.5 and `overlap` below 1")
        return self
