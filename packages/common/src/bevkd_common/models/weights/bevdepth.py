"""BEVDepth, as the first code base of BEVDet released it."""

from __future__ import annotations

from dataclasses import replace

from bevkd_common.models.weights.bevdet import family_of_bevdet
from bevkd_common.models.weights.bevdet4d import BEVDET4D_R50
from bevkd_common.models.weights.maps import ReleasedForm

BEVDEPTH_R50 = replace(
    BEVDET4D_R50,
    source="BEVDepth of the BEVDet code base with ResNet-50",
    prefixes=(
        ("img_view_transformer.depthnet.", "lift_splat.depth_net.depth."),
        ("img_view_transformer.featnet.", "lift_splat.depth_net.context."),
        ("img_view_transformer.se.input_conv.", "lift_splat.depth_net.reduce."),
        ("img_view_transformer.se.fc.0.", "lift_splat.depth_net.camera_norm."),
        ("img_view_transformer.se.fc.1.", "lift_splat.depth_net.camera_gain."),
        ("img_view_transformer.extra_depthnet.layers.0.0.downsample.", "lift_splat.depth_net.blocks.0.shortcut."),
        ("img_view_transformer.extra_depthnet.layers.0.", "lift_splat.depth_net.blocks."),
        ("img_view_transformer.dcn.0.", "lift_splat.depth_net.deform."),
        ("img_view_transformer.dcn.1.", "lift_splat.depth_net.norm."),
        *BEVDET4D_R50.prefixes,
    ),
)
"""With one frame or with two."""

FORMS = (ReleasedForm(BEVDEPTH_R50, "lidar", family_of_bevdet),)
