"""Painted clouds as a detector gets them, through the reader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.datasets.reading import BevAugmentationConfig
from bevkd_common.config.training import PasteConfig
from bevkd_common.data.loader import training_batches
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.nuscenes.dataset import build
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.samples import collate
from bevkd_common.data.virtual_points.files import VirtualPointFolder, make_virtual_points
from bevkd_common.data.virtual_points.instances import Instances
from bevkd_common.data.virtual_points.lifting import (
    PAINTED,
    RAW,
    REFLECTANCE,
    SCORE,
    SECONDS,
    TAG,
    VIRTUAL,
    painted_cloud,
)
from bevkd_common.data.virtual_points.makers import FromMasks
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import points_in_boxes
from bevkd_common.geometry.transforms import transform_points
from bevkd_common.ops.voxelize import VoxelSpec
from bevkd_common.progress import SilentReporter

WIDE = (-200.0, -200.0, -50.0, 200.0, 200.0, 50.0)
MVP = DataNeeds(clouds=frozenset({"lidar", "painted"}), sweeps=4)
KEY, PREVIOUS = "samples/LIDAR_TOP/scene-9001_0500.pcd.bin", "sweeps/LIDAR_TOP/scene-9001_0450.pcd.bin"


class Block:
    """One rectangle in every image: a bus."""

    sentence = "a block"

    @property
    def settings(self):
        return {"masks": "block"}

    def instances(self, image: str, scene: str, size: tuple[int, int]) -> Instances:
        found = np.zeros((1, *size), np.bool_)
        found[0, 10:40, 20:110] = True
        return Instances.of_masks(found, np.array([CLASSES.index("bus")]), np.array([0.75]))


@pytest.fixture
def lifted(make_world):
    """A world of the test's own with virtual points."""
    world = make_world()
    index = open_index(world.root, world.version)
    make_virtual_points(
        FromMasks(index, Block()), index, VirtualPointFolder(world.root / "virtual_points"), columns=11
    )
    return world


def source(world, needs=MVP, split="train", **changes):
    values = {
        "version": "v1.0-small",
        "train_split": "small_train",
        "val_split": "small_val",
        "images": ImageInputConfig(height=32, width=96),
        "point_range": WIDE,
    }
    return build(NuScenesConfig(**(values | changes)), world.root).source(split, needs)


def tagged(points, tag):
    return points[points[:, TAG] == tag]


def test_a_plain_sample(lifted):
    plain = source(lifted, DataNeeds(clouds=frozenset({"lidar"}), sweeps=4)).load(1, seed=None)
    sample = source(lifted).load(1, seed=None)
    painted = sample.clouds["painted"].points
    assert (plain.clouds.keys(), painted.dtype, painted.shape[1]) == ({"lidar"}, torch.float32, 17)
    assert torch.equal(sample.clouds["lidar"].points, plain.clouds["lidar"].points)
    # Of the key frame and of earlier sweeps alike points as measured have ones in all classes.
    raw = tagged(painted, RAW)
    assert torch.equal(raw[:, [0, 1, 2, REFLECTANCE, SECONDS]], sample.clouds["lidar"].points)
    assert (raw[:, 4:TAG] == 1).all()
    assert len(raw[:, SECONDS].unique()) == 4
    added = painted[painted[:, TAG] != RAW]
    assert (added[:, 4:SCORE].argmax(dim=1) == CLASSES.index("bus")).all()
    assert (added[:, 4:SCORE].sum(dim=1) == 1).all()
    assert (added[:, SCORE] == 0.75).all()
    virtual = tagged(painted, VIRTUAL)
    assert (virtual[:, REFLECTANCE] == -1).all()
    assert len(virtual[:, SECONDS].unique()) == 4
    # Each painted point stands beside the point as measured.
    for row in tagged(painted, PAINTED):
        assert (raw[:, [0, 1, 2, 3, 16]] == row[[0, 1, 2, 3, 16]]).all(dim=1).any()
    assert len(tagged(painted, PAINTED)) > 100


def test_sweeps_are_moved_with_the_ego_and_lose_what_is_close(lifted):
    view = source(lifted)
    index, row = view.reader.index, int(view.reader.rows[1])
    folder = VirtualPointFolder(lifted.root / "virtual_points")
    expected = []
    for column in range(4):
        name = index.sweeps.path[row, column].decode()
        cloud = painted_cloud(np.fromfile(lifted.root / name, np.float32).reshape(-1, 5), folder.read(name))
        if column:
            cloud = cloud[~((np.abs(cloud[:, 0]) < 1) & (np.abs(cloud[:, 1]) < 1))]
        lidar_T_sweep = index.sweeps.lidar_T_sweep[row, column]
        cloud[:, :3] = cloud[:, :3] @ lidar_T_sweep[:3, :3].T + lidar_T_sweep[:3, 3]
        cloud[:, SECONDS] = 0.05 * column
        expected.append(cloud)
    expected = np.concatenate(expected)
    np.testing.assert_allclose(view.load(1, seed=None).clouds["painted"].points.numpy(), expected, atol=2e-5)


