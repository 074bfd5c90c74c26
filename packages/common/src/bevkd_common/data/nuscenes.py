"""nuScenes, and data of its shape, as samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bevkd_common.config.datasets import NuScenesConfig, ReadingConfig
from bevkd_common.config.nuscenes_names import CAMERAS, CLASSES
from bevkd_common.data.can_bus import derived_motion, recorded_motion
from bevkd_common.data.dataset import SplitName
from bevkd_common.data.index import PREVIOUS_SWEEPS, Ints, NuScenesIndex
from bevkd_common.data.index_file import open_index
from bevkd_common.data.needs import AdjacentFrames, DataNeeds
from bevkd_common.data.nuscenes_source import NuScenesSource
from bevkd_common.data.sensor_files import SensorFiles, check_files
from bevkd_common.errors import UserError

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
