"""The contract of a data set. Engine, experiment and report know only this, never a data set's name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from bevkd_common.data.contents import Contents
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch, Sample
from bevkd_common.progress import Reporter

SplitName = Literal["train", "val"]


class SampleSource(Protocol):
    """A finite, indexable set of key frames, in time order within each scene."""

    @property
    def tokens(self) -> Sequence[str]:
        """The data set's names of the key frames."""
        ...

    @property
    def scenes(self) -> Sequence[str]:
        """The scene of each."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Clauses for the report about what is read otherwise than asked for."""
        ...

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
        synthetic: Whether no sensor recorded it; the report labels it.
    """

    name: str
    axes: str
    classes: tuple[str, ...]
    cameras: tuple[str, ...]
    synthetic: bool

    def prepare(self, needs: DataNeeds, reporter: Reporter) -> None:
        """Make derived data that `needs` asks for, that is not there and can be made without asking the user.

        Raises:
            UserError: If it cannot be made.
        """
        ...

    def fingerprint(self, needs: DataNeeds) -> str:
        """Hash of the content of all that a stage with these needs may read; large files may be sampled.

        Raises:
            UserError: If derived data is missing.
        """
        ...

    def description(self, needs: DataNeeds) -> str:
        """A few sentences for the report about what a stage with these needs reads.

        Raises:
            UserError: If derived data is missing.
        """
        ...

    def source(self, split: SplitName, needs: DataNeeds) -> SampleSource:
        """The samples of a split with what `needs` asks for.

        Raises:
            UserError: If the disk lacks something that is needed.
        """
        ...


@runtime_checkable
class VerifiableDataset(Protocol):
    """A data set whose fingerprint samples its files, and that can read all of them."""

    def verify(self, needs: DataNeeds, reporter: Reporter) -> Contents:
        """Read every file that a stage with these needs may read; later fingerprints cover what changed.

        Raises:
            UserError: If a file cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class Picture:
    """A key frame to draw.

    Attributes:
        name: Of this view of it, a part of the file's name.
        batch: The one sample.
    """

    name: str
    batch: Batch


@dataclass(frozen=True, eq=False)
class DataCheck:
    """What a data set's check found.

    Attributes:
        lines: Counts and scores.
        findings: One sentence for each thing that is wrong.
        pictures: Key frames to draw, read when they are asked for.
        cameras: Names of the cameras in their images.
        extent: x0, x1, y0, y1 of a picture from above, metres.
    """

    lines: Sequence[str]
    findings: Sequence[str]
    pictures: Iterable[Picture]
    cameras: tuple[str, ...]
    extent: tuple[float, float, float, float]
