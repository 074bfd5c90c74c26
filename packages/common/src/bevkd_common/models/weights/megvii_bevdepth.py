"""BEVDepth, as Megvii released it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bevkd_common.models.weights.maps import BoxFamily, ReleasedForm, WeightMap

MEGVII_BEVDEPTH_R50 = WeightMap(
    source="Megvii's BEVDepth with ResNet-50",
    prefixes=(
        ("model.backbone.img_backbone.", "image_backbone.network."),
        ("model.backbone.img_neck.", "image_neck."),
        ("model.backbone.depth_net.", "lift_splat.depth_net."),
        ("model.backbone.depth_aggregation_net.", "lift_splat.aggregation."),
        ("model.head.trunk.conv1.", "bev_stages.0.conv1."),
        ("model.head.trunk.bn1.", "bev_stages.0.bn1."),
        ("model.head.trunk.layer1.", "bev_stages.0.blocks."),
        ("model.head.trunk.layer2.", "bev_stages.1.blocks."),
        ("model.head.trunk.layer3.", "bev_stages.2.blocks."),
        ("model.head.neck.", "bev_neck."),
        ("model.head.", "head."),
    ),
    ignored=tuple(f"model.backbone.{name}" for name in ("voxel_size", "voxel_coord", "voxel_num", "frustum")),
)
"""With and without depth aggregation; weights and their average bear the same names."""


def _family_of_megvii(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    key = "model.backbone.voxel_num"
    return ("new", f"it holds `{key}`, as Megvii's code alone does") if key in weights else None


FORMS = (ReleasedForm(MEGVII_BEVDEPTH_R50, "ego", _family_of_megvii),)
