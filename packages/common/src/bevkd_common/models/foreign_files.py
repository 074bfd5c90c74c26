"""Checkpoint files of other code bases, read without running what they may hold."""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bevkd_common.errors import UserError


class Inert:
    """Stand-in for an object that is no tensor; it stores nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


BESIDE_WEIGHTS = (
    # Numbers and arrays of logs, and types of either.
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float32", "Float64", "Int32", "Int64", "Bool")),
    # mmcv's and mmengine's configurations and logs; these name their own methods through `getattr`.
    "mmcv.utils.config.Config",
    "mmengine.config.config.Config",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.MessageHub",
    "builtins.getattr",
    # Lightning's and argparse's.
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
)
"""What well-known code bases save beside weights; each is read as `Inert`, and never imported."""

SECTIONS_BESIDE_WEIGHTS = (
    "addict.addict.Dict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)
"""The same for dictionaries of their own; each is read as an ordered one."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the weights of a .pth or .safetensors file on the CPU; never runs code that the file may hold.

    Raises:
        UserError: If there is no such file, or it holds no weights that can be read safely.
    """
    return weights_in(read_content(path), path)


def weights_in(content: object, path: Path) -> dict[str, Tensor]:
    """The weights in what `read_content` returned.

    Raises:
        UserError: If there are none; `path` is where it came from.
    """
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        weights = {"": None}
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise UserError(
            f"the checkpoint {path} holds no weights: expected tensors by name, or a `state_dict` of them"
        )
    return dict(weights)


def read_content(path: Path) -> Any:
    """What a .pth, .ckpt or .safetensors file holds, on the CPU.

    The file is read by PyTorch's restricted reader, which builds tensors, containers and numbers and calls nothing
    else. The classes listed above are replaced; any other class makes the file unreadable.

    Raises:
        UserError: If there is no such file, or it cannot be read safely.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; check the path")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except (SafetensorError, OSError) as error:
        raise UserError(_unsafe(path, str(error))) from error
    except Exception as error:  # a hostile or broken file may make the reader fail in any way
        raise UserError(_unsafe(path, str(error) or type(error).__name__)) from error


def _load_pickle(path: Path) -> Any:
    stand_ins: list[Any] = [(Inert, name) for name in BESIDE_WEIGHTS]
    stand_ins += [(OrderedDict, name) for name in SECTIONS_BESIDE_WEIGHTS]
    with torch.serialization.safe_globals(stand_ins):
        # Mapped, the state of an optimizer is never read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _unsafe(path: Path, reason: str) -> str:
    # PyTorch's own message speaks of switching its protection off.
    named = re.search(r"GLOBAL (\S+)", reason)
    why = f"it asks for {named[1]}" if named else reason.strip().partition("\n")[0]
    return f"the checkpoint {path} cannot be read safely ({why}); download it again, or save its `state_dict` alone"
