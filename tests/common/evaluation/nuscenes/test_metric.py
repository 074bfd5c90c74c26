"""The metric on problems small enough to work out by hand, and what the evaluator lets in."""

import gc
import tracemalloc

import numpy as np
import pytest
from bevkd_common.data.needs import AdjacentFrames, DataNeeds, KeyframeQueue
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.metric import (
    AVERAGE_PRECISION,
    BY_DISTANCE,
    CLASSES,
    ERRORS_BY_CLASS,
    GROUND_TRUTHS,
    NuScenesEvaluator,
    NuScenesMetricConfig,
    observable,
)
from bevkd_common.evaluation.results import Results

THRESHOLDS = ("0.5 m", "1 m", "2 m", "4 m")
EXACT = {"xy": (10.0, 0.0)}
FAR_OFF = {"xy": (-30.0, 20.0)}


def _ap(results: Results, name: str = "car") -> list[float | None]:
    table = results.table(AVERAGE_PRECISION)
    return [table.at(name, threshold) for threshold in THRESHOLDS]


def _errors(results: Results, name: str = "car") -> list[float | None]:
    table = results.table(ERRORS_BY_CLASS)
    return [table.at(name, error) for error in ("ATE", "ASE", "AOE", "AVE", "AAE")]


@pytest.mark.parametrize(
    ("predictions", "truths", "expected"),
    [
        ([{**EXACT, "score": 0.9}], [EXACT], 1.0),
        ([{**EXACT, "score": 0.9}], [EXACT, {"xy": (30.0, 0.0)}], 4 / 9),
        ([{**FAR_OFF, "score": 0.9}, {**EXACT, "score": 0.8}], [EXACT], 0.2),
        # Of equal scores the later counts first: once the wrong one, once the right one.
        ([{**EXACT, "score": 0.5}, {**FAR_OFF, "score": 0.5}], [EXACT], 0.2),
        # 89 recalls of precision 1, and recall 1 where the wrong one has come in: (89 * 0.9 + 0.4) / 90 / 0.9.
        ([{**FAR_OFF, "score": 0.5}, {**EXACT, "score": 0.5}], [EXACT], 80.5 / 81),
        # Two predictions for one truth: the second is wrong although it is exact.
        ([{**EXACT, "score": 0.9}, {**EXACT, "score": 0.8}], [EXACT], 80.5 / 81),
        ([], [EXACT], 0.0),
        ([{**EXACT, "name": "truck"}], [EXACT], 0.0),
    ],
)
def test_average_precision_by_hand(make_evaluator, make_truth, predictions, truths, expected) -> None:
    results = make_evaluator([(predictions, make_truth(truths))]).compute()
    assert _ap(results) == pytest.approx([expected] * 4, abs=1e-12)
    assert results.table(AVERAGE_PRECISION).at("car", "mean") == pytest.approx(expected, abs=1e-12)
    assert results.headline["mAP"].value == pytest.approx(expected / 10, abs=1e-12)


def test_a_prediction_exactly_at_the_threshold_is_no_match(make_evaluator, make_truth) -> None:
    results = make_evaluator([([{"xy": (12.0, 0.0)}], make_truth([EXACT]))]).compute()
    assert _ap(results) == pytest.approx([0.0, 0.0, 0.0, 1.0])
    assert _errors(results) == [1.0] * 5  # nothing matched at 2 m
    nearer = make_evaluator([([{"xy": (11.999, 0.0)}], make_truth([EXACT]))]).compute()
    assert _ap(nearer) == pytest.approx([0.0, 0.0, 1.0, 1.0])


def test_of_equal_scores_the_later_sample_counts_first(make_evaluator, make_truth) -> None:
    right, wrong = ([EXACT], make_truth([EXACT])), ([FAR_OFF], make_truth([]))
    assert _ap(make_evaluator([right, wrong]).compute()) == pytest.approx([0.2] * 4)
    assert _ap(make_evaluator([wrong, right]).compute()) == pytest.approx([80.5 / 81] * 4)


def test_samples_do_not_share_ground_truth(make_evaluator, make_truth) -> None:
    results = make_evaluator([([EXACT], make_truth([])), ([], make_truth([EXACT]))]).compute()
    assert results.headline["mAP"].value == 0.0
    assert results.counts.samples == 2