def test_the_augmentation_applies_to_every_point(lifted):
    augmentation = BevAugmentationConfig(rotation=(0.3, 0.3), scale=(1.1, 1.1), flip_x=1.0, flip_y=0.0)
    drawn = source(lifted, bev_augmentation=augmentation, spare_sweeps=0)
    sample, plain = drawn.load(1, seed=5), drawn.load(1, seed=None)
    assert sample.clouds["painted"].points.shape == plain.clouds["painted"].points.shape
    moved = plain.clouds["painted"].points.clone()
    moved[:, :3] = transform_points(sample.aug_T_lidar, plain.clouds["painted"].points[:, :3])

    def ordered(points):
        return points[np.lexsort(points.round(decimals=3).numpy().T)]

    assert not torch.equal(sample.clouds["painted"].points, moved)
    torch.testing.assert_close(ordered(sample.clouds["painted"].points), ordered(moved), atol=1e-4, rtol=1e-5)


def test_asking_for_virtual_points_changes_no_other_draw(lifted):
    plain, both = (
        source(lifted, needs)
        for needs in (DataNeeds(cameras=True, clouds=frozenset({"lidar"}), sweeps=4), MVP | DataNeeds(cameras=True))
    )
    for seed in range(5):
        one, other = plain.load(2, seed=seed), both.load(2, seed=seed)
        assert torch.equal(one.clouds["lidar"].points, other.clouds["lidar"].points)
        assert torch.equal(one.cameras.images, other.cameras.images)
        assert torch.equal(one.aug_T_lidar, other.aug_T_lidar)


def test_asking_for_measured_points_changes_no_order(lifted):
    painted = DataNeeds(clouds=frozenset({"painted"}), sweeps=4)
    alone, both = (source(lifted, needs) for needs in (painted, MVP))
    for seed in range(5):
        one, other = alone.load(2, seed=seed), both.load(2, seed=seed)
        assert set(other.clouds) - set(one.clouds) == {"lidar"}
        assert torch.equal(one.clouds["painted"].points, other.clouds["painted"].points)


def test_points_out_of_range_are_dropped(lifted):
    bounds = (-20.0, -10.0, -1.5, 20.0, 10.0, 1.0)
    painted = source(lifted, point_range=bounds).load(1, seed=None).clouds["painted"].points
    assert {RAW, PAINTED, VIRTUAL} == set(painted[:, TAG].tolist())
    assert (painted[:, :3] > torch.tensor(bounds[:3])).all()
    assert (painted[:, :3] < torch.tensor(bounds[3:])).all()


def test_a_batch_holds_both_clouds(lifted):
    view = source(lifted)
    samples = [view.load(place, seed=None) for place in (0, 1)]
    batch = collate(samples)
    assert batch.cloud("painted").counts == tuple(len(sample.clouds["painted"].points) for sample in samples)
    assert torch.equal(
        batch.clouds["painted"].points, torch.cat([sample.clouds["painted"].points for sample in samples])
    )
    grid = ((-40.0, -40.0, -5.0), (40.0, 40.0, 3.0), (0.5, 0.5, 8.0))
    voxels = {name: cloud.voxels(VoxelSpec(*grid)) for name, cloud in batch.clouds.items()}
    assert {name: len(cloud.columns) for name, cloud in batch.clouds.items()} == {"lidar": 5, "painted": 17}
    assert {name: found.points.shape[1] for name, found in voxels.items()} == {"lidar": 5, "painted": 17}
    assert all(batch.cloud(name).voxels(VoxelSpec(*grid)) is found for name, found in voxels.items())
    assert torch.equal(batch.to("cpu").cloud("painted").points, batch.clouds["painted"].points)
    assert batch.to("meta").cloud("painted").points.is_meta
    alone = collate([source(lifted, DataNeeds(clouds=frozenset({"lidar"}), sweeps=4)).load(0, seed=None)])
    with pytest.raises(ValueError, match=r"without the point cloud `painted` \(lidar\)"):
        alone.cloud("painted")


