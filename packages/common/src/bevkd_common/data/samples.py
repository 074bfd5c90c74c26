"""One key frame, and a batch of them.

All geometry is in the key frame's LiDAR axes *after* the bird's-eye-view augmentation: the augmentation is
applied to points and boxes and multiplied from the left into `lidar_T_cam`, so that everything a detector sees
shares one frame. `aug_T_lidar` says what was applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bevkd_common.geometry.boxes import Boxes

if TYPE_CHECKING:
    from bevkd_common.ops.voxelize import Voxels, VoxelSpec

PADDING_LABEL = -1


@dataclass(frozen=True, eq=False)
class Cameras:
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

    def to(self, device: torch.device | str) -> Cameras:
        """The same on `device`."""
        return Cameras(*(value.to(device, non_blocking=True) for value in self._tensors()))

    @staticmethod
    def stack(cameras: Sequence[Cameras]) -> Cameras:
        """Collate samples to a batch."""
        return Cameras(*(torch.stack(values) for values in zip(*(c._tensors() for c in cameras), strict=True)))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.images, self.intrinsics, self.lidar_T_cam, self.image_aug


@dataclass(frozen=True, eq=False)
class Sample:
    """One key frame.

    Attributes:
        token: The data set's name of the key frame.
        scene: The data set's name of its scene.
        timestamp: Microseconds, of the LiDAR.
        boxes: [M] boxes that a detector is trained on (after validity, class and range filters).
        labels: [M] int64, index into the data set's classes.
        cameras: Six cameras, or None where nobody needs them.
        points: [P, 5] float32 x, y, z, intensity (as stored), seconds before the key frame; or None.
        aug_T_lidar: [4, 4] float32, the bird's-eye-view augmentation.
        global_T_lidar: [4, 4] float64, pose of the unaugmented LiDAR axes.
        skipped: What was wrong with each damaged sample in whose place this one stands.
    """

    token: str
    scene: str
    timestamp: int
    boxes: Boxes
    labels: Tensor
    cameras: Cameras | None
    points: Tensor | None
    aug_T_lidar: Tensor
    global_T_lidar: Tensor
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
        points: [P, 5] float32, all samples one after the other.
        point_counts: B numbers of points.
        aug_T_lidar: [B, 4, 4] float32.
        global_T_lidar: [B, 4, 4] float64.
        skipped: See `Sample`, of all samples.
    """

    tokens: tuple[str, ...]
    scenes: tuple[str, ...]
    boxes: Boxes
    labels: Tensor
    cameras: Cameras | None
    points: Tensor | None
    point_counts: tuple[int, ...]
    aug_T_lidar: Tensor
    global_T_lidar: Tensor
    skipped: tuple[str, ...] = ()
    _voxels: dict[VoxelSpec, Voxels] = field(default_factory=dict, repr=False)

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
        """The same on `device`; memoised voxels do not travel."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            labels=self.labels.to(device, non_blocking=True),
            cameras=self.cameras.to(device) if self.cameras is not None else None,
            points=self.points.to(device, non_blocking=True) if self.points is not None else None,
            aug_T_lidar=self.aug_T_lidar.to(device, non_blocking=True),
            global_T_lidar=self.global_T_lidar.to(device, non_blocking=True),
            _voxels={},
        )

    def voxels(self, spec: VoxelSpec) -> Voxels:
        """The points of the batch as voxels; computed once a spec, so that teacher and student rows correspond.

        Raises:
            ValueError: If the batch was loaded without points.
        """
        from bevkd_common.ops.voxelize import voxelize

        if self.points is None:
            raise ValueError("voxels of a batch without points: the detector's `needs` must ask for sweeps")
        if spec not in self._voxels:
            self._voxels[spec] = voxelize(self.points, self.point_counts, spec)
        return self._voxels[spec]


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples to one batch; boxes are padded to the longest list."""
    most = max(len(sample.boxes) for sample in samples)
    boxes = torch.zeros(len(samples), most, 9)
    labels = torch.full((len(samples), most), PADDING_LABEL, dtype=torch.int64)
    for row, sample in enumerate(samples):
        boxes[row, : len(sample.boxes)] = sample.boxes.tensor
        labels[row, : len(sample.boxes)] = sample.labels
    cameras = [sample.cameras for sample in samples if sample.cameras is not None]
    points = [sample.points for sample in samples if sample.points is not None]
    return Batch(
        tokens=tuple(sample.token for sample in samples),
        scenes=tuple(sample.scene for sample in samples),
        boxes=Boxes(boxes),
        labels=labels,
        cameras=Cameras.stack(cameras) if cameras else None,
        points=torch.cat(points) if points else None,
        point_counts=tuple(len(cloud) for cloud in points),
        aug_T_lidar=torch.stack([sample.aug_T_lidar for sample in samples]),
        global_T_lidar=torch.stack([sample.global_T_lidar for sample in samples]),
        skipped=tuple(message for sample in samples for message in sample.skipped),
    )
