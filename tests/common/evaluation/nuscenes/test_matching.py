"""Deferred acceptance gives what walking through the predictions one by one gives."""

import numpy as np
import pytest
from bevkd_common.evaluation.nuscenes.metric import match
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

# Few distinct values, so that ties and rivalry are common.
DISTANCES = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    elements=st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, np.inf]),
)


def one_by_one(distance: np.ndarray, threshold: float) -> list[int]:
    taken: list[int] = []
    for row in distance:
        free = [(metres, j) for j, metres in enumerate(row) if j not in taken and metres < threshold]
        taken.append(min(free)[1] if free else -1 - len(taken))
    return [max(j, -1) for j in taken]


@given(DISTANCES, st.sampled_from([0.5, 1.0, 2.0, 4.0]))
@settings(max_examples=300, deadline=None)
def test_equals_one_by_one(distance: np.ndarray, threshold: float) -> None:
    np.testing.assert_array_equal(match(distance, threshold), one_by_one(distance, threshold))


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ([[1.0, 0.2], [0.1, 0.3]], [1, 0]),
        ([[0.3, 0.5], [0.1, 0.9]], [0, 1]),  # the better prediction takes it, though the other is nearer
        ([[0.1, 0.2], [0.1, 2.0]], [0, -1]),  # the refused one has nothing else within reach
        ([[0.4, 0.4]], [0]),
        ([[0.1, 0.5, 0.9], [0.1, 0.5, 0.9], [0.1, 0.5, 0.9]], [0, 1, 2]),  # refused round after round
        ([[2.0]], [-1]),
    ],
)
def test_rivals(distance: list[list[float]], expected: list[int]) -> None:
    assert match(np.array(distance), 2.0).tolist() == expected


def test_leaves_the_distances_alone() -> None:
    distance = np.array([[0.1], [0.2]])
    match(distance, 2.0)
    assert distance.tolist() == [[0.1], [0.2]]


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0, 3)])
def test_nothing_to_match(shape: tuple[int, int]) -> None:
    assert match(np.zeros(shape), 1.0).tolist() == [-1] * shape[0]
