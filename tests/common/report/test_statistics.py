import pytest
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
    baseline, distilled = arm_of(report, "baseline"), arm_of(report, "distilled")
    found = gains(report, distilled, baseline)
    assert list(found) == ["score", "error"] == list(metrics(report))
    assert found["score"].spread.values == pytest.approx({0: 0.1})
    assert found["score"].interval == pytest.approx((0.1, 0.1))
    assert found["error"].interval == pytest.approx((-0.1, -0.1))
    assert found["score"].seeds_interval is None


def test_a_gain_in_one_scene_of_four_varies_with_the_scenes_drawn(make_report):
    report = make_report(gain=(0.4, 0.0, 0.0, 0.0), bootstrap=2000)
    low, high = gains(report, arm_of(report, "distilled"), arm_of(report, "baseline"))["score"].interval
    # The number of draws of that scene is binomial(4, 1/4): 97.5 % are at most 3 of 4, 32 % are none.
    assert (low, high) == pytest.approx((0.0, 0.3))


def test_several_seeds_are_judged_by_their_own_spread(make_report):
    report = make_report(seeds=(3, 4))
    gain = gains(report, arm_of(report, "distilled"), arm_of(report, "baseline"))["score"]
    assert gain.spread.values == pytest.approx({3: 0.1, 4: 0.11})
    assert gain.interval == gain.seeds_interval == pytest.approx(t_interval([0.1, 0.11]))
    assert set(gain.scenes_intervals) == {3, 4}


def test_only_seeds_that_both_have_count(make_report, make_arm):
    report = make_report(seeds=(0, 1))
    reference = make_arm("baseline", {1: [0.0] * 4, 2: [0.0] * 4})
    assert set(gains(report, arm_of(report, "distilled"), reference)["score"].spread.values) == {1}


def test_without_resamples_one_seed_has_no_interval(make_report):
    report = make_report(bootstrap=0)
    assert gains(report, arm_of(report, "distilled"), arm_of(report, "baseline"))["score"].interval is None


def test_arms_are_found_by_their_role(make_report):
    report = make_report(baseline=False)
    assert arm_of(report, "baseline") is None
    assert headline(arm_of(report, "teacher"), "score").mean == pytest.approx(0.8)
