"""nuScenes, and data of its shape, as samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevkd_common.config.datasets import NuScenesConfig, ReadingConfig
from bevkd_common.config.nuscenes_names import CAMERAS, CLASSES
from bevkd_common.data.augment import draw_bev, draw_image, plain_image
from bevkd_common.data.can_bus import derived_motion, recorded_motion
from bevkd_common.data.dataset import SplitName
from bevkd_common.data.frames import CameraFrame, depth_hits, earlier_frames, own_frame
from bevkd_common.data.index import PREVIOUS_SWEEPS, Floats, Ints, NuScenesIndex
from bevkd_common.data.index_file import open_index
from bevkd_common.data.needs import AdjacentFrames, DataNeeds
from bevkd_common.data.samples import Cameras, DepthHits, EgoMotion, History, Sample
from bevkd_common.data.sensor_files import SensorFiles, check_files
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.cameras import ImageAug, apply_image_aug

CLOSE = 1.0
"""Half the side in metres of the square around the sensor in which previous sweeps are cut: the ego's own roof."""

AXES = "x right, y forward, z up"


@dataclass(frozen=True, eq=False)
class NuScenesDataset:
    """A nuScenes version folder; see `bevkd_common.data.dataset.Dataset`.

    Attributes:
        name: As in the recipe.
        index: What the tables say.
        reading: How samples are read.
        splits: Name of the split that each of `train` and `val` stands for.
        description: One sentence for the report.
        content: Hash of the sensor files; None where hashing them takes too long, as for nuScenes itself.
        synthetic: Whether no sensor ever saw this.
    """

    name: str
    index: NuScenesIndex
    reading: ReadingConfig
    splits: dict[SplitName, str]
    description: str
    content: str | None = None
    synthetic: bool = False
    axes: str = AXES
    classes: tuple[str, ...] = CLASSES
    cameras: tuple[str, ...] = CAMERAS
    files: SensorFiles = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", SensorFiles(self.index.root, self.reading.cache))

    @property
    def fingerprint(self) -> str:
        """Hash of the tables, of the key frames in each split, and of the sensor files where it is known."""
        digest = hashlib.sha256(f"{self.index.tables_sha256} {self.content}".encode())
        for split in ("train", "val"):
            tokens = self.index.key_frames.token[self.index.split(self.splits[split])]
            digest.update(split.encode() + b" ".join(tokens.tolist()))
        return digest.hexdigest()

    def source(self, split: SplitName, needs: DataNeeds) -> NuScenesSource:
        """The samples of a split with what `needs` asks for.

        Raises:
            UserError: If the version lacks scenes of the split, files are missing, or `needs` asks for something
                that is not provided.
        """
        if needs.virtual_points:
            raise UserError(f"the reader of {self.name} does not provide virtual points, which a detector needs")
        if needs.can_bus and isinstance(needs.history, AdjacentFrames):
            raise UserError("a detector needs the CAN bus between key frames; it is read at key frames only")
        if needs.sweeps > 1 + PREVIOUS_SWEEPS:
            raise UserError(
                f"a detector needs {needs.sweeps} LiDAR sweeps; {self.name} provides up to {1 + PREVIOUS_SWEEPS}"
            )
        rows = self.index.split(self.splits[split])
        if split == "val" or self.reading.damaged == "stop":
            check_files(self.index.root, _file_names(self.index, rows, needs, self.reading.spare_sweeps))
        motion = None
        if needs.can_bus:
            recorded = self.reading.can_bus == "expansion"
            motion = recorded_motion(self.index, rows) if recorded else derived_motion(self.index)
        return NuScenesSource(self.index, rows, self.files, self.reading, needs, motion)


