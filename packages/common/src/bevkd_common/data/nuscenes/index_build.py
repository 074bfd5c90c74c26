"""Builds the index of a nuScenes version from its JSON tables."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch

from bevkd_common.config.datasets.nuscenes_names import CAMERAS, CLASSES
from bevkd_common.data.array_file import ArrayFileError, map_arrays, write_arrays
from bevkd_common.data.nuscenes.categories import labels
from bevkd_common.data.nuscenes.index import (
    PREVIOUS_SWEEPS,
    Annotations,
    CameraMoments,
    CameraViews,
    Floats,
    Ints,
    KeyFrames,
    NuScenesIndex,
    Strings,
    Sweeps,
)
from bevkd_common.data.nuscenes.tables import SCHEMA, Table, read_table, table_state
from bevkd_common.data.sensor_files import check_files
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import BOX_CHANNELS
from bevkd_common.geometry.cameras import check_intrinsics
from bevkd_common.geometry.conventions import DevkitBoxes, from_devkit
from bevkd_common.geometry.transforms import inverse_rigid, quaternion_to_rotation, rigid

_log = logging.getLogger(__name__)

LIDAR = "LIDAR_TOP"
VELOCITY_WINDOW = 1.5
"""Longest time in seconds for a velocity from one neighbour; twice that for a velocity from both neighbours."""
QUATERNION_TOLERANCE = 1e-3
LARGEST_IMAGE = 100_000
"""Pixels of a side."""
INCOMPLETE = "or index what is there with `bevkd data index --allow-missing`"
SMALL_TABLES = ("scene", "sample", "sensor", "calibrated_sensor")
"""Tables that are needed in addition to `sample_data` to list the required files."""


@dataclass(frozen=True, eq=False)
class TableReader:
    """Reads tables on request, and stores them so that an interrupted build can resume.

    Attributes:
        root: Folder of the data set.
        version: Name of the version folder.
        partial: Folder for tables that have been read; None stores nothing.
        report: Called after each table.
    """

    root: Path
    version: str
    partial: Path | None
    report: Callable[[], None]

    def read(self, name: str) -> Table:
        """One table, from the folder `partial` if it is there and current."""
        table = self._kept(name)
        if table is None:
            table = read_table(self.root, self.version, name)
            self._keep(name, table)
        self.report()
        return table

    def _keep(self, name: str, table: Table) -> None:
        if self.partial is None:
            return
        about = {"state": self._state(name), "sha256": table.sha256}
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            write_arrays(self.partial / f"{name}.safetensors", about, table.columns)
        except OSError:
            _log.warning("%s cannot be stored in %s; after an interruption it is read again", name, self.partial)

    def _kept(self, name: str) -> Table | None:
        if self.partial is None:
            return None
        try:
            file = map_arrays(self.partial / f"{name}.safetensors")
        except ArrayFileError:
            return None
        if file.about["state"] != self._state(name) or file.arrays.keys() != SCHEMA[name].keys():
            return None
        return Table(self.root / self.version / f"{name}.json", file.arrays, file.about["sha256"])

    def _state(self, name: str) -> str:
        return table_state(self.root, self.version, (name,))


def build_index(
    root: Path,
    version: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    partial: Path | None = None,
    allow_missing: bool = False,
) -> NuScenesIndex:
    """Read the tables and compute the index.

    Args:
        root: Folder of the data set.
        version: Name of the version folder.
        progress: Called with the steps done and all steps.
        partial: Folder for tables that have been read, from which an interrupted build resumes.
        allow_missing: Whether files that the tables name may be missing.

    Raises:
        UserError: If a table is missing, damaged, or contradicts another, or a file is missing.
    """
    steps = len(SCHEMA) + 2
    done = count(1)

    def report() -> None:
        if progress is not None:
            progress(next(done), steps)

    tables = TableReader(root, version, partial, report)
    known = {name: tables.read(name) for name in SMALL_TABLES}
    frames = known["sample_data"] = tables.read("sample_data")
    order, scene_of = _order(known)
    channel, place = _channels(known)[_rigs(known)], _key_frame_of_each(known, order)
    sweeps, cameras = _sensor_rows(known, order, scene_of, channel, place)
    if not allow_missing:
        used = np.unique(np.concatenate([sweeps, cameras], axis=1))
        names = np.unique(frames["filename"][used[used >= 0]])
        check_files(root, (name.decode() for name in names.tolist()), INCOMPLETE)
    known["ego_pose"] = tables.read("ego_pose")
    key_frames, sweep_part, camera_part = _sensors(known, order, scene_of, sweeps, cameras)
    moments = _moments(known, channel, scene_of[place], scene_of, sweeps[:, 0])
    report()
    for name in ("attribute", "category", "instance", "sample_annotation"):
        known[name] = tables.read(name)
    annotations = _annotations(known, order, key_frames)
    report()
    digest = hashlib.sha256("".join(known[name].sha256 for name in SCHEMA).encode()).hexdigest()
    return NuScenesIndex(root, version, digest, key_frames, sweep_part, camera_part, moments, annotations)


def _order(tables: Mapping[str, Table]) -> tuple[Ints, Ints]:
    """Rows of `sample` scene by scene and in time order, and the scene row of each."""
    samples = tables["sample"]
    if not len(samples):
        raise UserError(f"{samples.path} holds no key frame; unpack the tables again")
    scene = tables["scene"].rows(samples["scene_token"])
    order = np.lexsort((samples["timestamp"], scene))
    same = (np.diff(scene[order]) == 0) & (np.diff(samples["timestamp"][order]) == 0)
    for row in np.flatnonzero(same)[:1]:
        first, second = (samples["token"][place].decode() for place in order[row : row + 2])
        raise UserError(
            f"the key frames {first} and {second} in {samples.path} have the same time; unpack it again"
        )
    return order, scene[order]


def _key_frame_of_each(tables: Mapping[str, Table], order: Ints) -> Ints:
    """Key frame of each row of `sample_data`; a row between two key frames belongs to the later."""
    place_of = np.empty(len(order), dtype=np.int64)
    place_of[order] = np.arange(len(order))
    return place_of[tables["sample"].rows(tables["sample_data"]["sample_token"])]


def _sensor_rows(
    tables: Mapping[str, Table], order: Ints, scene_of: Ints, channel: Ints, place: Ints
) -> tuple[Ints, Ints]:
    """Rows of `sample_data`: [S, 1 + K] sweeps, the key frame's first, -1 where there is none; [S, 6] images.

    Args:
        tables: The tables.
        order: First result of `_order`.
        scene_of: Second result of `_order`.
        channel: Channel of each row of `sample_data`, see `_channels`.
        place: Key frame of each row of `sample_data`.
    """
    frames = tables["sample_data"]
    key = np.full((len(order), 1 + len(CAMERAS)), -1)
    of_key = np.flatnonzero(frames["is_key_frame"] & (channel >= 0))
    key[place[of_key], channel[of_key]] = of_key
    for row, column in np.argwhere(key < 0)[:1]:
        token = tables["sample"]["token"][order[row]].decode()
        raise UserError(f"key frame {token} has no {(LIDAR, *CAMERAS)[column]} in {frames.path}; unpack it again")
    previous = np.full(len(frames), -1)
    linked = np.flatnonzero((channel == 0) & (frames["prev"] != b""))
    previous[linked] = frames.rows(frames["prev"][linked])
    sweeps = np.full((len(order), 1 + PREVIOUS_SWEEPS), -1)
    sweeps[:, 0] = key[:, 0]
    for column in range(1, 1 + PREVIOUS_SWEEPS):
        before = sweeps[:, column - 1]
        row = np.where(before >= 0, previous[before], -1)
        # The chain ends where it leads into another scene.
        sweeps[:, column] = np.where((row >= 0) & (scene_of[place[row]] == scene_of), row, -1)
        _check_order(frames, before, sweeps[:, column])
    return sweeps, key[:, 1:]


def _check_order(frames: Table, rows: Ints, previous: Ints) -> None:
    known = previous >= 0
    late = known & (frames["timestamp"][previous] >= frames["timestamp"][rows])
    for row in rows[late][:1]:
        raise UserError(
            f"sweep {frames['token'][row].decode()} in {frames.path} follows one that is not older; unpack it again"
        )


def _rigs(tables: Mapping[str, Table]) -> Ints:
    """Row of the calibrated sensor of each row of `sample_data`."""
    return tables["calibrated_sensor"].rows(tables["sample_data"]["calibrated_sensor_token"])


def _channels(tables: Mapping[str, Table]) -> Ints:
    """Channel of each calibrated sensor: 0 for the LiDAR, 1 to 6 for the cameras, -1 for unused sensors."""
    code = {channel.encode(): number for number, channel in enumerate((LIDAR, *CAMERAS))}
    sensors = np.array([code.get(channel, -1) for channel in tables["sensor"]["channel"].tolist()], dtype=np.int64)
    return sensors[tables["sensor"].rows(tables["calibrated_sensor"]["sensor_token"])]


def _sensors(
    tables: Mapping[str, Table], order: Ints, scene_of: Ints, sweeps: Ints, cameras: Ints
) -> tuple[KeyFrames, Sweeps, CameraViews]:
    rows = np.concatenate([sweeps, cameras], axis=1)
    used = np.unique(rows[rows >= 0])
    place = np.searchsorted(used, rows)  # 0 where there is no row, masked below
    frames = tables["sample_data"]
    rigs, egos = tables["calibrated_sensor"], tables["ego_pose"]
    rig_row = rigs.rows(frames["calibrated_sensor_token"][used])
    global_T_ego = _poses(egos, egos.rows(frames["ego_pose_token"][used]))
    global_T_sensor = (global_T_ego @ _poses(rigs, rig_row))[place]
    global_T_lidar = global_T_sensor[:, 0]
    lidar_T_sensor = (inverse_rigid(global_T_lidar)[:, None] @ global_T_sensor).numpy()
    path = frames["filename"][used][place]
    timestamp = frames["timestamp"][used][place]
    size = np.stack([frames["height"][used], frames["width"][used]], axis=-1)[place]
    _check_images(frames, cameras.ravel())
    intrinsics = _intrinsics(tables)[rig_row]
    split = sweeps.shape[1]
    known = sweeps >= 0
    key_frames = KeyFrames(
        token=tables["sample"]["token"][order],
        scene=tables["scene"]["name"][scene_of],
        timestamp=timestamp[:, 0],
        global_T_lidar=global_T_lidar.numpy(),
        global_T_ego=global_T_ego[place[:, 0]].numpy(),
    )
    sweep_part = Sweeps(
        count=known.sum(axis=1),
        path=np.where(known, path[:, :split], b""),
        timestamp=np.where(known, timestamp[:, :split], 0),
        lidar_T_sweep=np.where(known[..., None, None], lidar_T_sensor[:, :split], np.eye(4)),
    )
    camera_part = CameraViews(
        path=path[:, split:],
        timestamp=timestamp[:, split:],
        intrinsics=intrinsics[place[:, split:]],
        lidar_T_cam=lidar_T_sensor[:, split:],
        size=size[:, split:],
    )
    return key_frames, sweep_part, camera_part


def _moments(
    tables: Mapping[str, Table], channel: Ints, scene: Ints, scene_of: Ints, key_sweeps: Ints
) -> CameraMoments:
    """All moments of the scenes of the key frames.

    Args:
        tables: The tables.
        channel: Channel of each row of `sample_data`, see `_channels`.
        scene: Row of the scene of each row of `sample_data`.
        scene_of: Row of the scene of each key frame.
        key_sweeps: Row in `sample_data` of each key frame's LiDAR sweep.
    """
    frames, rigs, egos = (tables[name] for name in ("sample_data", "calibrated_sensor", "ego_pose"))
    rows = _nearest_images(frames["timestamp"], channel, scene)
    _check_images(frames, rows.ravel())
    front = rows[:, CAMERAS.index("CAM_FRONT")]
    begin, end = (np.searchsorted(scene[front], scene_of, side=side) for side in ("left", "right"))
    rig_rows = _rigs(tables)
    lidar_rig = np.empty(len(tables["scene"]), dtype=np.int64)
    lidar_rig[scene_of] = rig_rows[key_sweeps]
    global_T_ego = _poses(egos, egos.rows(frames["ego_pose_token"][rows.ravel()])).unflatten(0, rows.shape)
    ego_T_cam = _poses(rigs, rig_rows[rows.ravel()]).unflatten(0, rows.shape)
    ego_T_lidar = _poses(rigs, lidar_rig[scene[front]])
    return CameraMoments(
        begin=begin,
        end=end,
        timestamp=frames["timestamp"][front],
        global_T_lidar=(global_T_ego[:, CAMERAS.index("CAM_FRONT")] @ ego_T_lidar).numpy(),
        path=frames["filename"][rows],
        intrinsics=_intrinsics(tables)[rig_rows[rows]],
        global_T_cam=(global_T_ego @ ego_T_cam).numpy(),
        size=np.stack([frames["height"][rows], frames["width"][rows]], axis=-1),
    )


def _nearest_images(timestamp: Ints, channel: Ints, scene: Ints) -> Ints:
    """Rows [F, 6] of the images nearest in time to each image of `CAM_FRONT`, sorted by scene and time."""
    images = [np.flatnonzero(channel == 1 + camera) for camera in range(len(CAMERAS))]
    images = [rows[np.lexsort((timestamp[rows], scene[rows]))] for rows in images]
    front = images[CAMERAS.index("CAM_FRONT")]
    nearest = np.empty((len(front), len(CAMERAS)), dtype=np.int64)
    for number in np.unique(scene[front]):
        here = slice(*np.searchsorted(scene[front], (number, number + 1)))
        wanted = timestamp[front[here]]
        for camera, rows in enumerate(images):
            own = rows[slice(*np.searchsorted(scene[rows], (number, number + 1)))]
            later = np.searchsorted(timestamp[own], wanted).clip(1, max(len(own) - 1, 1))
            pair = np.stack([own[later - 1], own[later.clip(max=len(own) - 1)]])
            distance = np.abs(timestamp[pair] - wanted)
            nearest[here, camera] = np.where(distance[1] < distance[0], pair[1], pair[0])
    return nearest


def _intrinsics(tables: Mapping[str, Table]) -> Floats:
    """[n, 3, 3] of all calibrated sensors; identity for sensors that are not cameras."""
    rigs = tables["calibrated_sensor"]
    matrices = np.tile(np.eye(3), (len(rigs), 1, 1))
    for row in np.flatnonzero(_channels(tables) > 0):
        what = f"camera_intrinsic of {rigs['token'][row].decode()} in {rigs.path}"
        try:
            matrix = np.array(json.loads(rigs["camera_intrinsic"][row]), dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{what} is not a matrix of numbers; unpack it again") from None
        check_intrinsics(torch.from_numpy(matrix), what)
        matrices[row] = matrix
    return matrices


def _poses(table: Table, rows: Ints) -> torch.Tensor:
    """Matrices [n, 4, 4] of some rows of a table with translations and quaternions w, x, y, z."""
    _check_rotations(table, rows)
    rotation = quaternion_to_rotation(torch.from_numpy(table["rotation"][rows]))
    return rigid(rotation, torch.from_numpy(table["translation"][rows]))


def _check_images(frames: Table, rows: Ints) -> None:
    for column in ("height", "width"):
        values = frames[column][rows]
        for row in np.flatnonzero((values < 1) | (values > LARGEST_IMAGE))[:1]:
            token = frames["token"][rows[row]].decode()
            raise UserError(f"the image {token} in {frames.path} has the {column} {values[row]}; unpack it again")


def _check_rotations(table: Table, rows: Ints) -> None:
    length = np.linalg.norm(table["rotation"][rows], axis=1)
    for row in np.flatnonzero(np.abs(length - 1) > QUATERNION_TOLERANCE)[:1]:
        raise UserError(
            f"the rotation of {table['token'][rows[row]].decode()} in {table.path} is a quaternion of length"
            f" {length[row]:.6g}, a rotation has length 1; check the calibration"
        )


def _annotations(tables: Mapping[str, Table], samples: Ints, key_frames: KeyFrames) -> Annotations:
    table = tables["sample_annotation"]
    place_of = np.empty(len(samples), dtype=np.int64)
    place_of[samples] = np.arange(len(samples))
    owner = place_of[tables["sample"].rows(table["sample_token"])]
    order = np.argsort(owner, kind="stable")
    offset = np.searchsorted(owner[order], np.arange(len(samples) + 1))
    center, size, rotation = (table[column][order] for column in ("translation", "size", "rotation"))
    velocity = _velocities(table, tables["sample"]["timestamp"][samples][owner])[order]
    label = labels(tables)[order]
    _check_sizes(table, size, label, order)
    _check_rotations(table, order)
    return Annotations(
        offset=offset,
        token=table["token"][order],
        label=label,
        boxes=_lidar_boxes(center, size, rotation, velocity, offset, key_frames.global_T_lidar),
        lidar_points=table["num_lidar_pts"][order],
        radar_points=table["num_radar_pts"][order],
        attribute=_attributes(tables, order, label),
        global_center=center,
        global_size=size,
        global_rotation=rotation,
        global_velocity=velocity,
    )


def _velocities(table: Table, timestamps: Ints) -> Floats:
    """Velocity [A, 2] in global axes from the object's neighbouring key frames; NaN if none is near in time.

    Upstream: the devkit's `box_velocity`; its rounding of times to about a quarter of a microsecond is kept.

    Args:
        table: Annotations.
        timestamps: [A] microseconds of their key frames.
    """
    here = np.arange(len(table))
    previous, following = (_linked(table, column) for column in ("prev", "next"))
    seconds = 1e-6 * timestamps
    elapsed = seconds[following] - seconds[previous]
    linked = previous != following
    for row in np.flatnonzero(linked & (elapsed <= 0))[:1]:
        raise UserError(
            f"annotation {table['token'][row].decode()} in {table.path} comes after its next or before its previous"
            " one; unpack it again"
        )
    window = np.where((previous != here) & (following != here), 2 * VELOCITY_WINDOW, VELOCITY_WINDOW)
    known = linked & (elapsed <= window)
    center = table["translation"]
    with np.errstate(divide="ignore", invalid="ignore"):
        velocity = (center[following, :2] - center[previous, :2]) / elapsed[:, None]
    return np.where(known[:, None], velocity, np.nan)


def _linked(table: Table, column: str) -> Ints:
    """Row of each token of a column; the own row where the token is empty."""
    rows = np.arange(len(table))
    linked = np.flatnonzero(table[column] != b"")
    rows[linked] = table.rows(table[column][linked])
    return rows


def _attributes(tables: Mapping[str, Table], order: Ints, label: Ints) -> Strings:
    table, attribute = tables["sample_annotation"], tables["attribute"]
    tokens = table["attribute_tokens"][order]
    several = (np.char.count(tokens, b",") > 0) & (label >= 0)
    for row in np.flatnonzero(several)[:1]:
        raise UserError(
            f"annotation {table['token'][order[row]].decode()} in {table.path} has more than one attribute; the"
            " detection task allows one"
        )
    first = np.char.partition(tokens, b",")[:, 0] if len(tokens) else tokens
    given = first != b""
    names = np.zeros(len(tokens), dtype=attribute["name"].dtype)
    names[given] = attribute["name"][attribute.rows(first[given])]
    return names


def _lidar_boxes(
    center: Floats, size: Floats, rotation: Floats, velocity: Floats, offset: Ints, global_T_lidar: Floats
) -> Floats:
    upright = np.pad(velocity, ((0, 0), (0, 1)))
    boxes = np.empty((len(center), BOX_CHANNELS))
    for start, end, pose in zip(offset, offset[1:], torch.from_numpy(global_T_lidar), strict=False):
        columns = (torch.from_numpy(column[start:end]) for column in (center, size, rotation, upright))
        boxes[start:end] = from_devkit(DevkitBoxes(*columns), pose).tensor.numpy()
    return boxes


def _check_sizes(table: Table, size: Floats, label: Ints, order: Ints) -> None:
    for row in np.flatnonzero(~(size > 0).all(axis=1))[:1]:
        token = table["token"][order[row]].decode()
        raise UserError(f"annotation {token} in {table.path} has the size {size[row].tolist()}; unpack it again")
    cars = size[label == CLASSES.index("car")]
    if len(cars) and np.median(cars[:, 1]) < np.median(cars[:, 0]):
        raise UserError(
            f"the cars in {table.path} are wider than long ({np.median(cars[:, 0]):.2f} m by"
            f" {np.median(cars[:, 1]):.2f} m); sizes must be width, length, height"
        )
