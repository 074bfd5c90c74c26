"""What a nuScenes index holds, in lines for people."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from bevkd_common.config.datasets.nuscenes_names import CAMERAS, CLASSES
from bevkd_common.data.nuscenes.index import PREVIOUS_SWEEPS, NuScenesIndex


def summary_lines(index: NuScenesIndex) -> list[str]:
    """Counts of scenes, sweeps, boxes and classes; spread of times and calibration."""
    frames, sweeps, cameras = index.key_frames, index.sweeps, index.cameras
    scenes, first = np.unique(frames.scene, return_index=True)
    within = np.ones(max(len(frames.token) - 1, 0), dtype=np.bool_)
    within[first[first > 0] - 1] = False  # steps from one scene into the next
    steps = np.diff(frames.timestamp)[within] * 1e-6
    offsets = np.abs(cameras.timestamp - frames.timestamp[:, None]) * 1e-6
    sizes = {(int(width), int(height)) for height, width in np.unique(cameras.size.reshape(-1, 2), axis=0)}
    focal = np.median(cameras.intrinsics[:, :, 0, 0], axis=0)
    short = int((sweeps.count < 1 + PREVIOUS_SWEEPS).sum())
    return [
        f"scenes        {len(scenes)} with {len(frames.token)} key frames",
        f"key frames    {_spread(steps, 's')} apart" if len(steps) else "key frames    one a scene",
        f"cameras       up to {offsets.max():.3f} s from the LiDAR, images of "
        + ", ".join(f"{width} x {height}" for width, height in sorted(sizes)),
        "focal length  " + ", ".join(f"{name} {value:.0f}" for name, value in zip(CAMERAS, focal, strict=True)),
        f"sweeps        {1 + PREVIOUS_SWEEPS} at {len(frames.token) - short} key frames, fewer at {short} near the"
        f" start of a scene; {_spread(_sweep_steps(index), 's')} apart",
        *_box_lines(index),
    ]


def _box_lines(index: NuScenesIndex) -> Iterable[str]:
    boxes = index.annotations
    detected = boxes.label >= 0
    count = int(detected.sum())
    if not count:
        yield "boxes         none of a detection class"
        return
    hit = (boxes.lidar_points + boxes.radar_points > 0) & detected
    unknown = np.isnan(boxes.global_velocity).any(axis=1) & detected
    yield (
        f"boxes         {count} of a detection class, {hit.sum() / count:.1%} of them hit by LiDAR or radar;"
        f" {unknown.sum() / count:.1%} without a known velocity; {len(boxes.label) - count} of other things"
    )
    for label, name in enumerate(CLASSES):
        own = boxes.label == label
        if not own.any():
            yield f"  {name:<20}  none"
            continue
        length, width = np.median(boxes.global_size[own][:, [1, 0]], axis=0)
        points = np.median(boxes.lidar_points[own])
        typical = f"median {length:.2f} m long, {width:.2f} m wide, {points:.0f} LiDAR points"
        yield f"  {name:<20}  {own.sum():>8}, {typical}"


def _sweep_steps(index: NuScenesIndex) -> npt.NDArray[np.float64]:
    sweeps = index.sweeps
    steps = (sweeps.timestamp[:, :-1] - sweeps.timestamp[:, 1:]) * 1e-6
    filled = np.arange(steps.shape[1]) < sweeps.count[:, None] - 1
    return np.asarray(steps[filled])


def _spread(values: npt.NDArray[np.float64], unit: str) -> str:
    if not len(values):
        return "none"
    return f"{np.median(values):.3f} {unit} ({values.min():.3f} to {values.max():.3f})"