@dataclass(frozen=True, eq=False)
class NuScenesSource:
    """Key frames `rows` of an index; see `bevkd_common.data.dataset.SampleSource`.

    `motion` is that of the ego by key frame of the index, see `bevkd_common.data.can_bus`.
    """

    index: NuScenesIndex
    rows: Ints
    files: SensorFiles
    reading: ReadingConfig
    needs: DataNeeds
    motion: Floats | None = None

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Sample tokens."""
        return tuple(token.decode() for token in self.index.key_frames.token[self.rows].tolist())

    @cached_property
    def scenes(self) -> tuple[str, ...]:
        """Scene names."""
        return tuple(scene.decode() for scene in self.index.key_frames.scene[self.rows].tolist())

    def __len__(self) -> int:
        return len(self.rows)

    def classes_present(self, index: int) -> frozenset[int]:
        """Labels of the valid annotations of one key frame, for class-balanced sampling."""
        annotations = self.index.annotations
        rows = annotations.rows(int(self.rows[index]))
        return frozenset(annotations.label[rows][_valid(self.index, rows)].tolist())

    def load(self, index: int, *, seed: int | None) -> Sample:
        """Read one key frame; see `SampleSource.load`.

        Raises:
            UserError: If a file is missing or damaged, and nothing else is taken in its place.
        """
        if seed is None or self.reading.damaged == "stop":
            return self._load(index, seed)
        skipped: list[str] = []
        for step in range(len(self)):
            try:
                sample = self._load((index + step) % len(self), seed)
            except UserError as error:
                skipped.append(str(error))
            else:
                return replace(sample, skipped=tuple(skipped))
        raise UserError(f"every sample of the training split is damaged, the first: {skipped[0]}")

    def _load(self, index: int, seed: int | None) -> Sample:
        row = int(self.rows[index])
        bev_rng, image_rng, lidar_rng, history_rng = _streams(seed)
        aug_T_lidar = torch.eye(4, dtype=torch.float64)
        if bev_rng is not None and self.reading.bev_augmentation is not None:
            aug_T_lidar = draw_bev(bev_rng, self.reading.bev_augmentation)
        boxes, labels = self._boxes(row, aug_T_lidar)
        own = own_frame(self.index, row)
        earlier = (
            [] if self.needs.history is None else earlier_frames(self.index, row, self.needs.history, history_rng)
        )
        augs = self._draw_images(own, image_rng)
        key_frames = self.index.key_frames
        return Sample(
            token=key_frames.token[row].decode(),
            scene=key_frames.scene[row].decode(),
            timestamp=int(key_frames.timestamp[row]),
            boxes=boxes,
            labels=labels,
            cameras=self._cameras(own, augs, aug_T_lidar) if self.needs.cameras else None,
            points=self._points(row, aug_T_lidar, lidar_rng) if self.needs.sweeps else None,
            aug_T_lidar=aug_T_lidar.float(),
            global_T_lidar=torch.tensor(key_frames.global_T_lidar[row]),
            history=self._history(earlier, augs, aug_T_lidar) if self.needs.cameras and earlier else None,
            ego=self._ego(row, earlier) if self.needs.can_bus else None,
            depth=self._depth(row, own, augs) if self.needs.depth else None,
        )

    def _boxes(self, row: int, aug_T_lidar: Tensor) -> tuple[Boxes, Tensor]:
        rows = self.index.annotations.rows(row)
        valid = _valid(self.index, rows)
        boxes = Boxes(torch.from_numpy(self.index.annotations.boxes[rows][valid])).transform(aug_T_lidar)
        labels = torch.from_numpy(self.index.annotations.label[rows][valid])
        low, high = self.reading.point_range[:2], self.reading.point_range[3:5]
        center = boxes.centers[:, :2]
        inside = ((center > center.new_tensor(low)) & (center < center.new_tensor(high))).all(dim=1)
        kept = boxes[inside].to(torch.float32).wrap_yaw()
        if self.reading.unknown_velocity == "zero":
            kept = Boxes(kept.tensor.nan_to_num(nan=0.0))
        return kept, labels[inside]

    def _draw_images(self, frame: CameraFrame, rng: np.random.Generator | None) -> list[ImageAug]:
        """One augmentation a camera, which all frames of the sample share."""
        config = self.reading.images
        sizes = [(int(height), int(width)) for height, width in frame.sizes]
        return [plain_image(config, size) if rng is None else draw_image(rng, config, size) for size in sizes]

    def _cameras(self, frame: CameraFrame, augs: Sequence[ImageAug], aug_T_lidar: Tensor) -> Cameras:
        images = []
        for name, (height, width), aug in zip(frame.paths, frame.sizes.tolist(), augs, strict=True):
            pixels = self.files.image(name)
            if pixels.shape[:2] != (height, width):
                raise UserError(
                    f"{self.files.root / name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, the "
                    f"tables say {width} x {height}; unpack it again"
                )
            images.append(_augmented(pixels, aug))
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Cameras(
            images=stacked.contiguous(),
            intrinsics=torch.tensor(frame.intrinsics, dtype=torch.float32),
            lidar_T_cam=(aug_T_lidar @ torch.tensor(frame.lidar_T_cam)).float(),
            image_aug=torch.stack([aug.matrix() for aug in augs]),
        )

    def _history(self, frames: Sequence[CameraFrame], augs: Sequence[ImageAug], aug_T_lidar: Tensor) -> History:
        lidar_T_past = torch.tensor(np.stack([frame.lidar_T_past for frame in frames]))
        # The earlier axes are augmented as those of the key frame are.
        aug_T_past = aug_T_lidar @ lidar_T_past @ torch.linalg.inv(aug_T_lidar)
        return History(
            cameras=Cameras.stack([self._cameras(frame, augs, aug_T_lidar) for frame in frames]),
            lidar_T_past=aug_T_past.float(),
            seconds=torch.tensor([frame.seconds for frame in frames]),
            present=torch.tensor([frame.present for frame in frames]),
        )

    def _ego(self, row: int, earlier: Sequence[CameraFrame]) -> EgoMotion:
        assert self.motion is not None
        rows = [*(frame.row for frame in earlier if frame.row is not None), row]
        acceleration, rotation_rate, velocity = torch.tensor(self.motion[rows]).float().split(3, dim=-1)
        pose = torch.tensor(self.index.key_frames.global_T_ego[rows])
        return EgoMotion(pose, acceleration, rotation_rate, velocity)

    def _depth(self, row: int, frame: CameraFrame, augs: Sequence[ImageAug]) -> DepthHits:
        points = self.files.sweep(self.index.sweeps.path[row, 0].decode())
        return depth_hits(torch.from_numpy(points[:, :3].astype(np.float64)), frame, augs)

    def _points(self, row: int, aug_T_lidar: Tensor, rng: np.random.Generator | None) -> Tensor:
        sweeps = self.index.sweeps
        aug_T_sweep = (aug_T_lidar @ torch.tensor(sweeps.lidar_T_sweep[row])).numpy().astype(np.float32)
        lags = (sweeps.timestamp[row, 0] - sweeps.timestamp[row]) * 1e-6
        clouds = []
        for place, column in enumerate(self._choose_sweeps(row, rng)):
            stored = self.files.sweep(sweeps.path[row, column].decode())
            x, y, z = stored[:, :3].T
            # Sums of products, not a matmul: a BLAS may round differently from process to process.
            xyz = np.stack([a * x + b * y + c * z + d for a, b, c, d in aug_T_sweep[column, :3]])
            keep = _inside(xyz, self.reading.point_range)
            if place:
                keep &= (np.abs(x) >= CLOSE) | (np.abs(y) >= CLOSE)
            kept = np.flatnonzero(keep)
            cloud = np.empty((len(kept), 5), dtype=np.float32)
            cloud[:, :3] = xyz.T[kept]
            cloud[:, 3] = stored[kept, 3]
            cloud[:, 4] = lags[column]
            clouds.append(cloud)
        points = np.concatenate(clouds)
        # Voxels keep their first points only, so training must not favour the newest sweep; evaluation must repeat.
        return torch.from_numpy(points if rng is None else points[rng.permutation(len(points))])

    def _choose_sweeps(self, row: int, rng: np.random.Generator | None) -> list[int]:
        """Columns of `Sweeps`, the key frame's own (0) first.

        Upstream: mmdetection3d 1.4 draws the sweeps at random in its evaluations too; here those take the nearest.
        """
        previous = self.needs.sweeps - 1
        stored = int(self.index.sweeps.count[row]) - 1
        if stored == 0:
            return [0] * (1 + previous) if self.reading.pad_empty_sweeps else [0]
        candidates = min(stored, previous + self.reading.spare_sweeps)
        if rng is None or candidates <= previous:
            return list(range(min(stored, previous) + 1))
        return [0, *(1 + np.sort(rng.choice(candidates, previous, replace=False))).tolist()]


def build(
    config: NuScenesConfig, root: Path, progress: Callable[[int, int], None] | None = None
) -> NuScenesDataset:
    """Open a nuScenes folder; the first time this reads its tables, which takes minutes for the full set.

    Args:
        config: Version, splits, reading.
        root: Folder that holds the version folder, `samples` and `sweeps`.
        progress: Called with the steps done and all steps.

    Raises:
        UserError: If the folder lacks something or contradicts itself.
    """
    index = open_index(root, config.version, progress=progress)
    return NuScenesDataset(
        name=config.kind,
        index=index,
        reading=config,
        splits={"train": config.train_split, "val": config.val_split},
        description=f"nuScenes {config.version}, trained on {config.train_split}, evaluated on {config.val_split}.",
    )


def _streams(seed: int | None) -> Sequence[np.random.Generator | None]:
    """One generator for each thing that is drawn: what a detector does not ask for leaves the other draws alone."""
    if seed is None:
        return (None, None, None, None)
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]


def _valid(index: NuScenesIndex, rows: slice) -> npt.NDArray[np.bool_]:
    """Which annotations are of a detection class and hold a LiDAR or radar point.

    Source: `use_valid_flag` of mmdetection3d's CenterPoint, BEVDet and DistillBEV configurations.
    """
    annotations = index.annotations
    hit = annotations.lidar_points[rows] + annotations.radar_points[rows] > 0
    return (annotations.label[rows] >= 0) & hit


def _inside(xyz: npt.NDArray[np.float32], bounds: tuple[float, ...]) -> npt.NDArray[np.bool_]:
    """Which points [3, P] lie strictly between the lower corner (x, y, z) and the upper corner of `bounds`."""
    keep = np.ones(xyz.shape[1], dtype=np.bool_)
    for values, low, high in zip(xyz, bounds[:3], bounds[3:], strict=True):
        keep &= (values > low) & (values < high)
    return keep


def _augmented(pixels: npt.NDArray[np.uint8], aug: ImageAug) -> npt.NDArray[np.uint8]:
    same_size = aug.scale == 1 and pixels.shape[:2] == aug.output_size
    if same_size and not (aug.crop_left or aug.crop_top or aug.rotation):
        return pixels[:, ::-1] if aug.flip else pixels
    return np.asarray(apply_image_aug(pixels, aug))


def _file_names(index: NuScenesIndex, rows: Ints, needs: DataNeeds, spare_sweeps: int) -> Iterator[str]:
    paths = []
    if needs.sweeps:
        paths.append(index.sweeps.path[rows, : needs.sweeps + spare_sweeps])
    elif needs.depth:
        paths.append(index.sweeps.path[rows, 0])
    if needs.cameras:
        paths.append(index.cameras.path[rows])
    if needs.cameras and isinstance(needs.history, AdjacentFrames):
        spans = np.unique(np.stack([index.moments.begin[rows], index.moments.end[rows]], axis=1), axis=0)
        paths += [index.moments.path[begin:end] for begin, end in spans]
    for part in paths:
        yield from (name.decode() for name in np.unique(part).tolist() if name)
