"""Poses of the key frames of an index that boxes may have been moved with by mistake."""

from __future__ import annotations

from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.geometry.convention_checks import KeyFramePoses


def key_frame_poses(index: NuScenesIndex, row: int) -> KeyFramePoses:
    """The poses of one key frame and its neighbours in the scene."""
    frames = index.key_frames
    scene, last = frames.scene[row], len(frames.scene) - 1
    previous = row - 1 if row > 0 and frames.scene[row - 1] == scene else row
    following = row + 1 if row < last and frames.scene[row + 1] == scene else row
    first = row
    while first > 0 and frames.scene[first - 1] == scene:
        first -= 1
    lidar = frames.global_T_lidar
    return KeyFramePoses(lidar[row], frames.global_T_ego[row], lidar[previous], lidar[following], lidar[first])
