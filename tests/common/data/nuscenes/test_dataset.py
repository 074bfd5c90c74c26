"""Samples as a detector sees them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.datasets.reading import BevAugmentationConfig
from bevkd_common.data.dataset import Dataset, SampleSource, VerifiableDataset
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.nuscenes.dataset import build
from bevkd_common.data.nuscenes.index_file import open_index
from bevkd_common.data.samples import collate
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import points_in_boxes
from bevkd_common.geometry.cameras import project
from bevkd_common.geometry.transforms import inverse, transform_points
from bevkd_common.progress import SilentReporter
from scipy.spatial.transform import Rotation

WIDE = (-200.0, -200.0, -50.0, 200.0, 200.0, 50.0)
BOTH = DataNeeds(cameras=True, clouds=frozenset({"lidar"}), sweeps=10)


def test_the_data_set_describes_itself(small_world, config):
    dataset: Dataset = build(config(), small_world.root)
    assert (dataset.name, dataset.synthetic, dataset.axes) == ("nuscenes", False, "x right, y forward, z up")
    assert dataset.classes == CLASSES
    assert (
        dataset.description(DataNeeds()) == "nuScenes v1.0-small, trained on small_train, evaluated on small_val."
    )
    samples: SampleSource = dataset.source("val", DataNeeds())
    assert samples.tokens == ("scene-9003-key0", "scene-9003-key1", "scene-9003-key2")
    assert samples.scenes == ("scene-9003",) * 3
    assert len(samples) == 3


def test_a_plain_sample(small_world, source):
    sample = source(small_world, point_range=WIDE).load(1, seed=None)
    assert (sample.token, sample.scene) == ("scene-9001-key1", "scene-9001")
    assert sample.timestamp == 1_532_402_927_647_951 + 500_000
    assert torch.equal(sample.aug_T_lidar, torch.eye(4))
    assert sample.global_T_lidar.dtype == torch.float64
    cameras = sample.cameras
    assert (cameras.images.shape, cameras.images.dtype) == ((6, 3, 32, 96), torch.uint8)
    assert cameras.images.is_contiguous()
    for values, shape in (
        (cameras.intrinsics, (6, 3, 3)),
        (cameras.lidar_T_cam, (6, 4, 4)),
        (cameras.image_aug, (6, 3, 3)),
        (sample.clouds["lidar"].points, (len(sample.clouds["lidar"].points), 5)),
        (sample.boxes.tensor, (8, 9)),
    ):
        assert (values.shape, values.dtype) == (shape, torch.float32)
    # Without the cone (no point in it), the rack and the dog; the barrier has a radar point alone.
    names = ["car", "truck", "bus", "pedestrian", "barrier", "bicycle", "bicycle", "car"]
    assert [CLASSES[label] for label in sample.labels] == names


def test_only_what_is_needed_is_read(small_world, source):
    assert source(small_world, DataNeeds(cameras=True)).load(0, seed=None).clouds == {}
    assert source(small_world, DataNeeds(clouds=frozenset({"lidar"}))).load(0, seed=None).cameras is None


def test_points_equal_the_devkits_multisweep(small_world, devkit, source):
    from nuscenes.utils.data_classes import LidarPointCloud

    samples = source(small_world, point_range=WIDE, pad_empty_sweeps=False)
    for index, count in enumerate((1, 10, 10, 1, 10)):
        sample = devkit.get("sample", samples.tokens[index])
        theirs, lags = LidarPointCloud.from_file_multisweep(devkit, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=10)
        ours = samples.load(index, seed=None).clouds["lidar"].points
        # The devkit cuts close points from the key frame as well; they stay in ours.
        own = ours[:, 4] == 0
        close = (ours[:, :2].abs() < 1).all(dim=1) & own
        assert 0 < close.sum() < 20
        expected = np.concatenate([theirs.points, lags]).T
        assert len(ours) - close.sum() == len(expected)
        assert len(np.unique(np.round(lags, 3))) == count
        np.testing.assert_allclose(_sorted(ours[~close].numpy()), _sorted(expected), atol=2e-4)


def _sorted(points):
    return points[np.lexsort((points[:, 3], np.round(points[:, 4], 3)))]


def test_a_sweep_is_rotated_and_then_shifted(own_world, source):
    """F11: R = 90 degrees, T = (10, 0, 0), p = (1, 0, 0): (10, 1, 0); mmdetection3d 1.1 to 1.4 give (0, -9, 0)."""
    tables = own_world.tables
    tables["calibrated_sensor"][0].update(translation=[0, 0, 0], rotation=[1, 0, 0, 0])
    poses = {record["token"]: record for record in tables["ego_pose"]}
    poses["pose-LIDAR_TOP-scene-9001-500"].update(translation=[0, 0, 0], rotation=[1, 0, 0, 0])
    half = 0.5**0.5
    poses["pose-LIDAR_TOP-scene-9001-450"].update(translation=[10, 0, 0], rotation=[half, 0, 0, half])
    own_world.write("calibrated_sensor")
    own_world.write("ego_pose")
    previous = own_world.root / "sweeps/LIDAR_TOP/scene-9001_0450.pcd.bin"
    np.array([[1, 0, 0, 77, 3], [0.5, -0.5, 0, 77, 3]], dtype=np.float32).tofile(previous)
    points = (
        source(own_world, DataNeeds(clouds=frozenset({"lidar"}), sweeps=2), spare_sweeps=0)
        .load(1, seed=None)
        .clouds["lidar"]
        .points
    )
    sweep = points[points[:, 4] > 0]
    torch.testing.assert_close(sweep, torch.tensor([[10.0, 1.0, 0.0, 77.0, 0.05]]), rtol=0, atol=1e-5)


def test_a_scene_that_begins_repeats_its_key_frame(small_world, source):
    padded = source(small_world, point_range=WIDE).load(0, seed=None).clouds["lidar"].points
    single = source(small_world, point_range=WIDE, pad_empty_sweeps=False).load(0, seed=None).clouds["lidar"].points
    assert len(single) == 170
    far = single[(single[:, :2].abs() >= 1).any(dim=1)]
    torch.testing.assert_close(padded, torch.cat([single, *[far] * 9]))
    assert padded[:, 4].unique().tolist() == [0.0]


def _lags(sample):
    return sorted({round(lag, 2) for lag in sample.clouds["lidar"].points[:, 4].tolist()})


def test_training_draws_nine_of_ten_sweeps_and_evaluation_takes_the_nearest(small_world, source):
    samples = source(small_world)
    assert _lags(samples.load(1, seed=None)) == [round(0.05 * k, 2) for k in range(10)]
    left_out = set()
    for seed in range(40):
        lags = _lags(samples.load(1, seed=seed))
        assert len(lags) == 10
        assert lags[0] == 0
        left_out |= {round(0.05 * k, 2) for k in range(1, 11)} - set(lags)
    assert len(left_out) == 10


def test_without_spare_sweeps_training_takes_the_nearest_too(small_world, source):
    samples = source(small_world, DataNeeds(clouds=frozenset({"lidar"}), sweeps=3), spare_sweeps=0)
    assert {tuple(_lags(samples.load(1, seed=seed))) for seed in range(5)} == {(0, 0.05, 0.1)}


def test_fewer_stored_sweeps_than_wanted_are_all_taken(own_world, source):
    """The sixth sweep before the key frame is the first of its scene."""
    rows = {record["token"]: record for record in own_world.tables["sample_data"]}
    rows["LIDAR_TOP-scene-9001-200"]["prev"] = ""
    own_world.write("sample_data")
    samples = source(own_world)
    expected = [round(0.05 * k, 2) for k in range(7)]
    assert _lags(samples.load(1, seed=None)) == expected
    assert _lags(samples.load(1, seed=3)) == expected


def test_points_are_cut_strictly_at_the_range(own_world, source):
    points = np.zeros((5, 5), dtype=np.float32)
    points[:, 0] = (-20, 20, np.nextafter(np.float32(20), np.float32(0)), 3, 3)
    points[3:, 2] = (-5, 3)
    points.tofile(own_world.root / "samples/LIDAR_TOP/scene-9001_0000.pcd.bin")
    bounds = (-20.0, -20.0, -5.0, 20.0, 20.0, 3.0)
    kept = (
        source(own_world, DataNeeds(clouds=frozenset({"lidar"})), point_range=bounds)
        .load(0, seed=None)
        .clouds["lidar"]
        .points
    )
    assert kept[:, 0].tolist() == [points[2, 0]]


def test_boxes_are_cut_by_their_centre_after_augmentation(small_world, source):
    plain = source(small_world, point_range=WIDE).load(1, seed=None)
    car = plain.boxes[0]
    assert CLASSES[plain.labels[0]] == "car"
    x, y = float(car.x), float(car.y)
    turn = BevAugmentationConfig(rotation=(np.pi, np.pi), scale=(1, 1), flip_x=0, flip_y=0)
    for slack, count in ((1e-3, 1), (-1e-3, 0)):
        reach = max(abs(x), abs(y)) + slack
        bounds = (-reach, -reach, -50.0, reach, reach, 50.0)
        turned = source(small_world, point_range=bounds, bev_augmentation=turn).load(1, seed=0)
        nearest = (turned.boxes.centers[:, :2] - torch.tensor([-x, -y])).norm(dim=1) < 1e-3
        assert int(nearest.sum()) == count


def test_unknown_velocities(small_world, source):
    person = CLASSES.index("pedestrian")
    for choice, expected in (("mask", torch.nan), ("zero", 0.0)):
        sample = source(small_world, unknown_velocity=choice).load(1, seed=None)
        row = sample.labels == person
        assert int(row.sum()) == 1
        torch.testing.assert_close(sample.boxes.velocity[row], torch.full((1, 2), expected), equal_nan=True)
        assert torch.isfinite(sample.boxes.velocity[~row]).all()
        assert (sample.boxes.velocity[~row].abs() > 1).any()


def test_points_boxes_and_cameras_are_augmented_alike(own_world, source):
    """What is in a box stays in it, and what a pixel shows stays in it."""
    samples = source(own_world, DataNeeds(cameras=True, clouds=frozenset({"lidar"})), point_range=WIDE)
    plain = samples.load(1, seed=None)
    corners = plain.boxes.corners()
    inner = plain.boxes.centers[:, None] + 0.95 * (corners - plain.boxes.centers[:, None])
    outer = plain.boxes.centers[:, None] + 1.05 * (corners - plain.boxes.centers[:, None])
    marks = torch.cat([inner.flatten(0, 1), outer.flatten(0, 1)])
    stored = torch.cat([marks, torch.full((len(marks), 2), 9.0)], dim=1)
    stored.numpy().tofile(own_world.root / "samples/LIDAR_TOP/scene-9001_0500.pcd.bin")
    mirrored = set()
    for seed in range(8):
        drawn = samples.load(1, seed=seed)
        assert torch.equal(drawn.labels, plain.labels)
        assert len(drawn.clouds["lidar"].points) == len(marks)
        assert points_in_boxes(drawn.clouds["lidar"].points[:, :3], drawn.boxes).sum(dim=1).tolist() == [8] * 8
        moved = transform_points(drawn.aug_T_lidar, plain.boxes.centers)
        torch.testing.assert_close(drawn.boxes.centers, moved, rtol=0, atol=1e-4)
        pixels = [
            project(boxes.centers, sample.cameras.intrinsics, inverse(sample.cameras.lidar_T_cam))
            for sample, boxes in ((plain, plain.boxes), (drawn, drawn.boxes))
        ]
        seen = pixels[0][1] > 1
        assert seen.sum() > 8
        torch.testing.assert_close(pixels[1][0][seen], pixels[0][0][seen], rtol=1e-4, atol=0.02)
        torch.testing.assert_close(pixels[1][1][seen], pixels[0][1][seen], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(drawn.cameras.intrinsics, plain.cameras.intrinsics)
        mirrored.add(bool(torch.linalg.det(drawn.aug_T_lidar) < 0))
    assert mirrored == {True, False}


def test_without_augmentation_of_the_bev_the_scene_stays(small_world, source):
    samples = source(small_world, bev_augmentation=None)
    drawn, plain = samples.load(1, seed=5), samples.load(1, seed=None)
    assert torch.equal(drawn.aug_T_lidar, torch.eye(4))
    assert torch.equal(drawn.boxes.tensor.nan_to_num(7), plain.boxes.tensor.nan_to_num(7))
    assert not torch.equal(drawn.cameras.image_aug, plain.cameras.image_aug)


def test_training_shuffles_points_and_evaluation_does_not(small_world, source):
    samples = source(small_world, bev_augmentation=None, spare_sweeps=0)
    drawn, plain = samples.load(1, seed=5).clouds["lidar"].points, samples.load(1, seed=None).clouds["lidar"].points
    assert (plain[:, 4].diff() >= 0).all()
    assert not torch.equal(drawn, plain)
    assert torch.equal(drawn.unique(dim=0), plain.unique(dim=0))
    assert len(drawn) == len(plain)


def test_a_sample_depends_on_its_seed_alone(small_world, source):
    def values(sample):
        return (sample.clouds["lidar"].points, sample.cameras.images, sample.cameras.image_aug, sample.aug_T_lidar)

    samples = source(small_world)
    torch.manual_seed(1)
    np.random.seed(1)
    first = values(samples.load(2, seed=11))
    samples.load(0, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first, values(samples.load(2, seed=11)), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, values(samples.load(2, seed=12)), strict=True))
    # What one detector needs leaves the draws of the others alone.
    for needs in (DataNeeds(cameras=True), DataNeeds(clouds=frozenset({"lidar"}), sweeps=10)):
        other = source(small_world, needs).load(2, seed=11)
        assert torch.equal(other.aug_T_lidar, first[3])
        if other.cameras is not None:
            assert torch.equal(other.cameras.image_aug, first[2])
        if other.clouds:
            assert torch.equal(other.clouds["lidar"].points, first[0])


def test_the_cache_changes_nothing_and_reads_once(own_world, source):
    cached, plain = source(own_world, cache=True), source(own_world)
    for _ in range(2):
        for index in range(3):
            ours, theirs = cached.load(index, seed=index), plain.load(index, seed=index)
            assert torch.equal(ours.clouds["lidar"].points, theirs.clouds["lidar"].points)
            assert torch.equal(ours.cameras.images, theirs.cameras.images)
    (own_world.root / "samples/LIDAR_TOP/scene-9001_0500.pcd.bin").unlink()
    (own_world.root / "samples/CAM_BACK/scene-9001_1.jpg").unlink()
    assert torch.equal(
        cached.load(1, seed=1).clouds["lidar"].points, plain_points := cached.load(1, seed=1).clouds["lidar"].points
    )
    assert len(plain_points)
    with pytest.raises(UserError, match=r"scene-9001_0500\.pcd\.bin is missing"):
        plain.load(1, seed=1)


def test_classes_present_counts_valid_annotations(small_world, source):
    samples = source(small_world)
    names = {CLASSES[label] for label in samples.classes_present(1)}
    assert names == {"car", "truck", "bus", "pedestrian", "barrier", "bicycle"}
    assert CLASSES.index("pedestrian") not in samples.classes_present(0)


def test_the_fingerprint_changes_with_what_is_read(own_world, config):
    dataset = build(config(), own_world.root)
    assert dataset.fingerprint(BOTH) == build(config(cache=True), own_world.root).fingerprint(BOTH)
    assert dataset.fingerprint(BOTH) != build(config(val_split="small_train"), own_world.root).fingerprint(BOTH)
    assert len(dataset.fingerprint(BOTH)) == 64
    own_world.tables["sample_annotation"][0]["num_lidar_pts"] += 1
    own_world.write("sample_annotation")
    assert dataset.fingerprint(BOTH) != build(config(), own_world.root).fingerprint(BOTH)


def test_changed_sensor_files_change_the_fingerprint_of_those_who_read_them(own_world, config, caplog):
    lidar, cameras = DataNeeds(clouds=frozenset({"lidar"})), DataNeeds(cameras=True)
    before = build(config(), own_world.root)
    prints = before.fingerprint(lidar), before.fingerprint(cameras), before.fingerprint(DataNeeds())
    for sweep in (own_world.root / "samples/LIDAR_TOP").iterdir():
        points = np.fromfile(sweep, dtype=np.float32).reshape(-1, 5)
        points[:, 0] += 500
        points.tofile(sweep)
    after = build(config(), own_world.root)
    assert after.fingerprint(lidar) != prints[0]
    assert "sensor files of" in caplog.text
    assert "have changed, such as samples/LIDAR_TOP/" in caplog.text
    assert (after.fingerprint(cameras), after.fingerprint(DataNeeds())) == prints[1:]


def test_a_changed_file_of_the_can_bus_changes_the_fingerprint(own_world, config):
    needs = DataNeeds(can_bus=True)
    (own_world.root / "can_bus").mkdir()
    for scene in {row["name"] for row in own_world.tables["scene"]}:
        (own_world.root / f"can_bus/{scene}_pose.json").write_text("[]")
    before = build(config(), own_world.root).fingerprint(needs)
    assert before == build(config(), own_world.root).fingerprint(needs)
    derived = build(config(can_bus="ego_poses"), own_world.root)
    kept = derived.fingerprint(needs)
    (own_world.root / "can_bus/scene-9001_pose.json").write_text("[1]")
    assert before != build(config(), own_world.root).fingerprint(needs)
    assert kept == build(config(can_bus="ego_poses"), own_world.root).fingerprint(needs)


def test_verifying_reads_every_file_and_counts_in_the_next_fingerprint(own_world, config):
    dataset = build(config(), own_world.root)
    assert isinstance(dataset, VerifiableDataset)
    before = dataset.fingerprint(BOTH)
    found = dataset.verify(BOTH, SilentReporter())
    assert (found.files, found.changed) == (102, ())  # eight key frames of seven sensors, and 46 sweeps
    image = next((own_world.root / "samples/CAM_BACK").iterdir())
    about = image.stat()
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    os.utime(image, ns=(about.st_mtime_ns, about.st_mtime_ns))
    assert dataset.fingerprint(BOTH) == before
    assert dataset.verify(BOTH, SilentReporter()).changed == (f"samples/CAM_BACK/{image.name}",)
    assert dataset.fingerprint(BOTH) != before


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (
            DataNeeds(clouds=frozenset({"lidar", "painted"}), sweeps=1),
            r"virtual_points holds none, or not all: make them with",
        ),
        (DataNeeds(can_bus=True), r"can_bus/scene-9001_pose\.json; .* or set `can_bus: ego_poses`"),
        (DataNeeds(clouds=frozenset({"lidar"}), sweeps=12), "needs 12 LiDAR sweeps; nuscenes provides up to 11"),
    ],
)
def test_needs_that_cannot_be_met(small_world, needs, message, source):
    with pytest.raises(UserError, match=message):
        source(small_world, needs)


def test_missing_files_are_found_before_the_first_sample(own_world, source):
    (own_world.root / "sweeps/LIDAR_TOP/scene-9001_0050.pcd.bin").unlink()
    (own_world.root / "samples/CAM_BACK/scene-9002_1.jpg").unlink()
    open_index(own_world.root, own_world.version, allow_missing=True)
    message = (
        r"1 files that the tables name are missing under .*, such as sweeps/LIDAR_TOP/scene-9001_0050\.pcd\.bin"
    )
    with pytest.raises(UserError, match=message):
        source(own_world, DataNeeds(clouds=frozenset({"lidar"}), sweeps=10))
    with pytest.raises(UserError, match=r"such as samples/CAM_BACK/scene-9002_1\.jpg; unpack"):
        source(own_world, DataNeeds(cameras=True))
    # Neither the other split nor a detector that does without them minds.
    source(own_world, BOTH, split="val")
    source(own_world, DataNeeds(clouds=frozenset({"lidar"}), sweeps=2))
    # Training draws from one sweep more than it loads.
    (own_world.root / "sweeps/LIDAR_TOP/scene-9001_0850.pcd.bin").unlink()
    source(own_world, DataNeeds(clouds=frozenset({"lidar"}), sweeps=3), spare_sweeps=0)
    with pytest.raises(UserError, match=r"1 files .* such as sweeps/LIDAR_TOP/scene-9001_0850\.pcd\.bin"):
        source(own_world, DataNeeds(clouds=frozenset({"lidar"}), sweeps=3), spare_sweeps=1)
    for path in (own_world.root / "samples/CAM_BACK").iterdir():
        path.unlink()
    (own_world.root / "samples/CAM_BACK").rmdir()
    with pytest.raises(UserError, match=r"3 files .* such as samples/CAM_BACK/scene-9003_0\.jpg"):
        source(own_world, DataNeeds(cameras=True), split="val")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("samples/LIDAR_TOP/scene-9001_0500.pcd.bin", lambda content: content[:-8],
         r"scene-9001_0500\.pcd\.bin has 3392 bytes, not a whole number of points of 20 bytes; unpack it again"),
        ("samples/LIDAR_TOP/scene-9001_0500.pcd.bin", lambda content: b"", "has 0 bytes"),
        ("samples/CAM_BACK/scene-9001_1.jpg", lambda content: content[: len(content) // 2],
         r"scene-9001_1\.jpg is not a complete image \(image file is truncated"),
        ("samples/CAM_BACK/scene-9001_1.jpg", lambda content: b"no image", r"scene-9001_1\.jpg is not a complete"),
        ("samples/CAM_BACK/scene-9001_1.jpg", lambda content: None, r"scene-9001_1\.jpg is missing; unpack"),
        ("samples/LIDAR_TOP/scene-9001_0500.pcd.bin", lambda content: None, r"0500\.pcd\.bin is missing; unpack"),
    ],
)  # fmt: skip
def test_damaged_files(own_world, name, damage, message, source):
    samples = source(own_world)
    path = own_world.root / name
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        samples.load(1, seed=None)
    samples.load(0, seed=None)


def test_yaw_stays_below_half_a_turn_in_single_precision(own_world, source):
    """The largest double below pi rounds to a float above it."""
    upright = {"translation": [0, 0, 0], "rotation": [1, 0, 0, 0]}
    own_world.tables["calibrated_sensor"][0].update(upright)
    next(p for p in own_world.tables["ego_pose"] if p["token"] == "pose-LIDAR_TOP-scene-9001-0").update(upright)
    half = (np.pi - 1e-9) / 2
    own_world.tables["sample_annotation"][0].update(
        translation=[5, 5, 0], rotation=[float(np.cos(half)), 0, 0, float(np.sin(half))]
    )
    for table in ("calibrated_sensor", "ego_pose", "sample_annotation"):
        own_world.write(table)
    boxes = source(own_world, DataNeeds()).load(0, seed=None).boxes
    assert abs(abs(float(boxes.yaw[0])) - np.pi) < 1e-6
    assert float(boxes.yaw[0]) < np.pi


def test_damaged_training_samples_are_skipped_and_counted_where_that_is_asked_for(own_world, source):
    (own_world.root / "samples/CAM_BACK/scene-9001_1.jpg").write_bytes(b"no image")
    (own_world.root / "samples/CAM_BACK/scene-9001_2.jpg").write_bytes(b"")
    samples = source(own_world, damaged="skip")
    assert [samples.load(index, seed=1).token for index in range(len(samples))] == [
        "scene-9001-key0", "scene-9002-key0", "scene-9002-key0", "scene-9002-key0", "scene-9002-key1",
    ]  # fmt: skip
    skipped = samples.load(1, seed=1).skipped
    assert len(skipped) == 2
    assert "scene-9001_1.jpg is not a complete image" in skipped[0]
    assert "scene-9001_2.jpg is not a complete image" in skipped[1]
    assert samples.load(0, seed=1).skipped == ()
    batch = collate([samples.load(1, seed=1), samples.load(2, seed=1)])
    assert batch.skipped == (*skipped, skipped[1])
    # What is not drawn for training, or where nothing was asked for, stops.
    for refusing, seed in ((samples, None), (source(own_world), 1)):
        with pytest.raises(UserError, match="is not a complete image"):
            refusing.load(1, seed=seed)


def test_missing_files_may_be_skipped_in_training_only(own_world, source):
    for name in ("scene-9001_0", "scene-9003_0"):
        (own_world.root / f"samples/CAM_BACK/{name}.jpg").unlink()
    open_index(own_world.root, own_world.version, allow_missing=True)
    assert source(own_world, damaged="skip").load(0, seed=3).token == "scene-9001-key1"
    with pytest.raises(UserError, match="files that the tables name are missing"):
        source(own_world, split="val", damaged="skip")


def test_nothing_but_damage_is_an_error(own_world, source):
    samples = source(own_world, damaged="skip")
    for path in (own_world.root / "samples/CAM_BACK").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"every sample of the training split is damaged, .*scene-9001_0"):
        samples.load(0, seed=1)


def test_static_points_of_ten_sweeps_coincide_while_the_ego_turns(own_world, source):
    """The same landmarks, ranged from ten places with a noise of 2 cm, have one place in the key frame's axes."""
    rng = np.random.default_rng(5)
    noise, count = 0.02, 120
    records = [r for r in own_world.tables["sample_data"] if r["token"].startswith("LIDAR_TOP-scene-9001")]
    poses = {record["token"]: record for record in own_world.tables["ego_pose"]}
    ego_T_lidar = _matrix(own_world.tables["calibrated_sensor"][0])
    landmarks = np.c_[rng.uniform(380, 440, count), rng.uniform(1150, 1210, count), rng.uniform(0, 4, count)]
    for record in records:
        lidar_T_global = np.linalg.inv(_matrix(poses[record["ego_pose_token"]]) @ ego_T_lidar)
        seen = landmarks @ lidar_T_global[:3, :3].T + lidar_T_global[:3, 3]
        distance = np.linalg.norm(seen, axis=1, keepdims=True)
        seen *= 1 + rng.normal(0, noise, (count, 1)) / distance
        columns = np.c_[seen, np.arange(count), np.zeros(count)].astype(np.float32)
        columns.tofile(own_world.root / record["filename"])
    first, last = (_matrix(poses[record["ego_pose_token"]]) for record in (records[0], records[10]))
    turned = np.degrees(np.arccos((np.linalg.inv(first) @ last)[0, 0]))
    assert turned > 9
    assert np.linalg.norm(last[:3, 3] - first[:3, 3]) > 3.5

    points = (
        source(own_world, DataNeeds(clouds=frozenset({"lidar"}), sweeps=10), point_range=WIDE)
        .load(1, seed=None)
        .clouds["lidar"]
        .points
    )
    assert len(points[:, 4].unique()) == 10
    places = points[points[:, 3].argsort(stable=True)][:, :3].reshape(count, 10, 3).double()
    spread = (places - places.mean(dim=1, keepdim=True)).norm(dim=2)
    # Ten draws of 2 cm along the ray: 1.9 cm about their mean. A chain without the turn would spread by metres.
    assert float(spread.pow(2).mean().sqrt()) == pytest.approx(noise * 0.9**0.5, rel=0.1)
    assert float(spread.max()) < 5 * noise


def _matrix(record):
    matrix = np.eye(4)
    w, x, y, z = record["rotation"]
    matrix[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
    matrix[:3, 3] = record["translation"]
    return matrix
