"""The JSON tables of a nuScenes version folder as columns, and the lists of scenes that make its splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd_common.config.wording import shorten
from bevkd_common.errors import UserError
from bevkd_common.files import foreign_content, parse_json, stays_inside

Column = npt.NDArray[Any]
LARGEST = 1e12
"""Metres and other numbers of the tables are smaller; products of larger ones would overflow."""

SCHEMA: Mapping[str, Mapping[str, str]] = {
    "scene": {"token": "text", "name": "text"},
    "sample": {"token": "text", "scene_token": "text", "timestamp": "count"},
    "sensor": {"token": "text", "channel": "text"},
    "calibrated_sensor": {
        "token": "text", "sensor_token": "text", "translation": "3 numbers", "rotation": "4 numbers",
        "camera_intrinsic": "json",
    },
    "sample_data": {
        "token": "text", "sample_token": "text", "calibrated_sensor_token": "text", "ego_pose_token": "text",
        "timestamp": "count", "filename": "path", "is_key_frame": "flag", "height": "count",
        "width": "count", "prev": "text",
    },
    "ego_pose": {"token": "text", "translation": "3 numbers", "rotation": "4 numbers"},
    "attribute": {"token": "text", "name": "text"},
    "category": {"token": "text", "name": "text"},
    "instance": {"token": "text", "category_token": "text"},
    "sample_annotation": {
        "token": "text", "sample_token": "text", "instance_token": "text", "attribute_tokens": "texts",
        "translation": "3 numbers", "size": "3 numbers", "rotation": "4 numbers", "prev": "text", "next": "text",
        "num_lidar_pts": "count", "num_radar_pts": "count",
    },
}  # fmt: skip
"""The columns that are read, by table, and their types; detectors do not need the other three tables (log, map,
visibility). `path` is relative to the data root, `texts` are joined by commas, `json` is stored as text."""

_ABSENT = object()


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of one table.

    Attributes:
        path: File of the table.
        columns: By name; [n] byte strings, int64 or bool, or [n, k] float64.
        sha256: Hash of the file's bytes.
    """

    path: Path
    columns: Mapping[str, Column]
    sha256: str

    def __len__(self) -> int:
        return len(self.columns["token"])

    def __getitem__(self, column: str) -> Column:
        return self.columns[column]

    def rows(self, tokens: Column) -> npt.NDArray[np.int64]:
        """Row of each token.

        Raises:
            UserError: If the table lacks one.
        """
        order, known = self._sorted
        if not len(known):
            place = np.zeros(len(tokens), dtype=np.int64)
            lacking = np.ones(len(tokens), dtype=np.bool_)
        else:
            place = np.searchsorted(known, tokens).clip(max=len(known) - 1)
            lacking = known[place] != tokens
        for row in np.flatnonzero(lacking)[:1]:
            raise UserError(
                f"the tables in {self.path.parent} contradict each other: {self.path.name} has no"
                f" {shorten(tokens[row].decode())!r}, which another names; unpack them again"
            )
        return order[place] if len(known) else place

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.int64], Column]:
        order = np.argsort(self["token"], kind="stable")
        known = self["token"][order]
        for row in np.flatnonzero(known[1:] == known[:-1])[:1]:
            raise UserError(
                f"{self.path} holds the token {shorten(known[row].decode())!r} twice; unpack the tables again"
            )
        return order, known


def read_table(root: Path, version: str, name: str) -> Table:
    """Read a table of `root/version`; the records are freed when their columns are built.

    Raises:
        UserError: If the folder or table is missing, or the table is not a JSON list of records with these columns.
    """
    path = version_folder(root, version) / f"{name}.json"
    content = _read(path, version)
    schema = SCHEMA[name]
    records = _parse(content, path, tuple(schema))
    digest = hashlib.sha256(content).hexdigest()
    del content
    columns = {
        column: _column(path, column, kind, [record[place] for record in records], records)
        for place, (column, kind) in enumerate(schema.items())
    }
    return Table(path, columns, digest)


def version_folder(root: Path, version: str) -> Path:
    """The folder of the tables.

    Raises:
        UserError: If it does not exist.
    """
    if not root.is_dir():
        raise UserError(f"no data set at {root}: there is no such folder; correct the path")
    folder = root / version
    if not folder.is_dir():
        found = _versions(root)
        choices = f"it holds {', '.join(found)}" if found else "it holds no version folder such as v1.0-trainval"
        raise UserError(f"{root} has no folder {version}: {choices}; choose one as `version`, or unpack the tables")
    return folder


