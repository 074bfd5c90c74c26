"""A nuScenes folder as the command line sees it; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bevkd_common.config.plugins import Diagnosis

if TYPE_CHECKING:
    from bevkd_common.progress import Reporter


def recognize(root: Path) -> bool:
    """Whether a folder holds a version folder, complete or not."""
    return any(root.glob("*/sample.json")) or any(path.is_dir() for path in root.glob("v1.0-*"))


def diagnose(root: Path) -> Iterator[Diagnosis]:
    """What of nuScenes is there: version folders, their indices, sensor files."""
    versions = sorted(path.parent.name for path in root.glob("*/sample.json"))
    if not versions:
        yield Diagnosis("red", str(root), "no tables", f"unpack the nuScenes metadata into {root}")
        return
    for name in versions:
        there = (root / name / "bevkd-index.safetensors").is_file()
        found = f"{name}, {'indexed' if there else 'not indexed'}"
        mend = "" if there else f"bevkd data index {root} --version {name}"
        yield Diagnosis("ok" if there else "optional", str(root), found, mend)
    for folder, needed in (("samples", True), ("sweeps", True), ("can_bus", False)):
        if (root / folder).is_dir():
            yield Diagnosis("ok", str(root / folder), "there")
        else:
            mend = f"unpack the archive that holds {folder}/ into {root}"
            yield Diagnosis("red" if needed else "optional", str(root / folder), "missing", mend)


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
