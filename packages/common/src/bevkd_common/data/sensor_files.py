"""Images and sweeps of a nuScenes folder, decoded; kept in memory where that is wanted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from bevkd_common.errors import UserError
from bevkd_common.files import foreign_content, inside, start_of

Points = npt.NDArray[np.float32]

SWEEP_COLUMNS = 5
"""x, y, z, intensity, ring: float32, one row a point."""


class SensorFiles:
    """Reads the files that the tables name.

    With `cache` every file is decoded once a process and kept; the arrays must then not be written to.
    """

    def __init__(self, root: Path, cache: bool) -> None:
        self.root = root
        self.cache = cache
        self._images: dict[str, npt.NDArray[np.uint8]] = {}
        self._sweeps: dict[str, Points] = {}

    def image(self, name: str) -> npt.NDArray[np.uint8]:
        """RGB pixels [H, W, 3].

        Raises:
            UserError: If the file is missing or no complete image.
        """
        if not self.cache:
            return self._decode(name)
        if name not in self._images:
            self._images[name] = self._decode(name)
        return self._images[name]

    def sweep(self, name: str) -> Points:
        """Points [P, 5] of a LiDAR sweep in its own axes: x, y, z, intensity as stored, ring.

        Raises:
            UserError: If the file is missing or not a whole number of points.
        """
        if not self.cache:
            return self._points(name)
        if name not in self._sweeps:
            self._sweeps[name] = self._points(name)
        return self._sweeps[name]

    def _decode(self, name: str) -> npt.NDArray[np.uint8]:
        path = inside(self.root, name)
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing; unpack the archive that holds it again") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            _refuse_foreign(path, start_of(path))
            raise UserError(f"{path} is not a complete image ({error}); unpack it again") from error

    def content(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            UserError: If the file is missing or cannot be read.
        """
        path = inside(self.root, name)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing; unpack the archive that holds it again") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); unpack it again") from error

    def _points(self, name: str) -> Points:
        path, content = inside(self.root, name), self.content(name)
        _refuse_foreign(path, content)
        size = SWEEP_COLUMNS * 4
        if not content or len(content) % size:
            raise UserError(
                f"{path} has {len(content)} bytes, not a whole number of points of {size} bytes; unpack it again"
            )
        points = np.frombuffer(content, dtype=np.float32).reshape(-1, SWEEP_COLUMNS)
        if not np.isfinite(points).all():
            wrong = int((~np.isfinite(points)).any(axis=1).sum())
            raise UserError(f"{path} has {wrong} points of {len(points)} that are not finite; unpack it again")
        return points


def _refuse_foreign(path: Path, content: bytes) -> None:
    """Name a file that is something else.

    Raises:
        UserError: If it is known what it is.
    """
    if (known := foreign_content(content)) is not None:
        raise UserError(f"{path} {known}")
    if content[:64].lstrip(b"# ").upper().startswith((b".PCD", b"VERSION 0.7", b"VERSION .7")):
        raise UserError(
            f"{path} is a point cloud in the format of PCL (.pcd): convert it to rows of float32 x, y, z, intensity"
            " and ring"
        )


def check_files(root: Path, names: Iterable[str], otherwise: str = "") -> None:
    """See that files exist.

    Args:
        root: Folder to which the names are relative.
        names: With forward slashes.
        otherwise: What else the user may do, for the message.

    Raises:
        UserError: If one is missing, or a folder cannot be listed.
    """
    if missing := missing_files(root, names):
        raise UserError(
            f"{len(missing)} files that the tables name are missing under {root}, such as {missing[0]}; "
            f"unpack the archives again{f', {otherwise}' if otherwise else ''}"
        )


def missing_files(root: Path, names: Iterable[str]) -> list[str]:
    """Which files do not exist; lists folders rather than asking for every file.

    Args:
        root: Folder to which the names are relative.
        names: With forward slashes.

    Raises:
        UserError: If a folder cannot be listed.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in listed:
            listed[folder] = _listing(root / folder)
        if file not in listed[folder]:
            missing.append(name)
    return missing


def _listing(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}); check its permissions") from error
