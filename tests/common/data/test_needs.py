"""What serves two detectors at once."""

from __future__ import annotations

import pytest
from bevkd_common.data.needs import AdjacentFrames, DataNeeds, KeyframeQueue


def test_the_union_serves_both():
    teacher = DataNeeds(clouds=frozenset({"lidar", "painted"}), sweeps=10, history=KeyframeQueue(frames=4))
    student = DataNeeds(
        cameras=True, clouds=frozenset({"lidar"}), depth=True, can_bus=True, history=KeyframeQueue(frames=3)
    )
    both = DataNeeds(
        cameras=True,
        clouds=frozenset({"lidar", "painted"}),
        sweeps=10,
        depth=True,
        can_bus=True,
        history=KeyframeQueue(frames=4),
    )
    assert teacher | student == student | teacher == both
    assert student | DataNeeds() == student


@pytest.mark.parametrize(
    "other",
    [AdjacentFrames(), KeyframeQueue(frames=4, spare=0)],
)
def test_histories_of_two_kinds_cannot_be_one(other):
    with pytest.raises(ValueError, match=r"one batch cannot carry both .*KeyframeQueue"):
        DataNeeds(history=KeyframeQueue()) | DataNeeds(history=other)


def test_windows_must_agree():
    with pytest.raises(ValueError, match=r"farthest_s=2\.25.*farthest_s=1\.0"):
        DataNeeds(history=AdjacentFrames()) | DataNeeds(history=AdjacentFrames(frames=2, farthest_s=1.0))


def test_a_detector_that_remembers_needs_no_earlier_frames_to_detect():
    queue = DataNeeds(cameras=True, can_bus=True, history=KeyframeQueue(frames=4, recurrent=True))
    assert queue.in_order
    assert queue.at_test == DataNeeds(cameras=True, can_bus=True)
    for history in (None, AdjacentFrames(), KeyframeQueue(frames=4)):
        needs = DataNeeds(cameras=True, depth=True, history=history)
        assert not needs.in_order
        assert needs.at_test == DataNeeds(cameras=True, history=history)


def test_frames_beside_the_key_frame():
    assert (AdjacentFrames(frames=2).earlier, KeyframeQueue(frames=3).earlier) == (2, 2)
