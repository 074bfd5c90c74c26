import numpy as np
import pytest
from bevkd_common.data.synthetic.motion import concatenate, rectangles_overlap, single
from hypothesis import given, settings
from hypothesis import strategies as st


def test_straight_motion_gains_speed():
    mover = single(1.0, 2.0, 0.0, speed=2.0, acceleration=1.0, curvature=0.0, reference=1.0)
    # Two seconds after the reference: 2 * 2 + 1 * 2**2 / 2 = 6 metres.
    np.testing.assert_allclose(mover.poses(3.0), [[7.0, 2.0, 0.0]])
    np.testing.assert_allclose(mover.speeds(3.0), [4.0])


def test_a_quarter_of_a_circle_to_the_left():
    mover = single(0.0, 0.0, 0.0, speed=5 * np.pi, acceleration=0.0, curvature=0.1, reference=0.0)
    np.testing.assert_allclose(mover.poses(1.0), [[10.0, 10.0, np.pi / 2]])


def test_times_come_first():
    movers = concatenate([single(x, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0) for x in (0.0, 5.0)])
    assert len(movers) == 2
    poses = movers.poses(np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(poses[..., 0], [[0, 5], [1, 6], [2, 7]])
    assert len(concatenate([])) == 0


@settings(max_examples=50, deadline=None)
@given(st.floats(0.5, 10), st.floats(-0.5, 0.5), st.floats(-0.05, 0.05), st.floats(-1, 2))
def test_things_move_where_they_point(speed, acceleration, curvature, seconds):
    mover = single(3.0, -1.0, 0.7, speed, acceleration, curvature, 0.0)
    step = 1e-5
    before, after = mover.poses(seconds - step)[0], mover.poses(seconds + step)[0]
    velocity = (after - before)[:2] / (2 * step)
    yaw, now = mover.poses(seconds)[0, 2], mover.speeds(seconds)[0]
    np.testing.assert_allclose(velocity, [now * np.cos(yaw), now * np.sin(yaw)], atol=1e-5)


@pytest.mark.parametrize(
    ("pose", "overlap"),
    [
        ((2.9, 0.0, 0.0), True),
        ((3.1, 0.0, 0.0), False),
        # Turned by 90 degrees the second one is 1 wide along x: they touch at 2 + 0.5.
        ((2.4, 0.0, np.pi / 2), True),
        ((2.6, 0.0, np.pi / 2), False),
        # Corner to corner: the bounding boxes overlap, the rectangles do not.
        ((2.9, 1.2, np.pi / 4), False),
        ((2.2, 0.4, np.pi / 4), True),
    ],
)
def test_rectangles_overlap(pose, overlap):
    first, second = np.array([2.0, 0.5]), np.array([1.0, 0.5])
    assert rectangles_overlap(np.zeros(3), first, np.array(pose), second) == overlap
    assert rectangles_overlap(np.array(pose), second, np.zeros(3), first) == overlap
