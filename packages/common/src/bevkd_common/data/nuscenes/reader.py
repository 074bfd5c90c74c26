"""Key frames of a nuScenes index, read from its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevkd_common.config.datasets.nuscenes_reading import NuScenesReadingConfig
from bevkd_common.data.frames import (
    Annotations,
    Booleans,
    CameraFrame,
    CloudLayout,
    Draws,
    Floats,
    Frame,
    FrameReader,
    Ints,
    Pixels,
    Points,
    Sweep,
)
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.nuscenes.frames import earlier_frames, own_frame
from bevkd_common.data.nuscenes.index import NuScenesIndex, Strings
from bevkd_common.data.nuscenes.index_file import made_paths
from bevkd_common.data.samples import EgoMotion
from bevkd_common.data.sensor_files import SensorFiles
from bevkd_common.data.virtual_points.files import VirtualPointFolder
from bevkd_common.data.virtual_points.lifting import (
    PAINTED_CLOUD,
    PAINTED_COLUMNS,
    RAW,
    nothing_lifted,
    painted_cloud,
)

CLOSE = 1.0
"""Half the side in metres of the square around the sensor in which previous sweeps are cut: the ego's own roof."""

LAYOUTS = {
    LIDAR: CloudLayout(("x", "y", "z", "intensity", "seconds")),
    PAINTED_CLOUD: CloudLayout(PAINTED_COLUMNS, measured=("tag", RAW)),
}
"""The point clouds: as measured, intensity as stored; and with painted and virtual points."""


