from pathlib import Path
from typing import Any

import pytest
from bevkd_common.config.plugins import _discovered
from bevkd_common.config.reading.loading import load_recipe
from bevkd_common.config.recipe import Control, Recipe
from bevkd_common.errors import UserError
from pydantic import ValidationError


def test_a_recipe_holds_the_configurations_of_plug_ins(stand_in: Path) -> None:
    recipe = load_recipe(stand_in)
    assert type(recipe.teacher).__name__ == "PillarConfig"
    assert type(recipe.student).__name__ == "LiftConfig"
    assert recipe.student_training.optimizer.lr == 0.003
    assert recipe.selects.model_dump() == {"teacher": "pillars", "student": "lift", "dataset": "toy"}
    assert [control.name for control in recipe.controls] == ["twice_the_steps", "as_long", "losses_alone"]


def test_each_seed_has_the_world_at_its_place(stand_in: Path) -> None:
    recipe = load_recipe(stand_in, ["seeds=[7, 3]"])
    assert [recipe.dataset_for(seed).model_dump()["cameras"]["seed"] for seed in (7, 3)] == [100, 101]


def test_without_world_seeds_every_seed_has_the_data_as_configured(stand_in: Path) -> None:
    recipe = load_recipe(stand_in, ["world_seeds=null", "dataset.cameras.seed=5"])
    assert recipe.dataset_for(1) is recipe.dataset


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["teacher_training=null"], "give `teacher_training` or `teacher_checkpoint`"),
        (["world_seeds=[1]"], "give one of `world_seeds` for each of the 2 `seeds`"),
        (["dataset={kind: recorded}"], "`world_seeds` needs data that can be made; recorded cannot"),
        (["seeds=[1, 1]"], "seeds: holds 1 twice"),
        (
            ["student_pretraining={steps: 1, batch: 1, optimizer: {lr: 1.0}}"],
            "`student_pretraining`: the detector `lift` has no pretraining",
        ),
        (
            ["teacher_pretraining={steps: 1, batch: 1, optimizer: {lr: 1.0}}"],
            "`teacher_pretraining`: the detector `pillars` has no pretraining",
        ),
        (
            [
                "teacher_training=null",
                "teacher_checkpoint=teacher.safetensors",
                "teacher_pretraining={steps: 1, batch: 1, optimizer: {lr: 1.0}}",
            ],
            "`teacher_pretraining` needs `teacher_training`: a loaded teacher is not pretrained",
        ),
        (["controls.1.name=losses_alone"], "controls: holds the control `losses_alone` twice"),
    ],
)
def test_what_does_not_go_together(stand_in: Path, overrides: list[str], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(stand_in, overrides)
    assert str(caught.value).endswith(reason)


def test_a_checkpoint_replaces_the_training_of_the_teacher(stand_in: Path) -> None:
    recipe = load_recipe(stand_in, ["teacher_training=null", "teacher_checkpoint=runs/teacher.safetensors"])
    assert recipe.teacher_checkpoint == Path("runs/teacher.safetensors")


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        ({"name": "baseline", "base": "baseline"}, "every experiment has an arm `baseline`; choose another name"),
        ({"name": "a", "base": "distilled", "equal_time": True}, "`equal_time` sets the steps of a baseline"),
        (
            {"name": "a", "base": "baseline", "equal_time": True, "steps_factor": 2.0},
            "`equal_time` sets the steps of a baseline",
        ),
        (
            {"name": "a", "base": "baseline", "overrides": {"method.taps": []}},
            "a control of the baseline cannot override `method.taps`, only student, student_training",
        ),
        (
            {"name": "a", "base": "distilled", "overrides": {"dataset.cached": False}},
            "a control of the distilled cannot override `dataset.cached`",
        ),
        ({"name": "A b", "base": "baseline"}, "should match pattern"),
    ],
)
def test_a_control_changes_only_what_keeps_the_comparison_fair(control: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Control(**control)


def test_a_recipe_without_any_plug_in_says_so(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bevkd_common.config.plugins.entry_points", lambda group: [])
    _discovered.cache_clear()
    Recipe.model_rebuild(force=True)
    with pytest.raises(UserError) as caught:
        load_recipe(stand_in, ["student=3"])
    assert str(caught.value).splitlines() == [
        f"{stand_in}: 4 problems",
        "  --set student=3: student: no detector `3` is installed",
        f"  {stand_in}, line 9: dataset: no data set `toy` is installed",
        f"  {stand_in}, line 12: teacher: no detector `pillars` is installed",
        f"  {stand_in}, line 28: method: no method `imitation` is installed",
    ]
