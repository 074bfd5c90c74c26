"""Everything a reader asks of a nuScenes version, as arrays: one row a key frame, one row an annotation.

The index is made once from the JSON tables and kept beside them as one `.npz` file without pickles. Lengths are
metres, angles radians, matrices `dst_T_src` in float64; L is the LiDAR at the time of its key frame.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bevkd_common.data.nuscenes_tables import scene_names, table_state
from bevkd_common.errors import UserError

_log = logging.getLogger(__name__)

FORMAT = 1
"""Raise it when the meaning or layout of a field changes; older files are then made anew."""

PREVIOUS_SWEEPS = 10
"""LiDAR sweeps before a key frame that the index knows."""

BICYCLE_RACK = -2
"""Category of racks: bicycles and motorcycles inside one are not evaluated."""
IGNORED = -1
"""Category of what is neither a detection class nor a rack."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Strings = npt.NDArray[np.bytes_]


@dataclass(frozen=True, eq=False)
class KeyFrames:
    """[S] key frames, scene by scene in the order of the scene table, in time order within a scene.

    Attributes:
        token: [S] token of the sample.
        scene: [S] name of the scene.
        timestamp: [S] microseconds, of the LiDAR.
        global_T_lidar: [S, 4, 4].
        ego_translation: [S, 3] global position of the ego at the time of the LiDAR.
    """

    token: Strings
    scene: Strings
    timestamp: Ints
    global_T_lidar: Floats
    ego_translation: Floats


@dataclass(frozen=True, eq=False)
class Sweeps:
    """LiDAR sweeps of each key frame: its own in column 0, then the `K` before it, nearest first.

    Attributes:
        count: [S] columns that are filled, 1 to 1 + K; the sweeps of a scene do not reach into another.
        path: [S, 1 + K] relative to the root.
        timestamp: [S, 1 + K] microseconds.
        lidar_T_sweep: [S, 1 + K, 4, 4], each sweep at its own time to L.
    """

    count: Ints
    path: Strings
    timestamp: Ints
    lidar_T_sweep: Floats


@dataclass(frozen=True, eq=False)
class CameraViews:
    """The six images of each key frame in the order of `CAMERAS`.

    Attributes:
        path: [S, 6] relative to the root.
        timestamp: [S, 6] microseconds.
        intrinsics: [S, 6, 3, 3].
        lidar_T_cam: [S, 6, 4, 4], each camera at its own time to L.
        size: [S, 6, 2] height and width in pixels.
    """

    path: Strings
    timestamp: Ints
    intrinsics: Floats
    lidar_T_cam: Floats
    size: Ints


@dataclass(frozen=True, eq=False)
class Annotations:
    """[A] annotated boxes, key frame by key frame.

    Attributes:
        offset: [S + 1]; key frame s has the rows `offset[s]` to `offset[s + 1]`.
        token: [A] token of the annotation.
        label: [A] detection class, `BICYCLE_RACK` or `IGNORED`.
        boxes: [A, 9] in L, as in `Boxes`; a velocity of NaN is unknown.
        lidar_points: [A] number of LiDAR points inside.
        radar_points: [A] number of radar points inside.
        attribute: [A] name, empty where there is none.
        global_center: [A, 3] as annotated.
        global_size: [A, 3] width, length, height as annotated.
        global_rotation: [A, 4] quaternion w, x, y, z as annotated.
        global_velocity: [A, 2] by the devkit's rule; NaN is unknown.
    """

    offset: Ints
    token: Strings
    label: Ints
    boxes: Floats
    lidar_points: Ints
    radar_points: Ints
    attribute: Strings
    global_center: Floats
    global_size: Floats
    global_rotation: Floats
    global_velocity: Floats

    def rows(self, key_frame: int) -> slice:
        """Where the annotations of a key frame are."""
        return slice(int(self.offset[key_frame]), int(self.offset[key_frame + 1]))


@dataclass(frozen=True, eq=False)
class NuScenesIndex:
    """All key frames of one version, of all splits.

    Attributes:
        root: Folder of the data set, to which paths are relative.
        version: Name of the version folder.
        tables_sha256: Hash of the tables' bytes.
    """

    root: Path
    version: str
    tables_sha256: str
    key_frames: KeyFrames
    sweeps: Sweeps
    cameras: CameraViews
    annotations: Annotations

    PARTS: ClassVar[dict[str, type]] = {
        "key_frames": KeyFrames,
        "sweeps": Sweeps,
        "cameras": CameraViews,
        "annotations": Annotations,
    }

    def split(self, name: str) -> Ints:
        """Key frames of a split, in order.

        Raises:
            UserError: If nobody defines the split, or this version lacks scenes of it.
        """
        wanted = scene_names(self.root, self.version, name)
        present = set(np.unique(self.key_frames.scene).tolist())
        missing = [scene for scene in wanted if scene.encode() not in present]
        if missing or not wanted:
            raise UserError(
                f"{self.root / self.version} has {len(wanted) - len(missing)} of the {len(wanted)} scenes of split "
                f"{name!r} ({', '.join(missing[:3])} ... lack); choose a split of this version, or unpack the rest"
            )
        return np.flatnonzero(np.isin(self.key_frames.scene, np.array([scene.encode() for scene in wanted])))

    def save(self, path: Path, state: str) -> None:
        """Write to `path` through a temporary file; `state` tells later whether the tables have changed."""
        header = {"format": FORMAT, "version": self.version, "tables_sha256": self.tables_sha256, "state": state}
        arrays = {
            f"{part}.{field.name}": getattr(getattr(self, part), field.name)
            for part, kind in self.PARTS.items()
            for field in fields(kind)
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, root: Path, state: str) -> NuScenesIndex | None:
        """Read what `save` wrote; None where the file is absent, damaged, or of other tables or another format."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                header: dict[str, Any] = json.loads(archive["header"].tobytes())
                if (header["format"], header["state"]) != (FORMAT, state):
                    return None
                parts = {
                    part: kind(**{field.name: archive[f"{part}.{field.name}"] for field in fields(kind)})
                    for part, kind in cls.PARTS.items()
                }
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return cls(root, header["version"], header["tables_sha256"], **parts)


def open_index(root: Path, version: str, progress: Callable[[int, int], None] | None = None) -> NuScenesIndex:
    """The index of `root/version`, from its file if that is current, else from the tables.

    The file lies beside the tables, or in the user's cache folder where the tables cannot be written to.

    Args:
        root: Folder of the data set.
        version: Name of the version folder, such as `v1.0-trainval`.
        progress: Called with the steps done and all steps while the tables are read.

    Raises:
        UserError: If the data set lacks something or contradicts itself.
    """
    from bevkd_common.data.index_build import build_index

    root = root.resolve()
    state = table_state(root, version)
    places = index_paths(root, version)
    for path in places:
        index = NuScenesIndex.load(path, root, state)
        if index is not None:
            return index
    index = build_index(root, version, progress)
    _save_somewhere(index, places, state)
    return index


def index_paths(root: Path, version: str) -> tuple[Path, Path]:
    """Where the index of a version may lie: beside its tables, or in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bevkd"
    place = hashlib.sha256(str(root / version).encode()).hexdigest()[:16]
    return root / version / f"bevkd-index-{FORMAT}.npz", cache / f"index-{FORMAT}-{place}.npz"


def _save_somewhere(index: NuScenesIndex, places: tuple[Path, ...], state: str) -> None:
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            index.save(path, state)
        except OSError:
            continue
        return
    _log.warning("the index cannot be kept in %s; the tables will be read each time", " or ".join(map(str, places)))
