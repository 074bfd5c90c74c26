"""What the command line knows of the method."""

import subprocess
import sys
from importlib import resources
from itertools import pairwise

import pytest
from bevkd_common.config.detectors.bevdet import BevDetConfig
from bevkd_common.config.detectors.bevformer import BevFormerConfig
from bevkd_common.config.plugins import load
from bevkd_common.config.recipes import Choice, catalogue
from distillbev.build import build
from distillbev.config import DistillBevConfig
from distillbev.spec import _SENTENCES, RELEASED_FOR_QUERIES, SPEC, departures

CONVOLUTIONS, QUERIES = BevDetConfig(), BevFormerConfig()
TAP = {
    "name": "bev_neck",
    "teacher": "bev_neck",
    "student": "bev_neck",
    "adapter": "conv1x1",
    "false_positives": True,
}


def test_the_spec_leads_to_the_method():
    assert SPEC.kind == DistillBevConfig.model_fields["kind"].default
    assert load(SPEC.build) is build
    assert load(SPEC.departures) is departures
    assert resources.files(SPEC.recipes).joinpath("__init__.py").is_file()


def test_the_spec_needs_no_torch():
    code = "import distillbev.spec, distillbev.paper, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_ablation_changes_the_recipe_and_is_valid():
    base = DistillBevConfig()
    dump = base.model_dump(mode="json")
    valid = 0
    for name, ablation in SPEC.ablations.items():
        changed = DistillBevConfig.model_validate(dump | dict(ablation.overrides))
        # The chosen row of the layers is the paper's recipe itself.
        assert (changed.active_taps == base.active_taps) if name == "layers_b1_b2_h" else (changed != base), name
        assert ablation.summary.endswith(".")
        valid += 1
    assert valid == 15


def test_the_first_stage_is_distilled_only_where_it_is_named():
    recipe = DistillBevConfig()
    assert [tap.name for tap in recipe.active_taps] == ["bev_block1", "bev_block2", "bev_neck"]
    named = recipe.model_copy(update=dict(SPEC.ablations["layers_b0_b1_b2_h"].overrides))
    assert [tap.name for tap in named.active_taps] == ["bev_block0", "bev_block1", "bev_block2", "bev_neck"]


def test_rows_of_the_components_add_one_thing_at_a_time():
    dump = DistillBevConfig().model_dump(mode="json")
    rows = ["plain", "fgbg", "fgbg_attention", "fgbg_attention_scaling"]
    configs = [DistillBevConfig.model_validate(dump | dict(SPEC.ablations[row].overrides)) for row in rows]
    configs.append(DistillBevConfig())
    steps = [
        {name for name in dump if getattr(first, name) != getattr(second, name)}
        for first, second in pairwise(configs)
    ]
    assert steps == [
        {"region_decomposition"},
        {"attention", "attention_imitation"},
        {"adaptive_scaling"},
        {"false_positive_layers"},
    ]


def test_the_released_recipe_departs_from_nothing():
    assert departures(DistillBevConfig(preset="official"), CONVOLUTIONS) == []
    assert len(departures(DistillBevConfig(), CONVOLUTIONS)) == 3


def test_the_released_recipe_for_queries_departs_from_nothing():
    assert departures(RELEASED_FOR_QUERIES, QUERIES) == []
    changes = {
        "inherit": ["none", "head"],
        "attention": ["teacher_student", "none"],
        "sample_point": ["corner"],
        "false_positive_channel_attention": [True],
        "false_positive_layers": ["none", "all"],
        "align_corners": [False],
    }
    dump = RELEASED_FOR_QUERIES.model_dump(mode="json")
    sentences = [
        departures(DistillBevConfig.model_validate(dump | {name: value}), QUERIES)
        for name, values in changes.items()
        for value in values
    ]
    assert [len(found) for found in sentences] == [1] * 9
    assert sentences[1] == [
        "The student's whole head is copied from the teacher's; the paper copies the decoder alone."
    ]
    tap = RELEASED_FOR_QUERIES.taps[0].model_dump() | {"alpha": 3e-3}
    assert departures(DistillBevConfig.model_validate(dump | {"taps": [tap]}), QUERIES) == [
        "Weights at bev_neck: alpha 0.003 (paper 0.005)."
    ]


