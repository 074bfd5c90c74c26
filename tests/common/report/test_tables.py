from dataclasses import replace

from bevkd_common.config.published_rows import PaperRow
from bevkd_common.evaluation.results import FRACTION
from bevkd_common.report.render import write_report
from bevkd_common.report.tables import (
    TextTable,
    answer,
    comparison,
    details,
    gains_by_seed,
    interval,
    markdown,
    published,
)


def test_both_ends_of_an_interval_are_signed():
    assert interval((-0.01, 0.2), FRACTION) == "[-1.0, +20.0]"
    assert interval((-0.01, 0.2), "m") == "[-0.010, +0.200]"
    assert interval(None, FRACTION) == "-"


def test_the_answer_for_one_seed_warns_of_it(make_report):
    assert answer(make_report()) == (
        "Distillation changes score by +10.0: student alone 50.0, distilled 60.0, teacher 80.0; 95 % interval"
        " [+10.0, +10.0] over the scenes of one seed. Run several seeds before quoting it."
    )


def test_the_answer_for_several_seeds_counts_them(make_report):
    text = answer(make_report(seeds=(0, 1, 2)))
    # Gains of 10, 11 and 12 points: 11 within 4.302653 / sqrt(3).
    assert "changes score by +11.0" in text
    assert text.endswith("95 % interval [+8.5, +13.5] over 3 seeds.")


def test_an_interval_around_zero_shows_no_gain(make_report):
    text = answer(make_report(gain=(0.2, -0.2, 0.1, 0.0)))
    assert text.endswith("The interval contains zero: this run does not show a gain.")


def test_a_loss_is_reported_as_it_is(make_report):
    text = answer(make_report(gain=(-0.1,) * 4))
    assert "changes score by -10.0" in text
    assert "contains zero" not in text


def test_without_an_interval_the_answer_claims_none(make_report):
    text = answer(make_report(bootstrap=0))
    assert "interval [" not in text
    assert text.endswith("with one seed. There is no interval: chance is not ruled out.")


def test_without_a_baseline_the_gain_is_unknown(make_report):
    assert answer(make_report(baseline=False)) == (
        "The distilled student reaches 60.0 score, its teacher 80.0; no baseline: gain unknown."
    )


def test_the_comparison_has_a_row_for_every_arm(make_report, make_arm):
    control = make_arm("control", {0: [0.4, 0.6, 0.6, 0.8]}, name="twice", steps=40)
    table = comparison(make_report(controls=(control,)))
    assert table.columns == (
        *("arm", "score", "error (m)", "Δ score", "95 % interval", "M param.", "steps", "seconds"),
    )
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


def test_details_compare_models_or_show_tables_whole_and_equal_ones_once(make_report):
    classes, distances, *others = details(make_report())
    assert classes.title == "Score by class"
    assert classes.columns == ("", "the teacher", "student alone", "student distilled", "Δ")
    assert classes.rows == (("car", "80.0", "50.0", "60.0", "+10.0"), ("bus", "-", "-", "-", "-"))
    assert classes.note == "Column “score”."
    assert distances.title == "Score by distance"
    assert distances.rows[1] == ("10 m and more", "-", "-", "-", "-")
    assert distances.note == "Column “score”. Metres from the ego."
    assert details(make_report(seeds=(0, 1)))[0].note == "Column “score”. Mean over 2 seeds."
    assert [table.title for table in others] == [
        *("AP and errors, student alone", "AP and errors, student distilled", "Boxes")
    ]
    assert others[0].columns == ("", "score", "error (m)")
    assert others[0].rows == (("car", "50.0", "0.500"), ("bus", "-", "-"))
    assert others[2].rows == (("car", "20"),)


def test_numbers_in_percent_are_not_multiplied(make_report, kitti_results):
    report = make_report()
    for arm in report.arms:
        better = 2.25 if arm.role == "distilled" else 0.0
        name = kitti_results.primary
        metric = kitti_results.headline[name].model_copy(update={"value": 60.0 + better})
        tables = tuple(
            table.model_copy(update={"values": ((70.0, 60.5 + better, 50.25),) * 3})
            for table in kitti_results.tables
        )
        results = kitti_results.model_copy(
            update={"headline": kitti_results.headline | {name: metric}, "tables": tables, "groups": None}
        )
        arm.runs[0] = replace(arm.runs[0], results=results, evidence=None)
    assert answer(report) == (
        "Distillation changes 3D AP_R40 moderate by +2.2: student alone 60.0, distilled 62.2, teacher 60.0;"
        " with one seed. There is no interval: chance is not ruled out."
    )
    assert comparison(report).columns[1] == "3D AP_R40 moderate"
    assert "No interval: this metric cannot be resampled" in comparison(report).note
    assert gains_by_seed(report).note == "No interval for one seed: this metric cannot be resampled."
    tables = details(report)
    assert [table.title for table in tables] == ["3D AP_R40", "3D AP_R11", "BEV AP_R40", "BEV AP_R11"]
    assert tables[0].rows[2] == ("Car", "60.5", "60.5", "62.8", "+2.2")


def test_what_cannot_be_observed_has_no_number_and_a_reason(make_report):
    table = comparison(make_report(unseen=True))
    assert [row[2] for row in table.rows] == ["0.200", "not observable", "not observable"]
    assert table.note.endswith(
        "student alone: error not observable: one sweep, one key frame."
        " student distilled: error not observable: one sweep, one key frame."
    )


def test_a_metric_of_which_less_is_better_is_called_so(make_report):
    report = make_report()
    for arm in report.arms:
        arm.runs[0] = replace(arm.runs[0], results=arm.runs[0].results.model_copy(update={"primary": "error"}))
    assert "changes error by -0.100 (lower is better): student alone 0.500, distilled 0.400" in answer(report)


def test_published_rows_keep_their_data_set_and_source(make_report):
    assert published(make_report()) is None
    table = published(
        make_report(
            published=[
                PaperRow("student alone", "nuScenes val", {"mAP": 30.5, "NDS": 39.0}, "table 1"),
                PaperRow("distilled", "nuScenes test", {"NDS": 45}, "table 2"),
            ]
        )
    )
    assert table.columns == ("setting", "data set", "mAP", "NDS", "source")
    assert table.rows == (
        ("student alone", "nuScenes val", "30.5", "39", "table 1"),
        ("distilled", "nuScenes test", "-", "45", "table 2"),
    )
    assert "not measured here" in table.note


def test_details_without_a_baseline_have_no_gain(make_report):
    assert details(make_report(baseline=False))[0].rows[0] == ("car", "80.0", "60.0", "-")


def test_a_table_in_markdown_sets_off_its_strong_rows():
    table = TextTable("Title", "Note.", ("a", "b"), (("1", "2"), ("3", "4")), frozenset({1}))
    assert markdown(table) == ("### Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| **3** | **4** |\n\nNote.\n")


def test_a_split_of_one_scene_has_a_report_without_intervals(make_report, make_arm, tmp_path):
    scores = {"teacher": 0.8, "baseline": 0.4, "distilled": 0.5}
    arms = [make_arm(role, {0: [score]}) for role, score in scores.items()]
    report = replace(make_report(), arms=arms)
    assert "No interval: the split has one scene only." in comparison(report).note
    table = gains_by_seed(report)
    assert table.rows[0][4] == "-"
    assert table.note == "No interval for one seed: the split has one scene only."
    assert "+10.0" in answer(report)
    assert write_report(report, tmp_path).is_file()
