"""How the ego moves at key frames, from the CAN-bus expansion or from its poses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from bevkd_common.data.nuscenes.index import Floats, Ints, NuScenesIndex
from bevkd_common.data.sensor_files import check_files
from bevkd_common.errors import UserError
from bevkd_common.files import foreign_content, inside, parse_json, start_of

CHANNELS = 9
"""Acceleration, rotation rate, velocity: x, y, z of each."""
GRAVITY = 9.81
FARTHEST_S = 1.0
"""A key frame without a message this near is not covered."""
OTHERWISE = "or set `can_bus: ego_poses` to derive the motion from the poses"

UNRECORDED = frozenset(f"scene-{number:04d}" for number in (*range(161, 169), *range(170, 177), *range(309, 315)))
"""Scenes of nuScenes whose vehicle recorded nothing; their motion is zero.

Source: the list of the nuScenes devkit; the zeros are BEVFormer's.
"""


def recorded_files(index: NuScenesIndex, rows: Ints) -> dict[str, str]:
    """The file of each scene of `rows` whose motion was recorded, relative to the root."""
    return {name: f"can_bus/{name}_pose.json" for name in _scenes(index, rows) if name not in UNRECORDED}


def _scenes(index: NuScenesIndex, rows: Ints) -> list[str]:
    return [name.decode() for name in np.unique(index.key_frames.scene[rows]).tolist()]


def recorded_motion(index: NuScenesIndex, rows: Ints) -> Floats:
    """What the expansion says at key frames, [S, 9]; NaN where it was not asked for.

    Upstream: BEVFormer takes the first message after the key frame.

    Args:
        index: Of the data set; the expansion lies in `can_bus` under its root.
        rows: Key frames.

    Raises:
        UserError: If a file is missing or damaged, or does not cover a key frame.
    """
    motion = np.full((len(index.key_frames.token), CHANNELS), np.nan)
    scene_of = index.key_frames.scene[rows]
    names = _scenes(index, rows)
    files = recorded_files(index, rows)
    check_files(index.root, files.values(), OTHERWISE)
    for name in names:
        here = rows[scene_of == name.encode()]
        if name not in files:
            motion[here] = 0.0
            continue
        path = inside(index.root, files[name])
        time, values = _messages(path)
        wanted = index.key_frames.timestamp[here]
        after = np.searchsorted(time, wanted, side="right").clip(max=len(time) - 1)
        for row in here[np.abs(time[after] - wanted) > FARTHEST_S * 1e6][:1]:
            token = index.key_frames.token[row].decode()
            raise UserError(f"{path} has no message within {FARTHEST_S:g} s of key frame {token}; {OTHERWISE[3:]}")
        motion[here] = values[after]
    return motion


def derived_motion(index: NuScenesIndex) -> Floats:
    """The same [S, 9] from the poses of the key frames before and after each; zero in a scene of one key frame."""
    key_frames = index.key_frames
    motion = np.zeros((len(key_frames.token), CHANNELS))
    starts = np.unique(index.moments.begin, return_index=True)[1]
    for rows in np.split(np.arange(len(motion)), np.sort(starts)[1:]):
        if len(rows) < 2:
            motion[rows, 2] = GRAVITY
            continue
        seconds = (key_frames.timestamp[rows] - key_frames.timestamp[rows[0]]) * 1e-6
        pose = key_frames.global_T_ego[rows]
        turn = Rotation.from_matrix(pose[:, :3, :3])
        before, after = np.arange(len(rows)).clip(1) - 1, np.arange(len(rows)).clip(max=len(rows) - 2) + 1
        order: Literal[1, 2] = (
            1 if len(rows) == 2 else 2
        )  # at the ends of the scene, exact under a steady acceleration
        velocity = np.gradient(pose[:, :3, 3], seconds, axis=0, edge_order=order)
        acceleration = np.gradient(velocity, seconds, axis=0, edge_order=order) + np.array([0.0, 0.0, GRAVITY])
        rate = (turn[before].inv() * turn[after]).as_rotvec() / (seconds[after] - seconds[before])[:, None]
        motion[rows] = np.c_[turn.inv().apply(acceleration), rate, turn.inv().apply(velocity)]
    return motion


def _messages(path: Path) -> tuple[Ints, Floats]:
    """Microseconds [K] and values [K, 9] of the `pose` messages of a scene, in time order."""
    try:
        messages = parse_json(path.read_bytes())
        time = np.array([message["utime"] for message in messages], dtype=np.int64)
        values = np.array(
            [[*message["accel"], *message["rotation_rate"], *message["vel"]] for message in messages],
            dtype=np.float64,
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        if (known := foreign_content(start_of(path))) is not None:
            raise UserError(f"{path} {known}") from error
        raise UserError(f"{path} is no list of CAN-bus poses ({error}); unpack it again, {OTHERWISE}") from error
    if values.shape != (len(time), CHANNELS) or not len(time) or not np.isfinite(values).all():
        raise UserError(
            f"{path} holds messages without three finite numbers each of accel, rotation_rate and vel; unpack it"
            f" again, {OTHERWISE}"
        )
    order = np.argsort(time, kind="stable")
    return time[order], values[order]
