"""A reading is named only if it excludes the others."""

import numpy as np
from bevkd_common.geometry.evidence import FEWEST, beats, decided


def explained(*spans, total=100):
    """[total] True in the half-open spans."""
    found = np.zeros(total, dtype=np.bool_)
    for begin, end in spans:
        found[begin:end] = True
    return found


def test_observations_that_both_explain_do_not_count():
    assert FEWEST == 30
    assert beats(explained((0, 100)), explained((0, 70)))
    assert not beats(explained((0, 100)), explained((0, 71)))
    assert not beats(explained((0, 100)), explained((0, 100)))


def test_the_better_reading_explains_nine_of_ten():
    assert beats(explained((0, 90)), explained((90, 100)))
    assert not beats(explained((0, 89)), explained((89, 100)))


def test_a_reading_is_named_if_it_beats_each_other_one():
    readings = {"as is": explained((0, 10)), "first": explained((0, 80)), "second": explained((0, 40))}
    assert decided(readings, 0.6) == "first"
    assert decided(readings, 0.81) is None
    assert decided(readings | {"equal": explained((0, 75))}, 0.6) is None


def test_the_data_as_they_are_may_be_the_reading():
    assert decided({"as is": explained((0, 95)), "other": explained((0, 20))}, 0.6) == "as is"


def test_nothing_is_decided_on_nothing():
    assert decided({"as is": explained(total=0), "other": explained(total=0)}, 0.6) is None
