"""Frames of any reader as samples: augmented, filtered, with objects pasted, and past what is damaged."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from bevkd_common.config.datasets.reading import ReadingConfig
from bevkd_common.config.training import PasteConfig
from bevkd_common.data.augment import distort_colors, draw_bev, draw_image, plain_image
from bevkd_common.data.frames import (
    Booleans,
    CameraFrame,
    Draws,
    Floats,
    FrameReader,
    Ints,
    Pixels,
    Points,
    Sweep,
)
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.object_bank import ObjectBank, Paster, cut_out, join, open_bank
from bevkd_common.data.samples import Cameras, Cloud, DepthHits, History, Sample
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes, points_in_boxes
from bevkd_common.geometry.cameras import ImageAug, apply_image_aug, project
from bevkd_common.geometry.transforms import inverse_rigid

DEPTH_MARGIN = 16
"""Pixels around an image whose depths are kept: rounding to the nearest cell moves points by up to half a cell."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FrameSource:
    """The frames of a reader as samples; see `bevkd_common.data.dataset.SampleSource`.

    Attributes:
        reader: Reads what `needs` asks for.
        config: Augmentation and filters.
        needs: What the samples hold.
        paster: Pastes objects into augmented samples; None pastes nothing.
    """

    reader: FrameReader
    config: ReadingConfig
    needs: DataNeeds
    paster: Paster | None = None

    @property
    def tokens(self) -> Sequence[str]:
        """Names of the key frames."""
        return self.reader.tokens

    @property
    def scenes(self) -> Sequence[str]:
        """Names of their scenes."""
        return self.reader.scenes

    @property
    def notes(self) -> tuple[str, ...]:
        """See `SampleSource`."""
        return self.reader.notes

    def __len__(self) -> int:
        return len(self.tokens)

    def classes_present(self, index: int) -> frozenset[int]:
        """Labels of the valid annotations of one key frame, for class-balanced sampling."""
        return frozenset(self.reader.annotations(index).valid.labels.tolist())

    def endless(self, needs: DataNeeds) -> str | None:
        """See `RepeatingSource`: mirrors repeat, and nothing else that is drawn."""
        bev, images = self.config.bev_augmentation, self.config.images
        if bev is not None and (len({*bev.rotation}) > 1 or len({*bev.scale}) > 1 or any(bev.translation)):
            return "`bev_augmentation` draws rotations, scales or shifts"
        if self.paster is not None:
            return "objects are pasted"
        if needs.cameras or needs.history is not None:
            return f"images are augmented at random ({images.height} x {images.width})"
        return self.reader.drawn(needs)

    def load(self, index: int, *, seed: int | None) -> Sample:
        """Read one key frame; see `SampleSource.load`.

        Raises:
            UserError: If a file is missing or damaged, and nothing else is taken in its place.
        """
        if seed is None or self.config.damaged == "stop":
            return self._load(index, Draws.of(seed))
        skipped: list[str] = []
        for step in range(len(self)):
            try:
                sample = self._load((index + step) % len(self), Draws.of(seed))
            except UserError as error:
                skipped.append(str(error))
            else:
                return replace(sample, skipped=tuple(skipped))
        raise UserError(f"every sample of the training split is damaged, the first: {skipped[0]}")

    def _load(self, index: int, draws: Draws) -> Sample:
        aug_T_lidar = torch.eye(4, dtype=torch.float64)
        if draws.scene is not None and self.config.bev_augmentation is not None:
            aug_T_lidar = draw_bev(draws.scene, self.config.bev_augmentation)
        annotations = self.reader.annotations(index).valid
        annotated, labels = annotations.boxes, annotations.labels
        pasted = np.zeros(0, dtype=np.int64)
        if self.paster is not None and draws.pasting is not None:
            pasted = self.paster.draw(annotated, labels, draws.pasting)
            annotated = np.concatenate([annotated, self.paster.bank.boxes[pasted]])
            labels = np.concatenate([labels, self.paster.bank.label[pasted]])
        boxes, kept = self._boxes(annotated, aug_T_lidar)
        frame = self.reader.read(index, draws)
        cameras, history, depth = None, None, None
        if frame.cameras is not None:
            augs = self._draw_images(frame.cameras, draws.images)
            if frame.depth_points is not None:
                points = torch.from_numpy(frame.depth_points.astype(np.float64))
                depth = depth_hits(points, frame.cameras, augs)
            if self.needs.cameras:
                cameras = self._cameras(frame.cameras, augs, aug_T_lidar, draws.colors)
                history = self._history(frame.history, augs, aug_T_lidar, draws.colors)
        pose = frame.global_T_lidar
        return Sample(
            token=self.tokens[index],
            scene=self.scenes[index],
            timestamp=frame.timestamp,
            boxes=boxes,
            labels=torch.from_numpy(labels)[kept],
            cameras=cameras,
            clouds=self._clouds(
                {name: self._cloud(name, list(sweeps), aug_T_lidar) for name, sweeps in frame.clouds.items()},
                pasted,
                aug_T_lidar,
                draws.clouds,
            ),
            aug_T_lidar=aug_T_lidar.float(),
            global_T_lidar=None if pose is None else torch.tensor(pose),
            history=history,
            ego=frame.ego,
            depth=depth,
            view=f"{self.tokens[index]} {aug_T_lidar.flatten().tolist()}",
        )

    def _boxes(self, annotated: Floats, aug_T_lidar: Tensor) -> tuple[Boxes, Tensor]:
        """Augmented boxes in range, and which of [M, 9] they are."""
        boxes = Boxes(torch.from_numpy(annotated)).transform(aug_T_lidar)
        low, high = self.config.point_range[:2], self.config.point_range[3:5]
        center = boxes.centers[:, :2]
        inside = ((center > center.new_tensor(low)) & (center < center.new_tensor(high))).all(dim=1)
        kept = boxes[inside].to(torch.float32).wrap_yaw()
        if self.config.unknown_velocity == "zero":
            kept = Boxes(kept.tensor.nan_to_num(nan=0.0))
        return kept, inside

    def _draw_images(self, frame: CameraFrame, rng: np.random.Generator | None) -> list[ImageAug]:
        """One augmentation a camera, which all frames of the sample share."""
        config = self.config.images
        sizes = [(int(height), int(width)) for height, width in frame.sizes]
        return [plain_image(config, size) if rng is None else draw_image(rng, config, size) for size in sizes]

    def _cameras(
        self,
        frame: CameraFrame,
        augs: Sequence[ImageAug],
        aug_T_lidar: Tensor,
        color_rng: np.random.Generator | None,
    ) -> Cameras:
        images, distortion = [], self.config.images.colors
        for name, (height, width), aug in zip(frame.paths, frame.sizes.tolist(), augs, strict=True):
            pixels = self.reader.image(name)
            if pixels.shape[:2] != (height, width):
                raise UserError(
                    f"{self.reader.root / name} has {pixels.shape[1]} x {pixels.shape[0]} pixels,"
                    f" the tables say {width} x {height}; unpack it again"
                )
            image = augmented_image(pixels, aug)
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
    ) -> History | None:
        if not frames:
            return None
        lidar_T_past = torch.tensor(np.stack([frame.lidar_T_past for frame in frames]))
        # The earlier axes are augmented as those of the key frame are.
        aug_T_past = aug_T_lidar @ lidar_T_past @ torch.linalg.inv(aug_T_lidar)
        return History(
            cameras=Cameras.stack([self._cameras(frame, augs, aug_T_lidar, color_rng) for frame in frames]),
            lidar_T_past=aug_T_past.float(),
            seconds=torch.tensor([frame.seconds for frame in frames]),
            present=torch.tensor([frame.present for frame in frames]),
        )

    def _cloud(self, name: str, sweeps: Sequence[Sweep], aug_T_lidar: Tensor) -> Points:
        """Points of some sweeps in range, in the augmented axes of the key frame."""
        lidar_T_sweep = torch.tensor(np.stack([sweep.lidar_T_sweep for sweep in sweeps]))
        aug_T_sweep = (aug_T_lidar @ lidar_T_sweep).numpy().astype(np.float32)
        seconds = self.reader.layouts[name].columns.index("seconds") if sweeps[0].seconds is not None else None
        clouds = []
        for sweep, matrix in zip(sweeps, aug_T_sweep, strict=True):
            xyz = _moved(matrix, sweep.points[:, :3])
            keep = _inside(xyz, self.config.point_range)
            if sweep.kept is not None:
                keep &= sweep.kept
            kept = np.flatnonzero(keep)
            cloud = sweep.points[kept]
            cloud[:, :3] = xyz.T[kept]
            if seconds is not None:
                cloud[:, seconds] = sweep.seconds
            clouds.append(cloud)
        return np.concatenate(clouds)

    def _clouds(
        self,
        clouds: Mapping[str, Points],
        pasted: Ints,
        aug_T_lidar: Tensor,
        rng: np.random.Generator | None,
    ) -> dict[str, Cloud]:
        """The clouds with objects of the bank pasted, in random order where samples are augmented."""
        finished, any_order = {}, False
        for name, points in sorted(clouds.items()):
            layout = self.reader.layouts[name]
            filled = self._paste(name, points, pasted, aug_T_lidar) if len(pasted) else points
            # Voxels keep their first points only, so training must not favour the newest sweep; evaluation repeats.
            # An order of the measured points is drawn first even where no cloud holds them alone, so that the order
            # of one cloud does not depend on which others are loaded.
            if rng is not None:
                if layout.measured is not None and not any_order:
                    rng.permutation(int(layout.is_measured(filled).sum()))
                filled, any_order = filled[rng.permutation(len(filled))], True
            finished[name] = Cloud(torch.from_numpy(filled), (len(filled),), layout.columns)
        return finished

    def _paste(self, name: str, points: Points, rows: Ints, aug_T_lidar: Tensor) -> Points:
        """Objects of the bank in place of what lies in their boxes."""
        assert self.paster is not None
        boxes = Boxes(torch.from_numpy(self.paster.bank.boxes[rows])).transform(aug_T_lidar).to(torch.float32)
        covered = points_in_boxes(torch.from_numpy(points[:, :3]), boxes).any(dim=0).numpy()
        new = self.paster.bank.points_of(name, rows)
        new[:, :3] = _moved(aug_T_lidar.numpy().astype(np.float32), new[:, :3]).T
        return np.concatenate([new[_inside(new[:, :3].T, self.config.point_range)], points[~covered]])

    def pasting(
        self,
        config: PasteConfig,
        classes: Sequence[str],
        *,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> FrameSource:
        """The same with objects of other key frames pasted in training; see `PastableSource`."""
        for key, names in (("counts", config.counts.keys()), ("min_points", config.least.keys())):
            if unknown := sorted(names - set(classes)):
                raise UserError(f"`paste.{key}` names {', '.join(unknown)}; the classes are {', '.join(classes)}")
        if self.needs.cameras or not self.needs.clouds:
            raise UserError("`paste` puts objects into points, and images would not show them; leave it out here")
        if self.reader.identity is None:
            raise UserError("objects of this data set cannot be pasted; leave `paste` out")
        about = {
            **self.reader.identity,
            "clouds": sorted(self.needs.clouds),
            "sweeps": self.needs.sweeps,
            "point_range": list(self.config.point_range),
            "min_points": config.model_dump(mode="json")["min_points"],
            "difficulties": None if config.difficulties is None else sorted(config.difficulties),
        }
        place = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        features = {name: len(self.reader.layouts[name].columns) for name in sorted(self.needs.clouds)}
        bank = open_bank(
            self.reader.made_paths(f"objects-{place}"),
            about,
            lambda: join(self._cut_out(config, classes, workers, progress), features),
        )
        wanted = {classes.index(name): count for name, count in config.counts.items()}
        return replace(self, paster=Paster.of(bank, wanted))

    def _cut_out(
        self,
        config: PasteConfig,
        classes: Sequence[str],
        workers: int,
        progress: Callable[[int, int], None] | None,
    ) -> Iterator[ObjectBank]:
        loader: DataLoader[Any] = DataLoader(_Objects(self, config, classes), batch_size=None, num_workers=workers)
        skipped = 0
        for done, bank in enumerate(loader, start=1):
            if isinstance(bank, ObjectBank):
                yield bank
            elif self.config.damaged == "stop":
                raise bank
            else:
                skipped += 1
            if progress is not None:
                progress(done, len(self))
        if skipped:
            _log.warning("objects to paste: %d of %d key frames are damaged and were skipped", skipped, len(self))

    def objects(self, index: int, config: PasteConfig, classes: Sequence[str]) -> ObjectBank:
        """The objects of one key frame that may be pasted.

        Raises:
            UserError: If a file cannot be read, or difficulties are named that the data set does not give.
        """
        annotations = self.reader.annotations(index).valid
        boxes, labels = annotations.boxes, annotations.labels
        if config.difficulties is not None:
            if annotations.difficulty is None:
                raise UserError("`paste.difficulties` is given, but the data set does not grade its boxes")
            graded = np.isin(annotations.difficulty, sorted(config.difficulties))
            boxes, labels = boxes[graded], labels[graded]
        aug_T_lidar = torch.eye(4, dtype=torch.float64)
        frame = self.reader.read(index, Draws.of(None))
        clouds = {name: self._cloud(name, list(sweeps), aug_T_lidar) for name, sweeps in frame.clouds.items()}
        counted = {name: self.reader.layouts[name].is_measured(points) for name, points in clouds.items()}
        least = np.array([config.least_of(classes[label]) for label in labels], dtype=np.int64)
        return cut_out(clouds, boxes, labels, least, counted)


class _Objects(TorchDataset[ObjectBank | UserError]):
    """Cuts objects out in loader processes. An error is handed over as a value, without a traceback."""

    def __init__(self, source: FrameSource, config: PasteConfig, classes: Sequence[str]) -> None:
        self.source, self.config, self.classes = source, config, classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ObjectBank | UserError:
        try:
            return self.source.objects(index, self.config, self.classes)
        except UserError as error:
            return error


def depth_hits(points: Tensor, frame: CameraFrame, augs: Sequence[ImageAug]) -> DepthHits:
    """Where points lie in the images of a frame, as they are recorded and then augmented.

    Args:
        points: [P, 3] float64 in L.
        frame: Of the same moment.
        augs: One a camera.

    Returns:
        The points in the augmented images and in a margin of `DEPTH_MARGIN` around them.
    """
    intrinsics = torch.tensor(frame.intrinsics)
    recorded, depth = project(points, intrinsics, inverse_rigid(torch.tensor(frame.lidar_T_cam)))
    u, v = recorded.unbind(-1)
    matrix = torch.stack([aug.matrix(torch.float64) for aug in augs])[:, :2, :, None]
    pixels = (matrix[:, :, 0] * u[:, None] + matrix[:, :, 1] * v[:, None] + matrix[:, :, 2]).movedim(1, -1)
    height, width = augs[0].output_size
    edge = torch.tensor([width + DEPTH_MARGIN, height + DEPTH_MARGIN])
    near = ((pixels > -DEPTH_MARGIN) & (pixels < edge)).all(dim=-1) & (depth > 0)
    last = torch.tensor(frame.sizes)[:, None].flip(-1) - 1
    inner = ((recorded > 1) & (recorded < last)).all(dim=-1)
    image, _ = near.nonzero(as_tuple=True)
    return DepthHits(image, pixels[near].float(), depth[near].float(), inner[near])


def augmented_image(pixels: Pixels, aug: ImageAug) -> Pixels:
    """An image after its augmentation; one that leaves its size is not resampled."""
    same_size = aug.scale == 1 and pixels.shape[:2] == aug.output_size
    if same_size and not (aug.crop_left or aug.crop_top or aug.rotation):
        return pixels[:, ::-1] if aug.flip else pixels
    return np.asarray(apply_image_aug(pixels, aug))


def _moved(dst_T_src: Points, points: Points) -> Points:
    """Points [P, 3] in other axes, as columns [3, P]."""
    x, y, z = points.T
    # Sums of products, not a matmul: a BLAS may round differently from process to process.
    return np.stack([a * x + b * y + c * z + d for a, b, c, d in dst_T_src[:3]])


def _inside(xyz: Points, bounds: tuple[float, ...]) -> Booleans:
    """Which points [3, P] lie strictly between the lower corner (x, y, z) and the upper corner of `bounds`."""
    keep = np.ones(xyz.shape[1], dtype=np.bool_)
    for values, low, high in zip(xyz, bounds[:3], bounds[3:], strict=True):
        keep &= (values > low) & (values < high)
    return keep
