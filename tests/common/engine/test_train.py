import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator
from bevkd_common.config.training import (
    OneCycleSchedule,
    OptimizerConfig,
    TrainingConfig,
)
from bevkd_common.data.needs import DataNeeds, KeyframeQueue
from bevkd_common.distill.method import ParamGroup
from bevkd_common.engine import trackers
from bevkd_common.engine import train as train_module
from bevkd_common.engine.evaluate import evaluate
from bevkd_common.engine.optimizer import build_optimizer, grouped_parameters, split_batch
from bevkd_common.engine.tasks import DistillationTask, SupervisedTask
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.engine.train import Keeping, total_steps
from bevkd_common.errors import UserError
from bevkd_common.progress import SilentReporter
from torch import nn


def test_training_lowers_the_loss(run, tmp_path, make_detector, lines, short):
    # The whole split at each step, so that batch norm sees the same mean and deviation and the line can be fitted.
    detector = make_detector()
    nn.init.constant_(detector.scale.bias, 3.0)
    optimizer = OptimizerConfig(lr=0.1)
    run(short.model_copy(update={"steps": 80, "batch": 10, "optimizer": optimizer}), task=SupervisedTask(detector))
    losses = [line["loss"] for line in lines(tmp_path / "a")]
    assert losses[0] > 0.5 * 2.5**2  # the targets' mean is 0.2
    assert losses[-1] < 0.02


def test_every_term_is_logged_with_its_weight(run, tmp_path, lines):
    trained = run()
    logged = lines(tmp_path / "a")
    assert trained.steps == 25
    assert [line["step"] for line in logged] == [1, 10, 20, 25]
    assert set(logged[0]) == {
        "step",
        "loss",
        "lr",
        "terms",
        "metrics",
        "grad_norm",
        "data_s",
        "step_s",
        "memory_gb",
    }
    term = logged[0]["terms"]["detection/square"]
    assert term["weight"] == 0.5
    assert logged[0]["loss"] == pytest.approx(0.5 * term["value"], rel=1e-5)
    assert logged[0]["metrics"]["detection/error"] == pytest.approx(term["value"] ** 0.5, rel=0.5)
    assert logged[-1]["lr"] < 0.01 * 0.05


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run, tmp_path, weights):
    run(folder="a")
    run(folder="b")
    run(folder="c", seed=1)
    first, second, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_samples(run, tmp_path, clouds, short):
    with pytest.raises(UserError, match=r"not finite at step 1 .*sample-3.*non-finite\.json"):
        run(short.model_copy(update={"batch": 10}), source=clouds(poison=3))
    kept = json.loads((tmp_path / "a" / "non-finite.json").read_text())
    assert kept["step"] == 1
    assert sorted(kept["samples"]) == sorted(f"sample-{index}" for index in range(10))
    assert kept["terms"] == {"detection/square": "nan"}


def test_a_loss_that_is_not_finite_names_its_micro_batch_and_changes_no_weight(
    run, tmp_path, clouds, make_detector, short
):
    detector = make_detector()
    config = short.model_copy(update={"batch": 10, "micro_batch": 2})
    with pytest.raises(UserError, match="not finite at step 1"):
        run(config, source=clouds(poison=3), task=SupervisedTask(detector))
    kept = json.loads((tmp_path / "a" / "non-finite.json").read_text())
    assert len(kept["samples"]) == 2
    assert "sample-3" in kept["samples"]
    before, after = make_detector().state_dict(), detector.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in ("scale.weight", "scale.bias"))


def test_batch_norm_can_be_frozen(run, tmp_path, make_detector, weights, short):
    run(short.model_copy(update={"batch_norm": "frozen"}))
    trained, before = weights(tmp_path / "a"), make_detector().state_dict()
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(trained[name], before[name])
    assert not torch.equal(trained["norm.weight"], before["norm.weight"])


class FakeTracker:
    """Keeps what it is told, as accelerate's trackers are called."""

    requires_logging_directory = True
    open: ClassVar[list] = []

    def __init__(self, run_name, logging_dir):
        self.about, self.logged, self.state = (run_name, logging_dir), {}, "made"
        self.open.append(self)

    def start(self):
        self.state = "started"

    def log(self, values, step):
        assert self.state == "started"
        self.logged[step] = values

    def finish(self):
        self.state = "finished"


