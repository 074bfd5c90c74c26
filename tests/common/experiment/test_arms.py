import pytest
from bevkd_common.config.plugins import Ablation
from bevkd_common.config.published_rows import PaperRow
from bevkd_common.config.reading.loading import load_recipe
from bevkd_common.config.recipe import Control
from bevkd_common.config.training import OptimizerConfig, TrainingConfig
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import (
    ablation_arm,
    baseline_arm,
    control_arm,
    distilled_arm,
    fixed_length,
    lengthened,
    teacher_arm,
)

OPTIMIZER = OptimizerConfig(lr=1.0)


@pytest.fixture
def recipe(toy):
    return load_recipe(toy)


def test_teacher_baseline_and_distilled_differ_in_what_they_should(recipe):
    teacher, baseline, distilled = teacher_arm(recipe), baseline_arm(recipe), distilled_arm(recipe)
    assert [arm.role for arm in (teacher, baseline, distilled)] == ["teacher", "baseline", "distilled"]
    assert (teacher.detector.channels, teacher.training.steps) == (16, 30)
    assert (baseline.detector.channels, baseline.training.steps) == (4, 20)
    assert baseline.detector == distilled.detector
    assert baseline.training == distilled.training
    assert (teacher.method, baseline.method, distilled.method) == (None, None, recipe.method)
    assert teacher.title == "teacher (big)"


def test_a_loaded_teacher_is_scored_in_the_students_precision(recipe, tmp_path):
    loaded = recipe.model_copy(update={"teacher_training": None, "teacher_checkpoint": tmp_path / "x"})
    assert teacher_arm(loaded).training == recipe.student_training


def test_a_control_with_twice_the_steps(recipe):
    arm = control_arm(recipe, Control(name="twice_as_long", base="baseline", steps_factor=2.0))
    assert (arm.name, arm.title, arm.role) == ("twice_as_long", "twice as long", "control")
    assert (arm.training.steps, arm.method, arm.as_long_as) == (40, None, None)
    assert arm.summary == "The baseline with 2 times the steps."


def test_a_control_with_overrides_changes_nothing_else(recipe):
    overrides = {"method.weight": 0.5, "student_training.ema": None}
    arm = control_arm(recipe, Control(name="half", base="distilled", overrides=overrides))
    assert arm.method.weight == 0.5
    assert arm.training == recipe.student_training.model_copy(update={"ema": None})
    assert arm.detector == recipe.student
    assert arm.summary == "The distilled with method.weight = 0.5, student_training.ema = none."


def test_a_control_that_changes_nothing_says_so(recipe):
    arm = control_arm(recipe, Control(name="again", base="distilled"))
    assert arm.summary == "The distilled with nothing changed."


def test_an_override_that_does_not_fit_names_the_control(recipe):
    control = Control(name="half", base="distilled", overrides={"method.wait": 0.5})
    with pytest.raises(UserError, match=r"control half.*method\.wait"):
        control_arm(recipe, control)


def test_equal_time_takes_the_steps_that_fit(recipe):
    arm = control_arm(recipe, Control(name="same_time", base="baseline", equal_time=True))
    assert arm.as_long_as == "distilled"
    assert "as many steps as fit" in arm.summary
    fixed = fixed_length(arm, {"baseline": 10.0, "distilled": 25.0})
    assert (fixed.training.steps, fixed.as_long_as) == (50, None)
    with pytest.raises(UserError, match="--no-baseline"):
        fixed_length(arm, {"distilled": 25.0})


def test_a_baseline_too_short_to_be_timed_sets_some_pace(recipe):
    arm = control_arm(recipe, Control(name="same_time", base="baseline", equal_time=True))
    assert fixed_length(arm, {"baseline": 0.0, "distilled": 0.002}).training.steps == 40


def test_an_arm_of_its_own_length_stays_as_it_is(recipe):
    arm = distilled_arm(recipe)
    assert fixed_length(arm, {}) is arm


def test_an_ablation_changes_the_method(recipe):
    ablation = Ablation("No imitation.", {"weight": 0.0})
    arm = ablation_arm(recipe, "no_weight", ablation, None)
    assert (arm.name, arm.title, arm.role, arm.summary) == ("no_weight", "no weight", "control", "No imitation.")
    row = PaperRow("BEVDet4D", "nuScenes val", {"mAP": 32.9}, "table 3")
    summary = ablation_arm(recipe, "no_weight", ablation, row).summary
    assert summary == "No imitation. Published: BEVDet4D, nuScenes val: mAP 32.9."
    assert arm.method.weight == 0.0
    assert arm.training == recipe.student_training


@pytest.mark.parametrize(("factor", "steps", "epochs"), [(2.0, 20, 6), (0.5, 5, 2), (0.01, 1, 1)])
def test_lengths_are_stretched_and_stay_positive(factor, steps, epochs):
    by_steps = TrainingConfig(steps=10, batch=1, optimizer=OPTIMIZER)
    by_epochs = TrainingConfig(epochs=3, batch=1, optimizer=OPTIMIZER)
    assert lengthened(by_steps, factor).steps == steps
    assert lengthened(by_epochs, factor).epochs == epochs
