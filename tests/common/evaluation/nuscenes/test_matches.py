"""The table of matches: any multiset of scenes, on disk and back."""

from pathlib import Path

import numpy as np
import pytest
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes import matches as matches_module
from bevkd_common.evaluation.nuscenes.matches import MatchTable, NuScenesMetricConfig, Scores, prediction_dtype
from bevkd_common.evaluation.nuscenes.metric import CLASSES, nuscenes_results

SCENES = 4


def _scene_samples(scene: int, make_truth, copies: range = range(1)):
    """Three samples of a scene, once for each copy, which differs in its scene token only."""
    for copy in copies:
        rng = np.random.default_rng(scene)
        for _ in range(3):
            truths = [
                {
                    "xy": rng.uniform(-25, 25, 2),
                    "name": CLASSES[rng.integers(0, 10)],
                    "yaw": rng.uniform(-3, 3),
                    "velocity": rng.normal(0, 1, 2) if rng.random() < 0.8 else (np.nan, np.nan),
                    "attribute": "vehicle.moving" if rng.random() < 0.7 else "",
                }
                for _ in range(12)
            ]
            found = [
                truth
                | {
                    "xy": truth["xy"] + rng.normal(0, 0.9, 2),
                    "yaw": rng.uniform(-3, 3),
                    "score": rng.random(),
                    "attribute": "vehicle.parked",
                }
                for truth in truths
                for _ in range(2)
            ]
            yield found, make_truth(truths, scene=f"{scene}-{copy}")


@pytest.fixture(scope="module")
def table(make_evaluator, make_truth) -> MatchTable:
    samples = [sample for scene in range(SCENES) for sample in _scene_samples(scene, make_truth)]
    return make_evaluator(samples).matches()


@pytest.mark.parametrize(
    "repeats", [[1, 1, 1, 1], [2, 1, 0, 1], [0, 0, 0, 1], [0, 3, 1, 0], [4, 0, 0, 0], [2, 2, 2, 2]]
)
def test_a_multiset_scores_as_if_its_scenes_had_been_evaluated_so_often(
    table, make_evaluator, make_truth, repeats
) -> None:
    samples = [
        sample for scene, often in enumerate(repeats) for sample in _scene_samples(scene, make_truth, range(often))
    ]
    expected = make_evaluator(samples).matches().scores(np.ones((1, sum(repeats)), np.int64))
    scores = table.scores(np.array([repeats]))
    np.testing.assert_allclose(scores.average_precision, expected.average_precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.errors, expected.errors, rtol=0, atol=1e-12)
    assert 0.05 < expected.headline["mAP"][0] < 0.9  # the comparison is about something


def test_many_multisets_at_once_score_as_one_by_one(table, monkeypatch) -> None:
    repeats = np.random.default_rng(1).multinomial(SCENES, np.full(SCENES, 1 / SCENES), 30)
    together = table.scores(repeats)
    alone = [table.scores(row[None]) for row in repeats]
    np.testing.assert_array_equal(together.average_precision, np.concatenate([s.average_precision for s in alone]))
    np.testing.assert_array_equal(together.errors, np.concatenate([s.errors for s in alone]))
    monkeypatch.setattr(matches_module, "MOST_ELEMENTS", 400)  # now in chunks of a few
    chunked = table.scores(repeats)
    np.testing.assert_array_equal(together.average_precision, chunked.average_precision)
    np.testing.assert_array_equal(together.errors, chunked.errors)


def test_weights_of_one_give_the_plain_metric(table) -> None:
    plain = {name: metric.value for name, metric in nuscenes_results(table).headline.items()}
    assert table.headline(np.ones(SCENES)) == plain
    assert {name: values.tolist() for name, values in table.headlines(np.ones((2, SCENES))).items()} == {
        name: [value] * 2 for name, value in plain.items()
    }


@pytest.mark.parametrize("weights", [[0.5, 1, 1, 1], [-1, 1, 1, 1]])
def test_a_scene_counts_a_whole_number_of_times(table, weights) -> None:
    with pytest.raises(ValueError, match="a whole number of times"):
        table.headlines(np.array([weights]))


def test_scenes_without_predictions_or_ground_truth(make_evaluator, make_truth) -> None:
    box = {"xy": (5.0, 0.0)}
    table = make_evaluator(
        [([box], make_truth([box], scene="a")), ([], make_truth([], scene="b")), ([box], make_truth([], scene="c"))]
    ).matches()
    repeats = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 2], [1, 0, 1]])
    # The right one alone; nothing at all; wrong ones alone; the wrong one of equal score from a later sample.
    np.testing.assert_allclose(table.scores(repeats).average_precision[:, 0, 0], [1, 0, 0, 0.2])
    assert table.scores(repeats).errors[:, 0, 0].tolist() == [0, 1, 1, 0]


