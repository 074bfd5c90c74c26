from __future__ import annotations

import pytest
from bevkd_common.config.methods import departures
from bevkd_common.config.plugins import MethodSpec, installed
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import BevMap, HeadMaps, Queries, Taps
from pydantic import ValidationError
from unidistill.config import OFFICIAL, UniDistillConfig
from unidistill.spec import ABLATIONS, SPEC

from .conftest import BRANCHES, GRID, make_taps


def queries(heatmap: bool) -> Queries:
    return Queries(GRID, ("car",), 2, 10, 16, BRANCHES, heatmap=heatmap)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            make_taps("BEVDet", low=7),
            r"unidistill `low`: bev_in of BEVDet has 7 channels and bev_in of teacher 4; set "
            r"`method\.low\.adapter: conv1x1`",
        ),
        (
            make_taps("BEVDet", grid=Grid(8, -8, 1.0, 16, 16)),
            r"unidistill `low`: the maps of teacher \(x, y from -8, -8 to 8, 8 m\) and BEVDet \(from 8, -8 to 24, "
            r"8 m\) do not overlap",
        ),
        (
            Taps("BEVFormer", {"bev_neck": BevMap(6, GRID), "head": queries(True)}),
            r"unidistill `low`, student: BEVFormer has no tap 'bev_in'",
        ),
        (
            make_taps("BEVFormer", head=queries(False)),
            r"unidistill response: BEVFormer has a set of queries as its head, .* `method\.response_weight: 0`",
        ),
    ],
)
def test_detectors_that_do_not_fit_are_refused(make_method, student, message):
    with pytest.raises(UserError, match=message):
        make_method(student=student)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (queries(True), "a head predicts no maps of boxes"),
        (HeadMaps(GRID, (("car", "truck", "bus"),), BRANCHES), "the heads have different tasks"),
    ],
)
def test_heads_without_common_branches_compare_classes_alone(make_method, caplog, head, why):
    method = make_method(student=make_taps("student", head=head))
    assert method.response.branches == ()
    assert f"class scores alone are compared, {why}" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_weight": 0, "relation_weight": 0, "response_weight": 0}, "nothing would be distilled"),
        ({"clamp": 0.5}, "`clamp` must be below 0.5"),
        ({"overlap": 1.0}, "`overlap` below 1"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"low": {"teacher": "a", "student": "b", "adapter": "mlp"}}, "conv1x1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        UniDistillConfig.model_validate(changes)


def test_the_preset_fills_in_what_is_not_given():
    config = UniDistillConfig(preset="official", temperature=1.0)
    assert {key: getattr(config, key) for key in OFFICIAL} == OFFICIAL | {"temperature": 1.0}
    clean = UniDistillConfig()
    assert all(getattr(clean, key) != value for key, value in OFFICIAL.items())
    assert len(OFFICIAL) == 4


def test_the_method_is_installed_and_its_ablations_are_valid():
    assert installed(MethodSpec).find("unidistill") is SPEC
    for ablation in ABLATIONS.values():
        content = UniDistillConfig().model_dump()
        for key, value in ablation.overrides.items():
            *parents, last = key.split(".")
            place = content
            for parent in parents:
                place = place[parent]
            assert last in place
            place[last] = value
        assert UniDistillConfig.model_validate(content) != UniDistillConfig()
    assert len(ABLATIONS) == 8


def test_departures():
    assert departures(UniDistillConfig(preset="official"), UniDistillConfig()) == []
    found = departures(
        UniDistillConfig.model_validate(
            {
                "area": "gaussian",
                "relation_weight": 0,
                "low": {"teacher": "a", "student": "b", "adapter": "conv1x1"},
            }
        ),
        UniDistillConfig(),
    )
    assert len(found) == 4 + 3
    assert found[-1] == "There is no relation distillation."
