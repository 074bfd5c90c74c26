"""Results as JSON."""

import json

import pytest
from bevkd_common.errors import UserError
from bevkd_common.evaluation.results import Counts, Metric, Results, Table

TABLE = Table(rows=("car", "bus"), columns=("AP", "AOE"), values=((0.1, None), (1 / 3, 2.0)))
RESULTS = Results(
    protocol="a metric",
    headline={
        "NDS": Metric(value=1 / 3, unit="", higher_is_better=True),
        "mAP": Metric(value=0.1 + 0.2, unit="", higher_is_better=True),
        "mAVE": Metric(value=1e-17, unit="m/s", higher_is_better=False),
    },
    tables={"by class": TABLE},
    bands=TABLE,
    counts=Counts(scenes=1, samples=2, predictions=3, ground_truths=4),
)


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
        Table(rows=("car", "bus"), columns=("AP", "AOE"), values=values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^runs/a/results\.json: the text: Invalid JSON"),
        ("[]", r"^runs/a/results\.json: the text:"),
        (
            RESULTS.to_json().replace('"scenes":1', '"scenes":"one"').replace('"scenes": 1', '"scenes": "one"'),
            "counts.scenes",
        ),
        (RESULTS.to_json().replace("counts", "count"), "counts: Field required"),
    ],
)
def test_other_text_is_refused_in_one_sentence(text, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Results.from_json(text, "runs/a/results.json")
    assert "\n" not in str(caught.value)
