"""What `run --plan` prints; the measuring itself is tested where it stands."""

import pytest
from bevkd_common.engine.train import Rehearsal
from bevkd_common.experiment import measure
from bevkd_common.experiment.measure import Estimate

PLAN = ("run", "--recipe", "distillbev/centerpoint-bevdet.nuscenes", "--plan", "--gpus", "0")
RANDOM = ("--set", "student.image_backbone.weights=null")
TOOK = Rehearsal(steps=3600, step_s=2.0, data_s=0.5, memory=4_000_000_000, checkpoint=500_000_000)


@pytest.fixture
def measured(monkeypatch):
    """The recipes to be measured; a teacher takes 4 of 24 GB, a student is killed."""
    recipes = []

    def estimate(recipe, request, reporter, *, cpu):
        recipes.append(recipe)
        return [Estimate("teacher", TOOK, 24_000_000_000), Estimate("baseline", None, 24_000_000_000)]

    monkeypatch.setattr(measure, "estimate", estimate)
    return recipes


@pytest.fixture
def bevkd(command):
    return command


def rows(printed):
    return [line.split("\t") for line in printed.splitlines() if "\t" in line]


def test_without_the_data_a_plan_tells_memory_and_no_hours(bevkd, measured):
    code, out, err = bevkd(*PLAN, *RANDOM)
    assert rows(out) == [["teacher", "2.000", "4.00", "0.500", "yes"], ["baseline", "", "", "", "no"]]
    assert [recipe.dataset.kind for recipe in measured] == ["synthetic"]
    assert "need --data-root" in out
    assert "hours of training" not in out
    assert (code, "baseline: more than the available 24 GB; lower `micro_batch`" in err) == (2, True)


def test_with_the_data_it_tells_hours_too(bevkd, measured, tmp_path):
    _, out, _ = bevkd(*PLAN, *RANDOM, "--data-root", str(tmp_path))
    assert rows(out)[0] == ["teacher", "3600", "2.000", "0.500", "2.00", "4.00", "0.500", "yes"]
    assert [recipe.dataset.kind for recipe in measured] == ["nuscenes"]
    assert "need --data-root" not in out
