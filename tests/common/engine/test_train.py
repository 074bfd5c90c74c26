import json
import math
import os
import signal
import time
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator
from bevkd_common.config.training import (
    CheckpointConfig,
    CosineSchedule,
    EmaConfig,
    OneCycleSchedule,
    OptimizerConfig,
    TrainingConfig,
)
from bevkd_common.data.needs import DataNeeds, KeyframeQueue
from bevkd_common.distill.method import ParamGroup
from bevkd_common.engine import trackers
from bevkd_common.engine import train as train_module
from bevkd_common.engine.checkpoint import latest, load_file, newest_sound
from bevkd_common.engine.evaluate import evaluate
from bevkd_common.engine.optimizer import build_optimizer, grouped_parameters, split_batch
from bevkd_common.engine.progress import SilentReporter
from bevkd_common.engine.tasks import DistillationTask, PretrainingTask, StepOutput, SupervisedTask
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.engine.train import Keeping, total_steps, train
from bevkd_common.errors import TrainingStoppedError, UserError
from bevkd_common.models.detector import Term
from torch import nn

CONFIG = TrainingConfig(steps=25, batch=4, optimizer=OptimizerConfig(lr=0.05), schedule=CosineSchedule())
EVERY_STEP = Keeping(CheckpointConfig(steps=1))


@pytest.fixture
def run(tmp_path, make_detector, clouds):
    def call(config=CONFIG, *, folder="a", source=None, seed=0, task=None, keeping=None, reporter=None):
        reporter = reporter or SilentReporter()
        return train(
            task or SupervisedTask(make_detector()),
            source or clouds(),
            config,
            seed=seed,
            folder=tmp_path / folder,
            start=newest_sound(tmp_path / folder / "checkpoints", reporter.say),
            architectures={"raw": "abc", "method": "def"},
            title="training",
            reporter=reporter,
            accelerator=Accelerator(cpu=True),
            keeping=keeping,
        )

    return call


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(latest(folder / "checkpoints").folder / "raw.safetensors")


def test_training_lowers_the_loss(run, tmp_path, make_detector):
    # The whole split at each step, so that batch norm sees the same mean and deviation and the line can be fitted.
    detector = make_detector()
    nn.init.constant_(detector.scale.bias, 3.0)
    optimizer = OptimizerConfig(lr=0.1)
    run(CONFIG.model_copy(update={"steps": 80, "batch": 10, "optimizer": optimizer}), task=SupervisedTask(detector))
    losses = [line["loss"] for line in lines(tmp_path / "a")]
    assert losses[0] > 0.5 * 2.5**2  # the targets' mean is 0.2
    assert losses[-1] < 0.02


def test_every_term_is_logged_with_its_weight(run, tmp_path):
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
    assert logged[-1]["lr"] < 0.01 * 0.05


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run, tmp_path):
    run(folder="a")
    run(folder="b")
    run(folder="c", seed=1)
    first, second, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.fixture
def stop(run, monkeypatch):
    """Stops a training after 13 steps."""

    def call(config, task, folder, keeping):
        original = train_module._Training._optimizer_step

        def stopping(self, batches):
            if self.step == 13:
                raise KeyboardInterrupt
            return original(self, batches)

        with monkeypatch.context() as patch:
            patch.setattr(train_module._Training, "_optimizer_step", stopping)
            with pytest.raises(KeyboardInterrupt):
                run(config, folder=folder, task=task, keeping=keeping)

    return call


@pytest.fixture
def interrupted(run, stop):
    """Stops a training, and goes on with a fresh task."""

    def call(config, make_task, folder):
        stop(config, make_task(), folder, EVERY_STEP)
        run(config, folder=folder, task=make_task())

    return call


def test_an_interrupted_training_goes_on_to_the_same_weights(run, interrupted, tmp_path, make_detector):
    config = CONFIG.model_copy(update={"ema": EmaConfig(decay=0.9, warmup_updates=2)})
    run(config, folder="whole")
    interrupted(config, lambda: SupervisedTask(make_detector()), "halves")
    assert_equal_files(tmp_path, "raw", "ema")
    assert [line["step"] for line in lines(tmp_path / "halves")] == [1, 10, 20, 25]


