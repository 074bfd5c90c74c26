"""Paired resampling of scenes."""

import numpy as np
import pytest
from bevkd_common.errors import UserError
from bevkd_common.evaluation.bootstrap import paired_bootstrap
from bevkd_common.evaluation.nuscenes.matches import MatchTable
from bevkd_common.evaluation.nuscenes.metric import CLASSES, nuscenes_results


@pytest.fixture(scope="module")
def arm(make_evaluator, make_truth):
    """An arm whose predictions are off by about `noise` metres, on the scenes named."""

    def build(noise: float, scenes: tuple[int, ...] = tuple(range(8))) -> MatchTable:
        samples = []
        for scene in scenes:
            rng = np.random.default_rng(scene)
            truths = [{"xy": rng.uniform(-20, 20, 2), "name": CLASSES[i % 3]} for i in range(15)]
            found = [
                truth | {"xy": truth["xy"] + noise * rng.normal(0, 1, 2), "score": rng.random()} for truth in truths
            ]
            samples.append((found, make_truth(truths, scene=f"scene-{scene}")))
        return make_evaluator(samples).matches()

    return build


def test_identical_arms_differ_by_nothing(arm) -> None:
    result = paired_bootstrap({"a": arm(0.7), "b": arm(0.7)}, resamples=50)
    for metric in ("mAP", "NDS", "mATE"):
        difference = result.difference("a", "b", metric)
        assert (difference.estimate, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert result.value("a", "mAP").high > result.value("a", "mAP").low


def test_estimates_are_the_plain_metric_and_lie_within(arm) -> None:
    arms = {"coarse": arm(1.2), "fine": arm(0.6)}
    result = paired_bootstrap(arms, resamples=300)
    for name, table in arms.items():
        for metric, plain in nuscenes_results(table).headline.items():
            interval = result.value(name, metric)
            assert interval.estimate == plain.value
            assert interval.low <= interval.estimate <= interval.high
            assert result.samples[name][metric].shape == (300,)
    gain = result.difference("fine", "coarse", "mAP")
    assert gain.estimate == pytest.approx(
        result.estimates["fine"]["mAP"] - result.estimates["coarse"]["mAP"], abs=1e-15
    )
    assert 0 < gain.low < gain.estimate < gain.high
    loss = result.difference("coarse", "fine", "mAP")
    assert (loss.low, loss.estimate, loss.high) == (-gain.high, -gain.estimate, -gain.low)


def test_interval_holds_the_central_95_percent(arm) -> None:
    result = paired_bootstrap({"a": arm(0.8)}, resamples=400)
    samples, interval = result.samples["a"]["NDS"], result.value("a", "NDS")
    assert np.mean(samples < interval.low) == pytest.approx(0.025, abs=0.003)
    assert np.mean(samples > interval.high) == pytest.approx(0.025, abs=0.003)


class Recorder:
    groups = ("a", "b", "c", "d", "e")

    def headlines(self, weights):
        self.weights = weights
        return {"mAP": weights[:, 0]}


def test_each_draw_scores_scenes_drawn_with_replacement() -> None:
    recorder = Recorder()
    result = paired_bootstrap({"x": recorder}, resamples=2000, seed=3)
    plain, draws = recorder.weights[0], recorder.weights[1:]
    assert plain.tolist() == [1.0] * 5
    assert draws.shape == (2000, 5)
    assert (draws.sum(axis=1) == 5).all()
    assert draws.mean(axis=0) == pytest.approx([1.0] * 5, abs=0.1)
    assert draws.var() == pytest.approx(0.8, abs=0.05)  # binomial: 5 * 1/5 * 4/5
    assert result.estimates["x"]["mAP"] == 1.0
    np.testing.assert_array_equal(result.samples["x"]["mAP"], draws[:, 0])


def test_a_thousand_draws_of_seed_0_by_default() -> None:
    default, explicit = Recorder(), Recorder()
    paired_bootstrap({"x": default})
    paired_bootstrap({"x": explicit}, 1000, seed=0)
    np.testing.assert_array_equal(default.weights, explicit.weights)


def test_a_seed_gives_the_same_draws(arm) -> None:
    table = arm(0.8)
    first, same, other = (paired_bootstrap({"a": table}, 20, seed).samples["a"]["mAP"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_pairs_scenes_by_name_not_by_order(arm) -> None:
    forward, backward = arm(0.7), arm(0.7, tuple(reversed(range(8))))
    assert forward.groups == tuple(reversed(backward.groups))
    difference = paired_bootstrap({"a": forward, "b": backward}, resamples=50).difference("a", "b", "mAP")
    assert difference.low == pytest.approx(0.0, abs=1e-12)
    assert difference.high == pytest.approx(0.0, abs=1e-12)


def test_other_scenes_cannot_be_paired(arm) -> None:
    with pytest.raises(ValueError, match="b was evaluated on other groups than a"):
        paired_bootstrap({"a": arm(1.0), "b": arm(1.0, (0, 1, 2))})


def test_one_scene_says_nothing_about_spread(arm) -> None:
    with pytest.raises(UserError, match="one scene or sample only"):
        paired_bootstrap({"a": arm(1.0, (0,))})
    assert paired_bootstrap({"a": arm(1.0, (0, 1))}, resamples=5).samples["a"]["mAP"].shape == (5,)
