"""Virtual points on a disk: a file a sweep, and a manifest that says how all of them were made.

Layout: `<folder>/<path of the sweep>.safetensors` and `<folder>/manifest.json`. Every file carries the hash of its
content and that of the settings it was made with, so that a damaged or foreign one is an error and never data.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from bevkd_common.data.array_file import ArrayFileError, map_arrays, write_arrays
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.virtual_points.lifting import POINTS_PER_INSTANCE, VirtualPoints
from bevkd_common.errors import UserError
from bevkd_common.files import inside, parse_json, replaced_when_complete

FORMAT = 1
"""Raise it when the layout of a file or the meaning of a field changes; older files are then made anew."""

Outcome = Literal["kept", "made", "repaired", "absent"]
REPAIR = "`bevkd data virtual-points` makes it again"
_NAMES = tuple(field.name for field in fields(VirtualPoints))


@dataclass(frozen=True)
class Manifest:
    """How the virtual points of a folder were made.

    Attributes:
        settings: JSON-ready, all that determines them.
        sentence: The same for a reader.
    """

    settings: Mapping[str, Any]
    sentence: str

    @cached_property
    def settings_hash(self) -> str:
        """Hash of the settings."""
        return hashlib.sha256(json.dumps([FORMAT, self.settings], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class VirtualPointFolder:
    """Virtual points of a data set; `path` need not exist."""

    path: Path

    def file(self, sweep: str) -> Path:
        """Where those of a sweep lie, which is named relative to the root of its data set.

        Raises:
            UserError: If the name of the sweep leads out of the folder.
        """
        return inside(self.path, f"{sweep}.safetensors")

    @cached_property
    def manifest(self) -> Manifest:
        """How they were made.

        Raises:
            UserError: If they are not there, or not all of them.
        """
        path = self.path / "manifest.json"
        try:
            content = parse_json(path.read_bytes())
            settings, sentence = content["settings"], content["sentence"]
            if not isinstance(settings, dict) or not isinstance(sentence, str):
                raise TypeError("`settings` must be an object and `sentence` text")
            return Manifest(settings, sentence)
        except FileNotFoundError as error:
            raise UserError(
                f"a detector needs virtual points, and {self.path} holds none, or not all: make them with "
                "`bevkd data virtual-points`, and name their folder in `dataset.virtual_points`"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no manifest of virtual points ({error}); {REPAIR}") from error

    def read(self, sweep: str) -> VirtualPoints:
        """Those of a sweep.

        Raises:
            UserError: If they are missing, damaged, or made with other settings than the folder's.
        """
        return read_virtual_points(self.file(sweep), self.manifest.settings_hash)


def write_virtual_points(path: Path, made: VirtualPoints, settings_hash: str) -> None:
    """Write the file of a sweep.

    Raises:
        UserError: If it cannot be written.
    """
    arrays = {name: np.ascontiguousarray(getattr(made, name)) for name in _NAMES}
    about = {"format": FORMAT, "settings": settings_hash, "content": _content_hash(arrays)}
    try:
        write_arrays(path, about, arrays)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another folder with --out") from error


def read_virtual_points(path: Path, settings_hash: str) -> VirtualPoints:
    """Read the file of a sweep.

    Raises:
        UserError: If it is missing, damaged, or made with other settings.
    """
    try:
        file = map_arrays(path)
        arrays = {name: file.arrays[name] for name in _NAMES}
        about = dict(file.about)
        content = _content_hash(arrays)
    except (ArrayFileError, KeyError, TypeError, ValueError) as error:
        problem = "is damaged" if path.is_file() else "is missing"
        raise UserError(f"{path} {problem}; {REPAIR}") from error
    if about.get("content") != content:
        raise UserError(f"{path} is damaged; {REPAIR}")
    if (about.get("format"), about.get("settings")) != (FORMAT, settings_hash):
        raise UserError(f"{path} was made with other settings than its folder's manifest says; {REPAIR}")
    return VirtualPoints(**arrays)


def _content_hash(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for name in _NAMES:
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class SweepJob:
    """One sweep, and where the index has it: a column of a key frame, its own sweep where it is one."""

    sweep: str
    row: int
    column: int


def sweep_jobs(index: NuScenesIndex, columns: int) -> list[SweepJob]:
    """Every sweep among the first `columns` of any key frame, once; sweeps of key frames first."""
    paths = index.sweeps.path[:, :columns].T
    names, first = np.unique(paths.ravel(), return_index=True)
    jobs = [
        SweepJob(name.decode(), int(place % paths.shape[1]), int(place // paths.shape[1]))
        for name, place in zip(names.tolist(), first, strict=True)
        if name
    ]
    return sorted(jobs, key=lambda job: (job.column > 0, job.sweep))


class Maker(Protocol):
    """What makes the virtual points of a data set, sweep by sweep; it travels to other processes."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON-ready, all that determines the points."""
        ...

    @property
    def sentence(self) -> str:
        """The same for a reader, to follow "Virtual points from"."""
        ...

    def make(self, job: SweepJob) -> VirtualPoints | None:
        """Those of one sweep; None where there are none to be had.

        Raises:
            UserError: If a file that is needed cannot be read.
        """
        ...


