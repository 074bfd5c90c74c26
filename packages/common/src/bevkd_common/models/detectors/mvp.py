"""MVP: CenterPoint over pillars of painted and virtual points."""

from __future__ import annotations

from bevkd_common.config.detectors.mvp import MvpConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.virtual_points.lifting import PAINTED_FEATURES
from bevkd_common.models.detectors import centerpoint
from bevkd_common.models.detectors.centerpoint import CenterPoint


def build(config: MvpConfig, classes: tuple[str, ...]) -> CenterPoint:
    """Unpack a configuration; see CenterPoint's."""
    needs = DataNeeds(sweeps=config.sweeps, virtual_points=True)
    return centerpoint.build(config, classes, needs, PAINTED_FEATURES)
