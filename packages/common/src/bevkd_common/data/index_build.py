"""Makes the index of a nuScenes version from its JSON tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from bevkd_common.config.nuscenes_names import CAMERAS, CLASSES
from bevkd_common.data.index import (
    BICYCLE_RACK,
    IGNORED,
    PREVIOUS_SWEEPS,
    Annotations,
    CameraViews,
    Floats,
    Ints,
    KeyFrames,
    NuScenesIndex,
    Strings,
    Sweeps,
)
from bevkd_common.data.nuscenes_tables import Record, Tables, read_tables
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import BOX_CHANNELS
from bevkd_common.geometry.cameras import check_intrinsics
from bevkd_common.geometry.conventions import DevkitBoxes, from_devkit
from bevkd_common.geometry.transforms import inverse_rigid, quaternion_to_rotation, rigid

DETECTION_CLASS = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "movable_object.barrier": "barrier",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
}
"""Detection class of a nuScenes category; what is not named here is neither trained nor evaluated.

Source: the nuScenes detection task.
"""

LIDAR = "LIDAR_TOP"
VELOCITY_WINDOW = 1.5
"""Longest time in seconds over which a velocity is taken from one neighbour; twice that with both."""
QUATERNION_TOLERANCE = 1e-3
STEPS = 4


def build_index(root: Path, version: str, progress: Callable[[int, int], None] | None = None) -> NuScenesIndex:
    """Read the tables and compute the index.

    Args:
        root: Folder of the data set.
        version: Name of the version folder.
        progress: Called with the steps done and all steps.

    Raises:
        UserError: If a table is missing, damaged, or contradicts another.
    """
    report = progress or (lambda done, steps: None)
    tables = read_tables(root, version)
    report(1, STEPS)
    try:
        samples = _ordered_samples(tables)
        sweeps, cameras = _sensor_rows(tables, samples)
        report(2, STEPS)
        key_frames, sweep_part, camera_part = _sensors(tables, samples, sweeps, cameras)
        report(3, STEPS)
        annotations = _annotations(tables, samples, key_frames)
        report(4, STEPS)
    except KeyError as error:
        raise UserError(
            f"the tables in {tables.folder} contradict each other: {error} is missing; unpack them again"
        ) from error
    return NuScenesIndex(root, version, tables.sha256, key_frames, sweep_part, camera_part, annotations)


def _ordered_samples(tables: Tables) -> list[Record]:
    """Samples scene by scene, in time order, each with the name of its scene."""
    scene_row = tables.by_token("scene")
    names = [scene["name"] for scene in tables.records["scene"]]
    samples = sorted(tables.records["sample"], key=lambda s: (scene_row[s["scene_token"]], s["timestamp"]))
    if not samples:
        raise UserError(f"{tables.path('sample')} holds no key frame; unpack the tables again")
    return [{**sample, "scene_name": names[scene_row[sample["scene_token"]]]} for sample in samples]


def _sensor_rows(tables: Tables, samples: Sequence[Record]) -> tuple[Ints, Ints]:
    """Rows of `sample_data`: [S, 1 + K] sweeps, the key frame's first, -1 where there is none; [S, 6] images."""
    channels = {sensor["token"]: sensor["channel"] for sensor in tables.records["sensor"]}
    channel_of = {rig["token"]: channels[rig["sensor_token"]] for rig in tables.records["calibrated_sensor"]}
    records = tables.records["sample_data"]
    row_of = tables.by_token("sample_data")
    key_rows = {
        (record["sample_token"], channel_of[record["calibrated_sensor_token"]]): row
        for row, record in enumerate(records)
        if record["is_key_frame"]
    }
    scene_of = {sample["token"]: sample["scene_token"] for sample in samples}
    sweeps = np.full((len(samples), 1 + PREVIOUS_SWEEPS), -1)
    cameras = np.full((len(samples), len(CAMERAS)), -1)
    for place, sample in enumerate(samples):
        token = sample["token"]
        lacking = [channel for channel in (LIDAR, *CAMERAS) if (token, channel) not in key_rows]
        if lacking:
            raise UserError(f"key frame {token} has no {lacking[0]} in {tables.path('sample_data')}")
        cameras[place] = [key_rows[token, camera] for camera in CAMERAS]
        row = key_rows[token, LIDAR]
        for column in range(1 + PREVIOUS_SWEEPS):
            sweeps[place, column] = row
            previous = records[row]["prev"]
            if not previous or scene_of[records[row_of[previous]]["sample_token"]] != sample["scene_token"]:
                break
            row = row_of[previous]
    return sweeps, cameras