def manifest_of(maker: Maker, index: NuScenesIndex) -> Manifest:
    """What the manifest will say."""
    settings = {**maker.settings, "points": POINTS_PER_INSTANCE, "tables_sha256": index.tables_sha256}
    return Manifest(settings, f"Virtual points from {maker.sentence}.")


def make_virtual_points(
    maker: Maker,
    index: NuScenesIndex,
    folder: VirtualPointFolder,
    *,
    columns: int,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Counter[Outcome]:
    """Make what is not there, repair what is damaged or of other settings, keep the rest; then write the manifest.

    An interruption loses nothing that was written.

    Args:
        maker: Where they come from.
        index: Of the data set.
        folder: Where they go.
        columns: Sweeps of each key frame, its own included.
        workers: Processes; 0 does it in this one. The files do not depend on them.
        progress: Called with the sweeps done and all sweeps.

    Raises:
        UserError: If a file cannot be read or written.
    """
    manifest = manifest_of(maker, index)
    path = folder.path / "manifest.json"
    jobs = sweep_jobs(index, columns)
    _withdraw(path)
    tasks = _Sweeps(maker, jobs, folder, manifest.settings_hash)
    loader: DataLoader[Any] = DataLoader(tasks, batch_size=None, num_workers=workers)
    outcomes: Counter[Outcome] = Counter()
    for done, outcome in enumerate(loader, start=1):
        if isinstance(outcome, UserError):
            raise outcome
        outcomes[outcome] += 1
        if progress is not None:
            progress(done, len(jobs))
    _write_manifest(path, manifest, outcomes)
    return outcomes


def _withdraw(path: Path) -> None:
    """Until all is done nobody may take what is there for complete."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be replaced ({error.strerror}): choose another folder with --out"
        ) from error


def _write_manifest(path: Path, manifest: Manifest, outcomes: Mapping[Outcome, int]) -> None:
    content = {
        "format": FORMAT,
        "sentence": manifest.sentence,
        "settings": manifest.settings,
        "sweeps": sum(outcomes.values()),
        "absent": outcomes.get("absent", 0),
    }
    try:
        with replaced_when_complete(path) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another folder with --out") from error


class _Sweeps(TorchDataset[Outcome | UserError]):
    """Makes files in loader processes. An error is handed over as a value, without a traceback."""

    def __init__(
        self, maker: Maker, jobs: Sequence[SweepJob], folder: VirtualPointFolder, settings_hash: str
    ) -> None:
        self.maker, self.jobs, self.folder, self.settings_hash = maker, jobs, folder, settings_hash

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, place: int) -> Outcome | UserError:
        try:
            return self._settle(self.jobs[place])
        except UserError as error:
            return error

    def _settle(self, job: SweepJob) -> Outcome:
        path = self.folder.file(job.sweep)
        there = path.is_file()
        if there:
            try:
                read_virtual_points(path, self.settings_hash)
            except UserError:
                pass
            else:
                return "kept"
        made = self.maker.make(job)
        if made is None:
            path.unlink(missing_ok=True)
            return "absent"
        write_virtual_points(path, made, self.settings_hash)
        return "repaired" if there else "made"