@pytest.mark.parametrize(
    ("prediction", "truth", "column", "expected"),
    [
        ({"xy": (11.0, 0.0)}, EXACT, 0, 1.0),
        ({"xy": (10.6, 0.8)}, EXACT, 0, 1.0),
        ({**EXACT, "z": 7.0}, EXACT, 0, 0.0),
        ({**EXACT, "lwh": (2.0, 2.0, 1.5)}, {**EXACT, "lwh": (4.0, 2.0, 1.5)}, 1, 0.5),
        ({**EXACT, "lwh": (4.0, 2.0, 1.5)}, {**EXACT, "lwh": (2.0, 4.0, 1.5)}, 1, 1 - 6 / 18),
        ({**EXACT, "lwh": (4.0, 2.0, 3.0)}, {**EXACT, "lwh": (4.0, 4.0, 1.5)}, 1, 1 - 12 / 36),
        ({**EXACT, "yaw": 0.8}, {**EXACT, "yaw": 0.3}, 2, 0.5),
        ({**EXACT, "yaw": -3.0}, {**EXACT, "yaw": 3.0}, 2, 2 * np.pi - 6),
        ({**EXACT, "yaw": np.pi}, EXACT, 2, np.pi),
        ({**EXACT, "velocity": (3.0, 4.0)}, EXACT, 3, 5.0),
        ({**EXACT, "velocity": (3.0, 4.0)}, {**EXACT, "velocity": (3.0, 1.0)}, 3, 3.0),
        ({**EXACT, "attribute": "vehicle.parked"}, {**EXACT, "attribute": "vehicle.moving"}, 4, 1.0),
        ({**EXACT, "attribute": "vehicle.parked"}, {**EXACT, "attribute": "vehicle.parked"}, 4, 0.0),
        ({**EXACT, "attribute": ""}, {**EXACT, "attribute": "vehicle.parked"}, 4, 1.0),
        # Unknown truths alone: the error counts as 1.
        ({**EXACT, "attribute": "vehicle.parked"}, EXACT, 4, 1.0),
        ({**EXACT, "velocity": (3.0, 4.0)}, {**EXACT, "velocity": (np.nan, np.nan)}, 3, 1.0),
        ({**EXACT, "velocity": (np.nan, np.nan)}, EXACT, 3, 1.0),
    ],
)
def test_true_positive_errors_by_hand(make_evaluator, make_truth, prediction, truth, column, expected) -> None:
    results = make_evaluator([([prediction], make_truth([truth]))]).compute()
    assert _errors(results)[column] == pytest.approx(expected, abs=1e-12)
    others = [error for i, error in enumerate(_errors(results)) if i not in (column, 4)]
    assert others == pytest.approx([0.0] * len(others), abs=1e-12)


@pytest.mark.parametrize(("turn", "expected"), [(np.pi, 0.0), (0.75 * np.pi, 0.25 * np.pi), (0.5, 0.5)])
def test_the_front_of_a_barrier_is_its_rear(make_evaluator, make_truth, turn, expected) -> None:
    truth = {**EXACT, "name": "barrier"}
    errors = _errors(make_evaluator([([{**truth, "yaw": turn}], make_truth([truth]))]).compute(), "barrier")
    assert errors[2] == pytest.approx(expected, abs=1e-12)
    assert errors[3:] == [None, None]


def test_cones_have_neither_heading_nor_velocity_nor_attribute(make_evaluator, make_truth) -> None:
    truth = {**EXACT, "name": "traffic_cone"}
    assert (
        _errors(make_evaluator([([truth], make_truth([truth]))]).compute(), "traffic_cone") == [0, 0] + [None] * 3
    )


def test_errors_are_averaged_over_running_means(make_evaluator, make_truth) -> None:
    # Two matches with errors 1 and 0: the running mean falls from 1 at confidence 0.8 to 0.5 at 0.4. Up to recall
    # 0.5 the confidence is 0.8; from there it falls linearly to 0.4 at recall 1. Recalls 0.11 to 1 count.
    truths = [{"xy": (10.0, 0.0)}, {"xy": (20.0, 0.0)}]
    found = [{"xy": (10.0, 1.0), "score": 0.8}, {"xy": (20.0, 0.0), "score": 0.4}]
    results = make_evaluator([(found, make_truth(truths))]).compute()
    expected = (40 + sum(1 - 0.5 * k / 50 for k in range(1, 51))) / 90
    assert _errors(results)[0] == pytest.approx(expected, abs=1e-12)


