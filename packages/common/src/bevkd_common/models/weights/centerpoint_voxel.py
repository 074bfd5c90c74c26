"""CenterPoint with voxels, as mmdet3d released it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bevkd_common.models.weights.maps import ReleasedForm, WeightMap

_ENCODER = "pts_middle_encoder."
_STAGE = _ENCODER + "encoder_layers.encoder_layer"

CENTERPOINT_VOXEL = WeightMap(
    source="mmdet3d CenterPoint with voxels",
    prefixes=(
        (_ENCODER + "conv_input.0.", "reader.encoder.stem.conv."),
        (_ENCODER + "conv_input.1.", "reader.encoder.stem.norm."),
        *((f"{_STAGE}{i + 1}.2.0.", f"reader.encoder.stages.{i}.2.conv.") for i in range(3)),
        *((f"{_STAGE}{i + 1}.2.1.", f"reader.encoder.stages.{i}.2.norm.") for i in range(3)),
        *((f"{_STAGE}{i + 1}.", f"reader.encoder.stages.{i}.") for i in range(4)),
        (_ENCODER + "conv_out.0.", "reader.encoder.output.conv."),
        (_ENCODER + "conv_out.1.", "reader.encoder.output.norm."),
        ("pts_backbone.", "backbone."),
        ("pts_neck.", "neck."),
        ("pts_bbox_head.", "head."),
    ),
)
"""With voxels of 0.1 or 0.075 m, with a plain head or a deformable one."""


def _untold(weights: Mapping[str, Tensor]) -> None:
    """Voxels have the same tensors in both families."""


FORMS = (ReleasedForm(CENTERPOINT_VOXEL, "lidar", _untold),)
