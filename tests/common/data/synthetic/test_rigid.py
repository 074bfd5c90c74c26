import numpy as np
from bevkd_common.data.synthetic.nuscenes.rig import LIDAR_QUATERNION
from bevkd_common.data.synthetic.rigid import (
    inverse,
    quaternion_from_rotation,
    quaternion_from_yaw,
    rigid,
    rotation_from_euler,
    rotation_from_quaternion,
    transform,
)
from hypothesis import given, settings
from hypothesis import strategies as st

angles = st.floats(-3.1, 3.1)


@settings(max_examples=60, deadline=None)
@given(angles, angles, angles)
def test_rotation_survives_its_quaternion(yaw, pitch, roll):
    rotation = rotation_from_euler(yaw, pitch, roll)
    back = rotation_from_quaternion(tuple(quaternion_from_rotation(rotation)))
    np.testing.assert_allclose(back, rotation, atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


def test_half_turns_have_a_quaternion():
    for axis, diagonal in enumerate(([1, -1, -1], [-1, 1, -1], [-1, -1, 1])):
        quaternion = quaternion_from_rotation(np.diag(diagonal).astype(float))
        assert quaternion == [0.0] + [float(axis == other) for other in range(3)]


def test_a_quarter_turn_takes_forward_to_the_left():
    np.testing.assert_allclose(rotation_from_euler(np.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    np.testing.assert_allclose(quaternion_from_yaw(np.pi / 2), [np.sqrt(0.5), 0, 0, np.sqrt(0.5)])


def test_lidar_of_nuscenes_looks_along_its_own_y():
    rotation = rotation_from_quaternion(LIDAR_QUATERNION)
    forward, right = rotation @ [0, 1, 0], rotation @ [1, 0, 0]
    np.testing.assert_allclose(forward, [1, 0, 0], atol=0.03)
    np.testing.assert_allclose(right, [0, -1, 0], atol=0.03)
    assert abs(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0])) + 89.88) < 0.01


def test_inverse_undoes_a_rigid_motion():
    matrix = rigid(rotation_from_euler(0.3, -0.2, 0.1), np.array([1.0, -2.0, 3.0]))
    points = np.arange(12.0).reshape(4, 3)
    np.testing.assert_allclose(transform(inverse(matrix), transform(matrix, points)), points, atol=1e-12)
