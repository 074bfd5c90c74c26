"""Results as JSON."""

import json

import pytest
from bevkd_common.errors import UserError
from bevkd_common.evaluation.results import COUNT, FRACTION, PERCENT, Counts, Metric, Results, Table, heading, show

TABLE = Table(
    title="by class",
    rows=("car", "bus"),
    columns=("AP", "AOE"),
    units=(FRACTION, "rad"),
    values=((0.1, None), (1 / 3, 2.0)),
    compared="AP",
)
RESULTS = Results(
    protocol="a metric",
    primary="mAP",
    headline={
        "NDS": Metric(value=1 / 3, unit=FRACTION, higher_is_better=True),
        "mAP": Metric(value=0.1 + 0.2, unit=FRACTION, higher_is_better=True),
        "mAVE": Metric(value=None, unit="m/s", higher_is_better=False, why="not observable: one sweep"),
    },
    tables=(TABLE,),
    counts=Counts(samples=2, predictions=3, ground_truths=4),
    groups="scenes",
)


def test_a_kitti_result_fits(kitti_results) -> None:
    results = kitti_results
    assert Results.from_json(results.to_json(), "x") == results
    assert results.score == 60.0
    assert len(results.tables) == 4
    assert results.table("BEV AP_R11").at("Car", "hard") == 50.25
    assert results.table("BEV AP_R11").unit("hard") == PERCENT


@pytest.mark.parametrize(
    ("value", "unit", "shown", "signed"),
    [
        (0.3456, FRACTION, "34.6", "+34.6"),
        (34.56, PERCENT, "34.6", "+34.6"),
        (-0.01, FRACTION, "-1.0", "-1.0"),
        (-0.0001, FRACTION, "0.0", "+0.0"),
        (1234.0, COUNT, "1234", "+1234"),
        (0.3456, "m", "0.346", "+0.346"),
        (None, "m", "-", "-"),
    ],
)
def test_the_unit_decides_how_a_number_is_printed(value, unit, shown, signed) -> None:
    assert show(value, unit) == shown
    assert show(value, unit, signed=True) == signed


def test_a_heading_names_the_unit_but_for_percent_and_counts() -> None:
    assert [heading("x", unit) for unit in (FRACTION, PERCENT, COUNT, "m/s")] == ["x", "x", "x", "x (m/s)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"primary": "AP"}, "primary must be one of the headline: NDS, mAP, mAVE"),
        ({"primary": "mAVE"}, "the primary metric mAVE must have a value"),
        ({"tables": (TABLE, TABLE)}, "two tables have the same title"),
    ],
)
def test_results_must_be_consistent(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        Results.model_validate(dict(RESULTS) | change)


@pytest.mark.parametrize(("value", "why"), [(None, ""), (1.0, "not observable")])
def test_a_metric_has_a_value_or_a_reason(value, why) -> None:
    with pytest.raises(ValueError, match="`why` must be given if, and only if"):
        Metric(value=value, unit="m", higher_is_better=False, why=why)


def test_results_of_another_version_are_not_read() -> None:
    content = json.loads(RESULTS.to_json())
    assert content["format"] == 2
    assert Results.of_this_version(content) == RESULTS
    assert Results.of_this_version(content | {"format": 1}) is None
    del content["format"]
    assert Results.of_this_version(content) is None


def test_json_round_trip_is_exact_and_keeps_the_order() -> None:
    text = RESULTS.to_json()
    again = Results.from_json(text, "x")
    assert again == RESULTS
    assert list(again.headline) == ["NDS", "mAP", "mAVE"]
    assert again.to_json() == text
    assert json.loads(text)["headline"]["mAP"]["value"] == 0.30000000000000004
    assert "NaN" not in text


def test_a_table_is_read_by_name() -> None:
    assert TABLE.at("bus", "AP") == 1 / 3
    assert TABLE.at("bus", "AOE") == 2.0
    assert TABLE.at("car", "AOE") is None


@pytest.mark.parametrize("values", [((0.1, None),), ((0.1, None), (0.2,)), ((0.1,), (0.2,))])
def test_a_table_is_rectangular(values) -> None:
    with pytest.raises(ValueError, match="values must have 2 rows of 2 columns"):
        Table(title="", rows=("car", "bus"), columns=("AP", "AOE"), units=(FRACTION, "rad"), values=values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": (FRACTION,)}, "units must have 2 entries, one a column"),
        ({"compared": "ATE"}, "compared must be one of the columns: AP, AOE"),
    ],
)
def test_a_table_has_a_unit_a_column_and_compares_one_of_them(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        Table.model_validate(dict(TABLE) | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^runs/a/results\.json: the text: Invalid JSON"),
        ("[]", r"^runs/a/results\.json: the text:"),
        (
            RESULTS.to_json().replace('"samples": 2', '"samples": "one"'),
            "counts.samples",
        ),
        (RESULTS.to_json().replace("counts", "count"), "counts: Field required"),
        (RESULTS.to_json().replace('"format": 2', '"format": 1'), "format: Input should be 2"),
    ],
)
def test_other_text_is_refused_in_one_sentence(text, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Results.from_json(text, "runs/a/results.json")
    assert "\n" not in str(caught.value)