def test_too_little_recall_leaves_errors_of_one(make_evaluator, make_truth) -> None:
    truths = [{"xy": (float(i) * 4, 0.0)} for i in range(-11, 11)]
    results = make_evaluator([([{"xy": (4.0, 0.5)}, {"xy": (8.0, 0.5)}], make_truth(truths[:20]))]).compute()
    assert _errors(results) == [1.0] * 5  # 2 of 20 is a recall of 0.10, which does not count
    results = make_evaluator([([{"xy": (4.0, 0.5)}, {"xy": (8.0, 0.5)}], make_truth(truths[2:20]))]).compute()
    assert _errors(results)[0] == pytest.approx(0.5)  # 2 of 18 is 0.111


def test_ground_truth_as_predictions_is_perfect(make_evaluator, make_truth) -> None:
    attribute = {
        "pedestrian": "pedestrian.standing",
        "bicycle": "cycle.with_rider",
        "motorcycle": "cycle.with_rider",
    }
    boxes = [
        {
            "name": name,
            "xy": (3.0 * i - 12.0, 2.0 * i - 9.0),
            "yaw": 0.7 * i,
            "velocity": (0.4 * i, -1.0),
            "lwh": (4.0 + i, 2.0, 1.0),
            "attribute": attribute.get(name, "vehicle.moving"),
            "score": 1.0,
        }
        for i, name in enumerate(CLASSES)
    ]
    results = make_evaluator([(boxes, make_truth(boxes))]).compute()
    assert len(results.headline) == 7
    assert {name: round(metric.value, 12) for name, metric in results.headline.items()} == {
        "mAP": 1.0,
        "NDS": 1.0,
        "mATE": 0.0,
        "mASE": 0.0,
        "mAOE": 0.0,
        "mAVE": 0.0,
        "mAAE": 0.0,
    }


