"""nuScenes, and data of its shape, as samples."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.nuscenes_names import CAMERAS, CLASSES
from bevkd_common.config.datasets.nuscenes_reading import NuScenesReadingConfig
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.contents import Contents, Progress, file_contents
from bevkd_common.data.dataset import SplitName
from bevkd_common.data.needs import AdjacentFrames, DataNeeds
from bevkd_common.data.nuscenes.can_bus import derived_motion, recorded_files, recorded_motion
from bevkd_common.data.nuscenes.index import PREVIOUS_SWEEPS, Ints, NuScenesIndex, Strings
from bevkd_common.data.nuscenes.index_file import made_paths, open_index
from bevkd_common.data.nuscenes.reader import LAYOUTS, NuScenesReader
from bevkd_common.data.sensor_files import SensorFiles, check_files, missing_files
from bevkd_common.data.virtual_points.files import Maker, VirtualPointFolder, make_virtual_points, manifest_of
from bevkd_common.data.virtual_points.lifting import PAINTED_CLOUD
from bevkd_common.errors import UserError
from bevkd_common.progress import Reporter

_log = logging.getLogger(__name__)

AXES = "x right, y forward, z up"


@dataclass(frozen=True, eq=False)
class NuScenesDataset:
    """A nuScenes version folder; see `bevkd_common.data.dataset.Dataset`.

    Attributes:
        name: As in the recipe.
        index: What the tables say.
        reading: How samples are read.
        splits: Name of the split that each of `train` and `val` stands for.
        summary: One sentence for the report.
        virtual_points: What detectors that need virtual points are given.
        maker: Makes them where they are not there; None where the user does.
        content: Hash of the sensor files as they were generated; None for recorded data.
        synthetic: Whether no sensor ever saw this.
    """

    name: str
    index: NuScenesIndex
    reading: NuScenesReadingConfig
    splits: dict[SplitName, str]
    summary: str
    virtual_points: VirtualPointFolder
    maker: Maker | None = None
    content: str | None = None
    synthetic: bool = False
    axes: str = AXES
    classes: tuple[str, ...] = CLASSES
    cameras: tuple[str, ...] = CAMERAS
    files: SensorFiles = field(init=False, repr=False)
    _contents: dict[DataNeeds, Contents] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", SensorFiles(self.index.root, self.reading.cache))

    def prepare(self, needs: DataNeeds, reporter: Reporter) -> None:
        """See `Dataset`; makes virtual points where they can be made."""
        if PAINTED_CLOUD not in needs.clouds or self.maker is None:
            return
        try:
            made = self.virtual_points.manifest.settings_hash
        except UserError:
            made = None
        if made == manifest_of(self.maker, self.index).settings_hash:
            return
        columns, workers = self.index.sweeps.path.shape[1], os.cpu_count() or 1
        with reporter.bar("virtual points", 1) as bar:
            make_virtual_points(
                self.maker, self.index, self.virtual_points, columns=columns, workers=workers, progress=bar.update
            )

    def fingerprint(self, needs: DataNeeds) -> str:
        """See `Dataset`: tables, key frames of each split, sensor files as sampled, virtual points where read."""
        digest = hashlib.sha256(f"{self.index.tables_sha256} {self.content}".encode())
        if needs not in self._contents:
            self._contents[needs] = self._file_contents(needs)
        digest.update(self._contents[needs].fingerprint.encode())
        for split in ("train", "val"):
            tokens = self.index.key_frames.token[self.index.split(self.splits[split])]
            digest.update(split.encode() + b" ".join(tokens.tolist()))
        if PAINTED_CLOUD in needs.clouds:
            digest.update(self.virtual_points.manifest.settings_hash.encode())
        return digest.hexdigest()

    def verify(self, needs: DataNeeds, reporter: Reporter) -> Contents:
        """See `VerifiableDataset`."""
        with reporter.bar("sensor files", 1) as bar:
            found = self._file_contents(needs, whole=True, progress=bar.update)
        self._contents.clear()
        return found

    def _file_contents(
        self, needs: DataNeeds, *, whole: bool = False, progress: Progress | None = None
    ) -> Contents:
        names: list[str] = []
        for split in self.splits.values():
            rows = self.index.split(split)
            names += _file_names(self.index, rows, needs, self.reading.spare_sweeps)
            if needs.can_bus and self.reading.can_bus == "expansion":
                names += recorded_files(self.index, rows).values()
        places = made_paths(self.index.root, self.index.version, "sensor-files")
        found = file_contents(self.index.root, names, places, whole=whole, progress=progress)
        if found.changed and not whole:
            _log.warning(
                "%d sensor files of %s have changed, such as %s; what was trained on them is trained again",
                len(found.changed),
                self.index.root,
                found.changed[0],
            )
        return found

    def description(self, needs: DataNeeds) -> str:
        """See `Dataset`; `summary`, and how the virtual points were made where they are read."""
        if PAINTED_CLOUD not in needs.clouds:
            return self.summary
        return f"{self.summary} {self.virtual_points.manifest.sentence}"

    def source(self, split: SplitName, needs: DataNeeds) -> FrameSource:
        """The samples of a split with what `needs` asks for.

        Raises:
            UserError: If the version lacks scenes of the split, files are missing, or `needs` asks for something
                that is not provided.
        """
        if needs.can_bus and isinstance(needs.history, AdjacentFrames):
            raise UserError("a detector needs the CAN bus between key frames; it is read at key frames only")
        if unknown := sorted(needs.clouds - LAYOUTS.keys()):
            raise UserError(
                f"a detector needs the point cloud `{unknown[0]}`; {self.name} provides {' and '.join(LAYOUTS)}"
            )
        if needs.clouds and needs.sweeps > 1 + PREVIOUS_SWEEPS:
            raise UserError(
                f"a detector needs {needs.sweeps} LiDAR sweeps; {self.name} provides up to {1 + PREVIOUS_SWEEPS}"
            )
        rows = self.index.split(self.splits[split])
        if split == "val" or self.reading.damaged == "stop":
            check_files(self.index.root, _file_names(self.index, rows, needs, self.reading.spare_sweeps))
        virtual = self.virtual_points if PAINTED_CLOUD in needs.clouds else None
        unlifted: frozenset[str] = frozenset()
        if virtual is not None:
            unlifted = self._unlifted(rows, needs, complete=split == "val" or self.reading.damaged == "stop")
        motion = None
        if needs.can_bus:
            recorded = self.reading.can_bus == "expansion"
            motion = recorded_motion(self.index, rows) if recorded else derived_motion(self.index)
        reader = NuScenesReader(self.index, rows, self.files, self.reading, needs, motion, virtual, unlifted)
        return FrameSource(reader, self.reading, needs)

    def _unlifted(self, rows: Ints, needs: DataNeeds, *, complete: bool) -> frozenset[str]:
        """Previous sweeps without virtual points, where that is allowed; `complete` refuses all other gaps.

        Raises:
            UserError: If virtual points are missing.
        """
        folder = self.virtual_points
        _ = folder.manifest
        paths = self.index.sweeps.path[rows, : needs.sweeps + self.reading.spare_sweeps]
        own = _lacking(folder, _decoded(paths[:, :1]))
        previous = _lacking(folder, _decoded(paths[:, 1:]))
        refused = own if own or self.reading.allow_missing_sweeps else previous
        if complete and refused:
            otherwise = "" if own else ", or read such sweeps without: `dataset.allow_missing_sweeps: true`"
            raise UserError(
                f"{len(refused)} sweeps have no virtual points in {folder.path}, such as {refused[0]}; make them "
                f"with `bevkd data virtual-points`{otherwise}"
            )
        return frozenset(previous if self.reading.allow_missing_sweeps else ())


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
        summary=f"nuScenes {config.version}, trained on {config.train_split}, evaluated on {config.val_split}.",
        virtual_points=VirtualPointFolder(index.root / config.virtual_points),
    )


def _file_names(index: NuScenesIndex, rows: Ints, needs: DataNeeds, spare_sweeps: int) -> Iterator[str]:
    paths = []
    if needs.clouds:
        paths.append(index.sweeps.path[rows, : needs.sweeps + spare_sweeps])
    elif needs.depth:
        paths.append(index.sweeps.path[rows, 0])
    if needs.cameras:
        paths.append(index.cameras.path[rows])
    if needs.cameras and isinstance(needs.history, AdjacentFrames):
        spans = np.unique(np.stack([index.moments.begin[rows], index.moments.end[rows]], axis=1), axis=0)
        paths += [index.moments.path[begin:end] for begin, end in spans]
    for part in paths:
        yield from _decoded(part)


def _decoded(paths: Strings) -> list[str]:
    return [name.decode() for name in np.unique(paths).tolist() if name]


def _lacking(folder: VirtualPointFolder, sweeps: Sequence[str]) -> list[str]:
    """Sweeps whose file is missing."""
    ending = folder.file("").name
    return [name.removesuffix(ending) for name in missing_files(folder.path, [name + ending for name in sweeps])]