def test_trackers_get_the_metrics(run, tmp_path, monkeypatch, lines):
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "tensorboard", FakeTracker)
    monkeypatch.setitem(trackers.INSTALLED, "tensorboard", lambda: True)
    run(keeping=Keeping(trackers=("tensorboard",)))
    (tracker,) = FakeTracker.open
    assert tracker.about == ("training", tmp_path / "a" / "trackers")
    assert tracker.state == "finished"
    assert sorted(tracker.logged) == [1, 10, 20, 25]
    logged = lines(tmp_path / "a")[1]
    assert tracker.logged[10]["loss"] == logged["loss"]
    assert tracker.logged[10]["terms/detection/square/value"] == logged["terms"]["detection/square"]["value"]


def test_trackers_that_are_not_there_are_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="no tracker `paper`: choose from tensorboard, wandb, mlflow"):
        trackers.check_trackers(["paper"])
    monkeypatch.setitem(trackers.INSTALLED, "wandb", lambda: False)
    with pytest.raises(UserError, match="wandb is not installed: uv pip install wandb"):
        trackers.check_trackers(["wandb"])


def test_accumulated_micro_batches_see_the_whole_batch(run, tmp_path, make_detector, weights, short):
    # Batch norm sees micro-batches, so the norm is frozen for the comparison.
    def task():
        detector = make_detector()
        detector.norm.eval()
        detector.norm.train = lambda mode=True: detector.norm
        return SupervisedTask(detector)

    run(folder="whole", task=task())
    run(short.model_copy(update={"micro_batch": 2}), folder="parts", task=task())
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.allclose(whole[name].float(), parts[name].float(), atol=1e-5) for name in whole)


def test_split_batch_keeps_the_effective_batch():
    config = TrainingConfig(steps=1, batch=64, optimizer=OptimizerConfig(lr=1.0))
    assert split_batch(config, 1) == (64, 1)
    assert split_batch(config, 8) == (8, 1)
    assert split_batch(config.model_copy(update={"micro_batch": 4}), 8) == (4, 2)
    with pytest.raises(UserError, match="not a multiple of 3 processes"):
        split_batch(config, 3)


def test_total_steps_rounds_the_last_batch_up(clouds):
    optimizer = OptimizerConfig(lr=1.0)
    assert total_steps(TrainingConfig(epochs=2, batch=4, optimizer=optimizer), clouds(10), 0) == 6
    assert total_steps(TrainingConfig(steps=7, batch=4, optimizer=optimizer), clouds(10), 0) == 7


def test_a_class_balanced_epoch_is_as_long_as_its_draws(clouds):
    class Aware(clouds):
        def classes_present(self, index):
            return frozenset({0, 1} if index == 0 else {0})

    # Eleven pairs of a sample and a class, two classes: five draws each.
    balanced = TrainingConfig(epochs=1, batch=4, optimizer=OptimizerConfig(lr=1.0), class_balanced=True)
    assert total_steps(balanced, Aware(10), 0) == 3


def test_clipping_and_momentum_follow_the_recipe(run, tmp_path, lines, short):
    schedule = OneCycleSchedule(start_factor=1.0, final_factor=1.0)
    run(short.model_copy(update={"clip_norm": None, "schedule": schedule, "precision": "bf16"}))
    logged = lines(tmp_path / "a")
    assert len(logged) == 4
    assert all(math.isfinite(line["grad_norm"]) for line in logged)
    assert logged[0]["lr"] == logged[-1]["lr"] == pytest.approx(0.05)


def test_evaluation_feeds_every_sample_in_order(detector, clouds):
    seen = []

    class Recorder:
        def update(self, batch, detections):
            assert len(batch) == len(detections)
            seen.extend(batch.tokens)

    evaluate(
        detector,
        clouds(),
        Recorder(),
        batch=4,
        workers=0,
        accelerator=Accelerator(cpu=True),
        precision=None,
        title="scoring",
        reporter=SilentReporter(),
    )
    assert seen == [f"sample-{index}" for index in range(10)]
    assert not detector.training


def test_a_detector_that_remembers_gets_the_key_frames_one_by_one(detector, clouds):
    told = []

    class Remembering(type(detector)):
        needs = DataNeeds(clouds=frozenset({"lidar"}), history=KeyframeQueue(recurrent=True))

        def forward(self, batch, want, state=None):
            told.append((state, batch.tokens))
            return replace(super().forward(batch, want), state=batch.tokens)

    class Counter:
        def update(self, batch, detections):
            assert len(batch) == len(detections) == 1

    evaluate(
        Remembering(),
        clouds(),
        Counter(),
        batch=4,
        workers=0,
        accelerator=Accelerator(cpu=True),
        precision=None,
        title="scoring",
        reporter=SilentReporter(),
    )
    names = [(f"sample-{index}",) for index in range(10)]
    assert told == list(zip([None, *names[:-1]], names, strict=True))


