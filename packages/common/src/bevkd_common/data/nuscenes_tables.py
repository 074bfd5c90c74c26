"""The JSON tables of a nuScenes version folder, and the lists of scenes that make its splits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from bevkd_common.errors import UserError

TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "sample", "sample_annotation",
    "sample_data", "scene", "sensor",
)  # fmt: skip
"""The tables that are read; the other three (log, map, visibility) say nothing that a detector needs."""

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Tables:
    """What the version folder says.

    Attributes:
        folder: The version folder.
        records: The rows of each table, by the table's name.
        sha256: Hash of the bytes of all tables that were read.
    """

    folder: Path
    records: dict[str, list[Record]]
    sha256: str

    def path(self, table: str) -> Path:
        """File of a table, for messages."""
        return self.folder / f"{table}.json"

    def by_token(self, table: str) -> dict[str, int]:
        """Row of each token."""
        return {record["token"]: row for row, record in enumerate(self.records[table])}


def read_tables(root: Path, version: str) -> Tables:
    """Read the tables of `root/version`.

    Raises:
        UserError: If a folder or a table is missing, or a table is not a JSON list of records with tokens.
    """
    folder = version_folder(root, version)
    digest = hashlib.sha256()
    records = {}
    for name in TABLES:
        content = _read(folder / f"{name}.json", version)
        digest.update(name.encode() + content)
        records[name] = _parse(content, folder / f"{name}.json")
    return Tables(folder, records, digest.hexdigest())


def version_folder(root: Path, version: str) -> Path:
    """The folder of the tables.

    Raises:
        UserError: If it does not exist.
    """
    if not root.is_dir():
        raise UserError(f"no data set at {root}: the folder does not exist; give its place with --data-root")
    folder = root / version
    if not folder.is_dir():
        found = sorted(path.parent.name for path in root.glob("*/sample.json"))
        choices = f"it holds {', '.join(found)}" if found else "it holds no version folder such as v1.0-trainval"
        raise UserError(f"{root} has no folder {version}: {choices}; choose with `version` or unpack the tables")
    return folder


def table_state(root: Path, version: str) -> str:
    """Sizes and modification times of the tables as text; it changes when a table is replaced.

    Raises:
        UserError: If a table is missing.
    """
    folder = version_folder(root, version)
    missing = [name for name in TABLES if not (folder / f"{name}.json").is_file()]
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}.json; unpack the metadata of {version} again")
    stats = [(folder / f"{name}.json").stat() for name in TABLES]
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def scene_names(root: Path, version: str, split: str) -> list[str]:
    """Names of the scenes of a split: an official one, or one of `splits.json` in the version folder.

    Raises:
        UserError: If nobody defines the split.
    """
    official: dict[str, list[int]] = json.loads(files(__package__).joinpath("nuscenes_splits.json").read_text())
    if split in official:
        return [f"scene-{number:04d}" for number in official[split]]
    path = version_folder(root, version) / "splits.json"
    own = _read_splits(path) if path.is_file() else {}
    if split not in own:
        choices = ", ".join([*official, *own])
        raise UserError(
            f"no split {split!r} in {path.parent}; choose one of {choices}, or define it in splits.json"
        )
    return own[split]


def _read_splits(path: Path) -> dict[str, list[str]]:
    try:
        splits = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); write it again") from error
    named = isinstance(splits, dict) and all(
        isinstance(scenes, list) and scenes and all(isinstance(scene, str) for scene in scenes)
        for scenes in splits.values()
    )
    if not named:
        raise UserError(f"{path} must map each split to a list of one or more scene names")
    return dict(splits)


def _read(path: Path, version: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} lacks {path.name}; unpack the metadata of {version} again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _parse(content: bytes, path: Path) -> list[Record]:
    try:
        records = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); unpack it again") from error
    if not isinstance(records, list) or not all(isinstance(row, dict) and "token" in row for row in records):
        raise UserError(f"{path} is not a list of records with tokens; unpack it again")
    return records