def _sensors(
    tables: Tables, samples: Sequence[Record], sweeps: Ints, cameras: Ints
) -> tuple[KeyFrames, Sweeps, CameraViews]:
    rows = np.concatenate([sweeps, cameras], axis=1)
    used = np.unique(rows[rows >= 0])
    place = np.searchsorted(used, rows)  # of what is not there: 0, masked below
    records = [tables.records["sample_data"][row] for row in used]
    ego_T_sensor, intrinsics = _calibration(tables, records)
    global_T_ego = _ego_poses(tables, records)
    global_T_sensor = (global_T_ego @ ego_T_sensor)[place]
    global_T_lidar = global_T_sensor[:, 0]
    lidar_T_sensor = (inverse_rigid(global_T_lidar)[:, None] @ global_T_sensor).numpy()
    path = _strings([record["filename"] for record in records])[place]
    timestamp = np.array([record["timestamp"] for record in records])[place]
    size = np.array([(record["height"], record["width"]) for record in records])[place]
    split = sweeps.shape[1]
    known = sweeps >= 0
    key_frames = KeyFrames(
        token=_strings([sample["token"] for sample in samples]),
        scene=_strings([sample["scene_name"] for sample in samples]),
        timestamp=timestamp[:, 0],
        global_T_lidar=global_T_lidar.numpy(),
        ego_translation=global_T_ego[place[:, 0], :3, 3].numpy(),
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


def _calibration(tables: Tables, records: Sequence[Record]) -> tuple[torch.Tensor, Floats]:
    """Poses `ego_T_sensor` [n, 4, 4] and intrinsics [n, 3, 3] (identity for what is no camera) of n records."""
    file = tables.path("calibrated_sensor")
    rigs = tables.records["calibrated_sensor"]
    cameras = {sensor["token"] for sensor in tables.records["sensor"] if sensor["channel"] in CAMERAS}
    intrinsics = np.tile(np.eye(3), (len(rigs), 1, 1))
    for row, rig in enumerate(rigs):
        if rig["sensor_token"] in cameras:
            matrix = np.asarray(rig["camera_intrinsic"], dtype=np.float64)
            check_intrinsics(torch.from_numpy(matrix), f"camera_intrinsic of {rig['token']} in {file}")
            intrinsics[row] = matrix
    row_of = tables.by_token("calibrated_sensor")
    rows = [row_of[record["calibrated_sensor_token"]] for record in records]
    return _poses(rigs, file)[rows], intrinsics[rows]


def _ego_poses(tables: Tables, records: Sequence[Record]) -> torch.Tensor:
    row_of = tables.by_token("ego_pose")
    poses = tables.records["ego_pose"]
    return _poses([poses[row_of[record["ego_pose_token"]]] for record in records], tables.path("ego_pose"))


def _poses(records: Sequence[Record], file: Path) -> torch.Tensor:
    """Matrices [n, 4, 4] of records with a translation and a quaternion w, x, y, z."""
    translation = _numbers(records, "translation", 3, file)
    quaternion = _numbers(records, "rotation", 4, file)
    length = np.linalg.norm(quaternion, axis=1)
    for row in np.flatnonzero(np.abs(length - 1) > QUATERNION_TOLERANCE)[:1]:
        raise UserError(
            f"the rotation of {records[row]['token']} in {file} is a quaternion of length {length[row]:.6g}, a "
            "rotation has length 1; check the calibration"
        )
    return rigid(quaternion_to_rotation(torch.from_numpy(quaternion)), torch.from_numpy(translation))


def _annotations(tables: Tables, samples: Sequence[Record], key_frames: KeyFrames) -> Annotations:
    place_of = {sample["token"]: place for place, sample in enumerate(samples)}
    table = tables.records["sample_annotation"]
    owner = np.array([place_of[record["sample_token"]] for record in table], dtype=np.int64)
    order = np.argsort(owner, kind="stable")
    records = [table[row] for row in order]
    owner = owner[order]
    file = tables.path("sample_annotation")
    center = _numbers(records, "translation", 3, file)
    size = _numbers(records, "size", 3, file)
    rotation = _numbers(records, "rotation", 4, file)
    timestamps = np.array([sample["timestamp"] for sample in samples], dtype=np.int64)[owner]
    velocity = _velocities(records, center, timestamps)
    offset = np.searchsorted(owner, np.arange(len(samples) + 1))
    label = _labels(tables, records)
    _check_sizes(records, size, label, file)
    return Annotations(
        offset=offset,
        token=_strings([record["token"] for record in records]),
        label=label,
        boxes=_lidar_boxes(center, size, rotation, velocity, offset, key_frames.global_T_lidar),
        lidar_points=np.array([record["num_lidar_pts"] for record in records], dtype=np.int64),
        radar_points=np.array([record["num_radar_pts"] for record in records], dtype=np.int64),
        attribute=_attributes(tables, records, label),
        global_center=center,
        global_size=size,
        global_rotation=rotation,
        global_velocity=velocity,
    )


def _velocities(records: Sequence[Record], center: Floats, timestamps: Ints) -> Floats:
    """Velocity [A, 2] in global axes from the same object's neighbouring key frames; NaN where it has none near.

    Upstream: the devkit's `box_velocity`; its rounding of times to about a quarter of a microsecond is kept.
    """
    row_of = {record["token"]: row for row, record in enumerate(records)}
    here = np.arange(len(records))
    previous = np.array([row_of[r["prev"]] if r["prev"] else row for row, r in enumerate(records)], dtype=np.int64)
    following = np.array([row_of[r["next"]] if r["next"] else row for row, r in enumerate(records)], dtype=np.int64)
    seconds = 1e-6 * timestamps
    elapsed = seconds[following] - seconds[previous]
    window = np.where((previous != here) & (following != here), 2 * VELOCITY_WINDOW, VELOCITY_WINDOW)
    known = (previous != following) & (elapsed <= window)
    with np.errstate(divide="ignore", invalid="ignore"):
        velocity = (center[following, :2] - center[previous, :2]) / elapsed[:, None]
    return np.where(known[:, None], velocity, np.nan)


def _labels(tables: Tables, records: Sequence[Record]) -> Ints:
    names = {category["token"]: category["name"] for category in tables.records["category"]}
    category_of = {instance["token"]: names[instance["category_token"]] for instance in tables.records["instance"]}
    code = {name: CLASSES.index(label) for name, label in DETECTION_CLASS.items()}
    code["static_object.bicycle_rack"] = BICYCLE_RACK
    labels = [code.get(category_of[record["instance_token"]], IGNORED) for record in records]
    if records and max(labels) < 0:
        raise UserError(
            f"{tables.path('category')} names none of the categories of the nuScenes detection task; it has "
            f"{', '.join(sorted(names.values())[:5])}"
        )
    return np.array(labels, dtype=np.int64)


def _attributes(tables: Tables, records: Sequence[Record], label: Ints) -> Strings:
    names = {attribute["token"]: attribute["name"] for attribute in tables.records["attribute"]}
    for row in np.flatnonzero(label >= 0):
        if len(records[row]["attribute_tokens"]) > 1:
            raise UserError(
                f"annotation {records[row]['token']} in {tables.path('sample_annotation')} has more than one "
                "attribute; the detection task allows one"
            )
    return _strings(
        [names[record["attribute_tokens"][0]] if record["attribute_tokens"] else "" for record in records]
    )


def _lidar_boxes(
    center: Floats, size: Floats, rotation: Floats, velocity: Floats, offset: Ints, global_T_lidar: Floats
) -> Floats:
    upright = np.pad(velocity, ((0, 0), (0, 1)))
    boxes = np.empty((len(center), BOX_CHANNELS))
    for start, end, pose in zip(offset, offset[1:], torch.from_numpy(global_T_lidar), strict=False):
        columns = (torch.from_numpy(column[start:end]) for column in (center, size, rotation, upright))
        boxes[start:end] = from_devkit(DevkitBoxes(*columns), pose).tensor.numpy()
    return boxes


def _check_sizes(records: Sequence[Record], size: Floats, label: Ints, file: Path) -> None:
    for row in np.flatnonzero(~(size > 0).all(axis=1))[:1]:
        raise UserError(f"annotation {records[row]['token']} in {file} has the size {size[row].tolist()}; check it")
    cars = size[label == CLASSES.index("car")]
    if len(cars) and np.median(cars[:, 1]) < np.median(cars[:, 0]):
        raise UserError(
            f"the cars in {file} are wider than long ({np.median(cars[:, 0]):.2f} m by {np.median(cars[:, 1]):.2f} "
            "m); sizes must be width, length, height"
        )


def _numbers(records: Sequence[Record], key: str, count: int, file: Path) -> Floats:
    """Lists of `count` finite numbers, [n, count]."""
    try:
        values = np.array([record[key] for record in records], dtype=np.float64).reshape(len(records), count)
        wrong = ~np.isfinite(values).all(axis=1)
    except (TypeError, ValueError):
        wrong = np.array([not _is_vector(record[key], count) for record in records])
    for row in np.flatnonzero(wrong)[:1]:
        raise UserError(f"{key} of {records[row]['token']} in {file} is not a list of {count} finite numbers")
    return values


def _is_vector(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(x, (int, float)) for x in value)


def _strings(texts: Sequence[str]) -> Strings:
    return np.array([text.encode() for text in texts], dtype=np.bytes_)
