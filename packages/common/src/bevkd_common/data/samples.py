"""One key frame, and a batch of them.

All geometry is in the key frame's LiDAR axes *after* the bird's-eye-view augmentation: the augmentation is
applied to points and boxes and multiplied from the left into `lidar_T_cam`, so that everything a detector sees
shares one frame. `aug_T_lidar` says what was applied.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes

if TYPE_CHECKING:
    from bevkd_common.ops.voxelize import Voxels, VoxelSpec

PADDING_LABEL = -1
T = TypeVar("T")


class TensorGroup:
    """A frozen dataclass of tensors and such groups, which move and are collated together."""

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`."""
        moved = {
            name: value.to(device) if isinstance(value, TensorGroup) else value.to(device, non_blocking=True)
            for name, value in _fields(self)
        }
        return type(self)(**moved)

    @classmethod
    def stack(cls, groups: Sequence[Self]) -> Self:
        """Collate samples to a batch."""
        columns = zip(*(_fields(group) for group in groups), strict=True)
        return cls(**{column[0][0]: _stacked([value for _, value in column]) for column in columns})


def _fields(group: TensorGroup) -> list[tuple[str, Any]]:
    return list(vars(group).items())


def _stacked(values: Sequence[Any]) -> Any:
    first = values[0]
    return first.stack(values) if isinstance(first, TensorGroup) else torch.stack(list(values))


@dataclass(frozen=True, eq=False)
class Cameras(TensorGroup):
    """Images and their calibration, for one sample (no B) or a batch.

    Attributes:
        images: [B, N, 3, H, W] uint8, RGB, after the image augmentation; detectors normalise themselves.
        intrinsics: [B, N, 3, 3] float32, of the original image.
        lidar_T_cam: [B, N, 4, 4] float32, camera at its own time to the key frame's (augmented) LiDAR axes.
        image_aug: [B, N, 3, 3] float32, original pixels (u, v, 1) to augmented pixels.
    """

    images: Tensor
    intrinsics: Tensor
    lidar_T_cam: Tensor
    image_aug: Tensor


@dataclass(frozen=True, eq=False)
class History(TensorGroup):
    """Other camera frames of the scene, oldest first, for one sample (no B) or a batch.

    Attributes:
        cameras: As of the key frame, with a dimension T after B: [B, T, N, ...]; `lidar_T_cam` leads to the *key
            frame's* augmented LiDAR axes, and each camera has the image augmentation of the key frame.
        lidar_T_past: [B, T, 4, 4] float32, LiDAR axes of the frame to those of the key frame, both augmented.
        seconds: [B, T] float32, how long before the key frame; negative for a later frame, which stands in at the
            start of a scene where frames are adjacent ones.
        present: [B, T] bool; where False the scene has no such frame and the key frame itself stands in.
    """

    cameras: Cameras
    lidar_T_past: Tensor
    seconds: Tensor
    present: Tensor

    def last(self, frames: int) -> History:
        """The `frames` nearest to the key frame, of a batch: what the detector with the shorter history takes."""
        cameras = Cameras(**{name: value[:, -frames:] for name, value in _fields(self.cameras)})
        tail = (value[:, -frames:] for value in (self.lidar_T_past, self.seconds, self.present))
        return History(cameras, *tail)

    def frame(self, place: int) -> Cameras:
        """The cameras of one frame of a batch, leading to the LiDAR axes of that frame."""
        cameras = Cameras(**{name: value[:, place] for name, value in _fields(self.cameras)})
        past_T_lidar = torch.linalg.inv(self.lidar_T_past[:, place].double())[:, None]
        return replace(cameras, lidar_T_cam=(past_T_lidar @ cameras.lidar_T_cam.double()).float())


@dataclass(frozen=True, eq=False)
class EgoMotion(TensorGroup):
    """How the ego moves at each frame of the history and, last, at the key frame; nothing here is augmented.

    Attributes:
        global_T_ego: [B, T + 1, 4, 4] float64, at the time of the LiDAR.
        acceleration: [B, T + 1, 3] float32, m/s^2 in ego axes, gravity included.
        rotation_rate: [B, T + 1, 3] float32, rad/s in ego axes.
        velocity: [B, T + 1, 3] float32, m/s in ego axes.
    """

    global_T_ego: Tensor
    acceleration: Tensor
    rotation_rate: Tensor
    velocity: Tensor


