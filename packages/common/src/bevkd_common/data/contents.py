"""Fingerprint of the content of many sensor files, in seconds: names, sizes, and the bytes of some of them.

Reading half a million files takes hours, so these are read:

- `SAMPLES` files of each folder, spread evenly over its names;
- files whose size or time of modification changed since they were recorded, as long as they are few. Many of them
  are what a copied or unpacked data set looks like; then the sample decides.

A record keeps what was found, so that an unchanged file is read once. The fingerprint depends neither on the root
nor on times.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bevkd_common.data.array_file import ArrayFileError, keep_arrays, map_arrays
from bevkd_common.errors import UserError

SAMPLES = 128
"""Files of each folder that are read; a change of 5 % of a folder is missed once in 700 times."""
FEW = 2000
FEW_SHARE = 0.01
"""Changed files are few up to `FEW`, or this share of all."""
FORMAT = 1
"""Increase it when the meaning of a field changes; older records are then made again."""

_MISSING = -1  # as a size
_UNRECORDED = -2
_DIGEST_BYTES = 16
_THREADS = 16  # for the latency of network disks

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FileStates:
    """What is recorded of [N] files, sorted by name.

    Attributes:
        name: [N] relative to the root.
        size: [N] bytes, -1 for a file that is missing.
        modified: [N] nanoseconds.
        digest: [N, 16] hash of the content where `read` is set.
        read: [N] whether it was read in this state.
        revised: [N] whether its content may differ from that of its first record.
    """

    name: npt.NDArray[np.bytes_]
    size: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]
    digest: npt.NDArray[np.uint8]
    read: Flags
    revised: Flags

    @classmethod
    def unrecorded(cls, names: npt.NDArray[np.bytes_]) -> FileStates:
        """States of files of which nothing is recorded."""
        count = len(names)
        return cls(
            name=names,
            size=np.full(count, _UNRECORDED),
            modified=np.zeros(count, dtype=np.int64),
            digest=np.zeros((count, _DIGEST_BYTES), dtype=np.uint8),
            read=np.zeros(count, dtype=np.bool_),
            revised=np.zeros(count, dtype=np.bool_),
        )

    def of(self, names: npt.NDArray[np.bytes_]) -> FileStates:
        """The states of `names`, [M], sorted."""
        found = FileStates.unrecorded(names)
        rows = np.searchsorted(self.name, names)
        rows[rows == len(self.name)] = 0
        known = self.name[rows] == names if len(self.name) else np.zeros(len(names), dtype=np.bool_)
        for field in fields(self)[1:]:
            getattr(found, field.name)[known] = getattr(self, field.name)[rows[known]]
        return found

    def updated(self, others: FileStates) -> FileStates:
        """These states, and `others` in place of those with the same name."""
        kept = ~np.isin(self.name, others.name)
        joined = {
            field.name: np.concatenate([getattr(self, field.name)[kept], getattr(others, field.name)])
            for field in fields(self)
        }
        order = np.argsort(joined["name"])
        return FileStates(**{name: array[order] for name, array in joined.items()})


@dataclass(frozen=True)
class Contents:
    """Content of a set of files.

    Attributes:
        fingerprint: Hash of it.
        files: Number of files.
        changed: Names of files that were found to differ from what was recorded.
    """

    fingerprint: str
    files: int
    changed: tuple[str, ...]


def file_contents(
    root: Path,
    names: Iterable[str],
    places: Sequence[Path],
    *,
    whole: bool = False,
    progress: Progress | None = None,
) -> Contents:
    """Fingerprint files, and bring their record up to date.

    Args:
        root: Folder to which names are relative.
        names: With forward slashes.
        places: Possible paths of the record; the first that can be written is used.
        whole: Whether to read all files. From then on every change is found, also one that keeps size and time.
        progress: Called with the files read and all that will be.

    Raises:
        UserError: If a file cannot be read.
    """
    wanted = np.array(sorted({name.encode() for name in names}), dtype=np.bytes_)
    record = _load(places)
    old, new = record.of(wanted), FileStates.unrecorded(wanted)
    new.size[:], new.modified[:] = _sizes_and_times(root, wanted)
    known, sample = old.size != _UNRECORDED, _spread(wanted)
    renewed = known & ((new.size != old.size) | (new.modified != old.modified))
    valid = old.read & ~renewed
    doubtful = renewed & ~sample
    if doubtful.sum() > max(FEW, FEW_SHARE * len(wanted)):
        doubtful[:] = False
    reading = (sample | doubtful | old.revised) & ~valid
    if whole:
        reading[:] = True
    reading &= new.size != _MISSING

    new.digest[:] = old.digest
    _read(root, new, np.flatnonzero(reading), progress)
    new.read[:] = valid | reading
    differs = reading & old.read & (new.digest != old.digest).any(axis=1)
    new.revised[:] = old.revised | differs | (doubtful & ~old.read)
    if (reading | renewed | ~known).any():
        keep_arrays(places, {"format": FORMAT}, vars(record.updated(new)))
    changed = differs | (known & (new.size != old.size))
    return Contents(
        _hash(new, sample | new.revised), len(wanted), tuple(map(bytes.decode, wanted[changed].tolist()))
    )


def _load(places: Sequence[Path]) -> FileStates:
    for path in places:
        try:
            file = map_arrays(path, verify=True)
            if file.about["format"] == FORMAT:
                return FileStates(**{field.name: file.arrays[field.name] for field in fields(FileStates)})
        except (ArrayFileError, KeyError, TypeError):
            if path.exists():
                _log.warning(
                    "%s is damaged and is made again; earlier changes of single files are not recorded", path
                )
    return FileStates.unrecorded(np.empty(0, dtype="S1"))


def _sizes_and_times(root: Path, names: npt.NDArray[np.bytes_]) -> tuple[list[int], list[int]]:
    prefix = os.fsencode(root) + b"/"

    def look(name: bytes) -> tuple[int, int]:
        try:
            about = os.stat(prefix + name)  # noqa: PTH116 - a Path each doubles the time of half a million
        except FileNotFoundError:
            return _MISSING, 0
        except OSError as error:
            raise _unreadable(root, name, error) from error
        return about.st_size, about.st_mtime_ns

    with ThreadPoolExecutor(_THREADS) as threads:
        parts = np.array_split(names, _THREADS)
        found = [
            state for part in threads.map(lambda part: list(map(look, part.tolist())), parts) for state in part
        ]
    return [size for size, _ in found], [modified for _, modified in found]


def _spread(names: npt.NDArray[np.bytes_]) -> Flags:
    """Whether each file is in the sample of its folder."""
    folders: dict[bytes, list[int]] = defaultdict(list)
    for row, name in enumerate(names.tolist()):
        folders[name.rpartition(b"/")[0]].append(row)
    flags = np.zeros(len(names), dtype=np.bool_)
    for rows in folders.values():
        chosen = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLES)).round().astype(np.int64)
        flags[np.array(rows)[chosen]] = True
    return flags


def _read(root: Path, states: FileStates, rows: npt.NDArray[np.int64], progress: Progress | None) -> None:
    """Fill in the digests of `rows`."""

    def digest(name: bytes) -> bytes:
        try:
            with (root / os.fsdecode(name)).open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).digest()
        except OSError as error:
            raise _unreadable(root, name, error) from error

    with ThreadPoolExecutor(_THREADS) as threads:
        for done, found in enumerate(threads.map(digest, states.name[rows].tolist())):
            states.digest[rows[done]] = np.frombuffer(found, dtype=np.uint8)
            if progress is not None:
                progress(done + 1, len(rows))


def _hash(states: FileStates, read: Flags) -> str:
    digest = hashlib.sha256(b"\n".join(states.name.tolist()))
    digest.update(states.size.tobytes() + b"\n".join(states.name[read].tolist()) + states.digest[read].tobytes())
    return digest.hexdigest()


def _unreadable(root: Path, name: bytes, error: OSError) -> UserError:
    return UserError(f"{root / os.fsdecode(name)} cannot be read ({error.strerror}); check its permissions")
