"""The index of a nuScenes version on disk: made once, one `.npz` file without pickles."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from bevkd_common.data.index import Annotations, CameraViews, KeyFrames, NuScenesIndex, Sweeps
from bevkd_common.data.index_build import build_index
from bevkd_common.data.nuscenes_tables import table_state

_log = logging.getLogger(__name__)

FORMAT = 1
"""Raise it when the meaning or layout of a field changes; older files are then made anew."""

PARTS: dict[str, type] = {
    "key_frames": KeyFrames,
    "sweeps": Sweeps,
    "cameras": CameraViews,
    "annotations": Annotations,
}


def open_index(root: Path, version: str, progress: Callable[[int, int], None] | None = None) -> NuScenesIndex:
    """The index of `root/version`, from its file if that is current, else from the tables.

    The file lies beside the tables, or in the user's cache folder where the tables cannot be written to.

    Args:
        root: Folder of the data set.
        version: Name of the version folder, such as `v1.0-trainval`.
        progress: Called with the steps done and all steps while the tables are read.

    Raises:
        UserError: If the data set lacks something or contradicts itself.
    """
    root = root.resolve()
    state = table_state(root, version)
    places = index_paths(root, version)
    for path in places:
        index = load_index(path, root, state)
        if index is not None:
            return index
    index = build_index(root, version, progress)
    _save_somewhere(index, places, state)
    return index


def index_paths(root: Path, version: str) -> tuple[Path, Path]:
    """Where the index of a version may lie: beside its tables, or in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bevkd"
    place = hashlib.sha256(str(root / version).encode()).hexdigest()[:16]
    return root / version / f"bevkd-index-{FORMAT}.npz", cache / f"index-{FORMAT}-{place}.npz"


def _save_somewhere(index: NuScenesIndex, places: tuple[Path, ...], state: str) -> None:
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_index(index, path, state)
        except OSError:
            continue
        return
    _log.warning("the index cannot be kept in %s; the tables will be read each time", " or ".join(map(str, places)))


def save_index(index: NuScenesIndex, path: Path, state: str) -> None:
    """Write to `path` through a temporary file; `state` tells later whether the tables have changed."""
    header = {"format": FORMAT, "version": index.version, "tables_sha256": index.tables_sha256, "state": state}
    arrays = {
        f"{part}.{field.name}": getattr(getattr(index, part), field.name)
        for part, kind in PARTS.items()
        for field in fields(kind)
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
    temporary.replace(path)


def load_index(path: Path, root: Path, state: str) -> NuScenesIndex | None:
    """Read what `save_index` wrote; None where the file is absent, damaged, or of other tables or format."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            header: dict[str, Any] = json.loads(archive["header"].tobytes())
            if (header["format"], header["state"]) != (FORMAT, state):
                return None
            parts = {
                part: kind(**{field.name: archive[f"{part}.{field.name}"] for field in fields(kind)})
                for part, kind in PARTS.items()
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return NuScenesIndex(root, header["version"], header["tables_sha256"], **parts)
