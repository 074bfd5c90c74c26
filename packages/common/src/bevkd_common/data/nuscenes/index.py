"""The content of a nuScenes version as arrays: one row per key frame, one row per annotation.

Lengths are metres, angles radians, matrices `dst_T_src` in float64; L is the LiDAR at the time of its key frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bevkd_common.data.nuscenes.tables import scene_names
from bevkd_common.errors import UserError

PREVIOUS_SWEEPS = 10
"""LiDAR sweeps before a key frame that the index holds."""

BICYCLE_RACK = -2
"""Category of racks: bicycles and motorcycles inside one are not evaluated."""
IGNORED = -1
"""Category of annotations that are neither a detection class nor a rack."""

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
        global_T_ego: [S, 4, 4] at the time of the LiDAR.
    """

    token: Strings
    scene: Strings
    timestamp: Ints
    global_T_lidar: Floats
    global_T_ego: Floats


@dataclass(frozen=True, eq=False)
class Sweeps:
    """LiDAR sweeps of each key frame: its own in column 0, then the `K` before it, nearest first.

    Attributes:
        count: [S] filled columns, 1 to 1 + K; sweeps of another scene are excluded.
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
class CameraMoments:
    """[F] moments at the camera rate: key frames and the moments between them.

    Each moment is one image of `CAM_FRONT` and, of each other camera, the image nearest in time. The moments are
    scene by scene in time order.

    Attributes:
        begin: [S] the first moment of the scene of each key frame.
        end: [S] one past the last moment of that scene.
        timestamp: [F] microseconds, of `CAM_FRONT`.
        global_T_lidar: [F, 4, 4], pose of the LiDAR at the time of the `CAM_FRONT` image.
        path: [F, 6] relative to the root, cameras in the order of `CAMERAS`.
        intrinsics: [F, 6, 3, 3].
        global_T_cam: [F, 6, 4, 4], each camera at its own time.
        size: [F, 6, 2] height and width in pixels.
    """

    begin: Ints
    end: Ints
    timestamp: Ints
    global_T_lidar: Floats
    path: Strings
    intrinsics: Floats
    global_T_cam: Floats
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
        """Rows of the annotations of a key frame."""
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
    moments: CameraMoments
    annotations: Annotations

    def split(self, name: str) -> Ints:
        """Key frames of a split, in order.

        Raises:
            UserError: If the split is not defined, or this version lacks some of its scenes.
        """
        wanted = scene_names(self.root, self.version, name)
        present = set(np.unique(self.key_frames.scene).tolist())
        missing = [scene for scene in wanted if scene.encode() not in present]
        if missing:
            raise UserError(
                f"{self.root / self.version} has {len(wanted) - len(missing)} of the {len(wanted)} scenes of split "
                f"{name!r}, {missing[0]} is missing; choose a split of this version, or unpack the rest"
            )
        return np.flatnonzero(np.isin(self.key_frames.scene, np.array([scene.encode() for scene in wanted])))
