"""Key frames of a nuScenes index as samples."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from bevkd_common.config.datasets.reading import ReadingConfig
from bevkd_common.config.training import PasteConfig
from bevkd_common.data.augment import distort_colors, draw_bev, draw_image, plain_image
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.nuscenes.frames import CameraFrame, depth_hits, earlier_frames, own_frame
from bevkd_common.data.nuscenes.index import Floats, Ints, NuScenesIndex
from bevkd_common.data.nuscenes.index_file import made_paths
from bevkd_common.data.object_bank import ObjectBank, Paster, cut_out, join, open_bank
from bevkd_common.data.samples import Cameras, Cloud, DepthHits, EgoMotion, History, Sample
from bevkd_common.data.sensor_files import SWEEP_COLUMNS, Points, SensorFiles
from bevkd_common.data.virtual_points.files import VirtualPointFolder
from bevkd_common.data.virtual_points.lifting import (
    PAINTED_CLOUD,
    PAINTED_COLUMNS,
    PAINTED_FEATURES,
    RAW,
    TAG,
    nothing_lifted,
    painted_cloud,
    plain_points,
)
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes, points_in_boxes
from bevkd_common.geometry.cameras import ImageAug, apply_image_aug

CLOSE = 1.0
"""Half the side in metres of the square around the sensor in which previous sweeps are cut: the ego's own roof."""

STREAMS = 6
"""Things drawn on their own: the scene's augmentation, the images', sweeps, history, pasted objects, colours."""

