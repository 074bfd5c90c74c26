"""CenterPoint with pillars, as mmdet3d released it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bevkd_common.models.weights.maps import BoxFamily, ReleasedForm, WeightMap

CENTERPOINT_PILLAR = WeightMap(
    source="mmdet3d CenterPoint with pillars",
    prefixes=(
        ("pts_voxel_encoder.pfn_layers.0.", "reader.pillars."),
        ("pts_backbone.", "backbone."),
        ("pts_neck.", "neck."),
        ("pts_bbox_head.", "head."),
    ),
)


def _family_of_pillars(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    layer = weights.get("pts_voxel_encoder.pfn_layers.0.linear.weight")
    width = 0 if layer is None or layer.ndim != 2 else layer.shape[1]
    families: dict[int, BoxFamily] = {10: "old", 11: "new"}
    return (families[width], f"its pillars have {width} inputs") if width in families else None


FORMS = (ReleasedForm(CENTERPOINT_PILLAR, "lidar", _family_of_pillars),)
