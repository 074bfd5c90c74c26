"""What a reader of a data set returns: one key frame as recorded, with the parts that the data set has.

A reader opens files; it augments and filters nothing. `bevkd_common.data.assemble` turns its frames into samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import EgoMotion

Points = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

STREAMS = 6


@dataclass(frozen=True)
class Draws:
    """Random streams of one sample, one for each thing that is drawn; all None where nothing is.

    What a detector does not need leaves the draws of everything else unchanged.

    Attributes:
        scene: The bird's-eye-view augmentation.
        images: The image augmentation.
        clouds: Sweeps, then the order of the points.
        history: Earlier frames.
        pasting: Pasted objects.
        colors: Colour distortion.
    """

    scene: np.random.Generator | None
    images: np.random.Generator | None
    clouds: np.random.Generator | None
    history: np.random.Generator | None
    pasting: np.random.Generator | None
    colors: np.random.Generator | None

    @classmethod
    def of(cls, seed: int | None) -> Draws:
        """The streams of a seed; None draws nothing."""
        if seed is None:
            return cls(*[None] * STREAMS)
        return cls(*map(np.random.default_rng, np.random.SeedSequence(seed).spawn(STREAMS)))


@dataclass(frozen=True, eq=False)
class Annotations:
    """Ground-truth boxes of one key frame.

    Attributes:
        boxes: [M, 9], as in `Boxes`, in the LiDAR axes; NaN velocities are unknown.
        labels: [M], index into the classes; negative for a class that is not detected.
        hits: [M] points that the sensors have of each, of which a trained box needs one; None keeps all boxes.
        difficulty: [M] the data set's own grade of each, or None.
    """

    boxes: Floats
    labels: Ints
    hits: Ints | None = None
    difficulty: Ints | None = None

    @property
    def valid(self) -> Annotations:
        """Those that a detector is trained on.

        Source: `use_valid_flag` of mmdetection3d's CenterPoint, BEVDet and DistillBEV configurations.
        """
        kept = self.labels >= 0
        if self.hits is not None:
            kept &= self.hits > 0
        difficulty = None if self.difficulty is None else self.difficulty[kept]
        return Annotations(self.boxes[kept], self.labels[kept], None, difficulty)


@dataclass(frozen=True)
class CloudLayout:
    """The columns of a point cloud.

    Attributes:
        columns: Names; x, y, z first. A last column "seconds" is filled from `Sweep.seconds`.
        measured: A column, and its value for the points that a sensor measured; None where all are.
    """

    columns: tuple[str, ...]
    measured: tuple[str, float] | None = None

    def is_measured(self, points: Points) -> Booleans:
        """[P] which points a sensor measured."""
        if self.measured is None:
            return np.ones(len(points), dtype=np.bool_)
        name, value = self.measured
        return points[:, self.columns.index(name)] == value


@dataclass(frozen=True, eq=False)
class Sweep:
    """A part of a point cloud in axes of its own.

    Attributes:
        points: [P, F], never written to.
        lidar_T_sweep: [4, 4] to the LiDAR axes of the key frame.
        seconds: How long before the key frame; None leaves the columns as they are.
        kept: [P] which points to take; None takes all.
    """

    points: Points
    lidar_T_sweep: Floats = field(default_factory=lambda: np.eye(4))
    seconds: float | None = None
    kept: Booleans | None = None


@dataclass(frozen=True, eq=False)
class CameraFrame:
    """The images of one moment; L is the LiDAR at the time of the *key frame*, without augmentation.

    Attributes:
        paths: N names, which the reader's `image` opens.
        sizes: [N, 2] height and width in pixels.
        intrinsics: [N, 3, 3].
        lidar_T_cam: [N, 4, 4], each camera at its own time to L.
        lidar_T_past: [4, 4], the LiDAR axes at this moment to L.
        seconds: How long before the key frame.
        row: The reader's number of the key frame that this is; None between two.
        present: Whether this is what was asked for, and no stand-in.
    """

    paths: Sequence[str]
    sizes: Ints
    intrinsics: Floats
    lidar_T_cam: Floats
    lidar_T_past: Floats = field(default_factory=lambda: np.eye(4))
    seconds: float = 0.0
    row: int | None = None
    present: bool = True


@dataclass(frozen=True, eq=False)
class Frame:
    """The sensor data of one key frame, as recorded.

    Attributes:
        clouds: The parts of each point cloud that is needed, by name.
        cameras: The key frame's images, where cameras or depths are needed.
        history: Other frames, oldest first, where they are needed.
        ego: The ego's motion, where it is needed.
        depth_points: [P, 3] the key frame's own points in the LiDAR axes, where depths are needed.
        timestamp: Microseconds, of the LiDAR; None where the data set has none.
        global_T_lidar: [4, 4] pose of the LiDAR axes; None where the data set has none.
    """

    clouds: Mapping[str, Iterable[Sweep]] = field(default_factory=dict)
    cameras: CameraFrame | None = None
    history: Sequence[CameraFrame] = ()
    ego: EgoMotion | None = None
    depth_points: Points | None = None
    timestamp: int | None = None
    global_T_lidar: Floats | None = None


class FrameReader(ABC):
    """The key frames of one split of a data set, read for given needs.

    It travels to loader processes.

    Attributes:
        tokens: The data set's names of the key frames, in time order within each scene.
        scenes: The name of each key frame's scene; where there are none, `tokens`.
        layouts: The columns of each point cloud.
        notes: Clauses for the report about what is read otherwise than asked for.
        root: Folder to which the names of images are relative.
    """

    tokens: Sequence[str]
    scenes: Sequence[str]
    layouts: Mapping[str, CloudLayout]
    notes: tuple[str, ...] = ()
    root: Path = Path()

    @abstractmethod
    def annotations(self, index: int) -> Annotations:
        """The boxes of one key frame; opens no sensor file."""

    @abstractmethod
    def read(self, index: int, draws: Draws) -> Frame:
        """The sensor data of one key frame.

        Args:
            index: Position in `tokens`.
            draws: Its `clouds` and `history` draw what is read; None reads what evaluation reads.

        Raises:
            UserError: If a file is missing or damaged.
        """

    def image(self, name: str) -> Pixels:
        """The RGB pixels [H, W, 3] of one of `CameraFrame.paths`.

        Raises:
            UserError: If the file is missing or no complete image.
        """
        raise NotImplementedError(f"{type(self).__name__} returns frames with cameras but opens no images")

    def drawn(self, needs: DataNeeds) -> str | None:
        """What `read` draws at random, in a few words; None where it draws nothing of these needs."""
        return None

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """JSON-ready, all that determines the plain key frames; None where objects of them cannot be pasted."""
        return None

    def made_paths(self, name: str) -> Sequence[Path]:
        """Where a file that is made of the key frames may be kept, the best place first."""
        return ()
