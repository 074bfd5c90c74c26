from dataclasses import replace

import numpy as np
import pytest
from bevkd_common.data.synthetic.street import Ground, Street, draw_street
from hypothesis import given, settings
from hypothesis import strategies as st

STRAIGHT = Street(
    origin=100.0,
    yaw=0.0,
    curvature=0.0,
    lanes=((0.0, 1), (3.5, -1), (-3.5, 1)),
    curbs=((-6.65, 1), (6.65, -1)),
    edges=(-8.05, 8.05),
    crossing=None,
)


@settings(max_examples=60, deadline=None)
@given(st.floats(-60, 60), st.floats(-20, 20), st.sampled_from([0.0, 1 / 45, -1 / 45, 1 / 300]), st.floats(-3, 3))
def test_coordinates_invert_pose(s, d, curvature, yaw):
    street = replace(STRAIGHT, yaw=yaw, curvature=curvature)
    x, y, heading = street.pose(s, d)
    back = street.coordinates(np.array([x, y]))
    np.testing.assert_allclose(back, [s, d], atol=1e-8)
    # A metre to the left of the lane is a metre at a right angle to its heading.
    x_left, y_left, _ = street.pose(s, d + 1)
    np.testing.assert_allclose([x_left - x, y_left - y], [-np.sin(heading), np.cos(heading)], atol=1e-9)


@pytest.mark.parametrize(
    ("s", "d", "ground"),
    [
        (0.0, 0.0, Ground.ASPHALT),
        (0.0, 1.75, Ground.MARKING),  # between the directions: a full line
        (4.0, 1.75, Ground.MARKING),
        (1.0, -1.75, Ground.MARKING),  # between lanes of one direction: 3 m of paint,
        (4.0, -1.75, Ground.ASPHALT),  # 3 m of gap
        (0.0, -9.0, Ground.PAVEMENT),
        (0.0, 9.0, Ground.PAVEMENT),
        (0.0, 12.0, Ground.VERGE),
    ],
)
def test_what_lies_where(s, d, ground):
    assert STRAIGHT.ground(np.array([100 + s, 100 + d])[None])[0] == ground


def test_side_street_crosses_at_a_right_angle():
    street = replace(STRAIGHT, crossing=10.0)
    spots = np.array([[110.0, 130.0], [115.0, 130.0], [120.0, 130.0], [108.0, 70.0], [110.0, 133.0]])
    # Its middle line is dashed as well: painted at 30 m from the lane, not at 33 m.
    expected = [Ground.MARKING, Ground.PAVEMENT, Ground.VERGE, Ground.ASPHALT, Ground.ASPHALT]
    assert street.ground(spots).tolist() == expected
    along, across = street.side_coordinates(np.array([112.0, 130.0]))
    assert (along, across) == pytest.approx((30.0, 2.0))
    with pytest.raises(ValueError, match="no side street"):
        STRAIGHT.side_coordinates(np.zeros(2))


def test_drawn_streets_differ_and_never_come_back_to_themselves():
    streets = [draw_street(np.random.default_rng(seed), way=90.0) for seed in range(60)]
    bends = np.array([abs(street.curvature) for street in streets])
    assert (bends == 0).sum() >= 8
    assert (bends > 1 / 130).sum() >= 12
    assert bends.max() * 90 < np.pi
    assert sum(street.crossing is not None for street in streets) in range(18, 43)
    assert {len(street.lanes) for street in streets} == {2, 3, 4}
    for street in streets:
        assert street.edges[0] < min(d for d, _ in street.lanes) - 1.75
        assert street.edges[1] > max(d for d, _ in street.lanes) + 1.75
