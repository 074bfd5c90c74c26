"""Which samples make which batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.data.loader import (
    ClassAwareSource,
    TrainingOrder,
    calibration_batches,
    class_balanced_indices,
    evaluation_batches,
    training_batches,
)
from bevkd_common.data.needs import AdjacentFrames, DataNeeds, KeyframeQueue
from bevkd_common.data.nuscenes.dataset import build
from bevkd_common.data.samples import Sample
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes


@dataclass
class Toy:
    """Samples whose timestamp is the seed they were asked for."""

    count: int
    broken: int = -1
    asked: list = field(default_factory=list)

    @property
    def tokens(self):
        return tuple(f"t{index}" for index in range(self.count))

    @property
    def scenes(self):
        return tuple(f"s{index // 3}" for index in range(self.count))

    def __len__(self):
        return self.count

    def load(self, index, *, seed):
        if index == self.broken:
            raise UserError("sample t5 is broken, repair it")
        self.asked.append((index, seed))
        eye = torch.eye(4)
        # The scene carries the seed, for want of a better place.
        return Sample(
            self.tokens[index], str(seed), Boxes.empty(), torch.empty(0, dtype=torch.int64), None, {}, eye
        )


@dataclass
class AwareToy(Toy):
    """Nine frames in ten hold class 0, the last tenth holds class 1."""

    def classes_present(self, index):
        return frozenset({0 if index < 0.9 * self.count else 1})


def _indices(batches):
    return [[int(token[1:]) for token in batch.tokens] for batch in batches]


def _flat(lists):
    return list(chain.from_iterable(lists))


def _rows(batches):
    return [list(zip(batch.tokens, batch.scenes, strict=True)) for batch in batches]


def test_an_epoch_is_every_sample_once_in_a_new_order():
    indices = _flat(_indices(training_batches(Toy(10), batch=4, seed=0, steps=5)))
    first, second = indices[:10], indices[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != list(range(10))


def test_order_and_augmentation_depend_on_the_seed():
    def rows(seed):
        return _flat(_rows(training_batches(Toy(12), batch=3, seed=seed, steps=8)))

    assert rows(1) == rows(1)
    assert [token for token, _ in rows(1)] != [token for token, _ in rows(2)]
    seeds = [seed for _, seed in rows(1)]
    assert len(set(seeds)) == 24  # a sample is augmented anew in each epoch
    assert not set(seeds) & {seed for _, seed in rows(2)}


def test_a_samples_augmentation_does_not_depend_on_the_batch():
    one = _flat(_rows(training_batches(Toy(7), batch=1, seed=3, steps=21)))
    three = _flat(_rows(training_batches(Toy(7), batch=3, seed=3, steps=7)))
    assert one == three


def test_a_resumed_training_continues_without_reading_what_is_done():
    source = Toy(10)
    whole = _rows(training_batches(Toy(10), batch=4, micro_batches=2, seed=5, steps=6))
    rest = _rows(training_batches(source, batch=4, micro_batches=2, seed=5, steps=6, start_step=4))
    assert rest == whole[8:]
    assert len(source.asked) == 16


def test_steps_bound_the_training():
    assert len(list(training_batches(Toy(10), batch=4, micro_batches=3, seed=5, steps=2))) == 6
    assert list(training_batches(Toy(10), batch=4, seed=5, steps=2, start_step=2)) == []


@pytest.mark.parametrize(
    ("batch", "micro_batches", "ranks"), [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8)]
)
def test_one_step_sees_the_same_samples_however_it_is_divided(batch, micro_batches, ranks):
    expected = _rows(training_batches(Toy(20), batch=8, seed=1, steps=4))
    shares = [
        _rows(
            training_batches(
                Toy(20), batch=batch, micro_batches=micro_batches, seed=1, steps=4, rank=rank, ranks=ranks
            )
        )
        for rank in range(ranks)
    ]
    for step in range(4):
        seen = [
            row
            for share in shares
            for part in share[step * micro_batches : (step + 1) * micro_batches]
            for row in part
        ]
        assert len(seen) == 8
        assert sorted(seen) == sorted(expected[step])


def test_evaluation_reads_plain_samples_in_order():
    batches = list(evaluation_batches(Toy(8), batch=3))
    assert _indices(batches) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert {scene for batch in batches for scene in batch.scenes} == {"None"}


def test_ranks_share_whole_scenes():
    shares = [_flat(_indices(evaluation_batches(Toy(14), batch=4, rank=rank, ranks=2))) for rank in range(2)]
    assert shares == [[0, 1, 2, 6, 7, 8, 12, 13], [3, 4, 5, 9, 10, 11]]


def test_calibration_takes_the_first_batches_of_the_training():
    expected = _rows(islice(training_batches(Toy(10), batch=4, seed=2, steps=100), 3))
    assert _rows(calibration_batches(Toy(10), batch=4, batches=3, seed=2)) == expected


def test_class_balanced_sampling_of_ninety_and_ten():
    source = AwareToy(100)
    assert isinstance(source, ClassAwareSource)
    order = TrainingOrder.of(source, seed=0, class_balanced=True)
    assert len(order) == 100
    assert (order.slots < 90).sum() == (order.slots >= 90).sum() == 50
    assert len(np.unique(order.slots[order.slots >= 90])) > 5
    drawn = _flat(_indices(training_batches(source, batch=10, seed=0, steps=10, class_balanced=True)))
    assert sorted(drawn) == sorted(order.slots.tolist())
    assert drawn != order.slots.tolist()
    other = TrainingOrder.of(source, seed=1, class_balanced=True)
    assert not np.array_equal(order.slots, other.slots)


def test_repeats_within_a_class_balanced_epoch_are_augmented_apart():
    rows = _flat(_rows(training_batches(AwareToy(100), batch=10, seed=0, steps=10, class_balanced=True)))
    assert len({token for token, _ in rows}) < 100
    assert len({seed for _, seed in rows}) == 100


def test_a_frame_counts_once_for_each_of_its_classes():
    """Three pairs of class 0, two of class 4: 5 // 2 = 2 draws each."""
    present = [frozenset({0}), frozenset({0, 4}), frozenset(), frozenset({4, 0})]
    drawn = class_balanced_indices(present, np.random.default_rng(0))
    assert len(drawn) == 4
    assert set(drawn[:2]) <= {0, 1, 3}
    assert set(drawn[2:]) <= {1, 3}