def assert_equal_files(folder, *stems):
    whole, halves = (latest(folder / name / "checkpoints").folder for name in ("whole", "halves"))
    assert {path.stem for path in whole.glob("*.safetensors")} == set(stems)
    for stem in stems:
        expected, found = load_file(whole / f"{stem}.safetensors"), load_file(halves / f"{stem}.safetensors")
        assert len(expected) > 0
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_samples(run, tmp_path, clouds):
    with pytest.raises(UserError, match=r"not finite at step 1 .*sample-3.*non-finite\.json"):
        run(CONFIG.model_copy(update={"batch": 10}), source=clouds(poison=3))
    kept = json.loads((tmp_path / "a" / "non-finite.json").read_text())
    assert kept["step"] == 1
    assert sorted(kept["samples"]) == sorted(f"sample-{index}" for index in range(10))
    assert kept["terms"] == {"detection/square": "nan"}


class Listening(SilentReporter):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_keeps_it(run, tmp_path, make_detector, monkeypatch, number):
    run(folder="whole")
    original = train_module._Training._optimizer_step

    def signalled(self, batches):
        if self.step == 12:
            os.kill(os.getpid(), number)
        return original(self, batches)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(train_module._Training, "_optimizer_step", signalled)
        with pytest.raises(TrainingStoppedError, match="stopped after step 13 of 25, which is kept") as caught:
            run(folder="halves")
    assert caught.value.signal == number
    assert signal.getsignal(number) == before
    reporter = Listening()
    run(folder="halves", reporter=reporter)
    assert reporter.said == ["training: goes on from step 13 of 25"]
    assert_equal_files(tmp_path, "raw")


def test_a_launchers_sigterm_after_ctrl_c_does_not_cut_the_step_short(run, tmp_path, monkeypatch):
    original = train_module._Training._optimizer_step

    def both(self, batches):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return original(self, batches)

    monkeypatch.setattr(train_module._Training, "_optimizer_step", both)
    with pytest.raises(TrainingStoppedError) as caught:
        run()
    assert caught.value.signal == signal.SIGINT
    assert latest(tmp_path / "a" / "checkpoints").step == 1


def test_a_second_ctrl_c_interrupts_at_once(run, monkeypatch):
    def twice(self, batches):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train_module._Training, "_optimizer_step", twice)
    with pytest.raises(KeyboardInterrupt):
        run()


def test_a_finished_training_that_nobody_recorded_is_not_repeated(run, tmp_path, monkeypatch):
    first = run()
    monkeypatch.setattr(train_module._Training, "run", pytest.fail)
    assert run() == first


def test_a_damaged_checkpoint_costs_one_interval(run, stop, tmp_path, make_detector):
    run(folder="whole")
    stop(CONFIG, SupervisedTask(make_detector()), "halves", Keeping(CheckpointConfig(steps=5)))
    newest = latest(tmp_path / "halves" / "checkpoints")
    assert newest.step == 10
    (newest.folder / "state.pt").write_bytes(b"")
    reporter = Listening()
    run(folder="halves", reporter=reporter)
    assert "step-000010 is damaged and not used: state.pt has changed" in reporter.said[0]
    assert reporter.said[1] == "training: goes on from step 5 of 25"
    assert_equal_files(tmp_path, "raw")


def test_what_was_frozen_stays_frozen_after_an_interruption(run, interrupted, tmp_path, make_detector):
    """A method freezes parts of the student when it prepares it, which a resumed training does not repeat."""

    def frozen():
        detector = make_detector()
        detector.scale.bias.requires_grad_(False)
        return SupervisedTask(detector)

    run(folder="whole", task=frozen())
    tasks = iter([frozen(), SupervisedTask(make_detector())])
    interrupted(CONFIG, lambda: next(tasks), "halves")
    assert_equal_files(tmp_path, "raw")
    assert torch.equal(weights(tmp_path / "halves")["scale.bias"], make_detector().scale.bias)