def test_headline_says_what_each_number_is(make_evaluator, make_truth) -> None:
    headline = make_evaluator([([EXACT], make_truth([EXACT]))]).compute().headline
    assert list(headline) == ["mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE"]
    assert [metric.higher_is_better for metric in headline.values()] == [True, True] + [False] * 5
    assert [metric.unit for metric in headline.values()] == [
        *("fraction", "fraction", "m", "1 - IoU", "rad", "m/s", "1 - accuracy")
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_a_box_at_the_range_limit_does_not_count(make_evaluator, make_truth, name) -> None:
    reach = NuScenesMetricConfig().class_ranges[name]
    ego = (100.0, -40.0, 5.0)
    at = {"name": name, "xy": (100.0 + 0.6 * reach, -40.0 + 0.8 * reach), "z": 90.0}
    inside = {"name": name, "xy": (100.0 + 0.6 * reach, -40.0 + 0.8 * reach - 0.01)}
    counts = make_evaluator([([at], make_truth([at], ego=ego))]).compute().counts
    assert (counts.predictions, counts.ground_truths) == (0, 0)
    counts = make_evaluator([([inside], make_truth([inside], ego=ego))]).compute().counts
    assert (counts.predictions, counts.ground_truths) == (1, 1)


def test_official_ranges() -> None:
    assert dict(zip(CLASSES, NuScenesMetricConfig().ranges, strict=True)) == {
        "car": 50,
        "truck": 50,
        "construction_vehicle": 50,
        "bus": 50,
        "trailer": 50,
        "barrier": 30,
        "motorcycle": 40,
        "bicycle": 40,
        "pedestrian": 40,
        "traffic_cone": 30,
    }


def test_annotations_without_points_do_not_count(make_evaluator, make_truth) -> None:
    truths = [{**EXACT, "points": 0}, {"xy": (20.0, 0.0), "points": 1}, {"xy": (30.0, 0.0), "points": -1}]
    assert make_evaluator([([], make_truth(truths))]).compute().counts.ground_truths == 2


def test_cycles_in_a_rack_do_not_count(make_evaluator, make_truth) -> None:
    rack = {"xy": (10.0, 0.0), "lwh": (8.0, 2.0, 2.0), "yaw": np.pi / 2}
    inside = [{"name": name, "xy": (10.9, 3.9)} for name in ("bicycle", "motorcycle", "car")]
    beside = [{"name": "bicycle", "xy": (13.9, 0.9)}]
    counts = make_evaluator([(inside, make_truth(inside + beside, racks=[rack]))]).compute().counts
    assert (counts.predictions, counts.ground_truths) == (1, 2)


def test_distance_bands(make_evaluator, make_truth) -> None:
    # Near: one truth, found, and a wrong prediction. Middle: two truths, one found by a prediction that itself lies
    # in the near band. Far: one truth, not found.
    truths = [{"xy": (5.0, 0.0)}, {"xy": (20.5, 0.0)}, {"xy": (0.0, 25.0)}, {"xy": (40.0, 0.0)}]
    found = [
        {"xy": (5.0, 0.0), "score": 0.9},
        {"xy": (-8.0, 0.0), "score": 0.8},
        {"xy": (19.9, 0.0), "score": 0.7},
    ]
    results = make_evaluator([(found, make_truth(truths))]).compute()
    assert results.table(BY_DISTANCE).rows == ("0-20 m", "20-30 m", "30-50 m")
    assert results.table(BY_DISTANCE).columns == ("mAP", *CLASSES)
    near, middle, far = (results.table(BY_DISTANCE).at(row, "car") for row in results.table(BY_DISTANCE).rows)
    # Below 0.5 m the prediction at 19.9 m misses, which makes it the second wrong one of the near band.
    assert near == pytest.approx((80.5 * 3 + 80.1 + 1 / 3 - 0.1) / 81 / 4)
    assert middle == pytest.approx(3 / 4 * 40 / 90)
    assert far == 0.0
    assert results.table(BY_DISTANCE).at("0-20 m", "mAP") == near
    assert results.table(BY_DISTANCE).at("0-20 m", "truck") is None
    assert [results.table(GROUND_TRUTHS).at("car", row) for row in ("all", *results.table(BY_DISTANCE).rows)] == [
        4,
        1,
        2,
        1,
    ]
    assert results.table(GROUND_TRUTHS).at("bus", "all") == 0


def test_a_band_without_annotations_has_no_score(make_evaluator, make_truth) -> None:
    bands = make_evaluator([([EXACT], make_truth([EXACT]))]).compute().table(BY_DISTANCE)
    assert bands.values[1] == (None,) * 11
    assert bands.values[0] == (pytest.approx(1.0), pytest.approx(1.0), *(None,) * 9)


def test_band_average_is_over_the_classes_present(make_evaluator, make_truth) -> None:
    boxes = [EXACT, {"xy": (0.0, 5.0), "name": "truck"}]
    bands = make_evaluator([(boxes[:1], make_truth(boxes))]).compute().table(BY_DISTANCE)
    assert [bands.at("0-20 m", column) for column in ("mAP", "car", "truck")] == pytest.approx([0.5, 1.0, 0.0])


def test_a_band_begins_at_its_near_edge(make_evaluator, make_truth) -> None:
    results = make_evaluator([([], make_truth([{"xy": (20.0, 0.0)}]))]).compute()
    assert results.table(GROUND_TRUTHS).at("car", "0-20 m") == 0
    assert results.table(GROUND_TRUTHS).at("car", "20-30 m") == 1


def test_counts_and_protocol(make_evaluator, make_truth) -> None:
    samples = [([EXACT], make_truth([EXACT, FAR_OFF], scene=scene)) for scene in ("a", "b", "a")]
    results = make_evaluator(samples).compute()
    counts = results.counts
    assert (counts.samples, counts.predictions, counts.ground_truths) == (3, 3, 6)
    assert (results.primary, results.groups) == ("mAP", "scenes")
    assert [(table.title, table.compared) for table in results.tables] == [
        (AVERAGE_PRECISION, "mean"),
        (BY_DISTANCE, "mAP"),
        (ERRORS_BY_CLASS, None),
        (GROUND_TRUTHS, None),
    ]
    assert "0.5 m, 1 m, 2 m, 4 m" in results.protocol
    assert "car 50 m" in results.protocol
    assert "traffic_cone 30 m" in results.protocol


LIDAR = frozenset({"lidar"})
ONE_KEY_FRAME = "not observable: one key frame"
ONE_SWEEP = "not observable: one sweep, one key frame"


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        (DataNeeds(clouds=LIDAR), ONE_SWEEP),
        (DataNeeds(cameras=True, clouds=LIDAR), ONE_SWEEP),
        (DataNeeds(cameras=True, sweeps=2), ONE_KEY_FRAME),
        (DataNeeds(clouds=LIDAR, sweeps=2), None),
        (DataNeeds(cameras=True, history=AdjacentFrames()), None),
        (DataNeeds(cameras=True, history=KeyframeQueue(recurrent=True)), None),
    ],
)
def test_motion_is_observable_from_more_than_one_instant(make_evaluator, make_truth, needs, why) -> None:
    still = EXACT | {"velocity": (0.0, 0.0)}
    moving = EXACT | {"velocity": (3.0, 4.0)}
    scored = make_evaluator([([still], make_truth([moving]))]).compute()
    results = observable(scored, needs)
    if why is None:
        assert results == scored
        assert scored.table(ERRORS_BY_CLASS).at("car", "AVE") == 5.0
        return
    hidden = {name: metric.why for name, metric in results.headline.items() if metric.value is None}
    assert hidden == {"mAVE": why, "mAAE": why}
    # The others, and NDS with its official formula, are as they were scored.
    assert {name for name, metric in results.headline.items() if metric == scored.headline[name]} == {
        *("mAP", "NDS", "mATE", "mASE", "mAOE")
    }
    errors = results.table(ERRORS_BY_CLASS)
    assert [errors.at("car", name) for name in errors.columns] == [0.0, 0.0, 0.0, None, None]
    assert errors.note == f"mAVE and mAAE: {why}."
    assert [table for table in results.tables if table != errors] == [
        table for table in scored.tables if table.title != ERRORS_BY_CLASS
    ]


