"""A nuScenes folder as the command line sees it; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bevkd_common.config.plugins import Diagnosis

if TYPE_CHECKING:
    from bevkd_common.progress import Reporter


def recognize(root: Path) -> bool:
    """Whether a folder holds a version folder, complete or not."""
    return any(root.glob("*/sample.json")) or any(path.is_dir() for path in root.glob("v1.0-*"))


def foreign(root: Path) -> str | None:
    """What a folder of another data set is, with the advice; None if it is not known, or nuScenes.

    Data sets in the tables of nuScenes are recognised by their sensors.
    """
    if (root / "annotation").is_dir() and (root / "data").is_dir():
        return _other("a T4 data set (annotation/ and data/)", "its LiDAR points are in ego axes")
    for sensors in sorted(root.glob("*/sensor.json")):
        if (name := _by_sensors(_channels(sensors))) is not None:
            return name
    for name, patterns in _OTHER_FOLDERS.items():
        if any(any(root.glob(pattern)) for pattern in patterns):
            return _other(name, "it has no tables of nuScenes")
    if any(root.glob("*_infos_*.pkl")) and not recognize(root):
        return (
            "holds info files of mmdetection3d, which are not read: unpack the tables of nuScenes, such as"
            " v1.0-trainval/, beside them"
        )
    return None


_OTHER_FOLDERS = {
    "KITTI": ("training/velodyne", "training/label_2", "object/training/label_2", "velodyne/*.bin"),
    "the Waymo Open Dataset": ("*.tfrecord", "training/*.tfrecord", "*/vehicle_camera_image"),
    "Argoverse 2": ("*/*/city_SE3_egovehicle.feather", "*/city_SE3_egovehicle.feather"),
}
"""Folders and files of data sets without such tables."""


def _by_sensors(channels: frozenset[str]) -> str | None:
    if "LIDAR_CONCAT" in channels:
        return _other("a T4 data set (LIDAR_CONCAT)", "its LiDAR points are in ego axes")
    lidars = {channel for channel in channels if channel.startswith("LIDAR")}
    if any(channel.startswith("CAMERA_") for channel in channels) or "LIDAR_TOP_FRONT" in channels:
        return _other(f"MAN TruckScenes ({len(lidars)} LiDARs)", "its points are .pcd files of several LiDARs")
    if "CAM_FRONT_ZOOMED" in channels or {"LIDAR_FRONT_LEFT", "LIDAR_FRONT_RIGHT"} & channels:
        return _other("Lyft Level 5", "its tables count no LiDAR points, and its categories have other names")
    return None


def _channels(table: Path) -> frozenset[str]:
    """Channels of a table of sensors; none if it cannot be read."""
    try:
        records = json.loads(table.read_bytes())
        return frozenset(str(record["channel"]) for record in records)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return frozenset()


def _other(name: str, why: str) -> str:
    return f"is {name}, not nuScenes: {why}; convert it to nuScenes' format, or write a data-set plug-in"


def diagnose(root: Path) -> Iterator[Diagnosis]:
    """What of nuScenes is there: version folders, their indices, sensor files."""
    if (known := foreign(root)) is not None:
        yield Diagnosis("red", str(root), f"it {known}", "name a folder of nuScenes")
        return
    versions = sorted(path.parent.name for path in root.glob("*/sample.json"))
    if not versions:
        yield Diagnosis("red", str(root), "no tables", f"unpack the nuScenes metadata into {root}")
        return
    for name in versions:
        there = (root / name / "bevkd-index.safetensors").is_file()
        found = f"{name}, {'indexed' if there else 'not indexed'}"
        repair = "" if there else f"bevkd data index {root} --version {name}"
        yield Diagnosis("ok" if there else "optional", str(root), found, repair)
    for folder, needed in (("samples", True), ("sweeps", True), ("can_bus", False)):
        if (root / folder).is_dir():
            yield Diagnosis("ok", str(root / folder), "there")
        else:
            repair = f"unpack the archive that holds {folder}/ into {root}"
            yield Diagnosis("red" if needed else "optional", str(root / folder), "missing", repair)


def index(root: Path, version: str | None, *, allow_missing: bool, rebuild: bool, reporter: Reporter) -> str:
    """Read the tables of a version once, and keep what every later run needs of them.

    Args:
        root: Folder of the data set.
        version: Version folder; None takes the only one.
        allow_missing: Whether to make it although files that the tables name are missing.
        rebuild: Whether to make it again although it is current.
        reporter: Where progress goes.

    Raises:
        UserError: If there is a choice of versions, or the tables lack something.
    """
    from bevkd_common.data.nuscenes.index_file import open_index
    from bevkd_common.data.nuscenes.tables import only_version

    chosen = version or only_version(root)
    with reporter.bar(f"index of {chosen}", 1) as bar:
        made = open_index(root, chosen, bar.update, allow_missing=allow_missing, rebuild=rebuild)
    return f"{chosen}: {len(made.key_frames.token)} key frames, {len(made.annotations.token)} annotations"
