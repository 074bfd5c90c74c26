"""BEVDet4D, as the first code base of BEVDet released it."""

from __future__ import annotations

from dataclasses import replace

from bevkd_common.models.weights.bevdet import BEVDET_R50, family_of_bevdet
from bevkd_common.models.weights.maps import ReleasedForm

_EARLIER_FRAME = (
    ("pre_process_net.layers.0.0.downsample.", "earlier.stage.0.shortcut."),
    ("pre_process_net.layers.0.", "earlier.stage."),
)

BEVDET4D_R50 = replace(
    BEVDET_R50, source="BEVDet4D with ResNet-50", prefixes=(*BEVDET_R50.prefixes, *_EARLIER_FRAME)
)

FORMS = (ReleasedForm(BEVDET4D_R50, "lidar", family_of_bevdet),)
