"""Boxes of one sample in nuScenes' global frame, as columns: what detection metrics and submissions are made of."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.errors import UserError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

ATTRIBUTES = (
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
NO_ATTRIBUTE = -1
MAX_BOXES_PER_SAMPLE = 500
LARGEST = 1e12
"""Numbers of boxes are smaller; products of larger ones would overflow."""


@dataclass(frozen=True, eq=False)
class Cuboids:
    """K oriented cuboids.

    Attributes:
        translation: [K, 3] float64, gravity centre, metres. Global coordinates run to thousands of metres, so
            float32 would cost up to a tenth of a millimetre.
        length: [K] along the heading, metres.
        width: [K] metres.
        height: [K] metres.
        rotation: [K, 4] quaternion w, x, y, z; normalised where it is used.
    """

    translation: FloatArray
    length: FloatArray
    width: FloatArray
    height: FloatArray
    rotation: FloatArray

    def __post_init__(self) -> None:
        _set_columns(
            self,
            np.float64,
            len(self.translation),
            {"translation": (3,), "length": (), "width": (), "height": (), "rotation": (4,)},
        )

    def __len__(self) -> int:
        return len(self.translation)

    @classmethod
    def empty(cls) -> Self:
        """Return no cuboids."""
        return cls(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 4)))

    def take(self, keep: BoolArray) -> Self:
        """Return the cuboids where the mask `keep` [K] is true."""
        return type(self)(*(getattr(self, column.name)[keep] for column in fields(self)))

    def yaw(self) -> FloatArray:
        """Return the heading [K] in the xy plane, radians counter-clockwise from +x."""
        w, x, y, z = self.rotation.T
        # The x axis of the box, rotated; the squared norm of the quaternion scales both arguments and cancels.
        return np.arctan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)

    def contain(self, points: FloatArray) -> BoolArray:
        """Return for each of P `points` [P, 3] whether it lies in any cuboid, faces included."""
        w, *xyz = (self.rotation / np.linalg.norm(self.rotation, axis=1, keepdims=True)).T
        axis = -np.stack(xyz, axis=-1)[:, None]  # the conjugate turns from the global axes to those of the box
        offset = points[None] - self.translation[:, None]  # [K, P, 3]
        twist = 2 * np.cross(axis, offset)
        local = offset + w[:, None, None] * twist + np.cross(axis, twist)
        half = np.stack([self.length, self.width, self.height], axis=-1)[:, None] / 2
        inside: BoolArray = (np.abs(local) <= half).all(axis=-1).any(axis=0)
        return inside


@dataclass(frozen=True, eq=False)
class DetectionArrays:
    """The K predictions of one sample.

    Attributes:
        cuboids: where they are, global frame.
        labels: [K] index into `CLASSES`.
        velocity: [K, 2] global x and y, m/s; NaN where it was not estimated.
        attributes: [K] index into `ATTRIBUTES` or `NO_ATTRIBUTE`.
        scores: [K] confidence, not negative.
    """

    cuboids: Cuboids
    labels: IntArray
    velocity: FloatArray
    attributes: IntArray
    scores: FloatArray

    def __post_init__(self) -> None:
        _set_columns(self, np.int64, len(self.cuboids), {"labels": (), "attributes": ()})
        _set_columns(self, np.float64, len(self.cuboids), {"velocity": (2,), "scores": ()})

    def __len__(self) -> int:
        return len(self.cuboids)

    def take(self, keep: BoolArray) -> Self:
        """Return the predictions where the mask `keep` [K] is true."""
        return type(self)(
            self.cuboids.take(keep),
            self.labels[keep],
            self.velocity[keep],
            self.attributes[keep],
            self.scores[keep],
        )

    def check(self, where: str) -> None:
        """Refuse values that no metric can score.

        Args:
            where: names the source in the message, such as a file and a sample.

        Raises:
            UserError: names the first field with such a value.
        """
        _check_boxes(where, "prediction", self.cuboids, self.labels, self.velocity, self.attributes)
        _refuse(
            ~(np.isfinite(self.scores) & (self.scores >= 0)),
            where,
            "prediction",
            "detection_score",
            "must be a number of at least 0",
        )


@dataclass(frozen=True, eq=False)
class TruthArrays:
    """The G annotated boxes of one sample, and what the metric needs to know about that sample.

    Attributes:
        cuboids: where they are, global frame.
        labels: [G] index into `CLASSES`.
        velocity: [G, 2] global x and y, m/s; NaN where the annotations do not give it.
        attributes: [G] index into `ATTRIBUTES` or `NO_ATTRIBUTE`.
        num_points: [G] LiDAR and radar points inside; boxes with none are not scored.
        scene_token: the scene, the unit that is resampled.
        ego_translation: [3] global position of the ego vehicle at the LiDAR's timestamp, metres.
        bicycle_racks: areas in which bicycles and motorcycles are not scored, global frame.
    """

    cuboids: Cuboids
    labels: IntArray
    velocity: FloatArray
    attributes: IntArray
    num_points: IntArray
    scene_token: str
    ego_translation: FloatArray
    bicycle_racks: Cuboids

    def __post_init__(self) -> None:
        _set_columns(self, np.int64, len(self.cuboids), {"labels": (), "attributes": (), "num_points": ()})
        _set_columns(self, np.float64, len(self.cuboids), {"velocity": (2,)})
        _set_columns(self, np.float64, 3, {"ego_translation": ()})

    def __len__(self) -> int:
        return len(self.cuboids)

    def take(self, keep: BoolArray) -> Self:
        """Return the same sample with the boxes where the mask `keep` [G] is true."""
        return type(self)(
            self.cuboids.take(keep),
            self.labels[keep],
            self.velocity[keep],
            self.attributes[keep],
            self.num_points[keep],
            self.scene_token,
            self.ego_translation,
            self.bicycle_racks,
        )

    def check(self, where: str) -> None:
        """Refuse values that no metric can score.

        Args:
            where: names the source in the message, such as a file and a sample.

        Raises:
            UserError: names the first field with such a value.
        """
        _check_boxes(where, "annotation", self.cuboids, self.labels, self.velocity, self.attributes)


def _set_columns(owner: object, dtype: type[np.generic], length: int, columns: dict[str, tuple[int, ...]]) -> None:
    """Convert fields of a frozen dataclass to arrays of shape [length, *trailing] or raise ValueError."""
    for name, trailing in columns.items():
        column: NDArray[Any] = np.asarray(getattr(owner, name)).astype(dtype, casting="same_kind", copy=False)
        if column.shape != (length, *trailing):
            raise ValueError(f"{type(owner).__name__}.{name} has shape {column.shape}, not {(length, *trailing)}")
        object.__setattr__(owner, name, column)


def _check_boxes(
    where: str,
    kind: str,
    cuboids: Cuboids,
    labels: IntArray,
    velocity: FloatArray,
    attributes: IntArray,
) -> None:
    size = np.stack([cuboids.width, cuboids.length, cuboids.height], axis=-1)
    _refuse(~_bounded(cuboids.translation), where, kind, "translation", "must be 3 finite numbers (metres)")
    _refuse(
        ~(_bounded(size) & (size > 1 / LARGEST).all(axis=1)),
        where,
        kind,
        "size",
        "must be 3 numbers above 0 (metres)",
    )
    _refuse(
        ~(_bounded(cuboids.rotation) & (np.abs(cuboids.rotation) > 1 / LARGEST).any(axis=1)),
        where,
        kind,
        "rotation",
        "must be a quaternion w, x, y, z of finite numbers, not all 0",
    )
    _refuse(
        ~_bounded(np.nan_to_num(velocity, nan=0.0, posinf=np.inf, neginf=-np.inf)),
        where,
        kind,
        "velocity",
        "must be 2 finite numbers or NaN (unknown)",
    )
    _refuse(
        (labels < 0) | (labels >= len(CLASSES)),
        where,
        kind,
        "label",
        f"must be one of 0 to {len(CLASSES) - 1}",
    )
    _refuse(
        (attributes < NO_ATTRIBUTE) | (attributes >= len(ATTRIBUTES)),
        where,
        kind,
        "attribute",
        f"must be one of {NO_ATTRIBUTE} (none) to {len(ATTRIBUTES) - 1}",
    )


def _bounded(values: FloatArray) -> BoolArray:
    """[K] whether the numbers of each row of [K, N] are finite, and so small that their squares are too."""
    bounded: BoolArray = (np.abs(values) < LARGEST).all(axis=1)
    return bounded


def _refuse(wrong: BoolArray, where: str, kind: str, field: str, rule: str) -> None:
    if wrong.any():
        raise UserError(f"{where}: {field} of {kind} {int(wrong.argmax())} {rule}.")
