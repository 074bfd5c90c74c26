"""Camera frames of a key frame: its own, and earlier ones of the scene."""

from __future__ import annotations

import numpy as np
import torch

from bevkd_common.data.frames import CameraFrame
from bevkd_common.data.needs import AdjacentFrames, KeyframeQueue
from bevkd_common.data.nuscenes.index import Floats, Ints, NuScenesIndex
from bevkd_common.geometry.transforms import inverse_rigid

SAME_S = 0.06
"""An image this close in time to a key frame's LiDAR is the key frame's own; cameras run at 12 Hz."""
SLACK_S = 0.042
"""By how much a frame may miss its window: half the time between two images."""


def own_frame(index: NuScenesIndex, row: int, *, present: bool = True) -> CameraFrame:
    """The frame of a key frame itself."""
    views = index.cameras
    return CameraFrame(
        paths=[name.decode() for name in views.path[row].tolist()],
        sizes=views.size[row],
        intrinsics=views.intrinsics[row],
        lidar_T_cam=views.lidar_T_cam[row],
        row=row,
        present=present,
    )


def earlier_frames(
    index: NuScenesIndex, row: int, history: AdjacentFrames | KeyframeQueue, rng: np.random.Generator | None
) -> list[CameraFrame]:
    """The history of a key frame, oldest first.

    Args:
        index: Of the data set.
        row: The key frame.
        history: What is asked for.
        rng: Draws as training does; None takes what evaluation takes.
    """
    if isinstance(history, AdjacentFrames):
        moments = index.moments
        here = np.arange(moments.begin[row], moments.end[row])
        seconds = (index.key_frames.timestamp[row] - moments.timestamp[here]) * 1e-6
        chosen = choose_adjacent(seconds, history, rng)
        if not len(chosen):
            return [own_frame(index, row, present=False)] * history.frames
        return [_moment(index, row, int(here[place]), float(seconds[place])) for place in chosen]
    key_frames = index.key_frames
    first = int(np.searchsorted(index.moments.begin, index.moments.begin[row]))
    rows = choose_queue(row, first, history, rng)
    absent = [own_frame(index, row, present=False)] * (history.earlier - len(rows))
    lag = (key_frames.timestamp[row] - key_frames.timestamp[rows]) * 1e-6
    return absent + [_key_frame(index, row, other, float(s)) for other, s in zip(rows, lag, strict=True)]


def choose_adjacent(seconds: Floats, history: AdjacentFrames, rng: np.random.Generator | None) -> Ints:
    """Which frames of a scene are taken, oldest first; none where the scene has no other that may be taken.

    Where no frame lies in the window the farthest before the key frame is taken, and where none is before it, as at
    the start of a scene, the same is done with what follows if `history` lets it. Where there are fewer than asked
    for they repeat.

    Upstream: BEVDet4D, in training and in evaluation; DistillBEV takes nothing that follows. They count images,
    here seconds are compared.

    Args:
        seconds: [F] how long each frame is before the key frame.
        history: What is asked for.
        rng: Draws as training does; None takes the frames nearest to the middles of equal parts of the window.
    """
    side = 1 if (seconds > SAME_S).any() or not history.later else -1
    lag = side * seconds
    others = np.flatnonzero(lag > SAME_S)
    if not len(others):
        return others
    near, far = history.nearest_s, history.farthest_s
    inside = others[(lag[others] > near - SLACK_S) & (lag[others] < far + SLACK_S)]
    if not len(inside):
        inside = others[[lag[others].argmax()]]
    if rng is None:
        middles = near + (far - near) * (np.arange(history.frames) + 0.5) / history.frames
        chosen = inside[np.abs(lag[inside] - middles[:, None]).argmin(axis=1)]
    else:
        chosen = rng.choice(inside, history.frames, replace=len(inside) < history.frames)
    return chosen[np.argsort(-seconds[chosen], kind="stable")]


def choose_queue(row: int, first: int, history: KeyframeQueue, rng: np.random.Generator | None) -> list[int]:
    """Rows of the earlier key frames of a queue, oldest first; fewer where the scene has fewer.

    Args:
        row: The key frame.
        first: First key frame of its scene.
        history: What is asked for.
        rng: Leaves out `history.spare` of the frames at random, which may be such as the scene does not have; None
            takes the nearest.

    Upstream: BEVFormer; it loads frames of the scene before, whose features it then drops.
    """
    if rng is None:
        wanted = np.arange(row - history.earlier, row)
    else:
        candidates = np.arange(row - history.earlier - history.spare, row)
        wanted = np.sort(rng.choice(candidates, history.earlier, replace=False))
    return wanted[wanted >= first].tolist()


def _moment(index: NuScenesIndex, row: int, moment: int, seconds: float) -> CameraFrame:
    moments = index.moments
    lidar_T_global = inverse_rigid(torch.tensor(index.key_frames.global_T_lidar[row])).numpy()
    return CameraFrame(
        paths=[name.decode() for name in moments.path[moment].tolist()],
        sizes=moments.size[moment],
        intrinsics=moments.intrinsics[moment],
        lidar_T_cam=lidar_T_global @ moments.global_T_cam[moment],
        lidar_T_past=lidar_T_global @ moments.global_T_lidar[moment],
        seconds=seconds,
        row=None,
    )


def _key_frame(index: NuScenesIndex, row: int, other: int, seconds: float) -> CameraFrame:
    poses = index.key_frames.global_T_lidar
    lidar_T_past = inverse_rigid(torch.tensor(poses[row])).numpy() @ poses[other]
    own = own_frame(index, other)
    return CameraFrame(
        paths=own.paths,
        sizes=own.sizes,
        intrinsics=own.intrinsics,
        lidar_T_cam=lidar_T_past @ own.lidar_T_cam,
        lidar_T_past=lidar_T_past,
        seconds=seconds,
        row=other,
    )
