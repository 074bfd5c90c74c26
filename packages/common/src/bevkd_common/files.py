"""Files and folders that are either whole or absent, and names that stay inside a folder."""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bevkd_common.errors import CannotWriteError, UserError

DISK_TROUBLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)
"""Errors of a full, read-only or broken disk, or of missing rights: never a bug of this project."""
NAME_TROUBLE = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
"""Errors of a path that no system can open: it is too long, or its links form a circle."""


def stays_inside(name: str) -> bool:
    """Whether a name that stands in a file, joined to a folder, leads to what lies in the folder."""
    return name[:1] not in ("", "/", "\\") and (".." not in name or ".." not in re.split(r"[/\\]", name))


def inside(folder: Path, name: str) -> Path:
    """Return `folder / name`.

    Raises:
        UserError: If the name leads out of the folder.
    """
    if not stays_inside(name):
        raise UserError(
            f"{name[:80]!r} leads out of {folder}: the file that names it is damaged, or not to be trusted"
        )
    return folder / name


def foreign_content(content: bytes) -> str | None:
    """What a file is that is not what its name says, as a clause with the advice; None if it is none of these.

    Args:
        content: The first kilobyte, or more.
    """
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"version https://git-lfs"):
        return "is a Git-LFS pointer, the file itself was not fetched: run `git lfs pull` where it was cloned"
    if start[:14].lower().startswith((b"<!doctype html", b"<html", b"<head")):
        return "is an HTML page, which a server sent in place of the file: open the link in a browser to see why"
    if start.startswith(b"<?xml"):
        return "is an XML message, which a server sent in place of the file: read it to see why"
    return None


def start_of(path: Path) -> bytes:
    """The first kilobyte of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(1024)
    except OSError:
        return b""


def parse_json(content: bytes | str, *, unique: bool = False) -> Any:
    """Parse JSON that somebody else may have written.

    Args:
        content: The text.
        unique: Whether to refuse an object that holds a key twice; otherwise the last one counts.

    Raises:
        ValueError: If it is no JSON, is nested too deeply, or holds half a surrogate pair, which no file stores.
    """
    try:
        parsed = json.loads(content, object_pairs_hook=_once if unique else None)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None
    # An escape is the only way to write half a pair.
    if (b"\\ud" in content.lower()) if isinstance(content, bytes) else ("\\ud" in content.lower()):
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a surrogate pair, which is no character") from None
    return parsed


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{reprlib.repr(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return found


@contextmanager
def replaced_when_complete(path: Path) -> Iterator[Path]:
    """Give an empty temporary file beside `path`; move it there if the block succeeds, else remove it.

    The file gets the permissions that the system gives to a new file, whatever writes it: safetensors 0.8 makes
    files that only their owner can read.

    Raises:
        CannotWriteError: If the folder cannot be made, the file cannot be replaced, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writing(path):
            partial.touch()
            mode = partial.stat().st_mode
        with writing(path, DISK_TROUBLE), _system_errors():
            yield partial
        with writing(path):
            partial.chmod(mode)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_when_complete(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; move it there if the block succeeds, else remove it.

    What a killed process left behind is removed by the next that writes the same folder, so that large files do not
    pile up. Two processes must not write it at the same time.

    Raises:
        CannotWriteError: If the folder cannot be made or replaced, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(path):
            partial.mkdir(parents=True)
        with writing(path, DISK_TROUBLE):
            yield partial
        shutil.rmtree(path, ignore_errors=True)
        with writing(path):
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _system_errors() -> Iterator[None]:
    """Convert an error of the operating system that safetensors reports as its own, as on a full disk."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error


@contextmanager
def writing(path: Path, numbers: frozenset[int] | None = None) -> Iterator[None]:
    """Convert errors of the operating system to a `CannotWriteError` about `path`; `numbers` restricts which."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CannotWriteError) or (numbers is not None and error.errno not in numbers):
            raise
        raise CannotWriteError(path, error) from error
