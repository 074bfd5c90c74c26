from dataclasses import replace

import numpy as np
import pytest
from bevkd_common.evaluation.bootstrap import paired_bootstrap
from bevkd_common.report.statistics import arm_of, gains, headline, metrics, spread, t_interval


def test_the_interval_of_one_two_three_is_the_textbooks():
    # Mean 2, deviation 1; Student's quantile with two degrees of freedom is 4.302653, over the root of three.
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    # With one degree of freedom it is 12.706205; deviation 1 / sqrt(2), over the root of two.
    assert t_interval([0.0, 1.0]) == pytest.approx((0.5 - 6.353102, 0.5 + 6.353102), abs=1e-6)
    # The quantile of 90 % with two degrees of freedom is 2.919986.
    assert t_interval([1.0, 2.0, 3.0], 0.9)[1] == pytest.approx(2 + 2.919986 / 3**0.5, abs=1e-6)


def test_a_spread_needs_two_seeds_to_deviate():
    assert spread({7: 3.0}).deviation is None
    over = spread({0: 1.0, 1: 3.0})
    assert (over.mean, over.values) == (2.0, {0: 1.0, 1: 3.0})
    assert over.deviation == pytest.approx(2**0.5)


def test_the_same_gain_in_every_scene_has_an_interval_without_width(make_report):
    report = make_report()
    found = gains(report, arm_of(report, "distilled"))
    assert list(found) == ["score", "error"] == list(metrics(report))
    assert found["score"].spread.values == pytest.approx({0: 0.1})
    assert found["score"].interval == pytest.approx((0.1, 0.1))
    assert found["error"].interval == pytest.approx((-0.1, -0.1))
    assert found["score"].seeds_interval is None


def test_a_gain_in_one_scene_of_four_varies_with_the_scenes_drawn(make_report):
    report = make_report(gain=(0.4, 0.0, 0.0, 0.0), bootstrap=2000)
    low, high = gains(report, arm_of(report, "distilled"))["score"].interval
    # The number of draws of that scene is binomial(4, 1/4): 97.5 % are at most 3 of 4, 32 % are none.
    assert (low, high) == pytest.approx((0.0, 0.3))


def test_several_seeds_are_judged_by_their_own_spread(make_report):
    report = make_report(seeds=(3, 4))
    gain = gains(report, arm_of(report, "distilled"))["score"]
    assert gain.spread.values == pytest.approx({3: 0.1, 4: 0.11})
    assert gain.interval == gain.seeds_interval == pytest.approx(t_interval([0.1, 0.11]))
    assert set(gain.group_intervals) == {3, 4}


def test_only_seeds_that_both_have_count(make_report, make_arm):
    report = make_report(seeds=(0, 1))
    reference = make_arm("baseline", {1: [0.0] * 4, 2: [0.0] * 4})
    teacher, _, distilled = report.arms
    report = replace(report, arms=[teacher, reference, distilled])
    assert set(gains(report, distilled)["score"].spread.values) == {1}


def test_a_gain_needs_a_baseline(make_report):
    report = make_report(baseline=False)
    with pytest.raises(ValueError, match="needs a baseline"):
        gains(report, arm_of(report, "distilled"))


class Counting:
    """Evidence that counts how often it is scored."""

    groups = ("a", "b", "c")

    def __init__(self, values):
        self.values, self.calls = np.asarray(values), 0

    def headlines(self, weights):
        self.calls += 1
        return {"score": weights @ self.values / weights.sum(axis=1)}


def test_every_student_is_resampled_once_and_the_teacher_never(make_report, make_arm):
    controls = [make_arm("control", {0: [0.4] * 4}, name=name) for name in ("one", "two")]
    report = make_report(controls=controls)
    for place, arm in enumerate(report.arms):
        arm.runs[0] = replace(arm.runs[0], evidence=Counting([0.1 * place, 0.2, 0.3 * place]))
    expected = {}
    for arm in report.arms[2:]:
        found = gains(report, arm)
        assert list(found["error"].group_intervals) == []  # this evidence does not resample it
        expected[arm.name] = found["score"].group_intervals[0]
    assert [arm.runs[0].evidence.calls for arm in report.arms] == [0, 1, 1, 1, 1]
    # The same numbers as when each arm is resampled with the baseline alone.
    baseline = report.arms[1].runs[0].evidence
    assert len(expected) == 3
    for arm in report.arms[2:]:
        alone = paired_bootstrap({"arm": arm.runs[0].evidence, "baseline": baseline}, report.bootstrap)
        assert alone.difference("arm", "baseline", "score") == expected[arm.name]


def test_a_metric_without_a_value_has_neither_headline_nor_gain(make_report):
    report = make_report(unseen=True)
    distilled = arm_of(report, "distilled")
    assert headline(distilled, "error") is None
    assert headline(arm_of(report, "teacher"), "error").mean == pytest.approx(0.2)
    assert list(gains(report, distilled)) == ["score"]


def test_scores_that_cannot_be_resampled_have_an_interval_over_seeds_only(make_report):
    for seeds, has_interval in (((0,), False), ((0, 1), True)):
        report = make_report(seeds=seeds)
        for arm in report.arms:
            for seed, run in arm.runs.items():
                results = run.results.model_copy(update={"groups": None})
                arm.runs[seed] = replace(run, results=results, evidence=None)
        gain = gains(report, arm_of(report, "distilled"))["score"]
        assert gain.group_intervals == {}
        assert (gain.interval is not None) is has_interval


def test_without_resamples_one_seed_has_no_interval(make_report):
    report = make_report(bootstrap=0)
    assert gains(report, arm_of(report, "distilled"))["score"].interval is None


def test_arms_are_found_by_their_role(make_report):
    report = make_report(baseline=False)
    assert arm_of(report, "baseline") is None
    assert headline(arm_of(report, "teacher"), "score").mean == pytest.approx(0.8)
