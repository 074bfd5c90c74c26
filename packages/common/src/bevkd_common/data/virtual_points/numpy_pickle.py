"""Dictionaries of numpy arrays that `np.save` pickled, read without running what the file may say."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from bevkd_common.errors import UserError

_RECONSTRUCT = {"numpy.core.multiarray", "numpy._core.multiarray"}
_HEADERS: Mapping[tuple[int, int], Callable[[io.BytesIO], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _ArraysOnly(pickle.Unpickler):
    """Finds what rebuilds a numpy array and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _RECONSTRUCT and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside of it")


def read_numpy_dictionary(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a .npy file that holds one pickled dictionary; code in it is refused and never run.

    Raises:
        UserError: If the file is missing or holds anything else.
    """
    try:
        return _arrays(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; unpack the archive that holds it again") from error
    # Bytes that are no pickle of arrays fail in as many ways as numpy and pickle know.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is no dictionary of arrays ({reason}); nothing in it was run") from error


def _arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    file = io.BytesIO(content)
    read_header = _HEADERS[np.lib.format.read_magic(file)]  # type: ignore[no-untyped-call]
    shape, _, dtype = read_header(file)
    if dtype != np.dtype(object) or shape != ():
        raise ValueError(f"it is an array of {dtype} {shape}")
    holder = _ArraysOnly(file).load()
    found = holder.item() if isinstance(holder, np.ndarray) and holder.shape == () else holder
    if not isinstance(found, dict):
        raise ValueError(f"it holds {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype.hasobject:
            raise ValueError(f"{name!r} is no array of numbers")
    return found
