"""The ego's motion from recordings and from poses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.nuscenes.can_bus import UNRECORDED, derived_motion, recorded_motion
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.nuscenes.index_build import build_index
from bevkd_common.data.synthetic import ensure_world
from bevkd_common.data.synthetic.nuscenes import VERSION, NuScenesWriter
from bevkd_common.errors import UserError


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> NuScenesIndex:
    world = WorldConfig(
        train_scenes=2, val_scenes=1, keyframes_per_scene=5, image_size=(16, 44), lidar_rate=2.0, camera_rate=2.0
    )
    return build_index(ensure_world(NuScenesWriter(world), tmp_path_factory.mktemp("can-bus")), VERSION)


@pytest.fixture
def one(own_world) -> NuScenesIndex:
    """A scene with its own, hand-written recording."""
    index = build_index(own_world.root, own_world.version)
    write(index, [message(index.key_frames.timestamp[0] + offset, offset) for offset in (-10, 0, 20_000, 900_000)])
    return index


def message(utime, value) -> dict:
    names = ("accel", "rotation_rate", "vel")
    return {"utime": int(utime)} | {name: [float(value) + k, 0.0, k] for k, name in enumerate(names)}


def write(index, messages, scene="scene-9001"):
    path = index.root / f"can_bus/{scene}_pose.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(messages))


FIRST = np.arange(1)


def test_the_first_message_after_the_key_frame_counts(one):
    motion = recorded_motion(one, FIRST)
    assert motion[0].tolist() == [20_000, 0, 0, 20_001, 0, 1, 20_002, 0, 2]
    assert np.isnan(motion[1:]).all()


def test_after_the_last_message_the_last_counts(one):
    start = one.key_frames.timestamp[0]
    write(one, [message(start - 30_000, 3), message(start - 60_000, 2)])
    assert recorded_motion(one, FIRST)[0, 0] == 3


def test_scenes_that_were_not_recorded_stand_still(one):
    frames = replace(one.key_frames, scene=np.full(8, b"scene-0161"))
    assert recorded_motion(replace(one, key_frames=frames), np.arange(8)).tolist() == [[0.0] * 9] * 8
    assert len(UNRECORDED) == 21


def _bent(index):
    messages = [message(index.key_frames.timestamp[0], 1)]
    messages[0]["vel"] = [1.0, 2.0]
    write(index, messages)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index: (index.root / "can_bus/scene-9001_pose.json").unlink(), "1 files .*scene-9001_pose.json"),
        (
            lambda index: (index.root / "can_bus/scene-9001_pose.json").write_text("[{"),
            "is no list of CAN-bus poses",
        ),
        (lambda index: write(index, [{"utime": 1}]), r"is no list of CAN-bus poses \('accel'\)"),
        (lambda index: write(index, []), "without three finite numbers"),
        (_bent, "without three finite numbers|no list of CAN-bus poses"),
        (
            lambda index: write(index, [message(index.key_frames.timestamp[0], float("nan"))]),
            "three finite numbers",
        ),
        (lambda index: write(index, [message(5, 1)]), "no message within 1 s of key frame scene-9001-key0"),
    ],
)
def test_damaged_recordings(one, damage, message):
    damage(one)
    with pytest.raises(UserError, match=message) as caught:
        recorded_motion(one, FIRST)
    assert "`can_bus: ego_poses`" in str(caught.value)


def test_poses_tell_what_the_bus_recorded(index):
    """The synthetic ego keeps its acceleration and curvature over a scene; the recording is 20 ms late at most."""
    rows = np.arange(len(index.key_frames.token))
    recorded, derived = recorded_motion(index, rows), derived_motion(index)
    assert recorded.shape == derived.shape == (15, 9)
    inner = np.flatnonzero([0 < row % 5 < 4 for row in rows])
    # Speeds to 5 cm/s, turning to 1 degree/s; accelerations of an ego that turns are of two differences.
    np.testing.assert_allclose(derived[inner, 6:], recorded[inner, 6:], atol=0.05)
    np.testing.assert_allclose(derived[inner, 3:6], recorded[inner, 3:6], atol=0.02)
    np.testing.assert_allclose(derived[inner, :3], recorded[inner, :3], atol=0.1)
    assert np.abs(recorded[:, 6]).max() > 1


def test_a_scene_of_one_key_frame_stands_still(index):
    frames, moments = index.key_frames, index.moments
    single = replace(frames, token=frames.token[:1], timestamp=frames.timestamp[:1])
    alone = replace(index, key_frames=single, moments=replace(moments, begin=moments.begin[:1]))
    assert derived_motion(alone).tolist() == [[0, 0, 9.81, 0, 0, 0, 0, 0, 0]]
