"""Precision, confidence and errors over recall, for many multisets of scenes at once.

The metric is defined on the predictions of a class by descending score, and only true positives change recall. The
numbers of true and false positives before each true positive determine a curve. For a multiset of scenes these
numbers are weighted sums, without sorting or matching again. A scene that counts twice puts each of its predictions
on the list twice, one copy after the other.

Shapes: R multisets, S scenes, P predictions, M true positives, 101 recalls.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_common.evaluation.nuscenes.global_boxes import BoolArray, FloatArray, IntArray

RECALLS = np.linspace(0, 1, 101)

# Bounds the memory for counts by scene and true positive to some ten megabytes.
MOST_CELLS = 1 << 19


@dataclass(frozen=True, eq=False)
class Ranking:
    """The predictions of one class by descending score; of equal scores, the later one is first.

    Attributes:
        scores: [P].
        scenes: [P] index of the scene.
        hits: [P] whether it is a true positive.
    """

    scores: FloatArray
    scenes: IntArray
    hits: BoolArray


class RecallCurves:
    """Curves at each of the 101 recalls, before and at the true positive that raises recall above it.

    Args:
        ranking: the predictions, at least one of them a hit.
        repeats: [R, S] how often each scene counts.
        positives: [R] number of ground truths, all above 0.
    """

    def __init__(self, ranking: Ranking, repeats: IntArray, positives: IntArray) -> None:
        self.ranking = ranking
        self.repeats = repeats
        self.rows = np.flatnonzero(ranking.hits)
        self.copies = repeats[:, ranking.scenes[self.rows]]  # [R, M]
        # Column k: copies of the true positives before number k; the last column counts all.
        self.found = np.pad(self.copies.cumsum(axis=1), ((0, 0), (1, 0)))  # [R, M + 1]
        total = self.found[:, -1:]
        step = positives[:, None]
        # Number of copies with a recall of at most each of RECALLS, in exact floating-point comparison.
        reached = np.rint(RECALLS * step).astype(np.int64)
        reached -= reached / step > RECALLS
        self.reached = np.minimum(reached, total)  # [R, 101]
        self.following = first_above(self.found[:, 1:], self.reached)  # [R, 101], M where none follows
        # Curves are interpolated over this width, from the recall reached to the recall of the following copy.
        self.start = self.reached / step
        self.width = (self.reached + 1) / step - self.start
        self.attained = (self.reached < total) | (self.start == RECALLS)

    def precision(self) -> FloatArray:
        """Return the interpolated precision [R, 101]; 0 beyond the recall attained."""
        wrong = np.take_along_axis(self._false_before(), self.following, axis=1)
        ranked = self.reached + wrong
        # Nothing ranked before: interpolation starts with the first prediction, a true positive.
        before = np.divide(self.reached, ranked, out=np.ones_like(ranked), where=ranked > 0)
        at = (self.reached + 1) / (ranked + 1)
        return self._interpolate(before, at)

    def _false_before(self) -> FloatArray:
        """Return the number of false-positive copies before each true positive and, last, in total [R, M + 1]."""
        scenes, gaps = self.repeats.shape[1], len(self.rows) + 1
        false = np.flatnonzero(~self.ranking.hits)
        scene, gap = self.ranking.scenes[false].astype(np.int64), np.searchsorted(self.rows, false)
        before = np.empty((len(self.repeats), gaps))
        counted = np.zeros((scenes, 1))
        width = max(1, MOST_CELLS // scenes)
        for first in range(0, gaps, width):
            part = slice(*np.searchsorted(gap, (first, first + width)))
            columns = min(width, gaps - first)
            cell = scene[part] * columns + gap[part] - first
            counts = np.bincount(cell, minlength=scenes * columns).reshape(scenes, columns)
            by_scene = counted + counts.cumsum(axis=1)
            before[:, first : first + columns] = self.repeats @ by_scene
            counted = by_scene[:, -1:]
        return before

    def confidence(self) -> FloatArray:
        """Return the interpolated score [R, 101]; 0 beyond the recall attained."""
        # The end of the list follows the last true positive.
        row = np.append(self.rows, len(self.ranking.scores))[self.following]
        first_copy = self.reached == np.take_along_axis(self.found, self.following, axis=1)
        previous = self._last_counted(np.where(first_copy, row - 1, row))
        at = self.ranking.scores[np.minimum(row, len(self.ranking.scores) - 1)]
        before = np.where(previous >= 0, self.ranking.scores[previous], at)
        return self._interpolate(before, at)

    def running_means(self, values: FloatArray, confidence: FloatArray) -> FloatArray:
        """Interpolate the running mean of an error over the confidences of the true positives.

        The running mean is taken by descending confidence, without NaN; it is 0 before the first number, and 1 if
        there is no number.

        Args:
            values: [M, E] errors of the true positives.
            confidence: [R, N] where to interpolate.

        Returns:
            [R, N, E].
        """
        scores = self.ranking.scores[self.rows]
        known = ~np.isnan(values)
        weights = self.copies[..., None] * known
        count = np.pad(weights.cumsum(axis=1), ((0, 0), (1, 0), (0, 0)))  # [R, M + 1, E]
        total = np.pad((weights * np.where(known, values, 0)).cumsum(axis=1), ((0, 0), (1, 0), (0, 0)))
        # The true positives with higher confidence, and the first copy of one without.
        ahead = np.searchsorted(-scores, -confidence)  # [R, N]
        passed = np.take_along_axis(self.found, ahead, axis=1)
        above = first_above(self.found[:, 1:], passed - 1)
        below = first_above(self.found[:, 1:], passed)
        last, first = below == len(scores), passed == 0
        below = np.minimum(below, len(scores) - 1)
        counted = np.take_along_axis(count, ahead[..., None], axis=1)
        summed = np.take_along_axis(total, ahead[..., None], axis=1)
        mean_above = _ratio(summed, counted)
        mean_below = _ratio(summed + np.where(known, values, 0)[below], counted + known[below])
        gap = np.where(first | last, 1.0, scores[above] - scores[below])[..., None]
        between = (mean_above - mean_below) / gap * (confidence - scores[below])[..., None] + mean_below
        means = np.where(last[..., None], mean_above, np.where(first[..., None], mean_below, between))
        return np.where(count[:, -1:] > 0, means, 1.0)

    def _interpolate(self, before: FloatArray, at: FloatArray) -> FloatArray:
        # The operations of np.interp in its order, since rounding decides between equal scores.
        between = (at - before) / self.width * (RECALLS - self.start) + before
        return np.where(self.attained, between, 0.0)

    def _last_counted(self, row: IntArray) -> IntArray:
        """Go back from `row` [R, N] to the first prediction whose scene counts; -1 if there is none."""
        multiset = np.arange(len(self.repeats))[:, None]
        while (skip := (row >= 0) & (self.repeats[multiset, self.ranking.scenes[row]] == 0)).any():
            row = row - skip
        return row


def first_above(rising: IntArray, limits: IntArray) -> IntArray:
    """Return the index [R, N] of the first element above each limit, per row; M where there is none.

    Args:
        rising: [R, M] not negative, not decreasing along a row.
        limits: [R, N] at least -1.
    """
    rows, width = rising.shape
    # One search for all rows: offsets keep them apart.
    span = int(max(rising.max(initial=0), limits.max(initial=0))) + 2
    offset = np.arange(rows)[:, None] * span
    flat = np.searchsorted((rising + offset).ravel(), (limits + offset).ravel(), side="right")
    return flat.reshape(limits.shape) - np.arange(rows)[:, None] * width


def _ratio(total: NDArray[Any], count: NDArray[Any]) -> FloatArray:
    return np.divide(total, count, out=np.zeros_like(total, dtype=np.float64), where=count > 0)