def only_version(root: Path) -> str:
    """Name of the version folder of a data set that has one.

    Raises:
        UserError: If there is none, or more than one.
    """
    found = _versions(root)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{root} holds {', '.join(found)}: choose one with --version")
    return version_folder(root, "v1.0-trainval").name


def _versions(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/sample.json"))


def table_state(root: Path, version: str, names: Iterable[str] = tuple(SCHEMA)) -> str:
    """Sizes and modification times of tables as text; it changes when a table is replaced.

    Raises:
        UserError: If a table is missing.
    """
    folder = version_folder(root, version)
    paths = [folder / f"{name}.json" for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {missing[0].name}; unpack the metadata of {version} again")
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in (path.stat() for path in paths))


def scene_names(root: Path, version: str, split: str) -> list[str]:
    """Names of the scenes of a split: an official one, or one of `splits.json` in the version folder.

    Raises:
        UserError: If the split is not defined.
    """
    official: dict[str, list[int]] = json.loads(files(__package__).joinpath("splits.json").read_text("utf-8"))
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
        splits = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
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


def _parse(content: bytes, path: Path, wanted: Sequence[str]) -> list[tuple[Any, ...]]:
    """Values of the wanted keys of each record; other values are freed at once."""

    def values(pairs: list[tuple[str, Any]]) -> tuple[Any, ...]:
        record = dict(pairs)
        return tuple([record.get(key, _ABSENT) for key in wanted])

    if (known := foreign_content(content)) is not None:
        raise UserError(f"{path} {known}")
    try:
        records = json.loads(content, object_pairs_hook=values)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); unpack it again") from error
    if not isinstance(records, list) or not all(
        isinstance(record, tuple) and isinstance(record[0], str) for record in records
    ):
        raise UserError(f"{path} is not a list of records with tokens; unpack it again")
    return records


def _column(path: Path, column: str, kind: str, values: list[Any], records: list[tuple[Any, ...]]) -> Column:
    """Values of one key as an array; `records` start with their token.

    Raises:
        UserError: If a value does not fit the type of the column.
    """
    fits, convert, meaning = _KINDS[kind]
    for row, value in enumerate(values):
        if not fits(value):
            lacks = f"lacks `{column}`" if value is _ABSENT else f"has a {column} that is not {meaning}"
            if value == -1 and column.startswith("num_"):
                raise UserError(
                    f"record {shorten(records[row][0])} in {path} has -1 as {column}, which stands for unknown in"
                    " tables of another tool: write the number of points, as nuScenes has it"
                )
            raise UserError(f"record {shorten(records[row][0])} in {path} {lacks}; unpack it again")
    return convert(values)


def _texts(values: list[str]) -> Column:
    return np.array([value.encode() for value in values], dtype=np.bytes_)


def _is_text(value: object) -> bool:
    # Half a surrogate pair is no character: no file can store it.
    return isinstance(value, str) and "\0" not in value and (value.isascii() or _is_unicode(value))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _numbers(count: int) -> tuple[Callable[[object], bool], Callable[[list[Any]], Column], str]:
    def fits(value: object) -> bool:
        return (
            isinstance(value, list)
            and len(value) == count
            and all(type(number) in (int, float) and abs(number) < LARGEST for number in value)
        )

    def convert(values: list[Any]) -> Column:
        return np.array(values, dtype=np.float64).reshape(len(values), count)

    return fits, convert, f"a list of {count} finite numbers"


_KINDS: Mapping[str, tuple[Callable[[object], bool], Callable[[list[Any]], Column], str]] = {
    "text": (_is_text, _texts, "text"),
    "path": (
        lambda value: isinstance(value, str) and _is_text(value) and stays_inside(value),
        _texts,
        "a path inside the data set",
    ),
    "texts": (
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
        lambda values: _texts([",".join(value) for value in values]),
        "a list of texts",
    ),
    "count": (_is_count, lambda values: np.array(values, dtype=np.int64), "a whole number from zero"),
    "flag": (lambda value: type(value) is bool, lambda values: np.array(values, dtype=np.bool_), "true or false"),
    "json": (
        lambda value: isinstance(value, list),
        lambda values: _texts([json.dumps(value, default=str) for value in values]),
        "a list",
    ),
    "3 numbers": _numbers(3),
    "4 numbers": _numbers(4),
}
