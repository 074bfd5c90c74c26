"""Curves of many multisets at once against their definition, one list of predictions at a time."""

import numpy as np
import pytest
from bevkd_common.evaluation.nuscenes.curves import RECALLS, Ranking, RecallCurves, first_above
from hypothesis import given, settings
from hypothesis import strategies as st


def _definition(
    ranking: Ranking, repeats: np.ndarray, positives: int, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, confidence and interpolated running mean [101] of an explicit list with every copy on it."""
    rows = np.repeat(np.arange(len(ranking.scores)), repeats[ranking.scenes])
    hits, scores = ranking.hits[rows], ranking.scores[rows]
    recall = np.cumsum(hits) / positives
    precision = np.interp(RECALLS, recall, np.cumsum(hits) / np.arange(1, len(rows) + 1), right=0)
    confidence = np.interp(RECALLS, recall, scores, right=0)
    values = errors[(np.cumsum(ranking.hits) - 1)[rows[hits]]]
    known = ~np.isnan(values)
    means = np.array(
        [values[: i + 1][known[: i + 1]].mean() if known[: i + 1].any() else 0 for i in range(len(values))]
    )
    if not known.any():
        means = np.ones(len(values))
    return precision, confidence, np.interp(confidence, scores[hits][::-1], means[::-1])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Ranking, np.ndarray, np.ndarray, np.ndarray]:
    length = draw(st.integers(1, 14))
    scores = sorted(draw(st.lists(st.sampled_from(np.linspace(0, 1, 9)), min_size=length, max_size=length)))[::-1]
    scenes = draw(st.lists(st.integers(0, 2), min_size=length, max_size=length))
    hits = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    hits[draw(st.integers(0, length - 1))] = True
    repeats = np.array(draw(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=4)))
    ranking = Ranking(np.array(scores), np.array(scenes), np.array(hits))
    found = (repeats[:, ranking.scenes] * ranking.hits).sum(axis=1)
    missed = draw(st.integers(0, 12))
    errors = st.one_of(st.just(np.nan), st.floats(0, 4, width=16))
    values = draw(st.lists(errors, min_size=sum(hits), max_size=sum(hits)))
    return ranking, repeats, np.maximum(found + missed, 1), np.array(values)


@given(cases())
@settings(max_examples=150, deadline=None)
def test_curves_are_those_of_the_explicit_list(case) -> None:
    ranking, repeats, positives, errors = case
    curves = RecallCurves(ranking, repeats, positives)
    with np.errstate(all="raise"):
        precision, confidence = curves.precision(), curves.confidence()
        means = curves.running_means(np.stack([errors, errors[::-1]], axis=-1), confidence)
    for row in range(len(repeats)):
        if not (repeats[row, ranking.scenes] * ranking.hits).any():
            continue  # without a true positive there is no curve to define
        expected = _definition(ranking, repeats[row], int(positives[row]), errors)
        np.testing.assert_allclose(precision[row], expected[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(confidence[row], expected[1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(means[row, :, 0], expected[2], rtol=0, atol=1e-12)
        reverse = _definition(ranking, repeats[row], int(positives[row]), errors[::-1])
        np.testing.assert_allclose(means[row, :, 1], reverse[2], rtol=0, atol=1e-12)


def test_a_multiset_without_true_positives_has_no_precision() -> None:
    ranking = Ranking(np.array([0.9, 0.8]), np.array([0, 1]), np.array([True, False]))
    curves = RecallCurves(ranking, np.array([[0, 1], [0, 0]]), np.array([3, 1]))
    assert not curves.precision()[:, 1:].any()
    assert not curves.confidence()[:, 1:].any()


@pytest.mark.parametrize("positives", [3, 7, 50, 100, 200, 750, 997])
def test_a_recall_is_reached_when_floating_point_says_so(positives: int) -> None:
    # 0.29 * 100 is 28.999... but 29 / 100 is 0.29; there the predictions after the 29th true positive count.
    hits = np.tile([True, False], positives)
    ranking = Ranking(np.linspace(1, 0.5, len(hits)), np.zeros(len(hits), np.int64), hits)
    curves = RecallCurves(ranking, np.ones((1, 1), np.int64), np.array([positives]))
    expected = _definition(ranking, np.ones(1, np.int64), positives, np.ones(positives))
    np.testing.assert_allclose(curves.precision()[0], expected[0], rtol=0, atol=1e-12)


def test_first_above() -> None:
    rising = np.array([[0, 0, 2, 5], [1, 1, 1, 1], [0, 0, 0, 0]])
    limits = np.array([[-1, 0, 1, 2, 5], [-1, 0, 1, 4, 5], [-1, 0, 0, 5, 1]])
    assert first_above(rising, limits).tolist() == [[0, 2, 2, 3, 4], [0, 0, 4, 4, 4], [0, 4, 4, 4, 4]]
    assert first_above(np.zeros((2, 0), np.int64), np.zeros((2, 3), np.int64)).tolist() == [[0] * 3] * 2


def test_counting_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    hits = rng.random(400) < 0.4
    ranking = Ranking(np.sort(rng.random(400))[::-1], rng.integers(0, 7, 400), hits)
    repeats = rng.integers(0, 3, (5, 7))
    positives = np.full(5, 600)
    whole = RecallCurves(ranking, repeats, positives).precision()
    monkeypatch.setattr("bevkd_common.evaluation.nuscenes.curves.MOST_CELLS", 7 * 11)
    np.testing.assert_array_equal(RecallCurves(ranking, repeats, positives).precision(), whole)
