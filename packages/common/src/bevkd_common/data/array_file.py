"""Named arrays in one file that can be mapped into memory: safetensors, with byte strings as rows of bytes.

The format holds no code and its header is readable JSON. Strings are no type of safetensors; their widths stand in
the metadata of the header.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from bevkd_common.files import replaced_when_complete

Array = npt.NDArray[Any]

DTYPES = {"F64": np.float64, "F32": np.float32, "I64": np.int64, "U8": np.uint8, "BOOL": np.bool_}
_METADATA = "bevkd"


class ArrayFileError(Exception):
    """The file is absent, cut off, or something else."""


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """What a file holds.

    Attributes:
        about: What the writer said of it, JSON-ready.
        arrays: Read-only views of the mapped file.
    """

    about: Mapping[str, Any]
    arrays: Mapping[str, Array]


def write_arrays(path: Path, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write to `path`, which holds all of it or stays as it was.

    Args:
        path: Where.
        about: JSON-ready.
        arrays: float64, float32, int64, bool or byte strings.

    Raises:
        OSError: If the file cannot be written.
    """
    widths = {name: array.dtype.itemsize for name, array in arrays.items() if array.dtype.kind == "S"}
    plain = {name: _bytes_of(array) if name in widths else array for name, array in arrays.items()}
    checksum = _checksum(about, arrays)
    # One entry, because their order in the file is not fixed.
    metadata = {_METADATA: json.dumps({"about": about, "string_widths": widths, "checksum": checksum})}
    with replaced_when_complete(path) as partial:
        save_file({name: np.ascontiguousarray(array) for name, array in plain.items()}, partial, metadata)


def keep_arrays(places: Iterable[Path], about: Mapping[str, Any], arrays: Mapping[str, Array]) -> bool:
    """`write_arrays` to the first of `places` that can be written; False where none can."""
    for path in places:
        try:
            write_arrays(path, about, arrays)
        except OSError:
            continue
        return True
    return False


def map_arrays(path: Path, *, verify: bool = False) -> ArrayFile:
    """Map what `write_arrays` wrote.

    Args:
        path: The file.
        verify: Whether to read everything and compare the checksum, which takes about a second for 1 GB. Otherwise
            only the header is read.

    Raises:
        ArrayFileError: If the file is not one, or is damaged as far as it is read.
    """
    try:
        content = np.memmap(path, mode="r", dtype=np.uint8)
        start = 8 + int(content[:8].view(np.uint64)[0])
        header = json.loads(content[8:start].tobytes())
        metadata = json.loads(header.pop("__metadata__")[_METADATA])
        about, widths = metadata["about"], metadata["string_widths"]
        arrays = {name: _view(content[start:], entry, widths.get(name)) for name, entry in header.items()}
        if verify and metadata["checksum"] != _checksum(about, arrays):
            raise ValueError("the content differs from what was written")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ArrayFileError(f"{path}: {error}") from error
    return ArrayFile(about, arrays)


def _view(content: Array, entry: Mapping[str, Any], width: int | None) -> Array:
    begin, end = entry["data_offsets"]
    # Of a file that is cut off too few bytes are left for the shape.
    array: Array = content[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    # Plain arrays over the map: a subclass would cost at every index.
    array = np.asarray(array)
    return array if width is None else array.view(f"S{width}")[..., 0]


def _checksum(about: object, arrays: Mapping[str, Array]) -> int:
    """CRC-32 of the description, and of the name, type, shape and content of each array."""
    checksum = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum


def _bytes_of(strings: Array) -> Array:
    width = strings.dtype.itemsize
    return np.ascontiguousarray(strings).view(np.uint8).reshape(*strings.shape, width)