COLUMNS = {LIDAR: ("x", "y", "z", "intensity", "seconds"), PAINTED_CLOUD: PAINTED_COLUMNS}
"""Numbers of a point of each cloud."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class NuScenesSource:
    """Key frames `rows` of an index; see `bevkd_common.data.dataset.SampleSource`.

    `motion` is that of the ego by key frame of the index, see `bevkd_common.data.nuscenes.can_bus`.
    `virtual_points` must be given where they are needed; `unlifted` names the previous sweeps read without them.
    """

    index: NuScenesIndex
    rows: Ints
    files: SensorFiles
    reading: ReadingConfig
    needs: DataNeeds
    motion: Floats | None = None
    paster: Paster | None = None
    virtual_points: VirtualPointFolder | None = None
    unlifted: frozenset[str] = frozenset()

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

    def pasting(
        self,
        config: PasteConfig,
        classes: Sequence[str],
        *,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> NuScenesSource:
        """The same with objects of other key frames pasted in training; see `PastableSource`."""
        unknown = sorted(config.counts.keys() - set(classes))
        if unknown:
            raise UserError(f"`paste.counts` names {', '.join(unknown)}; the classes are {', '.join(classes)}")
        if self.needs.cameras or not self.needs.clouds:
            raise UserError("`paste` puts objects into points, and images would not show them; leave it out here")
        about = {
            "tables_sha256": self.index.tables_sha256,
            "key_frames": hashlib.sha256(self.rows.tobytes()).hexdigest(),
            "sweeps": self.needs.sweeps,
            "point_range": list(self.reading.point_range),
            "min_points": config.min_points,
        }
        if self._virtual is not None:
            about["virtual_points"] = self._virtual.manifest.settings_hash
        place = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        bank = open_bank(
            made_paths(self.index.root, self.index.version, f"objects-{place}"),
            about,
            lambda: join(
                self._cut_out(config.min_points, workers, progress),
                SWEEP_COLUMNS if self._virtual is None else PAINTED_FEATURES,
            ),
        )
        wanted = {classes.index(name): count for name, count in config.counts.items()}
        return replace(self, paster=Paster.of(bank, wanted))

    def _cut_out(
        self, least: int, workers: int, progress: Callable[[int, int], None] | None
    ) -> Iterator[ObjectBank]:
        uncached = replace(self, files=SensorFiles(self.index.root, cache=False))
        loader: DataLoader[Any] = DataLoader(_Objects(uncached, least), batch_size=None, num_workers=workers)
        skipped = 0
        for done, bank in enumerate(loader, start=1):
            if isinstance(bank, ObjectBank):
                yield bank
            elif self.reading.damaged == "stop":
                raise bank
            else:
                skipped += 1
            if progress is not None:
                progress(done, len(self))
        if skipped:
            _log.warning("objects to paste: %d of %d key frames are damaged and were skipped", skipped, len(self))

    def objects(self, index: int, least: int) -> ObjectBank:
        """The objects of one key frame with at least `least` points as measured, for a bank."""
        row = int(self.rows[index])
        aug_T_lidar, columns = torch.eye(4, dtype=torch.float64), self._choose_sweeps(row, None)
        cloud = self._cloud(row, columns, aug_T_lidar, painted=self._virtual is not None)
        measured = None if self._virtual is None else cloud[:, TAG] == RAW
        return cut_out(cloud, *self._annotated(row), least, measured)

    def endless(self, needs: DataNeeds) -> str | None:
        """See `RepeatingSource`: mirrors repeat, and nothing else that is drawn."""
        bev, images = self.reading.bev_augmentation, self.reading.images
        if bev is not None and (len({*bev.rotation}) > 1 or len({*bev.scale}) > 1 or any(bev.translation)):
            return "`bev_augmentation` draws rotations, scales or shifts"
        if self.paster is not None:
            return "objects are pasted"
        if needs.cameras or needs.history is not None:
            return f"images are augmented at random ({images.height} x {images.width})"
        if needs.clouds and needs.sweeps > 1 and self.reading.spare_sweeps:
            return "`spare_sweeps` draws sweeps at random"
        return None

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
        bev_rng, image_rng, lidar_rng, history_rng, paste_rng, color_rng = _streams(seed)
        aug_T_lidar = torch.eye(4, dtype=torch.float64)
        if bev_rng is not None and self.reading.bev_augmentation is not None:
            aug_T_lidar = draw_bev(bev_rng, self.reading.bev_augmentation)
        annotated, labels = self._annotated(row)
        pasted = np.zeros(0, dtype=np.int64)
        if self.paster is not None and paste_rng is not None:
            pasted = self.paster.draw(annotated, labels, paste_rng)
            annotated = np.concatenate([annotated, self.paster.bank.boxes[pasted]])
            labels = np.concatenate([labels, self.paster.bank.label[pasted]])
        boxes, kept = self._boxes(annotated, aug_T_lidar)
        own = own_frame(self.index, row)
        earlier = (
            [] if self.needs.history is None else earlier_frames(self.index, row, self.needs.history, history_rng)
        )
        augs = self._draw_images(own, image_rng)
        cameras = self._cameras(own, augs, aug_T_lidar, color_rng) if self.needs.cameras else None
        key_frames = self.index.key_frames
        return Sample(
            token=key_frames.token[row].decode(),
            scene=key_frames.scene[row].decode(),
            timestamp=int(key_frames.timestamp[row]),
            boxes=boxes,
            labels=torch.from_numpy(labels)[kept],
            cameras=cameras,
            clouds=self._clouds(row, pasted, aug_T_lidar, lidar_rng),
            aug_T_lidar=aug_T_lidar.float(),
            global_T_lidar=torch.tensor(key_frames.global_T_lidar[row]),
            history=self._history(earlier, augs, aug_T_lidar, color_rng)
            if self.needs.cameras and earlier
            else None,
            ego=self._ego(row, earlier) if self.needs.can_bus else None,
            depth=self._depth(row, own, augs) if self.needs.depth else None,
            view=f"{key_frames.token[row].decode()} {aug_T_lidar.flatten().tolist()}",
        )

    def _annotated(self, row: int) -> tuple[Floats, Ints]:
        """Valid boxes [M, 9] in the LiDAR axes, without augmentation, and their labels."""
        annotations = self.index.annotations
        rows = annotations.rows(row)
        valid = _valid(self.index, rows)
        return annotations.boxes[rows][valid], annotations.label[rows][valid]

    def _boxes(self, annotated: Floats, aug_T_lidar: Tensor) -> tuple[Boxes, Tensor]:
        """Augmented boxes in range, and which of [M, 9] they are."""
        boxes = Boxes(torch.from_numpy(annotated)).transform(aug_T_lidar)
        low, high = self.reading.point_range[:2], self.reading.point_range[3:5]
        center = boxes.centers[:, :2]
        inside = ((center > center.new_tensor(low)) & (center < center.new_tensor(high))).all(dim=1)
        kept = boxes[inside].to(torch.float32).wrap_yaw()
        if self.reading.unknown_velocity == "zero":
            kept = Boxes(kept.tensor.nan_to_num(nan=0.0))
        return kept, inside

    def _draw_images(self, frame: CameraFrame, rng: np.random.Generator | None) -> list[ImageAug]:
        """One augmentation a camera, which all frames of the sample share."""
        config = self.reading.images
        sizes = [(int(height), int(width)) for height, width in frame.sizes]
        return [plain_image(config, size) if rng is None else draw_image(rng, config, size) for size in sizes]

    def _cameras(
        self,
        frame: CameraFrame,
        augs: Sequence[ImageAug],
        aug_T_lidar: Tensor,
        color_rng: np.random.Generator | None,
    ) -> Cameras:
        images, distortion = [], self.reading.images.colors
        for name, (height, width), aug in zip(frame.paths, frame.sizes.tolist(), augs, strict=True):
            pixels = self.files.image(name)
            if pixels.shape[:2] != (height, width):
                raise UserError(
                    f"{self.files.root / name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, the "
                    f"tables say {width} x {height}; unpack it again"
                )
            image = _augmented(pixels, aug)
            if color_rng is not None and distortion is not None:
                image = distort_colors(image, color_rng, distortion)
            images.append(image)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Cameras(
            images=stacked.contiguous(),
            intrinsics=torch.tensor(frame.intrinsics, dtype=torch.float32),
            lidar_T_cam=(aug_T_lidar @ torch.tensor(frame.lidar_T_cam)).float(),
            image_aug=torch.stack([aug.matrix() for aug in augs]),
        )

    def _history(
        self,
        frames: Sequence[CameraFrame],
        augs: Sequence[ImageAug],
        aug_T_lidar: Tensor,
        color_rng: np.random.Generator | None,
    ) -> History:
        lidar_T_past = torch.tensor(np.stack([frame.lidar_T_past for frame in frames]))
        # The earlier axes are augmented as those of the key frame are.
        aug_T_past = aug_T_lidar @ lidar_T_past @ torch.linalg.inv(aug_T_lidar)
        return History(
            cameras=Cameras.stack([self._cameras(frame, augs, aug_T_lidar, color_rng) for frame in frames]),
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

    @property
    def _virtual(self) -> VirtualPointFolder | None:
        return self.virtual_points if PAINTED_CLOUD in self.needs.clouds else None

    def _clouds(
        self, row: int, pasted: Ints, aug_T_lidar: Tensor, rng: np.random.Generator | None
    ) -> dict[str, Cloud]:
        """The points as measured, and painted with what their sweeps' images showed, where they are needed."""
        if not self.needs.clouds:
            return {}
        columns = self._choose_sweeps(row, rng)
        points = {
            name: self._filled(row, columns, pasted, aug_T_lidar, painted=name == PAINTED_CLOUD)
            for name in sorted(self.needs.clouds)
        }
        if rng is not None:
            # Voxels keep their first points only, so training must not favour the newest sweep. The order of the
            # points as measured is drawn first, whatever is loaded: what one cloud looks like depends on no other.
            measured = LIDAR if LIDAR in points else PAINTED_CLOUD
            count = len(points[LIDAR]) if LIDAR in points else int((points[PAINTED_CLOUD][:, TAG] == RAW).sum())
            order = rng.permutation(count)
            if measured == LIDAR:
                points[LIDAR] = points[LIDAR][order]
            if PAINTED_CLOUD in points:
                points[PAINTED_CLOUD] = points[PAINTED_CLOUD][rng.permutation(len(points[PAINTED_CLOUD]))]
        return {
            name: Cloud(torch.from_numpy(cloud), (len(cloud),), COLUMNS[name]) for name, cloud in points.items()
        }

    def _filled(
        self, row: int, columns: Sequence[int], pasted: Ints, aug_T_lidar: Tensor, *, painted: bool
    ) -> Points:
        cloud = self._cloud(row, columns, aug_T_lidar, painted=painted)
        return self._paste(cloud, pasted, aug_T_lidar) if len(pasted) else cloud

    def _cloud(self, row: int, columns: Sequence[int], aug_T_lidar: Tensor, *, painted: bool) -> Points:
        """Points of some sweeps in range, in the augmented axes of the key frame."""
        sweeps = self.index.sweeps
        aug_T_sweep = (aug_T_lidar @ torch.tensor(sweeps.lidar_T_sweep[row])).numpy().astype(np.float32)
        lags = (sweeps.timestamp[row, 0] - sweeps.timestamp[row]) * 1e-6
        clouds = []
        for place, column in enumerate(columns):
            name = sweeps.path[row, column].decode()
            stored = self._painted_sweep(name) if painted else self.files.sweep(name)
            xyz = _moved(aug_T_sweep[column], stored[:, :3])
            keep = _inside(xyz, self.reading.point_range)
            if place:
                keep &= (np.abs(stored[:, :2]) >= CLOSE).any(axis=1)
            kept = np.flatnonzero(keep)
            cloud = stored[kept]
            cloud[:, :3] = xyz.T[kept]
            # In place of the ring, or of what a painted sweep leaves open.
            cloud[:, -1] = lags[column]
            clouds.append(cloud)
        return np.concatenate(clouds)

    def _painted_sweep(self, name: str) -> Points:
        assert self.virtual_points is not None
        made = nothing_lifted() if name in self.unlifted else self.virtual_points.read(name)
        return painted_cloud(self.files.sweep(name), made)

    def _paste(self, points: Points, rows: Ints, aug_T_lidar: Tensor) -> Points:
        """Objects of the bank in place of what lies in their boxes."""
        assert self.paster is not None
        boxes = Boxes(torch.from_numpy(self.paster.bank.boxes[rows])).transform(aug_T_lidar).to(torch.float32)
        covered = points_in_boxes(torch.from_numpy(points[:, :3]), boxes).any(dim=0).numpy()
        new = self.paster.bank.points_of(rows)
        # A bank of painted objects serves both clouds.
        new = new if new.shape[1] == points.shape[1] else plain_points(new)
        new[:, :3] = _moved(aug_T_lidar.numpy().astype(np.float32), new[:, :3]).T
        return np.concatenate([new[_inside(new[:, :3].T, self.reading.point_range)], points[~covered]])

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


