"""BEVFormer, as its authors released it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bevkd_common.models.weights.maps import BoxFamily, ReleasedForm, WeightMap

_BEVFORMER_LAYERS = tuple(
    (f"pts_bbox_head.transformer.{theirs}", ours)
    for layer in range(6)
    for theirs, ours in (
        (f"encoder.layers.{layer}.attentions.0.", f"encoder.layers.{layer}.temporal."),
        (f"encoder.layers.{layer}.attentions.1.deformable_attention.", f"encoder.layers.{layer}.spatial."),
        (f"encoder.layers.{layer}.attentions.1.", f"encoder.layers.{layer}.spatial."),
        (f"encoder.layers.{layer}.ffns.0.layers.0.0.", f"encoder.layers.{layer}.feed_forward.0."),
        (f"encoder.layers.{layer}.ffns.0.layers.1.", f"encoder.layers.{layer}.feed_forward.3."),
        (f"decoder.layers.{layer}.attentions.0.attn.", f"head.decoder.layers.{layer}.self_attention."),
        (f"decoder.layers.{layer}.attentions.1.", f"head.decoder.layers.{layer}.cross_attention."),
        (f"decoder.layers.{layer}.ffns.0.layers.0.0.", f"head.decoder.layers.{layer}.feed_forward.0."),
        (f"decoder.layers.{layer}.ffns.0.layers.1.", f"head.decoder.layers.{layer}.feed_forward.3."),
    )
)

BEVFORMER = WeightMap(
    source="BEVFormer",
    prefixes=(
        ("img_backbone.", "image_backbone.network."),
        *((f"img_neck.lateral_convs.{level}.conv.", f"image_neck.laterals.{level}.") for level in range(3)),
        *((f"img_neck.fpn_convs.{level}.conv.", f"image_neck.outputs.{level}.") for level in range(4)),
        ("pts_bbox_head.bev_embedding.weight", "encoder.queries"),
        ("pts_bbox_head.positional_encoding.row_embed.weight", "encoder.positions.rows"),
        ("pts_bbox_head.positional_encoding.col_embed.weight", "encoder.positions.columns"),
        ("pts_bbox_head.transformer.cams_embeds", "encoder.camera_embeddings"),
        ("pts_bbox_head.transformer.level_embeds", "encoder.level_embeddings"),
        ("pts_bbox_head.transformer.can_bus_mlp.norm.", "encoder.can_bus.4."),
        ("pts_bbox_head.transformer.can_bus_mlp.", "encoder.can_bus."),
        *_BEVFORMER_LAYERS,
        ("pts_bbox_head.transformer.encoder.", "encoder."),
        ("pts_bbox_head.transformer.decoder.", "head.decoder."),
        ("pts_bbox_head.transformer.reference_points.", "head.reference_points."),
        ("pts_bbox_head.query_embedding.", "head.queries."),
        ("pts_bbox_head.cls_branches.", "head.decoder.class_branches."),
        ("pts_bbox_head.reg_branches.", "head.decoder.box_branches."),
    ),
    # Weights of the loss, stored as a parameter.
    ignored=("pts_bbox_head.code_weights",),
    # Front, front right, front left, back, back left, back right there.
    reordered=(("encoder.camera_embeddings", (2, 0, 1, 4, 3, 5)),),
)
"""Tiny, small and base, of the old box family. They want `shifted: both`, `rotation_center: [100, 100]` and
`wrap_yaw: false`."""


def _family_of_bevformer(weights: Mapping[str, Tensor]) -> tuple[BoxFamily, str] | None:
    key = "pts_bbox_head.transformer.cams_embeds"
    return ("old", f"it holds `{key}`, as BEVFormer's code alone does") if key in weights else None


FORMS = (ReleasedForm(BEVFORMER, "lidar", _family_of_bevformer),)
