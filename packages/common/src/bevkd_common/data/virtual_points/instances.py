"""What a 2D detector finds in an image: masks with a class and a score, and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.wording import shorten
from bevkd_common.data.frames import Floats, Ints
from bevkd_common.errors import UserError
from bevkd_common.files import foreign_content, inside, start_of

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Instances:
    """[I] instances in one image; their masks may overlap.

    Attributes:
        size: Height and width in pixels.
        labels: [I] index into `CLASSES`.
        scores: [I] in (0, 1].
        offset: [I + 1]; instance i covers `pixels[offset[i]:offset[i + 1]]`.
        pixels: [Q] row * width + column.
    """

    size: tuple[int, int]
    labels: Ints
    scores: Floats
    offset: Ints
    pixels: Ints

    @classmethod
    def of_masks(cls, masks: Masks, labels: Ints, scores: Floats) -> Instances:
        """From masks [I, H, W]; the best come first, and what covers no pixel is left out."""
        order = np.argsort(-scores, kind="stable")
        order = order[masks[order].any(axis=(1, 2))]
        height, width = masks.shape[1:]
        instance, pixels = np.nonzero(masks[order].reshape(len(order), height * width))
        offset = np.searchsorted(instance, np.arange(len(order) + 1))
        return cls((height, width), labels[order], scores[order], offset, pixels)

    def __len__(self) -> int:
        return len(self.labels)

    def owner(self) -> Ints:
        """[H * W] the instance that covers each pixel, the first of several, or -1."""
        found = np.full(self.size[0] * self.size[1], -1)
        instance = np.repeat(np.arange(len(self)), np.diff(self.offset))
        # Of a pixel that is named several times the last stays.
        found[self.pixels[::-1]] = instance[::-1]
        return found


class MaskSource(Protocol):
    """Where the instances of images come from."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON-ready, all that determines the instances."""
        ...

    @property
    def sentence(self) -> str:
        """The same for a reader, to follow "Virtual points from"."""
        ...

    def instances(self, image: str, scene: str, size: tuple[int, int]) -> Instances:
        """Of one image.

        Args:
            image: Path relative to the root of the data set.
            scene: Name of its scene.
            size: Height and width in pixels.

        Raises:
            UserError: If they cannot be had.
        """
        ...


@dataclass(frozen=True)
class MaskFolder:
    """Predictions that any tool wrote: for each image a .npz file of the same relative path.

    It holds, without pickles, `masks` [I, H, W] bool at the size of the recorded image, `classes` [I] text, names
    as in `CLASSES`, and `scores` [I] in (0, 1]. Names stand in place of numbers because 2D detectors count their
    classes in an order of their own.
    """

    folder: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `MaskSource`."""
        return {"masks": "folder", "folder": str(self.folder.resolve())}

    @property
    def sentence(self) -> str:
        """See `MaskSource`."""
        return f"the masks in {self.folder}"

    def instances(self, image: str, scene: str, size: tuple[int, int]) -> Instances:
        """See `MaskSource`."""
        path = inside(self.folder, image).with_suffix(".npz")
        try:
            with np.load(path, allow_pickle=False) as file:
                masks, names, scores = (file[key] for key in ("masks", "classes", "scores"))
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing; predict the masks of every image, none found too") from error
        except Exception as error:  # zipfile has errors of many types for a damaged file
            if (known := foreign_content(start_of(path))) is not None:
                raise UserError(f"{path} {known}") from error
            raise UserError(
                f"{path} is not a file of masks ({shorten(str(error), 160)}); it must hold the arrays `masks`, "
                "`classes` and `scores`, and no pickles"
            ) from error
        return checked_instances(path, size, masks, names, scores)


def checked_instances(
    path: Path, size: tuple[int, int], masks: npt.NDArray[Any], names: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> Instances:
    """Instances from the arrays of a file.

    Raises:
        UserError: If shapes, types or values are not those of `MaskFolder`.
    """
    count = len(scores) if scores.ndim == 1 else -1
    if (
        masks.dtype != np.bool_
        or masks.shape != (count, *size)
        or names.shape != (count,)
        or names.dtype.kind != "U"
    ):
        raise UserError(
            f"{path} holds `masks` {masks.dtype} {masks.shape}, `classes` {names.dtype} {names.shape}, `scores` "
            f"{scores.shape}; of an image of {size[0]} x {size[1]} they are bool [I, {size[0]}, {size[1]}], text "
            "[I] and numbers [I]"
        )
    if unknown := sorted(set(names.tolist()) - set(CLASSES)):
        raise UserError(
            f"{path} names the class {unknown[0]!r}; leave it out, the classes are {', '.join(CLASSES)}"
        )
    if scores.dtype.kind != "f" or not ((scores > 0) & (scores <= 1)).all():
        raise UserError(f"{path} holds a score that is not in (0, 1]; write probabilities")
    labels = np.array([CLASSES.index(name) for name in names.tolist()], dtype=np.int64)
    return Instances.of_masks(masks, labels, scores.astype(np.float64))


def named_rng(*names: str) -> np.random.Generator:
    """A generator that depends on some names alone, whatever was drawn before."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
