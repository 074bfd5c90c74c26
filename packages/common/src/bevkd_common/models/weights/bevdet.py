"""BEVDet, as its first code base released it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bevkd_common.models.weights.maps import BoxFamily, ReleasedForm, WeightMap

BEVDET_R50 = WeightMap(
    source="BEVDet with ResNet-50",
    prefixes=(
        ("img_backbone.", "image_backbone.network."),
        ("img_neck.lateral_convs.0.conv.", "image_neck.laterals.0."),
        ("img_neck.lateral_convs.1.conv.", "image_neck.laterals.1."),
        ("img_neck.fpn_convs.0.conv.", "image_neck.output."),
        ("img_view_transformer.depthnet.", "lift_splat.depth_net.joint."),
        ("img_bev_encoder_backbone.layers.0.0.downsample.", "bev_stages.0.0.shortcut."),
        ("img_bev_encoder_backbone.layers.1.0.downsample.", "bev_stages.1.0.shortcut."),
        ("img_bev_encoder_backbone.layers.2.0.downsample.", "bev_stages.2.0.shortcut."),
        ("img_bev_encoder_backbone.layers.", "bev_stages."),
        ("img_bev_encoder_neck.conv.", "bev_neck.fuse."),
        # DistillBEV's students; inferred, because no list of their keys could be had.
        ("img_bev_encoder_neck.up2.5.", "bev_neck.norm_act.0."),
        ("img_bev_encoder_neck.up2.", "bev_neck.refine."),
        ("pts_bbox_head.", "head."),
    ),
    # Geometry stored as parameters; ours is recomputed from the configuration.
    ignored=tuple(f"img_view_transformer.{name}" for name in ("dx", "bx", "nx", "frustum")),
)


def family_of_bevdet(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    """Return the box convention that the tensors give away, and how."""
    key = "img_view_transformer.frustum"
    return ("old", f"it holds `{key}`, as BEVDet's first code base alone does") if key in weights else None


FORMS = (ReleasedForm(BEVDET_R50, "lidar", family_of_bevdet),)