def test_recipes_of_published_size_depart_where_the_preset_mends_the_released_code():
    cell = "A cell is foreground by its centre; the released code takes its lower corner."
    box = "A box without a sample point gets its centre's cell; in the released code it vanishes."
    channels = "No channel attention weighs the false positives; the released code has it, the paper does not."
    recipes = [
        Choice(("distillbev",), pair).load()
        for pair in catalogue().pairs
        if "distillbev" in pair.sections and pair.head.selects.dataset == "nuscenes"
    ]
    assert len(recipes) == 13
    for recipe in recipes:
        queries = "bevformer" in recipe.selects.student
        assert departures(recipe.method, recipe.student) == ([box] if queries else [cell, box, channels])


def test_every_field_has_its_departure():
    changes = {
        "weight": 0.5,
        "region_decomposition": False,
        "adaptive_scaling": False,
        "attention_kernel": "identity",
        "tau": 0.7,
        "student_ratio": 0.3,
        "gamma_teacher": 0.2,
        "gamma_ground_truth": 0.3,
        "eta": 20.0,
        "sample_point": "center",
        "overlap": "smallest",
        "ensure_center_cell": True,
        "false_positive_channel_attention": False,
        "align_corners": False,
    }
    several = {
        "inherit": ["none", "head"],
        "attention": ["teacher", "none"],
        "attention_imitation": ["abs_mean", "none"],
        "false_positive_layers": ["none", "all"],
    }
    seen = set()
    single = list(changes.items())
    for name, value in single + [(field, value) for field, values in several.items() for value in values]:
        (sentence,) = departures(DistillBevConfig.model_validate({"preset": "official", name: value}), CONVOLUTIONS)
        assert sentence.endswith(".")
        if isinstance(value, float):
            assert f"{value:g}" in sentence
        seen.add(sentence)
    assert len(seen) == len(changes) + 8
    assert changes.keys() | several.keys() == _SENTENCES.keys()
    assert _SENTENCES.keys() | {"kind", "preset", "taps", "layers"} == DistillBevConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("tap", "sentence"),
    [
        ({"adapter": "identity"}, "The adapter of bev_neck is identity, in the paper conv1x1."),
        (
            {"alpha": 4.5e-4, "beta": 0.08, "w_fp": 3e-3, "lam": 0.0},
            "Weights at bev_neck: alpha 0.00045 (paper 0.006), beta 0.08 (paper 0.04), w_fp 0.003 (paper 0.06), "
            "lambda 0 (paper 0.0025).",
        ),
        (
            {"false_positives": False},
            "The teacher's false positives are no region at bev_neck; in the paper they are.",
        ),
        (
            {"normalize": "teacher_rms"},
            "Both maps at bev_neck are divided by the teacher's root mean square; the paper leaves them raw.",
        ),
    ],
)
def test_departures_of_a_layer(tap, sentence):
    paper = [tap.model_dump() for tap in DistillBevConfig().active_taps[:2]]
    config = DistillBevConfig.model_validate({"preset": "official", "taps": [*paper, TAP | tap]})
    assert departures(config, CONVOLUTIONS) == [sentence]


def test_departures_in_the_choice_of_layers():
    config = DistillBevConfig.model_validate({"preset": "official", "taps": [TAP | {"name": "h"}]})
    assert departures(config, CONVOLUTIONS) == [
        "Nothing is distilled at bev_block1, bev_block2; the paper distils at bev_block1, bev_block2, bev_neck."
    ]
    alone = DistillBevConfig(preset="official", layers=("bev_neck",))
    assert departures(alone, CONVOLUTIONS) == departures(config, CONVOLUTIONS)
    other = TAP | {"name": "low", "teacher": "bev_block0", "false_positives": False}
    config = DistillBevConfig.model_validate({"preset": "official", "taps": [other, TAP]})
    assert departures(config, CONVOLUTIONS)[1] == (
        "Distillation takes place at bev_neck after the teacher's bev_block0 too; the paper distils at bev_block1, "
        "bev_block2, bev_neck."
    )
