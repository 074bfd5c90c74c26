"""The contract of a data set. Engine, experiment and report know only this, never a data set's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Sample
from bevkd_common.data.virtual_points.files import VirtualPointFolder

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
        """Sentences for the report about what is read otherwise than asked for."""
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


@runtime_checkable
class PartlyLiftedSource(Protocol):
    """A source that may read sweeps without the virtual points that a detector asks for.

    Attributes:
        unlifted: Names of such sweeps.
    """

    unlifted: frozenset[str]


@runtime_checkable
class VirtualPointDataset(Protocol):
    """A data set whose sweeps can have virtual points.

    Attributes:
        virtual_points: Where they lie, once they are made.
    """

    virtual_points: VirtualPointFolder

    def make_virtual_points(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make those that can be made without asking, and that are not there.

        Args:
            progress: Called with the sweeps done and all sweeps.

        Raises:
            UserError: If they must be made by the user first.
        """
        ...
