"""What a detector asks of the data; torch-free, so that plans and checks can read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdjacentFrames:
    """Camera frames at camera rate before the key frame (BEVDet4D, BEVDepth)."""

    frames: int = 1


@dataclass(frozen=True)
class KeyframeQueue:
    """The key frames before this one, oldest first (BEVFormer)."""

    frames: int = 3


@dataclass(frozen=True)
class DataNeeds:
    """Sensors and extras of one detector; `a | b` is what serves both.

    Attributes:
        cameras: The six images with their calibration.
        sweeps: LiDAR sweeps in all, the key frame's own included; 0 asks for no points.
        history: Earlier frames, or none.
        depth: Sparse depth maps of the key frame's LiDAR, for depth supervision.
        can_bus: Ego motion from the CAN bus.
        virtual_points: Points lifted from instance masks (MVP).
    """

    cameras: bool = False
    sweeps: int = 0
    history: AdjacentFrames | KeyframeQueue | None = None
    depth: bool = False
    can_bus: bool = False
    virtual_points: bool = False

    def __or__(self, other: DataNeeds) -> DataNeeds:
        """The union of two needs.

        Raises:
            ValueError: If the two ask for different kinds of history.
        """
        histories = [history for history in (self.history, other.history) if history is not None]
        if len({type(history) for history in histories}) > 1:
            raise ValueError(f"one batch cannot carry both {self.history} and {other.history}")
        return DataNeeds(
            cameras=self.cameras or other.cameras,
            sweeps=max(self.sweeps, other.sweeps),
            history=max(histories, key=lambda history: history.frames, default=None),
            depth=self.depth or other.depth,
            can_bus=self.can_bus or other.can_bus,
            virtual_points=self.virtual_points or other.virtual_points,
        )
