"""MVP: CenterPoint over pillars of painted and virtual points."""

from __future__ import annotations

from bevkd_common.config.detectors.mvp import MvpConfig
from bevkd_common.data.virtual_points.lifting import PAINTED_CLOUD, PAINTED_FEATURES
from bevkd_common.models.detectors import centerpoint
from bevkd_common.models.detectors.centerpoint import CenterPoint


def build(config: MvpConfig, classes: tuple[str, ...]) -> CenterPoint:
    """Unpack a configuration; see CenterPoint's."""
    return centerpoint.build(config, classes, PAINTED_CLOUD, PAINTED_FEATURES)
