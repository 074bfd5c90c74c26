"""What a detector asks of the data; torch-free, so that plans and checks can read it."""

from __future__ import annotations

from dataclasses import dataclass, replace

LIDAR = "lidar"
"""Name of the point cloud as measured, in every data set that has one."""


@dataclass(frozen=True)
class AdjacentFrames:
    """Camera frames before the key frame, at the rate of the cameras (BEVDet4D, BEVDepth).

    Training draws them from a window; evaluation takes those at the middles of equal parts of it.

    Attributes:
        frames: How many, beside the key frame.
        nearest_s: Near end of the window, seconds before the key frame.
        farthest_s: Far end.
        later: Whether a later frame serves where none is before, as at the start of a scene, or the key frame.

    Source: BEVDet4D, arXiv 2203.17054, and its released configurations.
    """

    frames: int = 1
    nearest_s: float = 0.75
    farthest_s: float = 2.25
    later: bool = True

    @property
    def earlier(self) -> int:
        """Frames beside the key frame."""
        return self.frames


@dataclass(frozen=True)
class KeyframeQueue:
    """The key frame and those before it (BEVFormer).

    Attributes:
        frames: In the queue, the key frame included.
        spare: Training draws the earlier ones from this many more than it takes.
        recurrent: Whether detecting carries what was seen from key frame to key frame, in place of the queue.

    Source: BEVFormer, arXiv 2203.17270, and its released configurations: one of the earlier frames is left out.
    """

    frames: int = 3
    spare: int = 1
    recurrent: bool = False

    @property
    def earlier(self) -> int:
        """Frames beside the key frame."""
        return self.frames - 1


@dataclass(frozen=True)
class DataNeeds:
    """Sensors and extras of one detector; `a | b` is what serves both.

    Attributes:
        cameras: The images with their calibration.
        clouds: Names of the point clouds, such as `LIDAR`; see the data set for those that it has.
        sweeps: LiDAR sweeps of each cloud, that of the key frame included.
        history: Earlier frames, or none.
        depth: Depths of the key frame's LiDAR points in the images, for depth supervision.
        can_bus: Pose and motion of the ego, at the key frames of the queue.
    """

    cameras: bool = False
    clouds: frozenset[str] = frozenset()
    sweeps: int = 1
    history: AdjacentFrames | KeyframeQueue | None = None
    depth: bool = False
    can_bus: bool = False

    @property
    def in_order(self) -> bool:
        """Whether detecting takes the key frames of a scene one by one in their order."""
        return isinstance(self.history, KeyframeQueue) and self.history.recurrent

    @property
    def at_test(self) -> DataNeeds:
        """What is needed to detect; supervision is left out, and so are frames that a detector remembers."""
        return replace(self, depth=False, history=None if self.in_order else self.history)

    def __or__(self, other: DataNeeds) -> DataNeeds:
        """The union of two needs.

        Raises:
            ValueError: If the two ask for different kinds of history, or draw it otherwise.
        """
        histories = [history for history in (self.history, other.history) if history is not None]
        longest = max(histories, key=lambda history: history.earlier, default=None)
        if longest is not None and any(replace(h, frames=longest.frames) != longest for h in histories):
            raise ValueError(f"one batch cannot carry both {self.history} and {other.history}")
        return DataNeeds(
            cameras=self.cameras or other.cameras,
            clouds=self.clouds | other.clouds,
            sweeps=max(self.sweeps, other.sweeps),
            history=longest,
            depth=self.depth or other.depth,
            can_bus=self.can_bus or other.can_bus,
        )
