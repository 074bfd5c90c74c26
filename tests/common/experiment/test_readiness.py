"""What is looked for before the first training."""

from dataclasses import replace

import pytest
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.detectors.bevdet import BevDetConfig
from bevkd_common.data.assemble import FrameSource
from bevkd_common.data.contents import Contents
from bevkd_common.errors import UserError
from bevkd_common.experiment.build import data_needs, shape_of
from bevkd_common.experiment.readiness import check_data, verify_data
from bevkd_common.experiment.run import run_experiment
from bevkd_common.experiment.stages import STAGES

PRETRAINED = (
    "student={kind: toy_pretrainable, channels: 4}",
    "student_pretraining={steps: 2, batch: 4, optimizer: {lr: 0.1}}",
)


class Watched:
    """A data set that keeps what was asked of it."""

    def __init__(self, dataset, missing=None):
        self.dataset, self.missing, self.asked = dataset, missing, []
        self.name, self.classes = dataset.name, dataset.classes

    def source(self, split, needs):
        self.asked.append(split)
        if len(self.asked) == self.missing:
            raise UserError("a file of the student is missing")
        return self.dataset.source(split, needs)


def test_both_splits_are_opened_for_each_detector_and_pretraining(make_lab):
    lab = make_lab(*PRETRAINED)
    watched = Watched(lab.dataset)
    check_data(replace(lab, dataset=watched))
    assert watched.asked == ["train", "val"] * 3


@pytest.mark.parametrize("missing", range(1, 7))
def test_what_any_of_them_lacks_is_said(make_lab, missing):
    lab = make_lab(*PRETRAINED)
    with pytest.raises(UserError, match="a file of the student is missing"):
        check_data(replace(lab, dataset=Watched(lab.dataset, missing)))


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_box_stops_a_run_before_anything_is_trained(
    make_recipe, request_for, reporter, accelerator, monkeypatch, split, jobs
):
    def none_in_split(self, index):
        return frozenset() if split in self.tokens[index] else frozenset({0})

    monkeypatch.setattr(FrameSource, "classes_present", none_in_split)
    request = request_for()
    with pytest.raises(UserError, match=rf"no sample of the {split} split of toy_data has a box .* van, post"):
        run_experiment(make_recipe(), request, reporter, accelerator, jobs=jobs)
    assert not (request.out.parent / STAGES).exists()


def test_one_box_is_enough(make_lab, monkeypatch):
    last = len(make_lab().dataset.source("val", make_lab().build(make_lab().recipe.student).needs)) - 1
    monkeypatch.setattr(FrameSource, "classes_present", lambda self, index: frozenset({1} if index == last else ()))
    check_data(make_lab())


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"lift_channels": 10**12}, r"\d\.\de\+\d+ parameters"),
        ({"image_neck_channels": 10**14}, "Storage size calculation overflowed .*"),
    ],
)
def test_a_detector_that_fits_into_no_memory_is_one_sentence(sizes, reason):
    config = BevDetConfig.model_validate(sizes)
    with pytest.raises(UserError, match=rf"a bevdet of these sizes fits into no memory \({reason}\): lower them"):
        shape_of(config, CLASSES)


class Verified(Watched):
    """A data set with two files, of which some changed."""

    def __init__(self, dataset, changed):
        super().__init__(dataset)
        self.changed = changed

    def verify(self, needs, reporter):
        self.asked.append(needs)
        return Contents("", 2, self.changed)


def test_verifying_says_what_changed(make_lab, reporter):
    lab = make_lab()
    for changed in ((), ("a/b.bin",)):
        watched = Verified(lab.dataset, changed)
        verify_data(replace(lab, dataset=watched))
        assert watched.asked == [data_needs(lab.recipe.teacher, lab.recipe.student)]
    assert reporter.said == [
        "data     2 files read, none differs from what was recorded",
        "data     1 of 2 files differ from what was recorded, such as a/b.bin; stages that were trained on other "
        "content are not used",
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_data_that_cannot_be_verified_is_refused_before_anything_is_trained(
    make_recipe, request_for, reporter, accelerator, jobs
):
    request = request_for(verify_data=True)
    with pytest.raises(UserError, match="--verify-data: data of the kind toy_data cannot be verified"):
        run_experiment(make_recipe(), request, reporter, accelerator, jobs=jobs)
    assert not list((request.out.parent / STAGES).glob("*/trained.json"))