def test_nds_by_hand() -> None:
    errors = np.tile([0.4, 0.3, 0.5, 1.5, 0.2], (10, 1))
    errors[9, 2:] = np.nan
    headline = Scores(np.full((1, 10, 4), 0.5), errors[None], mean_ap_weight=5.0).headline
    assert headline["NDS"][0] == pytest.approx(0.51)
    assert headline["mAP"][0] == 0.5
    means = [headline[name][0] for name in ("mATE", "mASE", "mAOE", "mAVE", "mAAE")]
    assert means == pytest.approx([0.4, 0.3, 0.5, 1.5, 0.2])


def test_survives_the_disk(table, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "matches.npz"
    table.save(path)
    loaded = MatchTable.load(path)
    assert loaded.config == table.config
    assert loaded.groups == table.groups
    assert [entry.name for entry in path.parent.iterdir()] == ["matches.npz"]
    for name in ("samples", "positives", "predictions", "errors"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(table, name))
    assert nuscenes_results(loaded) == nuscenes_results(table)


def test_damaged_files_are_refused(table, tmp_path: Path) -> None:
    path = tmp_path / "matches.npz"
    table.save(path)
    whole = path.read_bytes()
    damaged = [b"", b"hello", whole[:-40], whole[:200], whole[:700] + bytes(100) + whole[800:]]
    # The version of zip that the first entry of the directory asks for, and its method of compression.
    directory = whole.index(b"PK\x01\x02")
    damaged += [whole[: directory + at] + b"m" + whole[directory + at + 1 :] for at in (6, 10)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"matches\.npz cannot be read as a table of matches"):
            MatchTable.load(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", scores=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", config=np.array([{}], dtype=object))
    for name in ("array.npy", "other.npz", "pickle.npz", "missing.npz"):
        with pytest.raises(UserError, match="cannot be read as a table of matches"):
            MatchTable.load(tmp_path / name)


def test_a_prediction_is_kept_in_21_bytes() -> None:
    assert prediction_dtype(4).itemsize == 21


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_ranges": {"car": 50.0}}, "must name exactly these classes: car, truck"),
        ({"class_ranges": dict.fromkeys(CLASSES, 0.0)}, "class_ranges must be above 0"),
        ({"error_threshold": 3.0}, "error_threshold must be one of distance_thresholds"),
        ({"band_edges": ()}, "band_edges must start at 0 and increase"),
        ({"band_edges": (1.0, 50.0)}, "band_edges must start at 0 and increase"),
        ({"band_edges": (0.0, 30.0, 30.0, 50.0)}, "band_edges must start at 0 and increase"),
        ({"band_edges": (0.0, 49.0)}, "band_edges must reach the largest of class_ranges"),
        ({"min_recall": -0.1}, "min_recall"),
        ({"min_recall": 1.0}, "min_recall"),
        ({"min_precision": 1.0}, "min_precision"),
        ({"mean_ap_weight": 0.0}, "mean_ap_weight"),
        ({"max_boxes_per_sample": 0}, "max_boxes_per_sample"),
        ({"range": 3}, "range"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        NuScenesMetricConfig(**settings)


def test_within_limits_ranges_and_bands() -> None:
    config = NuScenesMetricConfig(min_recall=0.2).within(35.0, (0.0, 12.0, 35.0))
    assert config.ranges.tolist() == [35, 35, 35, 35, 35, 30, 35, 35, 35, 30]
    assert (config.bands, config.min_recall, config.first_recall) == (2, 0.2, 21)
    assert NuScenesMetricConfig().first_recall == 11
    assert NuScenesMetricConfig().error_column == 2


def test_unusual_settings_are_accepted() -> None:
    config = NuScenesMetricConfig(min_recall=0.0, min_precision=0.0, mean_ap_weight=0.5, max_boxes_per_sample=1)
    assert config.first_recall == 1
    assert NuScenesMetricConfig(class_ranges=dict.fromkeys(CLASSES, 0.5)).ranges.tolist() == [0.5] * 10
    assert NuScenesMetricConfig(band_edges=(0.0, 0.5, 50.0)).bands == 2
    assert NuScenesMetricConfig(min_recall=0.75).first_recall == 76
    assert NuScenesMetricConfig(min_recall=0.99).first_recall == 100
