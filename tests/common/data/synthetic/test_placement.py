from collections import Counter

import numpy as np
import pytest
from bevkd_common.config.datasets.world import ObjectCounts, WorldConfig
from bevkd_common.data.synthetic.kinds import CLASS_KINDS, CLUTTER, CLUTTER_SHARES, KINDS, ROAD_USERS, Motion
from bevkd_common.data.synthetic.motion import rectangles_overlap, single
from bevkd_common.data.synthetic.placement import EGO_CENTRE, EGO_SIZE, Crowd, place
from bevkd_common.data.synthetic.scene import draw_scene, time_span
from bevkd_common.data.synthetic.street import Street

SCENES = 12
CONFIG = WorldConfig(seed=3)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(CONFIG, index) for index in range(SCENES)]


def test_nothing_ever_touches_anything(scenes):
    first, last = time_span(CONFIG)
    times = np.arange(first - 0.05, last + 0.01, 0.04)
    checked = 0
    for scene in scenes:
        tracks = scene.arcs.poses(times)
        ego = scene.ego.poses(times)
        ego[..., 0] += EGO_CENTRE * np.cos(ego[..., 2])
        ego[..., 1] += EGO_CENTRE * np.sin(ego[..., 2])
        poses = np.concatenate([tracks, ego], axis=1)
        halves = np.concatenate([scene.sizes[:, :2], [EGO_SIZE]]) / 2
        one, other = np.triu_indices(len(halves), k=1)
        overlap = rectangles_overlap(poses[:, one], halves[one], poses[:, other], halves[other])
        assert not overlap.any()
        checked += overlap.size
    assert checked > 1_000_000


def test_every_class_is_there_and_near_in_every_dozen_scenes(scenes):
    classes = {kind: name for name, kinds in CLASS_KINDS.items() for kind in kinds}
    near = Counter()
    for scene in scenes:
        distance = np.linalg.norm(scene.arcs.poses(1.0)[:, :2] - scene.ego.poses(1.0)[:, :2], axis=1)
        near.update(
            classes[kind] for kind, d in zip(scene.kinds, distance, strict=True) if kind in classes and d < 24
        )
    assert set(near) == set(CLASS_KINDS) == set(ObjectCounts.model_fields)
    assert min(near.values()) >= 10
    assert 15 * SCENES < near.total() < 27 * SCENES


def test_all_kinds_have_a_place_and_a_share():
    assert {kind for kinds in CLASS_KINDS.values() for kind in kinds} == set(ROAD_USERS)
    assert set(CLUTTER_SHARES) == set(CLUTTER)
    assert sum(CLUTTER_SHARES.values()) == pytest.approx(1)
    assert len(KINDS) == len(ROAD_USERS) + len(CLUTTER) == 33
    for kinds in CLASS_KINDS.values():
        assert sum(kinds.values()) == pytest.approx(1)


def test_motion_and_speed_agree(scenes):
    times = np.linspace(*time_span(CONFIG), 9)
    seen = Counter()
    for scene in scenes:
        speeds = scene.arcs.speeds(times)
        for index, motion in enumerate(scene.motions):
            seen[motion] += 1
            if motion is Motion.MOVING:
                # Fast enough to count as moving in the metric, which asks for more than 0.2 m/s.
                assert speeds[:, index].min() > 0.25
            else:
                assert not speeds[:, index].any()
    assert min(seen.values()) > 8
    assert len(seen) == 3


def test_traffic_points_along_the_road(scenes):
    checked = 0
    for scene in scenes:
        poses = scene.arcs.poses(1.0)
        s, d = scene.street.coordinates(poses[:, :2])
        inside = (d > scene.street.edges[0]) & (d < scene.street.edges[1])
        for index in np.flatnonzero(inside):
            vehicle = scene.kinds[index] in ("car", "truck", "rigid_bus", "bendy_bus", "cyclist", "motorcyclist")
            crossing = scene.street.crossing is not None and abs(s[index] - scene.street.crossing) < 7
            if not vehicle or crossing:
                continue
            off = poses[index, 2] - scene.street.pose(s[index], 0.0)[2]
            assert abs(np.sin(off)) < 0.2
            # Traffic keeps to the right: what drives against the ego's way is on the left.
            if scene.motions[index] is Motion.MOVING:
                assert (np.cos(off) > 0) == (d[index] < 1.75)
                checked += 1
    assert checked > 30


def test_trailers_that_move_follow_a_truck(scenes):
    pulled = 0
    for scene in [*scenes, *(draw_scene(WorldConfig(seed=4), index) for index in range(8))]:
        poses = scene.arcs.poses(0.7)
        trucks = [i for i, kind in enumerate(scene.kinds) if kind == "truck"]
        for index, (kind, motion) in enumerate(zip(scene.kinds, scene.motions, strict=True)):
            if kind == "trailer" and motion is Motion.MOVING:
                gaps = [
                    np.linalg.norm(poses[truck, :2] - poses[index, :2])
                    - (scene.sizes[truck, 0] + scene.sizes[index, 0]) / 2
                    for truck in trucks
                ]
                assert min(abs(gap - 0.6) for gap in gaps) < 0.1
                pulled += 1
    assert pulled >= 4


def test_a_full_street_takes_no_more():
    street = Street(100.0, 0.0, 0.0, ((0.0, 1),), ((-3.0, 1),), (-4.5, 1.75), None)
    crowd = Crowd(street, single(100.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0), np.linspace(0, 1, 5))
    rng = np.random.default_rng(0)
    placed = sum(place(crowd, "rigid_bus", rng) for _ in range(60))
    assert 3 <= placed == len(crowd.objects) < 25
