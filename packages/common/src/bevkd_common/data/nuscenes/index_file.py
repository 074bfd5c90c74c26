"""The index of a nuScenes version on disk: one memory-mapped file without pickles, built once."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

from bevkd_common.data.array_file import ArrayFileError, keep_arrays, map_arrays
from bevkd_common.data.nuscenes.index import (
    Annotations,
    CameraMoments,
    CameraViews,
    KeyFrames,
    NuScenesIndex,
    Sweeps,
)
from bevkd_common.data.nuscenes.index_build import build_index
from bevkd_common.data.nuscenes.tables import table_state

_log = logging.getLogger(__name__)

FORMAT = 4
"""Increase it when the meaning or layout of a field changes; older files are then rebuilt."""

PARTS: dict[str, type] = {
    "key_frames": KeyFrames,
    "sweeps": Sweeps,
    "cameras": CameraViews,
    "moments": CameraMoments,
    "annotations": Annotations,
}


def open_index(
    root: Path,
    version: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    allow_missing: bool = False,
    rebuild: bool = False,
) -> NuScenesIndex:
    """The index of `root/version`, from its file if that is current, else from the tables.

    The file is next to the tables, or in the user's cache folder if the folder of the tables is not writable.
    Tables that were read before an interruption are not read again.

    Args:
        root: Folder of the data set.
        version: Name of the version folder, such as `v1.0-trainval`.
        progress: Called with the steps done and all steps while the tables are read.
        allow_missing: Whether to build the index although files that the tables name are missing.
        rebuild: Whether to rebuild an index that is current.

    Raises:
        UserError: If the data set is incomplete or inconsistent.
    """
    root = root.resolve()
    state = table_state(root, version)
    places = index_paths(root, version)
    for path in places:
        index = None if rebuild else load_index(path, root, state)
        if index is not None:
            return index
    partial = _writable(path.with_name(f"{path.name}.partial") for path in places)
    index = build_index(root, version, progress, partial=partial, allow_missing=allow_missing)
    if not save_index(index, places, state):
        _log.warning(
            "the index cannot be stored in %s; the tables will be read each time", " or ".join(map(str, places))
        )
    if partial is not None:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def made_paths(root: Path, version: str, name: str) -> tuple[Path, Path]:
    """Possible paths of a file built from a version: next to its tables, or in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bevkd"
    place = hashlib.sha256(str(root / version).encode()).hexdigest()[:16]
    return root / version / f"bevkd-{name}.safetensors", cache / f"{name}-{place}.safetensors"


def index_paths(root: Path, version: str) -> tuple[Path, Path]:
    """Possible paths of the index of a version."""
    return made_paths(root, version, "index")


def _writable(folders: Iterable[Path]) -> Path | None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        return folder
    return None


def save_index(index: NuScenesIndex, places: Iterable[Path], state: str) -> bool:
    """Write to the first writable path of `places`; `state` serves to detect changed tables later."""
    about = {"format": FORMAT, "version": index.version, "tables_sha256": index.tables_sha256, "state": state}
    arrays = {
        f"{part}.{field.name}": getattr(getattr(index, part), field.name)
        for part, kind in PARTS.items()
        for field in fields(kind)
    }
    return keep_arrays(places, about, arrays)


def load_index(path: Path, root: Path, state: str) -> NuScenesIndex | None:
    """Map a file of `save_index`; None if it is missing or, with a warning, damaged or out of date."""
    try:
        file = map_arrays(path, verify=True)
        about = file.about
        if about["format"] != FORMAT:
            _log.warning("%s was built by another version of bevkd and is rebuilt", path)
            return None
        if about["state"] != state:
            _log.warning("the tables of %s have changed since %s was built; it is rebuilt", root, path)
            return None
        parts = {
            part: kind(**{field.name: file.arrays[f"{part}.{field.name}"] for field in fields(kind)})
            for part, kind in PARTS.items()
        }
    except (ArrayFileError, KeyError, TypeError):
        if path.is_file():
            problem = "is damaged" if os.access(path, os.R_OK) else "is not readable for this user"
            _log.warning("%s %s and is rebuilt", path, problem)
        return None
    return NuScenesIndex(root, about["version"], about["tables_sha256"], **parts)