def test_each_group_of_parameters_has_its_own_pace(short):
    class Method(nn.Linear):
        def param_groups(self):
            return [ParamGroup([self.weight], lr_factor=2.0), ParamGroup([self.bias], weight_decay=0.0)]

    detector = nn.ModuleDict({"image_backbone": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    detector["head"].bias.requires_grad_(False)
    task = DistillationTask(detector, FrozenTeacher(nn.Linear(1, 1)), Method(1, 1))
    optimizer = OptimizerConfig(lr=1.0, lr_factors={"image_backbone": 0.1}, weight_decay=0.3)
    groups = build_optimizer(task, short.model_copy(update={"optimizer": optimizer})).param_groups
    assert [group["lr_factor"] for group in groups] == [0.1, 1.0, 2.0, 1.0]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.3, 0.0]
    assert [len(group["params"]) for group in groups] == [2, 1, 1, 1]


def test_the_longest_module_path_sets_the_pace():
    detector = nn.ModuleDict(
        {"neck": nn.ModuleDict({"fine": nn.Linear(1, 1), "finest": nn.Linear(1, 1)}), "head": nn.Linear(1, 1)}
    )
    groups = grouped_parameters(detector, {"neck": 0.5, "neck.fine": 0.1})
    assert {factor: list(map(id, parameters)) for factor, parameters in groups.items()} == {
        0.1: list(map(id, detector["neck"]["fine"].parameters())),
        0.5: list(map(id, detector["neck"]["finest"].parameters())),
        1.0: list(map(id, detector["head"].parameters())),
    }


def test_a_path_that_is_no_module_is_one_sentence():
    detector = nn.ModuleDict({"image_backbone": nn.Linear(1, 1)})
    with pytest.raises(
        UserError, match=r"names `image_backbon`, which .* does not have; did you mean `image_backbone`"
    ):
        grouped_parameters(detector, {"image_backbon": 0.1})


def test_pretraining_moves_its_part_of_the_detector(run, tmp_path, lines, pretraining):
    task = pretraining()
    # A frozen parameter is no business of several processes either.
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert trained == {"detector.scale.weight", "detector.scale.bias", "objective.offset"}
    scale = task.detector.scale.weight.detach().clone()
    run(task=task)
    assert not torch.equal(task.detector.scale.weight, scale)
    assert task.detector.untouched.weight.item() == 2.0
    assert task.objective.offset.item() != 0.0
    assert lines(tmp_path / "a")[-1]["terms"].keys() == {"pretraining/mean"}
    assert lines(tmp_path / "a")[-1]["loss"] < lines(tmp_path / "a")[0]["loss"]


def test_skipped_samples_are_counted_in_the_log_and_said(run, tmp_path, clouds, monkeypatch, lines):
    source = clouds()
    original = type(source).load

    def load(self, index, *, seed):
        sample = original(self, index, seed=seed)
        return replace(sample, skipped=("file x is damaged",)) if index == 3 else sample

    monkeypatch.setattr(type(source), "load", load)
    said = []
    monkeypatch.setattr(SilentReporter, "say", lambda self, message: said.append(message))
    trained = run(source=source)
    # 25 steps of 4 samples are 10 epochs of 10 samples.
    assert trained.skipped == 10
    assert lines(tmp_path / "a")[-1]["skipped"] == 10
    assert said == ["training: 10 damaged samples were skipped, the first: file x is damaged"]
    monkeypatch.setattr(type(source), "load", original)
    assert run(folder="b").skipped == 0
    assert "skipped" not in lines(tmp_path / "b")[-1]


def test_a_stall_does_not_change_the_pace(run, clouds, monkeypatch):
    source = clouds()
    original = type(source).load
    now = 0.0
    waits = iter([1000.0])

    def load(self, index, *, seed):
        nonlocal now
        now += next(waits, 1.0)
        return original(self, index, seed=seed)

    monkeypatch.setattr(type(source), "load", load)
    monkeypatch.setattr(train_module, "time", SimpleNamespace(monotonic=lambda: now))
    trained = run(source=source)
    assert trained.steps == 25
    assert trained.step_s == 4.0  # four samples, a second each
    assert trained.seconds == 25 * 4.0 + 999.0
