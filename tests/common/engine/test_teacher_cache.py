from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.reading import BevAugmentationConfig
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.needs import AdjacentFrames, DataNeeds
from bevkd_common.data.nuscenes.reader import NuScenesReader
from bevkd_common.data.samples import collate
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.engine.teacher_cache import TeacherCache, check_repeats
from bevkd_common.errors import UserError
from bevkd_common.models.detector import Outputs

SHIFTS = BevAugmentationConfig(rotation=(0.0, 0.0), scale=(1.0, 1.0), translation=(0.0, 0.5, 0.0))
WANT = frozenset({"hidden"})
FLIPS = BevAugmentationConfig(rotation=(0.0, 0.0), scale=(1.0, 1.0))


@pytest.fixture
def load(clouds):
    source = clouds()

    def call(*indices, mirrored=False):
        samples = [source.load(index, seed=0) for index in indices]
        return collate([replace(sample, view=f"{sample.token} {mirrored}") for sample in samples])

    return call


@pytest.fixture
def frozen(make_detector, tmp_path):
    teacher = make_detector(1)
    teacher.norm.running_mean.fill_(0.3)
    return FrozenTeacher(teacher, cache=TeacherCache(tmp_path / "seen"))


def equal(one, other):
    assert one.taps.keys() == other.taps.keys() == {"hidden"}
    assert torch.equal(one.taps["hidden"], other.taps["hidden"])
    assert len(one.head) == len(other.head) == 1
    assert torch.equal(one.head[0]["value"], other.head[0]["value"])


def test_what_was_seen_is_not_looked_at_again(frozen, load):
    first = frozen(load(0, 1), WANT)
    equal(frozen(load(0, 1), WANT), first)
    assert frozen.detector.calls == 1
    # Sample by sample, in another order.
    swapped = frozen(load(1, 0), WANT)
    assert frozen.detector.calls == 1
    assert torch.equal(swapped.taps["hidden"], first.taps["hidden"].flip(0))


def test_another_sample_view_or_tap_is_looked_at(frozen, load):
    frozen(load(0, 1), WANT)
    frozen(load(0, 2), WANT)
    assert frozen.detector.calls == 2
    frozen(load(0, 1, mirrored=True), WANT)
    assert frozen.detector.calls == 3
    frozen(load(0, 1), frozenset({"hidden", "more"}))
    assert frozen.detector.calls == 4
    frozen(load(1, 2), WANT)
    assert frozen.detector.calls == 4


def test_another_process_finds_it_and_damage_is_mended(frozen, load, make_detector, tmp_path):
    first = frozen(load(0), WANT)
    (path,) = (tmp_path / "seen").glob("*/*.safetensors")
    other = FrozenTeacher(make_detector(2), cache=TeacherCache(tmp_path / "seen"))
    equal(other(load(0), WANT), first)
    assert other.detector.calls == 0
    path.write_bytes(path.read_bytes()[:40])
    equal(frozen(load(0), WANT), first)
    assert frozen.detector.calls == 2
    equal(other(load(0), WANT), first)


def test_bfloat16_stays_what_it_is(make_detector, load, tmp_path):
    frozen = FrozenTeacher(make_detector(1), torch.bfloat16, TeacherCache(tmp_path / "seen"))
    first, second = frozen(load(0), WANT), frozen(load(0), WANT)
    assert first.head[0]["value"].dtype == second.head[0]["value"].dtype == torch.bfloat16


def test_what_cannot_be_kept(frozen, clouds, tmp_path, load):
    with pytest.raises(ValueError, match="without a view"):
        frozen(collate([clouds().load(0, seed=0)]), WANT)
    with pytest.raises(ValueError, match="more than taps and head maps"):
        frozen.cache.seen(load(3), WANT, lambda: Outputs({}, extras={"depth": torch.zeros(1)}))
    with pytest.raises(UserError, match="does not say which views it repeats"):
        check_repeats(clouds(), DataNeeds())
    (tmp_path / "file").touch()
    full = TeacherCache(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be kept in .* make room, or set `teacher_cache` to false"):
        full.seen(load(0), WANT, lambda: Outputs({"hidden": torch.zeros(1, 1)}))


@pytest.mark.parametrize(
    ("changes", "needs", "reason"),
    [
        ({"bev_augmentation": FLIPS}, DataNeeds(clouds=frozenset({"lidar"})), None),
        ({"bev_augmentation": None, "spare_sweeps": 0}, DataNeeds(clouds=frozenset({"lidar"}), sweeps=10), None),
        ({}, DataNeeds(clouds=frozenset({"lidar"})), "draws rotations, scales or shifts"),
        (
            {"bev_augmentation": SHIFTS},
            DataNeeds(clouds=frozenset({"lidar"})),
            "shifts",
        ),
        ({"bev_augmentation": FLIPS}, DataNeeds(clouds=frozenset({"lidar"}), sweeps=10), "draws sweeps at random"),
        ({"bev_augmentation": FLIPS}, DataNeeds(cameras=True), "images are augmented"),
        ({"bev_augmentation": FLIPS}, DataNeeds(history=AdjacentFrames()), "images are augmented"),
    ],
)
def test_augmentations_that_repeat(changes, needs, reason):
    nothing = SimpleNamespace(token=np.zeros(0, "S1"), scene=np.zeros(0, "S1"))
    config, index = NuScenesConfig(**changes), SimpleNamespace(key_frames=nothing, root=None)
    source = FrameSource(NuScenesReader(index, np.zeros(0, np.int64), None, config, needs), config, needs)
    if reason is None:
        check_repeats(source, needs)
    else:
        with pytest.raises(UserError, match=f"here nothing does: .*{reason}"):
            check_repeats(source, needs)
