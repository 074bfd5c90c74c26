"""The contract of a data set. Engine, experiment and report know only this, never a data set's name."""

from __future__ import annotations

from typing import Literal, Protocol

from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Sample

SplitName = Literal["train", "val"]


class SampleSource(Protocol):
    """A finite, indexable set of key frames, in time order within each scene."""

    tokens: tuple[str, ...]
    scenes: tuple[str, ...]

    def __len__(self) -> int: ...

    def load(self, index: int, *, seed: int | None) -> Sample:
        """Read one key frame.

        Args:
            index: Position in `tokens`.
            seed: Augment with this seed; None reads the plain sample, as evaluation does.
        """
        ...


class Dataset(Protocol):
    """A data set on a disk.

    Attributes:
        name: As in the recipe.
        axes: The LiDAR axes, in words ("x right, y forward, z up").
        classes: Class names in label order.
        cameras: Camera names, in the order of `Cameras.images`.
        fingerprint: Content hash of everything a stage may read.
        synthetic: Whether no sensor ever saw this; the report labels it.
        description: One sentence for the report.
    """

    name: str
    axes: str
    classes: tuple[str, ...]
    cameras: tuple[str, ...]
    fingerprint: str
    synthetic: bool
    description: str

    def source(self, split: SplitName, needs: DataNeeds) -> SampleSource:
        """The samples of a split with what `needs` asks for.

        Raises:
            UserError: If the disk lacks something that is needed.
        """
        ...
