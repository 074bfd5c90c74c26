"""An experiment whose teacher reads virtual points, on a world of three scenes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from bevkd_common.config.recipes import load_named
from bevkd_common.data.virtual_points.files import VirtualPointFolder
from bevkd_common.experiment.arms import baseline_arm, teacher_arm
from bevkd_common.experiment.build import data_needs
from bevkd_common.experiment.execution import open_dataset
from bevkd_common.experiment.identity import arm_stage
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.reporting import _data_sentence
from bevkd_common.experiment.training import train_arm

SMALL = (
    "dataset.world.train_scenes=2",
    "dataset.world.val_scenes=1",
    "dataset.world.lidar_rate=4.0",
    "dataset.world.lidar_azimuths=180",
    "teacher_training.steps=1",
    "teacher_training.batch=1",
    "teacher.sweeps=2",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def open_lab(runs, tmp_path, reporter, accelerator):
    def make(name="mvp-bevdet.synthetic", *overrides):
        recipe = load_named(f"distillbev/{name}", (*SMALL, *overrides))
        dataset = open_dataset(recipe, 0, data_root=runs, runs=runs, reporter=reporter)
        return Laboratory(recipe, dataset, seed=0, root=tmp_path, reporter=reporter, accelerator=accelerator)

    return make


def test_points_are_made_on_first_need_and_stated(open_lab):
    plain = open_lab("centerpoint-bevdet.synthetic")
    assert not plain.dataset.virtual_points.path.exists()
    assert _data_sentence(plain.recipe, plain.dataset) == plain.dataset.summary
    lab = open_lab()
    sweeps = len(list(lab.dataset.index.root.glob("s*s/LIDAR_TOP/*.bin")))
    assert len(list(lab.dataset.virtual_points.path.rglob("*.safetensors"))) == sweeps > 6
    said = _data_sentence(lab.recipe, lab.dataset)
    assert said.startswith(lab.dataset.summary + " Virtual points from masks of the synthetic world, 14% missed")
    assert data_needs(lab.recipe.teacher, lab.recipe.student).clouds == {"painted"}
    assert data_needs(plain.recipe.teacher, plain.recipe.student).clouds == {"lidar"}


def test_other_errors_are_another_teacher(open_lab):
    one, other = open_lab(), open_lab("mvp-bevdet.synthetic", "dataset.virtual_points.miss=0.5")
    assert one.dataset.virtual_points.path != other.dataset.virtual_points.path
    stages = [arm_stage(lab, teacher_arm(lab.recipe), None) for lab in (one, other)]
    assert stages[0].fingerprint != stages[1].fingerprint
    assert len({stage.inputs["data"] for stage in stages}) == 2
    # A student that reads cameras alone does not depend on them.
    students = [arm_stage(lab, baseline_arm(lab.recipe), None).inputs["data"] for lab in (one, other)]
    assert students[0] == students[1]


def test_a_manifest_determines_the_teacher_where_the_configuration_does_not(open_lab):
    lab = open_lab()
    stages = []
    for content in ("a", "b"):
        folder = SimpleNamespace(manifest=SimpleNamespace(settings_hash=content))
        dataset = replace(lab.dataset, virtual_points=folder)
        stages.append(arm_stage(replace(lab, dataset=dataset), teacher_arm(lab.recipe), None).fingerprint)
    assert len(set(stages)) == 2


def test_a_teacher_trains_and_sweeps_without_points_are_counted(open_lab):
    lab = open_lab("mvp-bevdet.synthetic", "dataset.allow_missing_sweeps=true", "dataset.virtual_points.miss=0.3")
    folder: VirtualPointFolder = lab.dataset.virtual_points
    lacking = sorted((folder.path / "sweeps").rglob("*.safetensors"))[:2]
    for path in lacking:
        path.unlink()
    arm = teacher_arm(lab.recipe)
    stage = arm_stage(lab, arm, None)
    record = train_arm(lab, arm, stage, None)
    assert record["steps"] == 1
    assert record["notes"] == list(stage.trained["notes"]) == ["2 sweeps were read without virtual points"]