@dataclass(frozen=True, eq=False)
class NuScenesReader(FrameReader):
    """Key frames `rows` of an index.

    Attributes:
        index: What the tables say.
        rows: The key frames.
        files: The sensor files.
        config: How they are read.
        needs: What is read of them.
        motion: Of the ego by key frame of the index, see `bevkd_common.data.nuscenes.can_bus`; where it is needed.
        virtual_points: Where they lie; where the painted cloud is needed.
        unlifted: Names of previous sweeps that have no virtual points and are read without them.
    """

    index: NuScenesIndex
    rows: Ints
    files: SensorFiles
    config: NuScenesReadingConfig
    needs: DataNeeds
    motion: Floats | None = None
    virtual_points: VirtualPointFolder | None = None
    unlifted: frozenset[str] = frozenset()

    tokens: Sequence[str] = field(init=False, repr=False)
    scenes: Sequence[str] = field(init=False, repr=False)
    notes: tuple[str, ...] = field(init=False, repr=False)
    root: Path = field(init=False, repr=False)
    layouts = LAYOUTS

    def __post_init__(self) -> None:
        key_frames = self.index.key_frames
        unlifted = f"{len(self.unlifted)} sweeps were read without virtual points"
        object.__setattr__(self, "root", self.index.root)
        object.__setattr__(self, "tokens", decoded(key_frames.token[self.rows]))
        object.__setattr__(self, "scenes", decoded(key_frames.scene[self.rows]))
        object.__setattr__(self, "notes", (unlifted,) if self.unlifted else ())

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `FrameReader`."""
        about: dict[str, Any] = {
            "tables_sha256": self.index.tables_sha256,
            "key_frames": hashlib.sha256(self.rows.tobytes()).hexdigest(),
            "pad_empty_sweeps": self.config.pad_empty_sweeps,
        }
        if self.virtual_points is not None:
            about["virtual_points"] = self.virtual_points.manifest.settings_hash
        return about

    def made_paths(self, name: str) -> Sequence[Path]:
        """See `FrameReader`."""
        return made_paths(self.index.root, self.index.version, name)

    def drawn(self, needs: DataNeeds) -> str | None:
        """See `FrameReader`."""
        if needs.clouds and needs.sweeps > 1 and self.config.spare_sweeps:
            return "`spare_sweeps` draws sweeps at random"
        return None

    def image(self, name: str) -> Pixels:
        """See `FrameReader`."""
        return self.files.image(name)

    def annotations(self, index: int) -> Annotations:
        """See `FrameReader`; a box needs a LiDAR or radar point."""
        stored = self.index.annotations
        rows = stored.rows(int(self.rows[index]))
        hits = stored.lidar_points[rows] + stored.radar_points[rows]
        return Annotations(stored.boxes[rows], stored.label[rows], hits)

    def read(self, index: int, draws: Draws) -> Frame:
        """See `FrameReader`."""
        row, needs, key_frames = int(self.rows[index]), self.needs, self.index.key_frames
        history = [] if needs.history is None else earlier_frames(self.index, row, needs.history, draws.history)
        return Frame(
            clouds=self._clouds(row, self._choose_sweeps(row, draws.clouds)) if needs.clouds else {},
            cameras=own_frame(self.index, row) if needs.cameras or needs.depth else None,
            history=history,
            ego=self._ego(row, history) if needs.can_bus else None,
            depth_points=self._sweep(row, 0)[:, :3] if needs.depth else None,
            timestamp=int(key_frames.timestamp[row]),
            global_T_lidar=key_frames.global_T_lidar[row],
        )

    def _ego(self, row: int, history: Sequence[CameraFrame]) -> EgoMotion:
        assert self.motion is not None
        rows = [*(frame.row for frame in history if frame.row is not None), row]
        acceleration, rotation_rate, velocity = torch.tensor(self.motion[rows]).float().split(3, dim=-1)
        pose = torch.tensor(self.index.key_frames.global_T_ego[rows])
        return EgoMotion(pose, acceleration, rotation_rate, velocity)

    def _clouds(self, row: int, columns: Sequence[int]) -> dict[str, Iterator[Sweep]]:
        stored = {column: self._sweep(row, column) for column in dict.fromkeys(columns)}
        return {name: self._sweeps(name, row, columns, stored) for name in self.needs.clouds}

    def _sweeps(self, name: str, row: int, columns: Sequence[int], stored: Mapping[int, Points]) -> Iterator[Sweep]:
        """The sweeps of a cloud, the key frame's own first."""
        sweeps = self.index.sweeps
        for place, column in enumerate(columns):
            points = stored[column] if name == LIDAR else self._painted(row, column, stored[column])
            lag = float((sweeps.timestamp[row, 0] - sweeps.timestamp[row, column]) * 1e-6)
            yield Sweep(points, sweeps.lidar_T_sweep[row, column], lag, _far(points) if place else None)

    def _sweep(self, row: int, column: int) -> Points:
        return self.files.sweep(self._name(row, column))

    def _painted(self, row: int, column: int, points: Points) -> Points:
        assert self.virtual_points is not None
        name = self._name(row, column)
        made = nothing_lifted() if name in self.unlifted else self.virtual_points.read(name)
        return painted_cloud(points, made)

    def _name(self, row: int, column: int) -> str:
        return self.index.sweeps.path[row, column].decode()

    def _choose_sweeps(self, row: int, rng: np.random.Generator | None) -> list[int]:
        """Columns of `Sweeps`, the key frame's own (0) first.

        Upstream: mmdetection3d 1.4 draws the sweeps at random in its evaluations too; here those take the nearest.
        """
        previous = self.needs.sweeps - 1
        stored = int(self.index.sweeps.count[row]) - 1
        if stored == 0:
            return [0] * (1 + previous) if self.config.pad_empty_sweeps else [0]
        candidates = min(stored, previous + self.config.spare_sweeps)
        if rng is None or candidates <= previous:
            return list(range(min(stored, previous) + 1))
        return [0, *(1 + np.sort(rng.choice(candidates, previous, replace=False))).tolist()]


def decoded(names: Strings) -> tuple[str, ...]:
    """Names of an index as text."""
    return tuple(name.decode() for name in names.tolist())


def _far(points: Points) -> Booleans:
    """[P] which points of a previous sweep lie outside the ego's roof."""
    return (np.abs(points[:, :2]) >= CLOSE).any(axis=1)