def test_random_numbers_go_on_where_they_were(run, interrupted, tmp_path, make_detector):
    class Noisy(SupervisedTask):
        def forward(self, batch):
            output = super().forward(batch)
            return StepOutput({name: Term(term.value * torch.rand(())) for name, term in output.terms.items()}, {})

    torch.manual_seed(5)
    run(folder="whole", task=Noisy(make_detector()))
    interrupted(CONFIG, lambda: Noisy(make_detector()), "halves")
    assert_equal_files(tmp_path, "raw")


def test_batch_norm_can_be_frozen(run, tmp_path, make_detector):
    run(CONFIG.model_copy(update={"batch_norm": "frozen"}))
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


def test_trackers_get_the_metrics(run, tmp_path, monkeypatch):
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


def test_accumulated_micro_batches_see_the_whole_batch(run, tmp_path, make_detector):
    # Batch norm sees micro-batches, so the norm is frozen for the comparison.
    def task():
        detector = make_detector()
        detector.norm.eval()
        detector.norm.train = lambda mode=True: detector.norm
        return SupervisedTask(detector)

    run(folder="whole", task=task())
    run(CONFIG.model_copy(update={"micro_batch": 2}), folder="parts", task=task())
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


def test_clipping_and_momentum_follow_the_recipe(run, tmp_path):
    schedule = OneCycleSchedule(start_factor=1.0, final_factor=1.0)
    run(CONFIG.model_copy(update={"clip_norm": None, "schedule": schedule, "precision": "bf16"}))
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
        needs = DataNeeds(sweeps=1, history=KeyframeQueue(recurrent=True))

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


def test_each_group_of_parameters_has_its_own_pace():
    class Method(nn.Linear):
        def param_groups(self):
            return [ParamGroup([self.weight], lr_factor=2.0), ParamGroup([self.bias], weight_decay=0.0)]

    detector = nn.ModuleDict({"image_backbone": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    detector["head"].bias.requires_grad_(False)
    task = DistillationTask(detector, FrozenTeacher(nn.Linear(1, 1)), Method(1, 1))
    optimizer = OptimizerConfig(lr=1.0, lr_factors={"image_backbone": 0.1}, weight_decay=0.3)
    groups = build_optimizer(task, CONFIG.model_copy(update={"optimizer": optimizer})).param_groups
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


class Mean(nn.Module):
    """Fits its own offset and the detector's scale to ones."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))

    def trained(self, detector):
        return [detector.scale]

    def forward(self, detector, batch):
        outputs = detector(batch, frozenset({"head"}))
        return {"mean": Term((outputs.head[0]["value"].mean() + self.offset - 1.0).square().sum())}


def pretraining(make_detector):
    detector = make_detector()
    detector.untouched = nn.Linear(1, 1)
    nn.init.constant_(detector.untouched.weight, 2.0)
    return PretrainingTask(detector, Mean())


def test_pretraining_moves_its_part_of_the_detector(run, tmp_path, make_detector):
    task = pretraining(make_detector)
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


def test_an_interrupted_pretraining_goes_on_with_its_objective(run, interrupted, tmp_path, make_detector):
    run(folder="whole", task=pretraining(make_detector))
    interrupted(CONFIG, lambda: pretraining(make_detector), "halves")
    assert_equal_files(tmp_path, "raw", "objective")


def test_skipped_samples_are_counted_in_the_log_and_said(run, tmp_path, clouds, monkeypatch):
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
    waits = iter([0.3])

    def load(self, index, *, seed):
        time.sleep(next(waits, 0.0))
        return original(self, index, seed=seed)

    monkeypatch.setattr(type(source), "load", load)
    trained = run(source=source)
    assert trained.seconds > 0.3
    assert trained.step_s * trained.steps < 0.3


def test_skipped_samples_are_counted_over_an_interruption(interrupted, tmp_path, make_detector, monkeypatch):
    original = train_module.training_batches
    monkeypatch.setattr(
        train_module,
        "training_batches",
        lambda *args, **kwargs: (replace(batch, skipped=("x",)) for batch in original(*args, **kwargs)),
    )
    interrupted(CONFIG, lambda: SupervisedTask(make_detector()), "halves")
    assert lines(tmp_path / "halves")[-1]["skipped"] == 25
