"""Cutting objects out and pasting them, on hand-placed boxes and through the reader."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.training import PasteConfig
from bevkd_common.data.loader import PastableSource, training_batches
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.nuscenes.dataset import build
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.object_bank import ObjectBank, Paster, cut_out, join, open_bank
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import points_in_boxes

CAR, TRUCK = 0, 1
PASTE = PasteConfig(counts={"car": 3, "pedestrian": 2}, min_points=1)


def box(x: float, y: float, length: float = 4.0) -> list[float]:
    return [x, y, 0.0, length, 2.0, 2.0, 0.0, 1.0, 0.0]


def bank(*centers: tuple[float, float], label: int = CAR) -> ObjectBank:
    boxes = np.array([box(*center) for center in centers])
    points = np.c_[boxes[:, :3], np.arange(len(boxes)), np.zeros(len(boxes))].astype(np.float32)
    offset = np.arange(len(boxes) + 1)
    return ObjectBank(boxes, np.full(len(boxes), label), {"lidar": offset}, {"lidar": points})


def cut(points, boxes, labels, least, counted=None):
    counted = np.ones(len(points), bool) if counted is None else counted
    return cut_out({"lidar": points}, boxes, labels, np.broadcast_to(least, len(boxes)), {"lidar": counted})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_objects_with_enough_points_are_cut_out():
    points = np.array(
        [[1, 0, 0, 7, 0.1], [-1, 0.5, 0.5, 8, 0.0], [10, 0, 0, 9, 0.0], [30, 0, 0, 1, 0.0]], dtype=np.float32
    )
    boxes, labels = np.array([box(0, 0), box(10, 0), box(20, 0)]), np.array([CAR, TRUCK, CAR])
    one = cut(points, boxes, labels, least=1)
    assert one.label.tolist() == [CAR, TRUCK]
    np.testing.assert_array_equal(one.boxes, boxes[:2])
    np.testing.assert_array_equal(one.points_of("lidar", np.array([1, 0])), points[[2, 0, 1]])
    two = cut(points, boxes, labels, least=2)
    assert (two.label.tolist(), two.offset["lidar"].tolist()) == ([CAR], [0, 2])
    none = cut(points, boxes, labels, least=3)
    assert (len(none.label), none.points["lidar"].shape) == (0, (0, 5))
    # Each box has its own least number, and points that are not counted are cut out with the others.
    assert cut(points, boxes, labels, least=[3, 1, 0]).label.tolist() == [TRUCK, CAR]
    counted = cut(points, boxes, labels, 1, np.array([True, False, False, True]))
    assert (counted.label.tolist(), len(counted.points["lidar"])) == ([CAR], 2)


def test_banks_are_joined():
    first, second = bank((0, 0), (9, 0)), bank((5, 5), label=TRUCK)
    both = join([first, second], {"lidar": 5})
    assert both.label.tolist() == [CAR, CAR, TRUCK]
    assert both.offset["lidar"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(both.points_of("lidar", np.array([2]))[:, :2], [[5, 5]])
    assert join([], {"lidar": 17}).points["lidar"].shape == (0, 17)


def test_as_many_are_drawn_as_the_key_frame_lacks():
    objects = bank(*((10.0 * k, 40.0) for k in range(20)))
    there, labels = np.array([box(0, 0), box(8, 0), box(16, 0)]), np.array([CAR, CAR, TRUCK])
    drawn = Paster.of(objects, {CAR: 5}).draw(there, labels, rng())
    assert len(drawn) == len(set(drawn.tolist())) == 3
    assert len(Paster.of(objects, {CAR: 2}).draw(there, labels, rng())) == 0
    assert len(Paster.of(objects, {TRUCK: 5}).draw(there, labels, rng())) == 0
    assert len(Paster.of(objects, {CAR: 100}).draw(there[:0], labels[:0], rng())) == 20


def test_every_object_is_drawn_about_equally_often():
    objects = bank(*((10.0 * k, 40.0) for k in range(10)))
    paster = Paster.of(objects, {CAR: 2})
    drawn = Counter(row for seed in range(500) for row in paster.draw(np.zeros((0, 9)), np.zeros(0), rng(seed)))
    assert sorted(drawn) == list(range(10))
    assert 60 < min(drawn.values()) <= max(drawn.values()) < 140


def test_nothing_is_pasted_over_what_is_there():
    # Footprints reach 2 m along x: at 3.9 m they overlap with the car at the origin, at 4.1 m they do not.
    objects = bank((3.9, 0.0), (4.1, 0.0), (0.0, 2.1), (0.0, -1.9))
    drawn = Paster.of(objects, {CAR: 9}).draw(np.array([box(0, 0)]), np.array([CAR]), rng())
    assert sorted(drawn) == [1, 2]


def test_what_is_pasted_does_not_overlap_itself():
    objects = bank((0.0, 0.0), (1.0, 0.0), (2.0, 0.0))
    trucks = bank((2.5, 0.0), label=TRUCK)
    paster = Paster.of(join([objects, trucks], {"lidar": 5}), {CAR: 3, TRUCK: 1})
    seen = {tuple(paster.draw(np.zeros((0, 9)), np.zeros(0), rng(seed)).tolist()) for seed in range(60)}
    assert seen == {(0,), (1,), (2,)}


def test_a_bank_is_made_once_and_made_again_when_it_is_of_something_else(tmp_path):
    made = []

    def make() -> ObjectBank:
        made.append(1)
        return bank((1.0, 2.0))

    places = (tmp_path / "missing" / "deep" / "bank.safetensors", tmp_path / "second.safetensors")
    first, second = (open_bank(places, {"of": "this"}, make) for _ in range(2))
    assert len(made) == 1
    assert places[0].is_file()
    np.testing.assert_array_equal(first.points["lidar"], second.points["lidar"])
    assert second.points["lidar"].dtype == np.float32
    open_bank(places, {"of": "that"}, make)
    assert len(made) == 2
    places[0].write_bytes(b"cut off")
    open_bank(places, {"of": "that"}, make)
    assert len(made) == 3


def test_a_bank_that_cannot_be_kept_says_so(tmp_path, caplog):
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "bank.safetensors"]
    assert len(open_bank(places, {}, lambda: bank((1.0, 2.0))).label) == 1
    assert "cut-out objects cannot be kept in" in caplog.text


@pytest.fixture
def full_world(own_world):
    """The small world with six more points in every annotated box of every key frame."""
    index = open_index(own_world.root, own_world.version)
    generator = rng(3)
    for row, names in enumerate(index.sweeps.path):
        path = own_world.root / names[0].decode()
        parts = [np.fromfile(path, np.float32).reshape(-1, 5)]
        for box in index.annotations.boxes[index.annotations.rows(row)]:
            center, size, yaw = box[:3], box[3:6], box[6]
            x, y, z = (generator.uniform(-0.45, 0.45, (6, 3)) * size).T
            turned = np.c_[x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw), z] + center
            parts.append(np.c_[turned, generator.uniform(0, 255, (6, 2))].astype(np.float32))
        np.concatenate(parts).tofile(path)
    return own_world


@pytest.fixture
def plain(full_world):
    return _source(full_world)


def _source(world, needs=None, **changes):
    values = {"version": "v1.0-small", "train_split": "small_train", "val_split": "small_val"}
    config = NuScenesConfig(**(values | {"bev_augmentation": None, "spare_sweeps": 0} | changes))
    return build(config, world.root).source("train", needs or DataNeeds(clouds=frozenset({"lidar"}), sweeps=2))


def test_the_reader_pastes(plain):
    assert isinstance(plain, PastableSource)
    seen = []
    pasting = plain.pasting(PASTE, CLASSES, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]
    pasted = covered = 0
    for index in range(5):
        before, after = plain.load(index, seed=4), pasting.load(index, seed=4)
        own = len(before.boxes)
        torch.testing.assert_close(after.boxes.tensor[:own], before.boxes.tensor, equal_nan=True)
        assert torch.equal(after.labels[:own], before.labels)
        new = after.boxes[own:]
        pasted += len(new)
        assert set(after.labels[own:].tolist()) <= {CLASSES.index("car"), CLASSES.index("pedestrian")}
        # The points outside the new boxes are those there were; what lay inside is gone.
        outside = ~points_in_boxes(after.clouds["lidar"].points[:, :3], new).any(dim=0)
        kept = ~points_in_boxes(before.clouds["lidar"].points[:, :3], new).any(dim=0)
        assert _rows(after.clouds["lidar"].points[outside]) == _rows(before.clouds["lidar"].points[kept])
        assert not set(_rows(after.clouds["lidar"].points[~outside])) & set(
            _rows(before.clouds["lidar"].points[~kept])
        )
        covered += int((~kept).sum())
        for one in range(len(new)):
            assert points_in_boxes(after.clouds["lidar"].points[:, :3], new[one : one + 1]).sum() >= 1
        plain_sample = pasting.load(index, seed=None)
        assert len(plain_sample.boxes) == own
    assert pasted >= 3
    assert covered >= 3


def _rows(points):
    return sorted(map(tuple, points.tolist()))


def test_pasted_objects_are_augmented_with_the_scene(full_world):
    whole = {"point_range": (-200.0, -200.0, -50.0, 200.0, 200.0, 50.0)}
    plain = _source(full_world, **whole).pasting(PASTE, CLASSES)
    turned = _source(full_world, bev_augmentation={"flip_x": 1.0}, **whole).pasting(PASTE, CLASSES)
    compared = 0
    for index in range(5):
        one, other = plain.load(index, seed=2), turned.load(index, seed=2)
        aug = other.aug_T_lidar
        assert not torch.equal(aug, torch.eye(4))
        moved = one.clouds["lidar"].points[:, :3] @ aug[:3, :3].T + aug[:3, 3]
        places, expected = (torch.tensor(_rows(part)) for part in (other.clouds["lidar"].points[:, :3], moved))
        torch.testing.assert_close(places, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(other.boxes.centers, one.boxes.centers @ aug[:3, :3].T, atol=1e-4, rtol=0)
        compared += len(one.boxes)
    assert compared > 30


def test_what_is_pasted_depends_on_the_request_alone(plain):
    pasting = plain.pasting(PASTE, CLASSES)
    alone, workers = (
        list(training_batches(pasting, batch=2, seed=1, steps=4, workers=workers)) for workers in (0, 2)
    )
    assert [batch.tokens for batch in alone] == [batch.tokens for batch in workers]
    for one, other in zip(alone, workers, strict=True):
        assert torch.equal(one.clouds["lidar"].points, other.clouds["lidar"].points)
        torch.testing.assert_close(one.boxes.tensor, other.boxes.tensor, rtol=0, atol=0, equal_nan=True)


def test_a_bank_is_the_same_for_any_number_of_processes(full_world, plain):
    one = plain.pasting(PASTE, CLASSES).paster.bank
    for path in full_world.root.glob("*/bevkd-objects-*"):
        path.unlink()
    other = plain.pasting(PASTE, CLASSES, workers=2).paster.bank
    assert len(one.label) > 10
    np.testing.assert_array_equal(one.points["lidar"], other.points["lidar"])
    np.testing.assert_array_equal(one.boxes, other.boxes)


@pytest.mark.parametrize(
    ("config", "needs", "message"),
    [
        (
            PasteConfig(counts={"cat": 1}),
            DataNeeds(clouds=frozenset({"lidar"})),
            r"`paste\.counts` names cat; the classes are",
        ),
        (PASTE, DataNeeds(clouds=frozenset({"lidar"}), cameras=True), "images would not show them"),
        (PASTE, DataNeeds(), "images would not show them"),
    ],
)
def test_what_cannot_be_pasted(small_world, config, needs, message):
    with pytest.raises(UserError, match=message):
        _source(small_world, needs).pasting(config, CLASSES)


def test_damaged_files_stop_the_cutting_or_are_skipped_and_said(own_world, caplog):
    path = own_world.root / "samples/LIDAR_TOP/scene-9001_0500.pcd.bin"
    path.write_bytes(b"123")
    with pytest.raises(UserError, match=r"scene-9001_0500\.pcd\.bin has 3 bytes"):
        _source(own_world).pasting(PASTE, CLASSES)
    _source(own_world, damaged="skip").pasting(PASTE, CLASSES)
    # The key frame itself; the two later sweeps that it would be are further back than one.
    assert "1 of 5 key frames are damaged and were skipped" in caplog.text