@dataclass(frozen=True, eq=False)
class DepthHits(TensorGroup):
    """Where the LiDAR points of the key frame lie in its images.

    Attributes:
        image: [K] int64, number of the image, over all samples and cameras of a batch.
        pixels: [K, 2] float32 u, v after the image augmentation; some lie outside the image.
        depth: [K] float32, metres along the camera's axis, positive.
        inner: [K] bool, whether the point lies more than a pixel inside the image as recorded.
    """

    image: Tensor
    pixels: Tensor
    depth: Tensor
    inner: Tensor


@dataclass(frozen=True, eq=False)
class Cloud:
    """A point cloud of one sample, or of all samples of a batch.

    What is computed from a cloud (voxels, sampled points) is kept with it, so that two detectors share it. A copy
    with other points starts empty.

    Attributes:
        points: [P, F] float32, the samples one after the other; x, y, z first, metres in the augmented LiDAR axes.
        counts: Points of each sample.
        columns: F names.
    """

    points: Tensor
    counts: tuple[int, ...]
    columns: tuple[str, ...]
    _kept: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def join(cls, clouds: Sequence[Cloud]) -> Cloud:
        """The clouds of several samples as one."""
        counts = tuple(count for cloud in clouds for count in cloud.counts)
        return cls(torch.cat([cloud.points for cloud in clouds]), counts, clouds[0].columns)

    def split(self) -> tuple[Tensor, ...]:
        """The points [P, F] of each sample."""
        return self.points.split(self.counts)

    def to(self, device: torch.device | str) -> Cloud:
        """The same on `device`, with nothing computed from it yet."""
        return replace(self, points=self.points.to(device, non_blocking=True))

    def derived(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, which is called once for each key.

        Args:
            key: Everything that determines the result beside the points, such as a frozen dataclass.
            compute: Computes the result from this cloud.
        """
        if key not in self._kept:
            self._kept[key] = compute()
        return cast("T", self._kept[key])

    def voxels(self, spec: VoxelSpec) -> Voxels:
        """The cloud as voxels; teacher and student with equal specs get the same rows."""
        from bevkd_common.ops.voxelize import voxelize

        return self.derived(spec, lambda: voxelize(self.points, self.counts, spec))


@dataclass(frozen=True, eq=False)
class Sample:
    """One key frame.

    Attributes:
        token: The data set's name of the key frame.
        scene: The data set's name of its scene; the token, where there are no scenes.
        boxes: [M] boxes that a detector is trained on (after validity, class and range filters).
        labels: [M] int64, index into the data set's classes.
        cameras: The cameras, or None where they are not needed.
        clouds: The point clouds that are needed, by the data set's name for them ("lidar").
        aug_T_lidar: [4, 4] float32, the bird's-eye-view augmentation.
        timestamp: Microseconds, of the LiDAR; None where the data set has none.
        global_T_lidar: [4, 4] float64, pose of the unaugmented LiDAR axes; None where the data set has none.
        history: Other frames, or None where nobody needs them.
        ego: The ego's motion, or None.
        depth: Depths in the images, or None.
        view: Name of this view of the sample, where its augmentation is one of few; equal names, equal views.
        skipped: What was wrong with each damaged sample in whose place this one stands.
    """

    token: str
    scene: str
    boxes: Boxes
    labels: Tensor
    cameras: Cameras | None
    clouds: Mapping[str, Cloud]
    aug_T_lidar: Tensor
    timestamp: int | None = None
    global_T_lidar: Tensor | None = None
    history: History | None = None
    ego: EgoMotion | None = None
    depth: DepthHits | None = None
    view: str | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Batch:
    """Collated samples.

    Attributes:
        tokens: B names.
        scenes: B names.
        boxes: [B, M] boxes, padded with zeros.
        labels: [B, M] int64, `PADDING_LABEL` where padded.
        cameras: See `Cameras`.
        clouds: The point clouds of all samples by name.
        aug_T_lidar: [B, 4, 4] float32.
        global_T_lidar: [B, 4, 4] float64, or None.
        history: See `History`.
        ego: See `EgoMotion`.
        depth: See `DepthHits`.
        views: B names, see `Sample.view`.
        skipped: See `Sample`, of all samples.
    """

    tokens: tuple[str, ...]
    scenes: tuple[str, ...]
    boxes: Boxes
    labels: Tensor
    cameras: Cameras | None
    clouds: Mapping[str, Cloud]
    aug_T_lidar: Tensor
    timestamp: int | None = None
    global_T_lidar: Tensor | None = None
    history: History | None = None
    ego: EgoMotion | None = None
    depth: DepthHits | None = None
    views: tuple[str | None, ...] = ()
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def valid(self) -> Tensor:
        """[B, M] bool, the boxes that are not padding."""
        return self.labels != PADDING_LABEL

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.labels.device

    def to(self, device: torch.device | str) -> Batch:
        """The same on `device`."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            labels=self.labels.to(device, non_blocking=True),
            cameras=_moved(self.cameras, device),
            clouds={name: cloud.to(device) for name, cloud in self.clouds.items()},
            aug_T_lidar=self.aug_T_lidar.to(device, non_blocking=True),
            global_T_lidar=None
            if self.global_T_lidar is None
            else self.global_T_lidar.to(device, non_blocking=True),
            history=_moved(self.history, device),
            ego=_moved(self.ego, device),
            depth=_moved(self.depth, device),
        )

    def cloud(self, name: str) -> Cloud:
        """The point cloud of a name.

        Raises:
            ValueError: If the batch was loaded without it.
        """
        if name not in self.clouds:
            loaded = ", ".join(self.clouds) or "none"
            raise ValueError(f"a batch without the point cloud `{name}` ({loaded}): the `needs` must name it")
        return self.clouds[name]


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples to one batch; boxes are padded to the longest list."""
    most = max(len(sample.boxes) for sample in samples)
    boxes = torch.zeros(len(samples), most, 9)
    labels = torch.full((len(samples), most), PADDING_LABEL, dtype=torch.int64)
    for row, sample in enumerate(samples):
        boxes[row, : len(sample.boxes)] = sample.boxes.tensor
        labels[row, : len(sample.boxes)] = sample.labels
    poses = [sample.global_T_lidar for sample in samples if sample.global_T_lidar is not None]
    return Batch(
        tokens=tuple(sample.token for sample in samples),
        scenes=tuple(sample.scene for sample in samples),
        boxes=Boxes(boxes),
        labels=labels,
        cameras=_collated([sample.cameras for sample in samples]),
        clouds={name: Cloud.join([sample.clouds[name] for sample in samples]) for name in samples[0].clouds},
        aug_T_lidar=torch.stack([sample.aug_T_lidar for sample in samples]),
        global_T_lidar=torch.stack(poses) if poses else None,
        history=_collated([sample.history for sample in samples]),
        ego=_collated([sample.ego for sample in samples]),
        depth=_all_hits(samples),
        views=tuple(sample.view for sample in samples),
        skipped=tuple(message for sample in samples for message in sample.skipped),
    )


G = TypeVar("G", bound=TensorGroup)


def _moved(group: G | None, device: torch.device | str) -> G | None:
    return None if group is None else group.to(device)


def _collated(groups: Sequence[G | None]) -> G | None:
    """The groups stacked; None where the samples carry none."""
    given = [group for group in groups if group is not None]
    return given[0].stack(given) if given else None


def _all_hits(samples: Sequence[Sample]) -> DepthHits | None:
    offset = 0
    parts = []
    for sample in samples:
        if sample.depth is None or sample.cameras is None:
            return None
        parts.append(replace(sample.depth, image=sample.depth.image + offset))
        offset += len(sample.cameras.images)
    return DepthHits(**{name: torch.cat([getattr(part, name) for part in parts]) for name, _ in _fields(parts[0])})
