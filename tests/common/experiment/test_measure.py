"""What a plan says of trainings that do not fit, without training any."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.datasets.nuscenes_reading import NuScenesReadingConfig
from bevkd_common.engine.train import Rehearsal
from bevkd_common.errors import TrainingStoppedError, UserError
from bevkd_common.experiment import measure
from bevkd_common.experiment.measure import Estimate


def test_memory_decides_whether_a_training_fits():
    took = Rehearsal(steps=7200, step_s=0.5, data_s=0.1, memory=90, checkpoint=1)
    assert Estimate("x", took, 100).fits
    assert Estimate("x", took, 100).hours == pytest.approx(1.0)
    assert not Estimate("x", took, 91).fits
    assert not Estimate("x", None, 10**12).fits


class Process:
    """A process that ends as it is told to."""

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def start(self):
        pass

    def join(self):
        pass


@pytest.fixture
def ending(monkeypatch, make_recipe, request_for):
    """Measures one training in a process that ends with a code and without an answer."""

    def call(exitcode):
        context = SimpleNamespace(Process=lambda target, args: Process(exitcode))
        monkeypatch.setattr(measure.multiprocessing, "get_context", lambda _: context)
        return measure._in_a_process(make_recipe(), request_for(), "teacher", cpu=True)

    return call


def test_a_process_that_the_system_kills_did_not_fit(ending):
    assert ending(-signal.SIGKILL) is None


def test_another_end_is_an_error(ending):
    with pytest.raises(UserError, match="measuring teacher ended with exit code 1"):
        ending(1)


@pytest.mark.parametrize("error", [UserError("no such data"), TrainingStoppedError("no such data", 2)])
def test_a_users_mistake_comes_through(make_recipe, request_for, tmp_path, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(measure, "_rehearsal", fails)
    (tmp_path / "recipe.yaml").write_text(measure.dump(make_recipe()))
    measure._measure(str(tmp_path), request_for(), "teacher", True)
    assert (tmp_path / "answer.json").read_text() == '{"error": "no such data"}'


def test_every_training_of_a_recipe_is_measured(make_recipe, request_for, reporter, monkeypatch):
    took = Rehearsal(steps=10, step_s=1.0, data_s=0.1, memory=1, checkpoint=1)
    monkeypatch.setattr(measure, "_in_a_process", lambda recipe, request, name, cpu: took)
    found = measure.estimate(make_recipe(), request_for(ablations=("no_tokens",)), reporter, cpu=True)
    assert [one.title for one in found] == ["teacher", "baseline", "distilled", "no_tokens"]
    assert all(one.fits for one in found)


def test_made_samples_of_the_same_sizes_stand_in_for_data_that_are_not_at_hand(make_recipe, request_for):
    config = NuScenesConfig(images=ImageInputConfig(height=512, width=1408), point_range=(-54, -54, -5, 54, 54, 3))
    recipe = make_recipe().model_copy(update={"dataset": config})
    made = measure.stand_in(recipe, request_for())
    assert made is not None
    world = made.dataset.world
    assert (made.dataset.kind, world.image_size, world.scenes) == ("synthetic", (900, 1600), 2)
    assert world.keyframes_per_scene >= 4  # BEVFormer's queue
    assert len(NuScenesReadingConfig.model_fields) >= 10
    for name in NuScenesReadingConfig.model_fields:
        assert getattr(made.dataset, name) == getattr(config, name)
    assert made.teacher == recipe.teacher
    assert made.student_training == recipe.student_training


def test_data_that_are_at_hand_or_can_be_made_stand_for_themselves(make_recipe, request_for, tmp_path):
    recipe = make_recipe()
    read = recipe.model_copy(update={"dataset": NuScenesConfig()})
    assert measure.stand_in(read, replace(request_for(), data_root=tmp_path)) is None
    assert measure.stand_in(recipe, request_for()) is None