class _Objects(TorchDataset[ObjectBank | UserError]):
    """Cuts objects out in loader processes. An error is handed over as a value, without a traceback."""

    def __init__(self, source: NuScenesSource, least: int) -> None:
        self.source, self.least = source, least

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ObjectBank | UserError:
        try:
            return self.source.objects(index, self.least)
        except UserError as error:
            return error


def _streams(seed: int | None) -> Sequence[np.random.Generator | None]:
    """One generator for each thing that is drawn: what a detector does not ask for leaves the other draws alone."""
    if seed is None:
        return [None] * STREAMS
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(STREAMS)]


def _valid(index: NuScenesIndex, rows: slice) -> npt.NDArray[np.bool_]:
    """Which annotations are of a detection class and hold a LiDAR or radar point.

    Source: `use_valid_flag` of mmdetection3d's CenterPoint, BEVDet and DistillBEV configurations.
    """
    annotations = index.annotations
    hit = annotations.lidar_points[rows] + annotations.radar_points[rows] > 0
    return (annotations.label[rows] >= 0) & hit


def _moved(dst_T_src: Points, points: Points) -> Points:
    """Points [P, 3] in other axes, as columns [3, P]."""
    x, y, z = points.T
    # Sums of products, not a matmul: a BLAS may round differently from process to process.
    return np.stack([a * x + b * y + c * z + d for a, b, c, d in dst_T_src[:3]])


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
