import pytest
from bevkd_common.evaluation.results import Metric
from bevkd_common.report.tables import (
    TextTable,
    answer,
    comparison,
    details,
    gains_by_seed,
    interval,
    markdown,
    number,
)

METRES = Metric(value=0.0, unit="m", higher_is_better=False)
FRACTION = Metric(value=0.0, unit="", higher_is_better=True)


@pytest.mark.parametrize(
    ("value", "metric", "signed", "text"),
    [
        (0.1234, FRACTION, False, "12.3"),
        (0.1234, FRACTION, True, "+12.3"),
        (-0.1234, None, True, "-12.3"),
        (0.1234, METRES, False, "0.123"),
        (0.1234, METRES, True, "+0.123"),
        (None, METRES, True, "-"),
    ],
)
def test_fractions_are_points_of_a_hundred_and_units_stay(value, metric, signed, text):
    assert number(value, metric, signed=signed) == text


def test_both_ends_of_an_interval_are_signed():
    assert interval((-0.01, 0.2), FRACTION) == "[-1.0, +20.0]"
    assert interval(None, FRACTION) == "-"


def test_the_answer_for_one_seed_warns_of_it(make_report):
    assert answer(make_report()) == (
        "Distillation bought +10.0 score: 50.0 alone, 60.0 distilled, from a teacher of 80.0,"
        " 95 % interval [+10.0, +10.0] over the scenes of one seed; run several before quoting it."
    )


def test_the_answer_for_several_seeds_counts_them(make_report):
    text = answer(make_report(seeds=(0, 1, 2)))
    # Gains of 10, 11 and 12 points: 11 within 4.302653 / sqrt(3).
    assert "bought +11.0 score" in text
    assert text.endswith("95 % interval [+8.5, +13.5] over 3 seeds.")


def test_an_interval_around_zero_shows_no_gain(make_report):
    text = answer(make_report(gain=(0.2, -0.2, 0.1, 0.0)))
    assert text.endswith("The interval contains zero: this run does not show a gain.")


def test_a_loss_is_said_as_it_is(make_report):
    text = answer(make_report(gain=(-0.1,) * 4))
    assert "bought -10.0 score" in text
    assert "contains zero" not in text


def test_without_an_interval_the_answer_claims_none(make_report):
    text = answer(make_report(bootstrap=0))
    assert "interval [" not in text
    assert text.endswith("Without an interval nobody knows whether that is chance.")


def test_without_a_baseline_nobody_knows(make_report):
    assert answer(make_report(baseline=False)) == (
        "The distilled student reaches 60.0 score, distilling from 80.0;"
        " without a baseline nobody knows what that bought."
    )


def test_the_comparison_has_a_row_for_every_arm(make_report, make_arm):
    control = make_arm("control", {0: [0.4, 0.6, 0.6, 0.8]}, name="twice", steps=40)
    table = comparison(make_report(controls=(control,)))
    assert table.columns == ("arm", "score", "error", "Δ score", "95 %", "M param.", "steps", "seconds")
    assert table.rows == (
        ("the teacher", "80.0", "0.200", "-", "-", "10.00", "40", "3"),
        ("student alone", "50.0", "0.500", "-", "-", "1.50", "20", "3"),
        ("student distilled", "60.0", "0.400", "+10.0", "[+10.0, +10.0]", "1.50", "20", "3"),
        ("twice", "60.0", "0.400", "+10.0", "[+10.0, +10.0]", "1.50", "40", "3"),
    )
    assert table.strong == {2}
    assert "One seed." in table.note
    assert "bootstrap over scenes" in table.note


def test_the_comparison_over_seeds_shows_deviations(make_report):
    table = comparison(make_report(seeds=(0, 1)))
    assert table.rows[2][1] == "60.5 ± 0.7"
    assert "over 2 seeds" in table.note
    assert "t-interval" in table.note


def test_steps_that_differ_between_seeds_are_a_range(make_report, make_arm):
    control = make_arm("control", {0: [0.5] * 4}, name="as_long", steps=30)
    other = make_arm("control", {1: [0.5] * 4}, name="as_long", steps=34)
    control.runs[1] = other.runs[1]
    assert comparison(make_report(seeds=(0, 1), controls=(control,))).rows[3][6] == "30-34"


def test_a_comparison_without_a_baseline_has_no_gains(make_report):
    table = comparison(make_report(baseline=False))
    assert [row[3:5] for row in table.rows] == [("-", "-")] * 2


def test_gains_by_seed_name_both_runs(make_report):
    table = gains_by_seed(make_report(seeds=(0, 1)))
    assert table.rows == (
        ("0", "50.0", "60.0", "+10.0", "[+10.0, +10.0]", "baseline-0", "distilled-0"),
        ("1", "50.0", "61.0", "+11.0", "[+11.0, +11.0]", "baseline-1", "distilled-1"),
    )
    assert gains_by_seed(make_report(baseline=False)) is None
    assert gains_by_seed(make_report(bootstrap=0)).rows[0][4] == "-"


def test_details_show_classes_and_distances_and_leave_gaps(make_report):
    classes, distances, *others = details(make_report())
    assert classes.title == "Score, by class"
    assert classes.columns == ("", "the teacher", "student alone", "student distilled", "Δ")
    assert classes.rows == (("car", "80.0", "50.0", "60.0", "+10.0"), ("bus", "-", "-", "-", "-"))
    assert distances.title == "score, by distance from the ego"
    assert distances.rows[1] == ("10 m and more", "-", "-", "-", "-")
    assert [table.title for table in others] == ["Errors, student alone", "Errors, student distilled"]
    assert others[0].rows == (("car", "0.500", "0.500"), ("bus", "-", "-"))


def test_details_without_a_baseline_have_no_gain(make_report):
    assert details(make_report(baseline=False))[0].rows[0] == ("car", "80.0", "60.0", "-")


def test_a_table_in_markdown_sets_off_its_strong_rows():
    table = TextTable("Title", "Note.", ("a", "b"), (("1", "2"), ("3", "4")), frozenset({1}))
    assert markdown(table) == ("### Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| **3** | **4** |\n\nNote.\n")