def test_results_survive_json(make_evaluator, make_truth) -> None:
    results = make_evaluator([([{"xy": (10.3, 0.1), "yaw": 0.1}], make_truth([EXACT, FAR_OFF]))]).compute()
    assert Results.from_json(results.to_json(), "results.json") == results


def test_scoring_may_go_on_after_a_first_look(make_evaluator, make_truth, make_detections) -> None:
    evaluator = make_evaluator([([EXACT], make_truth([EXACT]))])
    first, again = evaluator.compute(), evaluator.compute()
    assert first == again
    evaluator.update("another", make_detections([]), make_truth([EXACT], scene="b"))
    assert _ap(evaluator.compute()) == pytest.approx([4 / 9] * 4)


def test_500_predictions_are_allowed_and_no_more(make_evaluator, make_truth) -> None:
    boxes = [{"xy": (0.1 * i, 0.0)} for i in range(500)]
    assert make_evaluator([(boxes, make_truth([EXACT]))]).compute().counts.predictions == 500
    with pytest.raises(UserError, match=r"sample sample-0 has 501 predictions; nuScenes allows 500"):
        make_evaluator([([*boxes, EXACT], make_truth([EXACT]))])


def test_a_sample_counts_once(make_evaluator, make_truth, make_detections) -> None:
    evaluator = make_evaluator([([EXACT], make_truth([EXACT]))])
    with pytest.raises(ValueError, match="sample sample-0 was evaluated before"):
        evaluator.update("sample-0", make_detections([]), make_truth([]))


def test_nothing_evaluated_is_no_score() -> None:
    with pytest.raises(ValueError, match="nothing was evaluated"):
        NuScenesEvaluator().compute()


def test_at_most_64_bytes_are_kept_per_prediction(make_truth, make_detections) -> None:
    rng = np.random.default_rng(0)
    boxes = [{"xy": rng.uniform(-20, 20, 2), "name": CLASSES[i % 10], "score": rng.random()} for i in range(500)]
    predictions, truth = make_detections(boxes), make_truth(boxes[::10])
    evaluator = NuScenesEvaluator()
    evaluator.update("warm-up", predictions, truth)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(40):
            evaluator.update(f"sample-{number}", predictions, truth)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 21 < kept / (40 * 500) <= 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xy": (np.nan, 0.0)}, "translation of prediction 1 must be 3 finite numbers"),
        ({"z": np.inf}, "translation of prediction 1"),
        ({"lwh": (4.0, 0.0, 1.0)}, "size of prediction 1 must be 3 numbers above 0"),
        ({"lwh": (4.0, 1.0, -1.0)}, "size of prediction 1"),
        ({"lwh": (np.inf, 1.0, 1.0)}, "size of prediction 1"),
        ({"rotation": (0.0, 0.0, 0.0, 0.0)}, "rotation of prediction 1 must be a quaternion"),
        ({"rotation": (1.0, np.nan, 0.0, 0.0)}, "rotation of prediction 1"),
        ({"velocity": (np.inf, 0.0)}, "velocity of prediction 1"),
        ({"score": np.nan}, "detection_score of prediction 1 must be a number of at least 0"),
        ({"score": -0.1}, "detection_score of prediction 1"),
        ({"score": np.inf}, "detection_score of prediction 1"),
    ],
)
def test_values_that_cannot_be_scored_are_refused(make_evaluator, make_truth, change, message) -> None:
    with pytest.raises(UserError, match=f"^sample sample-0: {message}"):
        make_evaluator([([EXACT, EXACT | change], make_truth([EXACT]))])


def test_so_are_annotations(make_evaluator, make_truth) -> None:
    with pytest.raises(UserError, match=r"^sample sample-0: size of annotation 0 must"):
        make_evaluator([([], make_truth([{"lwh": (0.0, 1.0, 1.0)}]))])
