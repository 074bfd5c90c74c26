"""The configuration: presets, and that every field does something."""

import json

import pytest
import torch
from bevkd_common.errors import UserError
from bevkd_common.models.taps import Taps
from distillbev.build import build
from distillbev.config import OFFICIAL, DistillBevConfig, TapPair
from pydantic import ValidationError

QUIRKS = {"sample_point": "corner", "ensure_center_cell": False, "false_positive_channel_attention": True}


def test_presets_differ_in_the_quirks_alone():
    clean, official = DistillBevConfig(), DistillBevConfig(preset="official")
    differences = {
        name for name in DistillBevConfig.model_fields if getattr(clean, name) != getattr(official, name)
    }
    assert differences == {"preset", *QUIRKS}
    assert {name: getattr(official, name) for name in QUIRKS} == QUIRKS == OFFICIAL
    assert (clean.sample_point, clean.ensure_center_cell) == ("center", True)
    assert not clean.false_positive_channel_attention


@pytest.mark.parametrize("quirk", sorted(QUIRKS))
def test_what_is_given_wins_over_the_preset(quirk):
    clean = getattr(DistillBevConfig(), quirk)
    config = DistillBevConfig.model_validate({"preset": "official", quirk: clean})
    assert getattr(config, quirk) == clean
    assert {name: getattr(config, name) for name in QUIRKS if name != quirk} == {
        name: value for name, value in QUIRKS.items() if name != quirk
    }


@pytest.mark.parametrize("preset", ["clean", "official"])
def test_the_resolved_configuration_is_flat_complete_and_stable(preset):
    config = DistillBevConfig(preset=preset, overlap="smallest", layers=("bev_neck",))
    dump = config.model_dump(mode="json")
    assert dump.keys() == DistillBevConfig.model_fields.keys()
    again = DistillBevConfig.model_validate_json(json.dumps(dump), strict=True)
    assert again == config
    assert again.model_dump(mode="json") == dump


def test_the_released_weights():
    taps = {tap.name: tap for tap in DistillBevConfig().active_taps}
    assert list(taps) == ["bev_block1", "bev_block2", "bev_neck"]
    for tap in taps.values():
        assert (tap.alpha, tap.beta, tap.w_fp, tap.lam) == (6e-3, 4e-2, 6e-2, 2.5e-3)
        assert tap.normalize == "none"
    assert [tap.adapter for tap in taps.values()] == ["up4_mlp3", "up4_mlp3", "conv1x1"]
    assert [tap.false_positives for tap in taps.values()] == [False, False, True]
    config = DistillBevConfig()
    assert (config.tau, config.student_ratio, config.gamma_teacher, config.gamma_ground_truth) == (
        0.5,
        1.0,
        0.1,
        0.1,
    )
    assert (config.attention, config.inherit, config.weight) == ("teacher_student", "task_heads", 1.0)


TAP = {"name": "a", "teacher": "bev_neck", "student": "bev_neck", "adapter": "conv1x1"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"layers": ["bev_neck", "bev_block7"]},
            "`layers` holds `bev_block7`, which is none of the `taps`: bev_block0, bev_block1",
        ),
        ({"layers": ["bev_neck", "bev_neck"]}, "holds a name twice"),
        ({"taps": [TAP, TAP]}, "holds the name `a` twice"),
        ({"taps": []}, "at least 1 item"),
        ({"taps": [TAP | {"name": "not a name"}]}, "should match pattern"),
        ({"taps": [TAP | {"adapter": "up4"}]}, "Input should be 'identity', 'conv1x1'"),
        ({"taps": [TAP | {"alpha": -1.0}]}, "greater than or equal to 0"),
        ({"tau": 0.0}, "greater than 0"),
        ({"gamma_teacher": 1.5}, "less than or equal to 1"),
        ({"preset": "dirty"}, "'clean' or 'official'"),
        ({"taw": 0.5}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(ValidationError, match=message):
        DistillBevConfig.model_validate(data)


BASE = {
    "taps": [
        {"name": "low", "teacher": "bev_block1", "student": "bev_block1", "adapter": "up2_mlp2"},
        {
            "name": "high",
            "teacher": "bev_neck",
            "student": "bev_neck",
            "adapter": "conv1x1",
            "false_positives": True,
        },
    ]
}
CHANGES = {
    "preset": "official",
    "weight": 0.5,
    "inherit": "none",
    "taps": [BASE["taps"][1]],
    "layers": ["low"],
    "region_decomposition": False,
    "adaptive_scaling": False,
    "attention": "teacher",
    "attention_imitation": "abs_mean",
    "attention_kernel": "identity",
    "false_positive_layers": "all",
    "tau": 0.7,
    "student_ratio": 0.3,
    "gamma_teacher": 0.2,
    "gamma_ground_truth": 0.3,
    "eta": 20.0,
    "sample_point": "corner",
    "overlap": "smallest",
    "ensure_center_cell": False,
    "false_positive_channel_attention": True,
    "align_corners": False,
}
TAP_CHANGES = {
    "name": "other",
    "teacher": "bev_in",
    "student": "bev_in",
    "adapter": "up2_mlp3",
    "alpha": 1e-3,
    "beta": 1e-3,
    "w_fp": 1e-3,
    "lam": 1e-3,
    "false_positives": True,
    "normalize": "teacher_rms",
    "spare": True,
}


@pytest.fixture
def behaviour(toy_detector, toy_scene):
    """Everything a configuration can change: the named terms of a step, and the student it starts from."""

    def observe(settings: dict) -> dict[str, float]:
        torch.manual_seed(0)
        teacher, student = toy_detector(block=6, neck=12).eval(), toy_detector(block=4, neck=12, block_stride=4)
        method = build(
            DistillBevConfig.model_validate(settings), Taps("Teacher", teacher.taps), Taps("Student", student.taps)
        )
        torch.manual_seed(1)
        for parameter in method.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        scene = toy_scene(method, teacher, student)
        scene.targets.heatmaps[0][:, 0, :4] = 0.25
        method.prepare(teacher, student, [scene.batch])
        seen = scene.weighted(method)
        return seen | {"start": sum(parameter.sum().item() for parameter in student.parameters())}

    return observe


def test_every_field_is_read(behaviour):
    base = behaviour(BASE)
    assert set(base) == {
        "start", "low/fg", "low/tn", "low/attention", "high/fg", "high/tn", "high/fp", "high/attention"
    }  # fmt: skip
    assert behaviour(BASE) == base
    for name, value in CHANGES.items():
        assert behaviour(BASE | {name: value}) != base, name
    assert CHANGES.keys() == DistillBevConfig.model_fields.keys() - {"kind"}
    assert len(CHANGES) == 21


def test_every_field_of_a_tap_is_read(behaviour):
    base = behaviour(BASE | {"false_positive_layers": "all"})
    changed = 0
    for name, value in TAP_CHANGES.items():
        settings = BASE | {"taps": [BASE["taps"][0] | {name: value}, BASE["taps"][1]]}
        if name in ("teacher", "student"):
            with pytest.raises(UserError, match="has no tap 'bev_in'"):
                behaviour(settings)
        else:
            layers = "chosen" if name == "false_positives" else "all"
            reference = behaviour(BASE) if name == "false_positives" else base
            assert behaviour(settings | {"false_positive_layers": layers}) != reference, name
        changed += 1
    assert TAP_CHANGES.keys() == TapPair.model_fields.keys()
    assert changed == 11
