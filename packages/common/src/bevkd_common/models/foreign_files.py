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
from bevkd_common.files import foreign_content, start_of


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


_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Start of a file that `torch.save` wrote before PyTorch 1.6."""
_INFO_WORDS = (b"lidar_path", b"lidar_points", b"gt_boxes", b"data_list")


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
    if (known := _something_else(path)) is not None:
        raise UserError(f"the checkpoint {path} {known}")
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


def _something_else(path: Path) -> str | None:
    """What a file is that is no checkpoint, with the advice; None if it may be one. Nothing is unpickled."""
    start = start_of(path)
    if (known := foreign_content(start)) is not None:
        return known
    if not start:
        return "is empty: the download did not finish; download it again"
    if path.suffix != ".safetensors" and start[:1] == b"\x80" and not start.startswith(_MAGIC):
        if any(word in path.read_bytes() for word in _INFO_WORDS):
            return "is an info file of mmdetection3d with the annotations of a data set, it holds no weights"
        return "is a pickle that `torch.save` did not write, it holds no weights"
    if start.lstrip()[:1] in (b"{", b"["):
        return "is text in JSON, it holds no weights"
    if start.startswith(b"\x1f\x8b"):
        return "is compressed with gzip: decompress it first"
    return None


def _unsafe(path: Path, reason: str) -> str:
    # PyTorch's own message speaks of switching its protection off.
    named = re.search(r"GLOBAL (\S+)", reason)
    why = f"it asks for {named[1]}" if named else reason.strip().partition("\n")[0]
    if "weights_only" in why:
        refused = re.search(r"WeightsUnpickler error: (.*)", reason)
        why = refused[1].strip() if refused and refused[1].strip() else "it is no file that PyTorch writes today"
    return f"the checkpoint {path} cannot be read safely ({why}); download it again, or save its `state_dict` alone"