def test_what_cannot_be_trained_on():
    with pytest.raises(UserError, match="the training split has no samples"):
        training_batches(Toy(0), batch=1, seed=0, steps=1)
    with pytest.raises(UserError, match="does not provide the classes of its samples"):
        training_batches(Toy(5), batch=1, seed=0, steps=1, class_balanced=True)
    with pytest.raises(UserError, match="no sample of the training split holds a box"):
        class_balanced_indices([frozenset()], np.random.default_rng(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_stays_one_sentence_in_any_process(workers):
    with pytest.raises(UserError) as caught:
        list(evaluation_batches(Toy(8, broken=5), batch=2, workers=workers))
    assert str(caught.value) == "sample t5 is broken, repair it"


def test_the_global_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    list(training_batches(Toy(8), batch=2, seed=9, steps=3))
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


@pytest.mark.parametrize("history", [None, AdjacentFrames(frames=2), KeyframeQueue()])
def test_batches_are_the_same_for_any_number_of_workers(small_world, history):
    config = NuScenesConfig(
        version="v1.0-small",
        train_split="small_train",
        val_split="small_val",
        images=ImageInputConfig(height=32, width=96),
    )
    source = build(config, small_world.root).source(
        "train", DataNeeds(cameras=True, clouds=frozenset({"lidar"}), sweeps=4, history=history)
    )

    def batches(workers):
        return list(training_batches(source, batch=2, seed=7, steps=4, workers=workers, class_balanced=True))

    plain = batches(0)
    assert len(plain) == 4
    for workers in (1, 2):
        for ours, theirs in zip(batches(workers), plain, strict=True):
            assert ours.tokens == theirs.tokens
            assert torch.equal(ours.clouds["lidar"].points, theirs.clouds["lidar"].points)
            assert torch.equal(ours.cameras.images, theirs.cameras.images)
            assert torch.equal(ours.aug_T_lidar, theirs.aug_T_lidar)
            assert torch.equal(ours.boxes.tensor.nan_to_num(9), theirs.boxes.tensor.nan_to_num(9))
            if history is not None:
                assert torch.equal(ours.history.cameras.images, theirs.history.cameras.images)
                assert torch.equal(ours.history.seconds, theirs.history.seconds)
