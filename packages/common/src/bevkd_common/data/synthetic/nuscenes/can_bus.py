"""The nuScenes CAN-bus expansion for one scene, computed from the exact ego motion.

Fields, units and rates follow the description of the expansion, except that `zoesensors` has a rate of 100 Hz
instead of about 900 Hz.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevkd_common.data.synthetic.rigid import Floats, quaternion_from_yaw
from bevkd_common.data.synthetic.scene import Scene

WHEELBASE, TRACK_WIDTH, WHEEL_CIRCUMFERENCE = 2.59, 1.51, 1.94  # metres
STEERING_RATIO = 16.0  # angle of the steering wheel / angle of the front wheels
GRAVITY = 9.81
MARGIN = 0.25  # seconds of messages before the first frame and after the last frame
ROUTE_MARGIN = 50.0  # metres

Message = dict[str, Any]


def can_messages(scene: Scene, start: int, first: float, last: float) -> dict[str, Any]:
    """Returns the content of all message files of a scene by name.

    Args:
        scene: The scene.
        start: Timestamp of the time 0 of the scene in microseconds.
        first: Time of the first frame in seconds.
        last: Time of the last frame in seconds.
    """
    states = _States(scene, start, first - MARGIN, last + MARGIN)
    messages: dict[str, list[Message]] = {
        "ms_imu": states.messages(100.0, _imu),
        "pose": states.messages(50.0, _pose),
        "steeranglefeedback": states.messages(100.0, _steering),
        "vehicle_monitor": states.messages(2.0, _monitor),
        "zoesensors": states.messages(100.0, _zoe_sensors),
        "zoe_veh_info": states.messages(100.0, _zoe_vehicle),
    }
    files: dict[str, Any] = dict(messages)
    files["meta"] = {name: _statistics(rows) for name, rows in messages.items()}
    files["route"] = _route(scene, states.first, states.last)
    return files


class _State:
    """Motion and controls of the ego vehicle at one time."""

    def __init__(self, scene: Scene, seconds: float) -> None:
        ego = scene.ego
        self.x, self.y, self.yaw = (float(v) for v in ego.poses(seconds)[0])
        self.speed = float(ego.speeds(seconds)[0])
        self.acceleration = float(ego.acceleration[0])
        self.curvature = float(ego.curvature[0])
        self.yaw_rate = self.speed * self.curvature
        # Angle of the steering wheel in degrees; on the bus, right is positive.
        self.steering = -float(np.degrees(np.arctan(WHEELBASE * self.curvature))) * STEERING_RATIO
        self.throttle = int(np.clip(120 + 250 * self.acceleration, 0, 1000)) if self.speed > 0 else 0
        self.brake = int(np.clip(-20 * self.acceleration, 0, 126)) if self.speed > 0 else 8

    def wheel_rpm(self, side: int) -> float:
        """Returns the revolutions per minute of a wheel on the left (-1) or right (1) side."""
        speed = self.speed * (1 + side * self.curvature * TRACK_WIDTH / 2)
        return round(speed / WHEEL_CIRCUMFERENCE * 60 / 0.0417) * 0.0417


@dataclass(frozen=True)
class _States:
    """States of the ego vehicle between two times in seconds."""

    scene: Scene
    start: int
    first: float
    last: float

    def messages(self, rate: float, make: Callable[[_State], Message]) -> list[Message]:
        rows = []
        for tick in range(int(np.ceil(self.first * rate)), int(np.floor(self.last * rate)) + 1):
            micros = round(tick / rate * 1e6)
            rows.append({"utime": self.start + micros, **make(_State(self.scene, micros * 1e-6))})
        return rows


def _imu(state: _State) -> Message:
    return {
        "linear_accel": [state.acceleration, state.speed * state.yaw_rate, GRAVITY],
        "q": quaternion_from_yaw(state.yaw),
        "rotation_rate": [0.0, 0.0, state.yaw_rate],
    }


def _pose(state: _State) -> Message:
    return {
        "accel": [state.acceleration, state.speed * state.yaw_rate, GRAVITY],
        "orientation": quaternion_from_yaw(state.yaw),
        "pos": [state.x, state.y, 0.0],
        "rotation_rate": [0.0, 0.0, state.yaw_rate],
        "vel": [state.speed, 0.0, 0.0],
    }


def _steering(state: _State) -> Message:
    return {"value": float(np.radians(state.steering))}


def _monitor(state: _State) -> Message:
    return {
        "available_distance": 180,
        "battery_level": 80,
        "brake": state.brake,
        "brake_switch": 2 if state.brake else 1,
        "gear_position": 7,
        "left_signal": 0,
        "rear_left_rpm": state.wheel_rpm(-1),
        "rear_right_rpm": state.wheel_rpm(1),
        "right_signal": 0,
        "steering": round(state.steering, 1),
        "steering_speed": 0.0,
        "throttle": state.throttle,
        "vehicle_speed": round(3.6 * state.speed, 2),
        "yaw_rate": round(float(np.degrees(state.yaw_rate)), 1),
    }


def _zoe_sensors(state: _State) -> Message:
    return {
        "brake_sensor": 0.375 + 0.036 * state.brake / 126,
        "steering_sensor": round(state.steering, 1),
        "throttle_sensor": state.throttle,
    }


def _zoe_vehicle(state: _State) -> Message:
    torque = round(90 * state.acceleration / 0.5) * 0.5
    return {
        "FL_wheel_speed": state.wheel_rpm(-1),
        "FR_wheel_speed": state.wheel_rpm(1),
        "RL_wheel_speed": state.wheel_rpm(-1),
        "RR_wheel_speed": state.wheel_rpm(1),
        "left_solar": 5,
        "longitudinal_accel": round(state.acceleration / 0.05) * 0.05,
        "meanEffTorque": torque,
        "odom": 0,
        "odom_speed": 3.6 * state.speed,
        "pedal_cc": state.throttle,
        "regen": 0,
        "requestedTorqueAfterProc": torque,
        "right_solar": 5,
        "steer_corrected": state.steering,
        "steer_offset_can": -12.6,
        "steer_raw": state.steering - 12.6,
        "transversal_accel": round(state.speed * state.yaw_rate / GRAVITY / 0.004) * 0.004,
    }


def _statistics(rows: list[Message]) -> Message:
    timespan = (rows[-1]["utime"] - rows[0]["utime"]) * 1e-6
    statistics = {}
    for name in rows[0]:
        if name == "utime":
            continue
        values = np.array([row[name] for row in rows], dtype=np.float64)
        statistics[name] = {**_moments(values, ""), **_moments(np.diff(values, axis=0), "diff_")}
    return {
        "message_count": len(rows),
        "message_freq": (len(rows) - 1) / timespan,
        "timespan": timespan,
        "var_stats": statistics,
    }


def _moments(values: Floats, prefix: str) -> Message:
    return {f"{prefix}{name}": getattr(values, name)(axis=0).tolist() for name in ("max", "mean", "min", "std")}


def _route(scene: Scene, first: float, last: float) -> list[list[float]]:
    """Returns points of the ego lane from 50 m before the first pose to 50 m after the last pose."""
    ends = [float(scene.street.coordinates(scene.ego.poses(moment)[0, :2])[0]) for moment in (first, last)]
    along = np.arange(ends[0] - ROUTE_MARGIN, ends[1] + ROUTE_MARGIN, 0.5)
    return [list(scene.street.pose(float(s), 0.0)[:2]) for s in along]
