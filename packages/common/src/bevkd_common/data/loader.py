"""Composition of batches: a function of the seed and the step, independent of the loader processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from bevkd_common.config.training import PasteConfig
from bevkd_common.data.dataset import SampleSource
from bevkd_common.data.frames import Ints
from bevkd_common.data.samples import Batch, Sample, collate
from bevkd_common.errors import UserError

# Keys of the random streams of one seed.
RESAMPLING, ORDER, AUGMENTATION = range(3)

Request = tuple[int, int | None]
"""Position in a source, and the seed of its augmentation."""


@runtime_checkable
class ClassAwareSource(Protocol):
    """A source that returns the classes in a sample without reading sensor files."""

    def __len__(self) -> int: ...

    def classes_present(self, index: int) -> frozenset[int]:
        """Labels of the boxes that a detector is trained on, before augmentation."""
        ...


@runtime_checkable
class PastableSource(Protocol):
    """A source whose objects can be pasted from one sample into another."""

    def pasting(
        self,
        config: PasteConfig,
        classes: Sequence[str],
        *,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> SampleSource:
        """The same source with objects pasted into its augmented samples.

        The first call extracts the objects from all samples, which takes long.

        Args:
            config: Settings of the pasting.
            classes: Class names in label order.
            workers: Processes that extract objects; 0 uses this process.
            progress: Called with the samples done and all samples.

        Raises:
            UserError: If the samples carry images, a class is unknown, or a file cannot be read.
        """
        ...


def training_batches(
    source: SampleSource,
    *,
    batch: int,
    micro_batches: int = 1,
    seed: int,
    steps: int,
    start_step: int = 0,
    class_balanced: bool = False,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """Augmented micro-batches of a training, `micro_batches` of them for each optimizer step.

    An epoch is a new order of all samples; the last batch of an epoch is filled up from the next. A sample's
    augmentation depends only on the seed, the epoch and the sample. The samples of one optimizer step, over all
    ranks and micro-batches, depend only on the product of `batch`, `micro_batches` and `ranks`.

    Args:
        source: The training split.
        batch: Samples in a micro-batch.
        micro_batches: Micro-batches per rank and optimizer step.
        seed: Seed of order and augmentation.
        steps: Optimizer steps of the whole training.
        start_step: Optimizer steps that are already done; their batches are skipped without being read.
        class_balanced: See `class_balanced_indices`.
        workers: Loader processes; 0 reads in this process.
        rank: Rank of this process.
        ranks: Number of processes.

    Raises:
        UserError: If a file cannot be read, or the data set cannot be class-balanced.
    """
    order = TrainingOrder.of(source, seed, class_balanced)
    starts = (
        ((step * micro_batches + micro) * ranks + rank) * batch
        for step in range(start_step, steps)
        for micro in range(micro_batches)
    )
    return _load(source, (order.requests(start, batch) for start in starts), workers)


def evaluation_batches(
    source: SampleSource, *, batch: int, workers: int = 0, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """Samples without augmentation in the order of the source; each rank gets whole scenes.

    Raises:
        UserError: If a file cannot be read.
    """
    scenes = {scene: number for number, scene in enumerate(dict.fromkeys(source.scenes))}
    own = [index for index, scene in enumerate(source.scenes) if scenes[scene] % ranks == rank]
    requests: list[Request] = [(index, None) for index in own]
    return _load(source, (requests[start : start + batch] for start in range(0, len(own), batch)), workers)


def calibration_batches(source: SampleSource, *, batch: int, batches: int, seed: int) -> Iterator[Batch]:
    """The first batches of a training with this seed, for a method's measurements before the training."""
    return training_batches(source, batch=batch, seed=seed, steps=batches)


@dataclass(frozen=True, eq=False)
class TrainingOrder:
    """The infinite sequence of samples of one training.

    Attributes:
        slots: Position in the source of each slot of an epoch: all samples once, or class-balanced.
        seed: Seed of order and augmentation.
    """

    slots: Ints
    seed: int

    @classmethod
    def of(cls, source: SampleSource, seed: int, class_balanced: bool) -> TrainingOrder:
        """The training order of a source.

        Raises:
            UserError: If the source is empty, or does not provide the classes of its samples.
        """
        if not len(source):
            raise UserError("the training split has no samples; choose another split")
        if not class_balanced:
            return cls(np.arange(len(source)), seed)
        if not isinstance(source, ClassAwareSource):
            raise UserError(
                "this data set does not provide the classes of its samples; set `class_balanced` to false"
            )
        present = [source.classes_present(index) for index in range(len(source))]
        return cls(class_balanced_indices(present, np.random.default_rng([seed, RESAMPLING])), seed)

    def __len__(self) -> int:
        return len(self.slots)

    def requests(self, start: int, count: int) -> list[Request]:
        """`count` samples from position `start` of the sequence, across epochs."""
        epochs, slots = np.divmod(np.arange(start, start + count), len(self))
        places = chain.from_iterable(
            (self._request(epoch, slot) for slot in self._shuffled(epoch)[slots[epochs == epoch]].tolist())
            for epoch in np.unique(epochs).tolist()
        )
        return list(places)

    def _shuffled(self, epoch: int) -> Ints:
        return np.random.default_rng([self.seed, ORDER, epoch]).permutation(len(self))

    def _request(self, epoch: int, slot: int) -> Request:
        entropy = np.random.SeedSequence([self.seed, AUGMENTATION, epoch, slot])
        return int(self.slots[slot]), int(entropy.generate_state(1, np.uint64)[0])


def class_balanced_indices(present: Sequence[frozenset[int]], rng: np.random.Generator) -> Ints:
    """Indices of samples, drawn so that every class is drawn equally often (CBGS).

    `S` is the number of pairs of a sample and a class in it. For each of the `C` classes that occur, `int(S / C)`
    of its samples are drawn with replacement.

    Source: Class-balanced Grouping and Sampling, arXiv 1908.09492, as in mmdetection3d 1.4.

    Args:
        present: Classes in each sample.
        rng: Random generator.

    Raises:
        UserError: If no sample holds any class.
    """
    holders = {
        label: [index for index, classes in enumerate(present) if label in classes]
        for label in sorted(frozenset().union(*present))
    }
    if not holders:
        raise UserError("no sample of the training split holds a box; `class_balanced` has nothing to balance")
    draws = sum(map(len, holders.values())) // len(holders)
    return np.concatenate([rng.choice(indices, draws) for indices in holders.values()])


class _Requested(Dataset[Sample | UserError]):
    """Loads requested samples. An error is returned as a value: a loader would wrap it in a traceback."""

    def __init__(self, source: SampleSource) -> None:
        self.source = source

    def __getitem__(self, request: Request) -> Sample | UserError:
        index, seed = request
        try:
            return self.source.load(index, seed=seed)
        except UserError as error:
            return error


def _collate(samples: Sequence[Sample | UserError]) -> Batch | UserError:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    return collate([sample for sample in samples if isinstance(sample, Sample)])


def _load(source: SampleSource, requests: Iterable[list[Request]], workers: int) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        _Requested(source),
        batch_sampler=requests,
        collate_fn=_collate,
        num_workers=workers,
        generator=Generator(),  # else it would draw from the global generator
    )
    for loaded in loader:
        if isinstance(loaded, UserError):
            raise loaded
        yield loaded
