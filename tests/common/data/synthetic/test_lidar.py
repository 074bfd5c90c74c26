from dataclasses import replace

import numpy as np
import pytest
from bevkd_common.data.synthetic.kinds import KINDS
from bevkd_common.data.synthetic.lidar import points_in_boxes, sweep
from bevkd_common.data.synthetic.nuscenes.writer import sweep_columns
from bevkd_common.data.synthetic.rigid import inverse, transform
from bevkd_common.data.synthetic.solids import annotation_boxes

CLEAN = {"dropout": 0.0, "noise": 0.0}


@pytest.fixture
def take(scene, solids, rig):
    def take(seconds=0.0, **changes):
        changed = replace(rig, lidar=replace(rig.lidar, **changes))
        return sweep_columns(sweep(scene, solids, seconds, changed, np.random.default_rng(1)))

    return take


@pytest.fixture
def in_map(scene, rig):
    def in_map(points, seconds=0.0):
        matrix = scene.map_T_ego(seconds) @ rig.lidar.ego_T_sensor
        return transform(matrix, points[:, :3].astype(np.float64))

    return in_map


def test_columns_are_those_of_nuscenes(take, config, rig):
    points = take()
    assert rig.lidar.beams == 32
    assert points.dtype == np.float32
    assert points.shape[1] == 5
    assert 0.35 * 32 * config.lidar_azimuths < len(points) < 32 * config.lidar_azimuths
    assert set(points[:, 4].astype(int)) <= set(range(32))
    assert points[:, 3].min() >= 0
    assert points[:, 3].max() <= 255
    assert (points[:, 3] == np.round(points[:, 3])).all()
    assert len(np.unique(points[:, 3])) > 50
    assert np.linalg.norm(points[:, :3], axis=1).max() < config.lidar_range + 0.2


def test_rings_rise_in_even_steps_and_turn_clockwise(take):
    points = take(**CLEAN)
    elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    ring = points[:, 4].astype(int)
    expected = -30.67 + ring * (10.67 + 30.67) / 31
    off_ground = np.abs(elevation - expected) < 0.2
    assert off_ground.mean() > 0.95
    azimuth = np.unwrap(np.arctan2(points[:, 1], points[:, 0])[ring == 12])
    assert (np.diff(azimuth) < 0).all()


def test_dropouts_and_noise_are_as_asked(take):
    clean, lossy = take(**CLEAN), take(dropout=0.3, noise=0.0)
    assert len(lossy) / len(clean) == pytest.approx(0.7, abs=0.02)
    noisy = take(dropout=0.0, noise=0.05)
    assert len(noisy) == len(clean)
    error = np.linalg.norm(noisy[:, :3], axis=1) - np.linalg.norm(clean[:, :3], axis=1)
    assert np.std(error) == pytest.approx(0.05, rel=0.03)
    assert abs(error.mean()) < 0.002


def test_the_roof_of_the_ego_lies_within_a_metre(take, in_map, scene, rig):
    points = take(**CLEAN)
    near = (np.abs(points[:, :2]) < 1).all(axis=1)
    assert 3 < near.sum() < 200
    ego = transform(inverse(scene.map_T_ego(0.0)), in_map(points[near]))
    assert ego[:, 2].min() > 1.4
    assert np.abs(ego[:, 0] - 0.94).max() < 0.7


def test_laser_points_of_things_fall_inside_their_boxes(take, in_map, scene):
    inside = everywhere = 0
    for seconds in (0.0, 0.5, 1.0):
        points = take(seconds)
        boxes = annotation_boxes(scene, seconds)
        # Grown to the sides and upwards, not into the road.
        grown = boxes + np.array([0, 0, 0.15, 0.6, 0.6, 0.3, 0])
        points = in_map(points, seconds)
        points = points[points[:, 2] > 0.06]
        inside += points_in_boxes(points, boxes).sum()
        everywhere += points_in_boxes(points, grown).sum()
    assert inside > 3000
    assert inside / everywhere > 0.97


def test_points_in_boxes_counts_by_hand():
    boxes = np.array([[10.0, 0, 1, 4, 2, 2, 0.0], [0, 10.0, 1, 4, 2, 2, np.pi / 2], [50, 50, 1, 1, 1, 2, 0.0]])
    points = np.array(
        [
            [10.0, 0, 1],
            [11.9, 0.9, 0.1],
            [12.1, 0, 1],
            [10, 1.1, 1],
            [10, 0, 2.1],
            [0.9, 11.9, 1],
            [1.1, 10, 1],
            [10, 0, -0.1],
        ]
    )
    assert points_in_boxes(points, boxes).tolist() == [2, 1, 0]
    assert points_in_boxes(points, boxes[:0]).tolist() == []


def test_fronts_shine_brighter_than_rears(take, in_map, scene):
    ratios = []
    for seconds in (0.0, 0.5, 1.0):
        points = take(seconds, azimuths=1080)
        where = in_map(points, seconds)
        for box, kind in zip(annotation_boxes(scene, seconds), scene.kinds, strict=True):
            if kind not in ("car", "truck", "trailer", "loader", "excavator"):
                continue
            offset = where - box[:3]
            along = offset[:, 0] * np.cos(box[6]) + offset[:, 1] * np.sin(box[6])
            across = offset[:, 1] * np.cos(box[6]) - offset[:, 0] * np.sin(box[6])
            inside = (np.abs(across) < box[4] / 2) & (np.abs(offset[:, 2]) < box[5] / 2)
            front, rear = ((inside & (s * along > box[3] / 4) & (s * along < box[3] / 2)) for s in (1, -1))
            if min(front.sum(), rear.sum()) >= 15:
                ratios.append(np.percentile(points[front, 3], 80) / np.percentile(points[rear, 3], 80))
    assert len(ratios) >= 5
    assert KINDS["car"].headed
    assert np.median(ratios) > 1.3
