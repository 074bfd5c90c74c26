"""How samples are read from data in nuScenes' format, recorded or generated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from bevkd_common.config.datasets.reading import ReadingConfig


class NuScenesReadingConfig(ReadingConfig):
    """How samples are read from nuScenes-shaped data."""

    spare_sweeps: Annotated[int, Field(ge=0, le=10)] = 1
    """Training draws the previous sweeps at random from this many more than it loads (nine of ten)."""
    pad_empty_sweeps: bool = True
    """At the start of a scene, where no sweep precedes the key frame, repeat the key frame in place of each."""
    can_bus: Literal["expansion", "ego_poses"] = "expansion"
    """Source of the ego's motion, for a detector that needs the CAN bus: nuScenes' CAN-bus expansion, unpacked to
    `can_bus` in the data root, or the change of the ego pose between key frames."""
    allow_missing_sweeps: bool = False
    """Whether previous sweeps that have no virtual points are read without them, and counted in the report, where a
    detector needs such points; key frames always need theirs.

    Upstream: the released archive lacks some two thousand files, and such sweeps are left out there.
    """
    max_range: PositiveFloat | None = None
    """Evaluate nearer than this many metres from the ego only; None keeps the official range of each class."""
