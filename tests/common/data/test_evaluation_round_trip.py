"""Detections in LiDAR axes, our metric and submission, against the devkit's own loading and evaluation."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.synthetic import SyntheticConfig
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.loader import evaluation_batches
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.nuscenes.dataset import build
from bevkd_common.data.specs import NUSCENES, SYNTHETIC
from bevkd_common.data.synthetic.dataset import build as build_synthetic
from bevkd_common.errors import UserError
from bevkd_common.evaluation.evaluator import Evaluator, Submission
from bevkd_common.evaluation.nuscenes.benchmark import build as build_submission
from bevkd_common.evaluation.nuscenes.metric import AVERAGE_PRECISION, BY_DISTANCE, ERRORS_BY_CLASS
from bevkd_common.evaluation.nuscenes.split import build as build_evaluator
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.transforms import quaternion_to_rotation
from bevkd_common.models.detector import Detections

WIDE = (-200.0, -200.0, -50.0, 200.0, 200.0, 50.0)
LIDAR = DataNeeds(clouds=frozenset({"lidar"}))
WORLD = WorldConfig(
    train_scenes=1, val_scenes=2, keyframes_per_scene=2, image_size=(32, 96), lidar_azimuths=180, camera_rate=2.0
)


@pytest.fixture(scope="module")
def small(small_world):
    config = NuScenesConfig(
        version="v1.0-small", train_split="small_train", val_split="small_val", point_range=WIDE
    )
    return config, build(config, small_world.root)


@pytest.fixture(scope="module")
def synthetic_root(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def synthetic(synthetic_root):
    config = SyntheticConfig(
        world=WORLD, point_range=WIDE, max_range=None, images=ImageInputConfig(height=32, width=96)
    )
    return config, build_synthetic(config, synthetic_root)


def _truth(batch):
    """Ground truth as detections: an unknown velocity is 0."""
    return [
        Detections(Boxes(boxes[valid].nan_to_num(0.0)), torch.ones(int(valid.sum())), labels[valid])
        for boxes, labels, valid in zip(batch.boxes.tensor, batch.labels, batch.valid, strict=True)
    ]


def _noisy(batch, rng):
    """Copies of the ground truth that are off, mislabelled, doubled, or alone; scores with ties."""
    found = []
    for truth in _truth(batch):
        boxes = truth.boxes.tensor.repeat(4, 1)
        noise = rng.normal(size=boxes.shape) * [0.8, 0.8, 0.3, 0.3, 0.1, 0.1, 0.4, 0.7, 0.7]
        boxes = boxes + torch.from_numpy(noise).float()
        boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.1
        labels = truth.labels.repeat(4)
        labels = torch.where(torch.from_numpy(rng.random(len(labels)) < 0.1), (labels + 1) % 10, labels)
        scores = torch.from_numpy(rng.integers(1, 12, len(labels)) / 12).float()
        found.append(Detections(Boxes(boxes), scores, labels))
    return found


TWO_SWEEPS = replace(LIDAR, sweeps=2)
"""From which a velocity can be observed."""


def _submitted(config, dataset, detect, needs=LIDAR) -> dict:
    submission: Submission = build_submission(config, dataset, "val")
    for batch in evaluation_batches(dataset.source("val", needs), batch=2):
        submission.update(batch, detect(batch))
    return submission.content()


def _evaluated(config, dataset, detect, split="val") -> Evaluator:
    evaluator: Evaluator = build_evaluator(config, dataset, split)
    for batch in evaluation_batches(dataset.source(split, DataNeeds(clouds=frozenset({"lidar"}))), batch=2):
        evaluator.update(batch, detect(batch))
    return evaluator


def _devkit_scores(nuscenes, split, submission, folder):
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    path = folder / "submission.json"
    path.write_text(json.dumps(submission))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(nuscenes, config, str(path), split, str(folder / "devkit"), verbose=False)
    metrics, _ = evaluation.evaluate()
    summary = metrics.serialize()
    names = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}
    scores = {ours: summary["tp_errors"][theirs] for theirs, ours in names.items()}
    return scores | {"mAP": summary["mean_ap"], "NDS": summary["nd_score"]}, summary["mean_dist_aps"]


def _assert_equal(evaluator, theirs, by_class):
    results = evaluator.compute(TWO_SWEEPS)
    ours = {name: metric.value for name, metric in results.headline.items()}
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    for name, value in by_class.items():
        assert results.table(AVERAGE_PRECISION).at(name, "mean") == pytest.approx(value, abs=1e-9)


def test_noisy_detections_score_as_in_the_devkit(small, devkit, tmp_path):
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    evaluator = _evaluated(*small, lambda batch: _noisy(batch, rng))
    submission = _submitted(*small, lambda batch: _noisy(batch, again))
    scores, by_class = _devkit_scores(devkit, "small_val", submission, tmp_path)
    assert 0.05 < scores["mAP"] < 0.6
    _assert_equal(evaluator, scores, by_class)
    counts = evaluator.compute(TWO_SWEEPS).counts
    assert counts.samples == 3
    # Three of car, truck, cyclist, two of bus and barrier (the third is 32 m away), one person; no cone for want
    # of points, no bicycle in the rack, no dog, no far car.
    assert counts.ground_truths == 14


def test_ranges_are_measured_from_the_ego_not_from_the_lidar(own_world):
    """A car 49.5 m behind the ego is 50.4 m behind the LiDAR."""
    token = "pose-LIDAR_TOP-scene-9003-0"
    pose = next(pose for pose in own_world.tables["ego_pose"] if pose["token"] == token)
    forward = quaternion_to_rotation(torch.tensor(pose["rotation"], dtype=torch.float64))[:, 0].numpy()
    car = next(box for box in own_world.tables["sample_annotation"] if box["token"] == "far-scene-9003-0")
    car["translation"] = (np.array(pose["translation"]) - 49.5 * forward).tolist()
    own_world.write("sample_annotation")
    config = NuScenesConfig(
        version="v1.0-small", train_split="small_train", val_split="small_val", point_range=WIDE
    )
    results = _evaluated(config, build(config, own_world.root), _truth).compute(TWO_SWEEPS)
    assert results.counts.ground_truths == 15


def test_ground_truth_of_a_generated_world_scores_perfectly(synthetic, tmp_path):
    nuscenes = pytest.importorskip("nuscenes")
    config, dataset = synthetic
    evaluator = _evaluated(config, dataset, _truth)
    devkit = nuscenes.NuScenes("v1.0-synthetic", str(dataset.index.root), verbose=False)
    scores, by_class = _devkit_scores(devkit, dataset.splits["val"], _submitted(config, dataset, _truth), tmp_path)
    _assert_equal(evaluator, scores, by_class)
    present = [value for value in by_class.values() if value > 0]
    assert len(present) >= 8
    assert present == pytest.approx([1.0] * len(present), abs=1e-9)
    table = evaluator.compute(TWO_SWEEPS).table(ERRORS_BY_CLASS)
    checked = 0
    for name, value in by_class.items():
        errors = {error: table.at(name, error) for error in ("ATE", "ASE", "AOE", "AVE")}
        for error, measured in errors.items():
            if value > 0 and measured is not None:
                # The mount is tilted: yaw and velocity come back to the second order of the tilt.
                assert measured < (1e-5 if error in ("ATE", "ASE") else 5e-3), (name, error)
                checked += 1
    assert checked > 25


def test_the_evidence_resamples_scenes(synthetic, tmp_path):
    evaluator = _evaluated(*synthetic, _truth)
    evaluator.evidence().save(tmp_path / "evidence.npz")
    evidence = evaluator.load_evidence(tmp_path / "evidence.npz")
    assert evidence.groups == tuple(dict.fromkeys(synthetic[1].source("val", DataNeeds()).scenes))
    whole = evidence.headline(np.ones(2))
    assert whole["mAP"] == pytest.approx(evaluator.compute(TWO_SWEEPS).headline["mAP"].value)


def test_a_limited_range_limits_truth_and_bands(synthetic):
    config, dataset = synthetic
    near = config.model_copy(update={"max_range": 24.0})
    results = _evaluated(near, dataset, _truth).compute(TWO_SWEEPS)
    assert results.table(BY_DISTANCE).rows == ("0-8 m", "8-16 m", "16-24 m")
    everything = _evaluated(config, dataset, _truth).compute(TWO_SWEEPS)
    assert everything.table(BY_DISTANCE).rows == ("0-20 m", "20-30 m", "30-50 m")
    assert 0 < results.counts.ground_truths < everything.counts.ground_truths
    far = config.model_copy(update={"max_range": 60.0})
    assert _evaluated(far, dataset, _truth).compute(TWO_SWEEPS) == everything


def test_a_submission_names_the_sensors_that_were_used(small):
    config, dataset = small
    flags = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
    assert _submitted(config, dataset, _truth)["meta"] == flags
    by_cameras = _submitted(config, dataset, _truth, DataNeeds(cameras=True))
    assert by_cameras["meta"] == flags | {"use_camera": True, "use_lidar": False}
    assert set(by_cameras["results"]) == {f"scene-9003-key{k}" for k in range(3)}


def test_a_test_split_without_annotations_is_submitted(own_world):
    for table in ("sample_annotation", "instance"):
        own_world.tables[table].clear()
        own_world.write(table)
    config = NuScenesConfig(version="v1.0-small", train_split="nowhere", val_split="small_val")

    def one(batch):
        boxes = Boxes(torch.tensor([[3.0, 20.0, 0.0, 4.6, 1.9, 1.7, 0.3, 1.0, 0.0]]))
        return [Detections(boxes, torch.tensor([0.5]), torch.tensor([0]))] * len(batch)

    written = _submitted(config, build(config, own_world.root), one)
    assert [len(written["results"][f"scene-9003-key{k}"]) for k in range(3)] == [1, 1, 1]
    box = written["results"]["scene-9003-key0"][0]
    assert (box["detection_name"], box["attribute_name"], box["size"]) == (
        "car", "vehicle.moving", pytest.approx([1.9, 4.6, 1.7])
    )  # fmt: skip


def test_suspicious_scores_are_commented(small):
    def nothing(batch):
        return [Detections(Boxes.empty(), torch.empty(0), torch.empty(0, dtype=torch.int64)) for _ in batch.tokens]

    sound, silent = _evaluated(*small, _truth), _evaluated(*small, nothing)
    assert sound.findings(sound.compute(TWO_SWEEPS)) == []
    assert silent.findings(silent.compute(TWO_SWEEPS))[0].startswith("No prediction is left to score")
    assert {len(boxes) for boxes in _submitted(*small, nothing)["results"].values()} == {0}


def test_a_detector_of_one_sweep_has_no_error_of_velocity_and_no_warning_of_it(small):
    def still(batch):
        found = _truth(batch)
        for one in found:
            one.boxes.tensor[:, 7:] = 0.0
        return found

    evaluator = _evaluated(*small, still)
    one, two = evaluator.compute(LIDAR), evaluator.compute(TWO_SWEEPS)
    assert one.headline["mAVE"].value is None
    assert two.headline["mAVE"].value > 0
    assert one.headline["NDS"] == two.headline["NDS"]
    blind = two.headline["mAVE"].model_copy(update={"value": 1.0})
    # As if every class had been found.
    tables = tuple(
        table.model_copy(update={"values": ((0.97,) * len(table.columns),) * len(table.rows)})
        if table.title == ERRORS_BY_CLASS
        else table
        for table in two.tables
    )
    warned = two.model_copy(update={"headline": two.headline | {"mAVE": blind}, "tables": tables})
    assert len(evaluator.findings(warned)) == 1
    assert evaluator.findings(one) == []


def test_misuse_of_the_evaluator(small):
    config, dataset = small
    source = dataset.source("val", DataNeeds())
    batch = next(evaluation_batches(source, batch=2))
    evaluator = build_evaluator(config, dataset, "val")
    with pytest.raises(ValueError, match="augmented batch"):
        evaluator.update(replace(batch, aug_T_lidar=batch.aug_T_lidar * 2), _truth(batch))
    evaluator.update(batch, _truth(batch))
    with pytest.raises(ValueError, match="evaluated before"):
        evaluator.update(batch, _truth(batch))
    submission = build_submission(config, dataset, "val")
    submission.update(batch, _truth(batch))
    for ask in (lambda: evaluator.compute(TWO_SWEEPS), evaluator.evidence, submission.content):
        with pytest.raises(ValueError, match="2 of 3 samples of the split were evaluated"):
            ask()
    with pytest.raises(ValueError, match="is not of this split"):
        build_evaluator(config, dataset, "train").update(batch, _truth(batch))


def test_an_attribute_that_the_task_does_not_know(own_world):
    next(a for a in own_world.tables["attribute"] if a["name"] == "vehicle.parked")["name"] = "vehicle.flying"
    own_world.write("attribute")
    config = NuScenesConfig(version="v1.0-small", train_split="small_train", val_split="small_val")
    dataset = build(config, own_world.root)
    batch = next(evaluation_batches(dataset.source("val", DataNeeds()), batch=1))
    with pytest.raises(UserError, match=r"'vehicle\.flying' in attribute\.json is no attribute"):
        build_evaluator(config, dataset, "val").update(batch, _truth(batch))


def test_the_generated_world_is_a_data_set(synthetic, synthetic_root):
    config, dataset = synthetic
    assert (dataset.name, dataset.synthetic) == ("synthetic", True)
    assert dataset.description(DataNeeds()) == (
        "Synthetic data, seen by no real sensor: 1 scenes to train and 2 to evaluate, each of 2 key frames, "
        "generated from seed 0."
    )
    folders = [path for path in synthetic_root.iterdir() if path.is_dir()]
    assert folders == [dataset.index.root]
    stamp = (dataset.index.root / "world.json").stat().st_mtime_ns
    progress = []
    again = build_synthetic(config, synthetic_root, lambda *done: progress.append(done))
    assert again.fingerprint(DataNeeds()) == dataset.fingerprint(DataNeeds())
    assert (dataset.index.root / "world.json").stat().st_mtime_ns == stamp
    assert progress == []
    train, val = (
        dataset.source(split, DataNeeds(cameras=True, clouds=frozenset({"lidar"}), sweeps=3))
        for split in ("train", "val")
    )
    assert (len(train), len(val)) == (2, 4)
    sample = val.load(3, seed=None)
    assert sample.cameras.images.shape == (6, 3, 32, 96)
    assert sorted({round(lag, 1) for lag in sample.clouds["lidar"].points[:, 4].tolist()}) == [0, 0.1, 0.2]


def test_specs_name_what_exists():
    from bevkd_common.config.plugins import load

    for spec, builder in ((NUSCENES, build), (SYNTHETIC, build_synthetic)):
        assert load(spec.build) is builder
        assert load(spec.build_evaluator) is build_evaluator
        assert spec.config().kind == spec.kind
