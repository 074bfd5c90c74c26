"""Trainings that are stopped, or killed, and go on."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from bevkd_common.config.training import CheckpointConfig, EmaConfig
from bevkd_common.engine import train as train_module
from bevkd_common.engine.checkpoint import latest, load_file
from bevkd_common.engine.metrics_log import read_metrics
from bevkd_common.engine.tasks import StepOutput, SupervisedTask
from bevkd_common.engine.train import Keeping, rehearse
from bevkd_common.errors import TrainingStoppedError
from bevkd_common.models.detector import Term
from bevkd_common.progress import SilentReporter

EVERY_STEP = Keeping(CheckpointConfig(steps=1))


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


def assert_equal_files(folder, *stems):
    whole, halves = (latest(folder / name / "checkpoints").folder for name in ("whole", "halves"))
    assert {path.stem for path in whole.glob("*.safetensors")} == set(stems)
    for stem in stems:
        expected, found = load_file(whole / f"{stem}.safetensors"), load_file(halves / f"{stem}.safetensors")
        assert len(expected) > 0
        assert all(torch.equal(expected[name], found[name]) for name in expected)


class Listening(SilentReporter):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


def test_an_interrupted_training_goes_on_to_the_same_weights(
    run, interrupted, tmp_path, make_detector, lines, short
):
    config = short.model_copy(update={"ema": EmaConfig(decay=0.9, warmup_updates=2)})
    run(config, folder="whole")
    interrupted(config, lambda: SupervisedTask(make_detector()), "halves")
    assert_equal_files(tmp_path, "raw", "ema")
    assert [line["step"] for line in lines(tmp_path / "halves")] == [1, 10, 20, 25]


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


def test_ctrl_c_while_a_training_is_measured_is_no_crash(make_detector, clouds, short, monkeypatch):
    original = train_module._Training._optimizer_step

    def signalled(self, batches):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, batches)

    monkeypatch.setattr(train_module._Training, "_optimizer_step", signalled)
    with pytest.raises(TrainingStoppedError, match="stopped before anything was measured"):
        rehearse(SupervisedTask(make_detector()), clouds(), short, seed=0, accelerator=Accelerator(cpu=True))


def test_a_finished_training_that_nobody_recorded_is_not_repeated(run, tmp_path, monkeypatch):
    first = run()
    monkeypatch.setattr(train_module._Training, "run", pytest.fail)
    assert run() == first


@pytest.mark.parametrize("torn", [b'{"step": 13, "lo', b"\0" * 40, b'{"step"', b"[1]", b"\xff\xfe"])
def test_a_power_cut_in_the_log_stops_neither_training_nor_report(
    run, stop, tmp_path, make_detector, lines, short, torn
):
    run(short, folder="whole", task=SupervisedTask(make_detector()))
    stop(short, SupervisedTask(make_detector()), "halves", EVERY_STEP)
    log = tmp_path / "halves" / "metrics.jsonl"
    kept = read_metrics(log)
    with log.open("ab") as file:
        file.write(torn)
    assert read_metrics(log) == kept
    run(short, folder="halves", task=SupervisedTask(make_detector()))
    steps = [[line["step"] for line in lines(tmp_path / name)] for name in ("whole", "halves")]
    assert steps[0] == steps[1]
    assert len(steps[0]) >= 2


def test_a_damaged_checkpoint_costs_one_interval(run, stop, tmp_path, make_detector, short):
    run(folder="whole")
    stop(short, SupervisedTask(make_detector()), "halves", Keeping(CheckpointConfig(steps=5)))
    newest = latest(tmp_path / "halves" / "checkpoints")
    assert newest.step == 10
    (newest.folder / "state.pt").write_bytes(b"")
    reporter = Listening()
    run(folder="halves", reporter=reporter)
    assert "step-000010 is damaged and not used: state.pt has changed" in reporter.said[0]
    assert reporter.said[1] == "training: goes on from step 5 of 25"
    assert_equal_files(tmp_path, "raw")


def test_what_was_frozen_stays_frozen_after_an_interruption(
    run, interrupted, tmp_path, make_detector, weights, short
):
    """A method freezes parts of the student when it prepares it, which a resumed training does not repeat."""

    def frozen():
        detector = make_detector()
        detector.scale.bias.requires_grad_(False)
        return SupervisedTask(detector)

    run(folder="whole", task=frozen())
    tasks = iter([frozen(), SupervisedTask(make_detector())])
    interrupted(short, lambda: next(tasks), "halves")
    assert_equal_files(tmp_path, "raw")
    assert torch.equal(weights(tmp_path / "halves")["scale.bias"], make_detector().scale.bias)


def test_random_numbers_go_on_where_they_were(run, interrupted, tmp_path, make_detector, short):
    class Noisy(SupervisedTask):
        def forward(self, batch):
            output = super().forward(batch)
            return StepOutput({name: Term(term.value * torch.rand(())) for name, term in output.terms.items()}, {})

    torch.manual_seed(5)
    run(folder="whole", task=Noisy(make_detector()))
    interrupted(short, lambda: Noisy(make_detector()), "halves")
    assert_equal_files(tmp_path, "raw")


def test_an_interrupted_pretraining_goes_on_with_its_objective(run, interrupted, tmp_path, short, pretraining):
    run(folder="whole", task=pretraining())
    interrupted(short, pretraining, "halves")
    assert_equal_files(tmp_path, "raw", "objective")


def test_skipped_samples_are_counted_over_an_interruption(
    interrupted, tmp_path, make_detector, monkeypatch, lines, short
):
    original = train_module.training_batches
    monkeypatch.setattr(
        train_module,
        "training_batches",
        lambda *args, **kwargs: (replace(batch, skipped=("x",)) for batch in original(*args, **kwargs)),
    )
    interrupted(short, lambda: SupervisedTask(make_detector()), "halves")
    assert lines(tmp_path / "halves")[-1]["skipped"] == 25