def test_batches_do_not_depend_on_the_loaders_processes(lifted):
    here, there = (list(training_batches(source(lifted), batch=2, seed=3, steps=4, workers=w)) for w in (0, 2))
    assert len(here) == len(there) == 4
    assert all(
        torch.equal(one.clouds["painted"].points, other.clouds["painted"].points)
        for one, other in zip(here, there, strict=True)
    )
    assert len({len(batch.clouds["painted"].points) for batch in here}) > 1


def test_missing_files_are_found_before_the_first_sample(lifted):
    folder = VirtualPointFolder(lifted.root / "virtual_points")
    folder.file(PREVIOUS).unlink()
    message = rf"1 sweeps have no virtual points in .*, such as {PREVIOUS}; make them .*allow_missing_sweeps"
    with pytest.raises(UserError, match=message):
        source(lifted)
    assert len(source(lifted, split="val")) == 3
    allowed = source(lifted, allow_missing_sweeps=True)
    assert allowed.reader.unlifted == {PREVIOUS}
    assert allowed.notes == ("1 sweeps were read without virtual points",)
    sample = allowed.load(1, seed=None)
    lags = {
        tag: tagged(sample.clouds["painted"].points, tag)[:, SECONDS].unique().tolist()
        for tag in (RAW, PAINTED, VIRTUAL)
    }
    assert [len(lags[tag]) for tag in (RAW, PAINTED, VIRTUAL)] == [4, 3, 3]
    assert pytest.approx(min(set(lags[RAW]) - set(lags[VIRTUAL]))) == 0.05

    folder.file(KEY).unlink()
    message = rf"1 sweeps have no virtual points in .*, such as {KEY}; make them with `bevkd data virtual-points`$"
    with pytest.raises(UserError, match=message):
        source(lifted, allow_missing_sweeps=True)
    skipping = source(lifted, damaged="skip", allow_missing_sweeps=True)
    assert KEY in skipping.load(1, seed=0).skipped[0]


def test_a_damaged_file_stops_the_reading(lifted):
    path = VirtualPointFolder(lifted.root / "virtual_points").file(KEY)
    view = source(lifted)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        view.load(1, seed=None)
    assert view.load(3, seed=None).clouds["painted"].points is not None


def test_another_folder_can_be_named(lifted, tmp_path):
    (lifted.root / "virtual_points").rename(tmp_path / "elsewhere")
    assert (
        source(lifted, virtual_points=tmp_path / "elsewhere").load(0, seed=None).clouds["painted"].points
        is not None
    )
    with pytest.raises(UserError, match="holds none, or not all"):
        source(lifted)


def test_a_user_makes_those_of_nuscenes(lifted):
    dataset = build(
        NuScenesConfig(version="v1.0-small", train_split="small_train", val_split="small_val"), lifted.root
    )
    dataset.prepare(MVP, SilentReporter())
    assert dataset.virtual_points.manifest.sentence == "Virtual points from a block."


def test_objects_are_pasted_into_both_clouds(lifted):
    paste = PasteConfig(counts={"car": 6, "truck": 6, "bus": 6}, min_points=1)
    plain = source(lifted, DataNeeds(clouds=frozenset({"lidar"}), sweeps=4), bev_augmentation=None, spare_sweeps=0)
    both = source(lifted, bev_augmentation=None, spare_sweeps=0)
    without, pasted = plain.pasting(paste, CLASSES), both.pasting(paste, CLASSES)
    # Virtual points do not help an object over the least number of points.
    assert pasted.paster.bank.label.tolist() == without.paster.bank.label.tolist()
    objects = pasted.paster.bank.points
    assert {name: found.shape[1] for name, found in objects.items()} == {"lidar": 5, "painted": 17}
    assert (objects["painted"][:, TAG] == VIRTUAL).any()
    seen = 0
    for seed in range(6):
        one, other = without.load(0, seed=seed), pasted.load(0, seed=seed)
        assert torch.equal(one.clouds["lidar"].points, other.clouds["lidar"].points)
        assert torch.equal(one.boxes.tensor.nan_to_num(), other.boxes.tensor.nan_to_num())
        rows = tagged(other.clouds["painted"].points, RAW)[:, [0, 1, 2, REFLECTANCE, SECONDS]]
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, other.clouds["lidar"].points.tolist()))
        new = other.boxes[len(both.load(0, seed=seed).boxes) :]
        inside = points_in_boxes(other.clouds["painted"].points[:, :3], new).any(dim=0)
        # Without augmentation an object of the bank stands in the sample as it stood.
        bank = {tuple(row) for row in pasted.paster.bank.points["painted"].tolist()}
        assert {tuple(row) for row in other.clouds["painted"].points[inside].tolist()} <= bank
        seen += int((other.clouds["painted"].points[inside, TAG] == VIRTUAL).any())
    assert seen
