"""Which stage waits for which, on the arms of the toy recipe."""

from dataclasses import replace
from pathlib import Path

import pytest
from bevkd_common.experiment.arms import baseline_arm, control_arm, distilled_arm, teacher_arm
from bevkd_common.experiment.graph import Job, ready, stage_graph, width

PRETRAINED = "student_pretraining={steps: 2, batch: 4, optimizer: {lr: 0.1}}"
PRETRAINABLE = "student={kind: toy_pretrainable, channels: 4}"


@pytest.fixture
def make_graph(make_recipe):
    def make(*overrides):
        recipe = make_recipe(*overrides)
        controls = [control_arm(recipe, control) for control in recipe.controls]
        return stage_graph(teacher_arm(recipe), [baseline_arm(recipe), distilled_arm(recipe), *controls])

    return make


def parents(graph):
    return {name: node.parents for name, node in graph.items()}


def test_distilled_arms_wait_for_the_teacher_and_equal_time_for_both_paces(make_graph):
    assert parents(make_graph()) == {
        "teacher": (),
        "baseline": (),
        "distilled": ("teacher",),
        "baseline_double_steps": (),
        "baseline_equal_time": ("baseline", "distilled"),
        "no_imitation": ("teacher",),
    }


def test_arms_share_a_pretraining_and_the_teacher_has_its_own(make_graph):
    graph = make_graph(
        PRETRAINABLE,
        PRETRAINED,
        "teacher={kind: toy_pretrainable, channels: 16}",
        "teacher_pretraining={steps: 3, batch: 4, optimizer: {lr: 0.1}}",
    )
    assert list(graph) == [
        "teacher_pretraining", "teacher", "pretraining", "baseline", "distilled", "baseline_double_steps",
        "baseline_equal_time", "no_imitation",
    ]  # fmt: skip
    assert [name for name, node in graph.items() if node.pretrains] == ["teacher_pretraining", "pretraining"]
    assert graph["teacher"].parents == ("teacher_pretraining",)
    assert graph["distilled"].parents == ("pretraining", "teacher")
    assert graph["baseline_equal_time"].parents == ("pretraining", "baseline", "distilled")


def test_an_arm_with_another_detector_has_a_pretraining_of_its_own(make_recipe):
    recipe = make_recipe(PRETRAINABLE, PRETRAINED)
    wide = recipe.student.model_copy(update={"channels": 3})
    other = replace(baseline_arm(recipe), name="wide", detector=wide)
    graph = stage_graph(teacher_arm(recipe), [baseline_arm(recipe), other])
    assert parents(graph) == {
        "teacher": (), "pretraining": (), "baseline": ("pretraining",), "wide_pretraining": (),
        "wide": ("wide_pretraining",),
    }  # fmt: skip


def test_the_width_is_that_of_the_widest_level(make_graph):
    assert width(parents(make_graph())) == 3  # teacher, baseline, double steps
    assert width({"a": (), "b": ("a",), "c": ("b", "elsewhere")}) == 1
    assert width({}) == 1


def job(key, *above):
    return Job(key, key, above, Path("config.yaml"), Path("runs/x"), None, key, 0)


def test_a_job_is_ready_when_its_parents_are_finished():
    jobs = {one.key: one for one in (job("a"), job("b", "a"), job("c", "a", "b"), job("d", "not a job"))}
    assert [one.key for one in ready(jobs, set(), set())] == ["a", "d"]
    assert [one.key for one in ready(jobs, set(), {"a"})] == ["d"]
    assert [one.key for one in ready(jobs, {"a", "d"}, set())] == ["b"]
    assert [one.key for one in ready(jobs, {"a", "b", "d"}, set())] == ["c"]


def test_the_command_of_a_job_names_everything():
    one = replace(job("distilled"), data_root=Path("data"), seed=3)
    assert one.command(2)[1:] == [
        "-m", "bevkd", "train", "--from", "config.yaml", "--arm", "distilled", "--seed", "3", "--out", "runs/x",
        "--data-root", "data", "--gpus", "2",
    ]  # fmt: skip
    assert "--gpus" not in one.command(None)
