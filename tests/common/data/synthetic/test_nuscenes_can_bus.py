import numpy as np
import pytest
from bevkd_common.data.synthetic.nuscenes.can_bus import can_messages
from bevkd_common.data.synthetic.scene import time_span

COUNTS = {
    "ms_imu": 100,
    "pose": 50,
    "steeranglefeedback": 100,
    "vehicle_monitor": 2,
    "zoesensors": 100,
    "zoe_veh_info": 100,
}

START = 1_600_000_100_000_000  # microseconds


@pytest.fixture
def messages(scene, config):
    return can_messages(scene, START, *time_span(config))


def test_rates_and_span(messages, scene):
    assert set(messages) == {*COUNTS, "meta", "route"}
    for name, rate in COUNTS.items():
        micros = np.array([row["utime"] for row in messages[name]])
        assert (np.diff(micros) == round(1e6 / rate)).all()
        # A quarter of a second around frames from -0.5 s to 1 s.
        assert START - 750_000 <= micros[0] < micros[-1] <= START + 1_250_000
        assert len(micros) == pytest.approx(2.0 * rate, abs=1)
        assert messages["meta"][name]["message_count"] == len(micros)
        assert messages["meta"][name]["message_freq"] == pytest.approx(rate)


def test_the_pose_integrates_its_velocity(messages):
    rows = messages["pose"]
    position = np.array([row["pos"] for row in rows])
    speed = np.array([row["vel"] for row in rows])
    yaw = 2 * np.unwrap([np.arctan2(row["orientation"][3], row["orientation"][0]) for row in rows])
    moved = np.linalg.norm((position[2:] - position[:-2])[:, :2], axis=1)
    np.testing.assert_allclose(moved / 0.04, speed[1:-1, 0], atol=1e-3)
    np.testing.assert_allclose(np.diff(yaw) / 0.02, [row["rotation_rate"][2] for row in rows[:-1]], atol=2e-2)
    np.testing.assert_allclose(np.diff(speed[:, 0]) / 0.02, [row["accel"][0] for row in rows[1:]], atol=1e-6)
    assert rows[0]["accel"][2] == pytest.approx(9.81)


def test_the_wheel_turns_with_the_bend(messages, scene):
    curvature = float(scene.ego.curvature[0])
    degrees = messages["vehicle_monitor"][0]["steering"]
    # Positive to the right, against the sense of curvature; a wheelbase of 2.59 m, 16 turns for one.
    assert degrees == pytest.approx(-16 * np.degrees(np.arctan(2.59 * curvature)), abs=0.06)
    assert messages["steeranglefeedback"][0]["value"] == pytest.approx(np.radians(degrees), abs=0.002)


def test_the_route_begins_and_ends_fifty_metres_away(messages, scene):
    route = np.array(messages["route"])
    for row, end in ((messages["pose"][0], route[0]), (messages["pose"][-1], route[-1])):
        assert 45 < np.linalg.norm(np.array(row["pos"][:2]) - end) < 51


def test_meta_states_the_moments(messages):
    speeds = np.array([row["vel"] for row in messages["pose"]])
    statistics = messages["meta"]["pose"]["var_stats"]["vel"]
    assert statistics["mean"] == pytest.approx(speeds.mean(axis=0).tolist())
    assert statistics["diff_max"] == pytest.approx(np.diff(speeds, axis=0).max(axis=0).tolist())
