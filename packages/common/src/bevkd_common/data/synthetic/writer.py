"""The interface of on-disk formats: a writer turns recordings into files."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.files import writing

from .recording import Recording
from .rig import Rig

Rows = TypeVar("Rows")


class Folder:
    """A folder and the sha256 of each file written to it.

    Attributes:
        root: Path of the folder.
        digests: Hexadecimal sha256 of each file, by its path relative to `root`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests: dict[str, str] = {}

    def write(self, name: str, content: bytes) -> None:
        """Writes a file. Creates its parent folders.

        Raises:
            CannotWriteError: If the file cannot be written, as on a full disk.
        """
        path = self.root / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.digests[name] = hashlib.sha256(content).hexdigest()

    def write_json(self, name: str, content: Any) -> None:
        """Writes compact JSON."""
        self.write(name, json.dumps(content, separators=(",", ":")).encode())

    def write_image(self, name: str, pixels: npt.NDArray[np.uint8], **options: Any) -> None:
        """Writes a JPEG or PNG image, depending on the suffix of the name.

        Args:
            name: Relative path of the file.
            pixels: [H, W] or [H, W, 3].
            **options: Options of the Pillow encoder.
        """
        buffer = io.BytesIO()
        PillowImage.fromarray(pixels).save(buffer, format="JPEG" if name.endswith(".jpg") else "PNG", **options)
        self.write(name, buffer.getvalue())


class Writer(Protocol[Rows]):
    """Turns the recordings of a world into a data set in one format.

    `Rows` is the content of one scene that goes into files shared by all scenes, such as tables. Scenes may be
    written by several processes, so a writer and its rows must be picklable.
    """

    @property
    def config(self) -> WorldConfig:
        """The world to write."""
        ...

    @property
    def name(self) -> str:
        """Name of the data set's folder. It must differ between data sets with different content."""
        ...

    def rig(self, index: int) -> Rig:
        """Returns the rig that records scene `index`."""
        ...

    def write_scene(self, recording: Recording, folder: Folder) -> Rows:
        """Writes the files that belong to one scene and returns its rows."""
        ...

    def write_shared(self, scenes: Sequence[Rows], folder: Folder) -> None:
        """Writes the files shared by all scenes, given the rows of each scene in order."""
        ...
