"""The toy experiment in this process."""

import pytest
from accelerate import Accelerator
from bevkd_common.config.reading.loading import load_recipe
from bevkd_common.experiment.execution import open_dataset
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.request import Request
from bevkd_common.progress import SilentReporter

SHORT = ("student_training.steps=3", "teacher_training.steps=4")


class Listening(SilentReporter):
    """Keeps what was said."""

    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.fixture
def reporter():
    return Listening()


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def make_recipe(toy):
    def make(*overrides):
        return load_recipe(toy, (*SHORT, *overrides))

    return make


@pytest.fixture
def request_for(tmp_path):
    def make(**changes):
        content = {"out": tmp_path / "runs" / "try", "data_root": None, "seeds": (0,)}
        return Request(**(content | changes))

    return make


@pytest.fixture
def make_lab(make_recipe, reporter, accelerator, tmp_path):
    def make(*overrides, seed=0, recipe=None):
        recipe = recipe or make_recipe(*overrides)
        root = tmp_path / "runs"
        dataset = open_dataset(recipe, seed, data_root=None, runs=root, reporter=reporter)
        return Laboratory(recipe, dataset, seed=seed, root=root, reporter=reporter, accelerator=accelerator)

    return make
