"""The instance masks of a synthetic world, made as wrong as a 2D detector's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bevkd_common.config.datasets.masks import ALIKE, MaskErrorsConfig
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.data.nuscenes.categories import DETECTION_CLASS
from bevkd_common.data.nuscenes.index import Ints
from bevkd_common.data.nuscenes.tables import read_table
from bevkd_common.data.virtual_points.instances import Instances, Masks, named_rng
from bevkd_common.errors import UserError
from bevkd_common.files import parse_json

LOWEST_SCORE = 0.05
NUMBERS = 256
"""Values of a pixel of a mask: 0 for nothing, else the number of an instance in its scene."""
ELLIPSE = (0.04, 0.25)
"""Least and greatest half-axis of a false instance, as a share of the image's height."""


@dataclass(frozen=True)
class SyntheticMasks:
    """The masks beside the images of a world; errors depend on the image's name alone.

    Attributes:
        root: Folder of the world.
        version: Its tables.
        errors: What is done to the masks.
    """

    root: Path
    version: str
    errors: MaskErrorsConfig
    _label_of: dict[str, int] = field(default_factory=dict, repr=False)
    _labels: dict[str, Ints] = field(default_factory=dict, repr=False)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `MaskSource`."""
        return {"masks": "synthetic", "errors": self.errors.model_dump(mode="json")}

    @property
    def sentence(self) -> str:
        """See `MaskSource`."""
        return self.errors.sentence

    def instances(self, image: str, scene: str, size: tuple[int, int]) -> Instances:
        """See `MaskSource`."""
        path = (self.root / "masks" / image).with_suffix(".png")
        try:
            with Image.open(path) as file:
                numbers = np.asarray(file)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path} is no mask ({error}); generate the world again") from error
        if numbers.shape != size:
            raise UserError(f"{path} has {numbers.shape} pixels, its image {size}; generate the world again")
        return degraded(numbers, self._scene_labels(scene), self.errors, named_rng("masks", image))

    def _scene_labels(self, scene: str) -> Ints:
        """[NUMBERS] class of each number in the masks of a scene; -1 for what is no detection class."""
        if not self._label_of:
            self._label_of.update(_instance_labels(self.root, self.version))
        if scene not in self._labels:
            path = self.root / "masks" / f"{scene}.json"
            try:
                tokens = parse_json(path.read_bytes())
                labels = np.full(NUMBERS, -1)
                for number, token in tokens.items():
                    labels[int(number)] = self._label_of[token]
            except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
                raise UserError(
                    f"{path} does not name the instances ({error}); generate the world again"
                ) from error
            self._labels[scene] = labels
        return self._labels[scene]


def _instance_labels(root: Path, version: str) -> dict[str, int]:
    categories = read_table(root, version, "category").columns
    instances = read_table(root, version, "instance").columns
    label_of = {
        token: CLASSES.index(DETECTION_CLASS[name.decode()]) if name.decode() in DETECTION_CLASS else -1
        for token, name in zip(categories["token"].tolist(), categories["name"].tolist(), strict=True)
    }
    pairs = zip(instances["token"].tolist(), instances["category_token"].tolist(), strict=True)
    return {token.decode(): label_of[category] for token, category in pairs}


def degraded(
    numbers: npt.NDArray[np.uint8], labels: Ints, errors: MaskErrorsConfig, rng: np.random.Generator
) -> Instances:
    """What a detector with these errors finds.

    Args:
        numbers: [H, W] number of the instance that is seen at each pixel.
        labels: [NUMBERS] class of each number, -1 for what nobody looks for.
        errors: Rates.
        rng: Of this image.
    """
    pixels = np.bincount(numbers.ravel(), minlength=NUMBERS)
    present = np.flatnonzero((pixels >= max(errors.min_pixels, 1)) & (labels >= 0))
    present = present[rng.random(len(present)) >= errors.miss]
    wrong = rng.random(len(present)) < errors.mislabel
    taken_for = np.array([rng.choice(_OTHERS[label]) for label in labels[present]], dtype=np.int64)
    masks = [_displaced(numbers == number, errors.jitter, rng) for number in present]

    false = int(rng.poisson(errors.false_instances))
    masks += [_ellipse(numbers.shape, rng) for _ in range(false)]
    found = np.concatenate([np.where(wrong, taken_for, labels[present]), rng.integers(len(CLASSES), size=false)])
    mean = np.where(np.concatenate([wrong, np.ones(false, np.bool_)]), errors.wrong_score, errors.score)
    scores = np.clip(rng.normal(mean, errors.score_noise), LOWEST_SCORE, 1.0)
    stacked = np.stack(masks) if masks else np.zeros((0, *numbers.shape), np.bool_)
    return Instances.of_masks(stacked, found, scores)


def _displaced(mask: Masks, jitter: float, rng: np.random.Generator) -> Masks:
    """The mask moved, and scaled about its middle, by shares of its extent."""
    shift, ratio = jitter * rng.standard_normal(2), np.exp(jitter * rng.standard_normal())
    sources, seen = [], []
    for axis, move in enumerate(shift):
        occupied = np.flatnonzero(mask.any(axis=1 - axis))
        middle, extent = (occupied[0] + occupied[-1]) / 2, occupied[-1] - occupied[0] + 1
        source = np.rint(middle + (np.arange(mask.shape[axis]) - middle - move * extent) / ratio).astype(np.int64)
        sources.append(source.clip(0, mask.shape[axis] - 1))
        seen.append((source >= 0) & (source < mask.shape[axis]))
    return mask[np.ix_(*sources)] & seen[0][:, None] & seen[1]


def _ellipse(shape: tuple[int, ...], rng: np.random.Generator) -> Masks:
    """An ellipse somewhere in the image."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    center = rng.random(2) * shape
    half = shape[0] * np.exp(rng.uniform(math.log(ELLIPSE[0]), math.log(ELLIPSE[1]), size=2))
    return ((rows - center[0]) / half[0]) ** 2 + ((columns - center[1]) / half[1]) ** 2 <= 1


def _others(name: str) -> list[int]:
    return next([CLASSES.index(other) for other in sort if other != name] for sort in ALIKE if name in sort)


_OTHERS = tuple(_others(name) for name in CLASSES)
"""Labels that each label is taken for."""
