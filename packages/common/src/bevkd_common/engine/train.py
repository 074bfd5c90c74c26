"""The training loop."""

from __future__ import annotations

import json
import math
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bevkd_common.config.training import CheckpointConfig, TrainingConfig
from bevkd_common.data.dataset import SampleSource
from bevkd_common.data.loader import TrainingOrder, training_batches
from bevkd_common.data.samples import Batch
from bevkd_common.engine import checkpoint
from bevkd_common.engine.allocator import keep_freed_memory
from bevkd_common.engine.checkpoint import Checkpoint
from bevkd_common.engine.ema import Ema
from bevkd_common.engine.interrupt import StopRequest
from bevkd_common.engine.metrics_log import MetricsLog
from bevkd_common.engine.optimizer import build_optimizer, split_batch, trained_parameters
from bevkd_common.engine.schedule import first_beta, lr_factor
from bevkd_common.engine.tasks import StepOutput, Task
from bevkd_common.engine.trackers import Trackers
from bevkd_common.errors import TrainingStoppedError, UserError
from bevkd_common.progress import Bar, Reporter, SilentReporter

LOG_EVERY = 10
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTOCAST = {name: None if dtype == torch.float32 else dtype for name, dtype in DTYPES.items()}
NON_FINITE = "non-finite.json"
REHEARSED = 3
"""Steps of a rehearsal; the first warms up and is not measured."""


@dataclass(frozen=True)
class Keeping:
    """How a training is kept and followed; nothing here changes the weights.

    Attributes:
        checkpoints: How often.
        trackers: Names of the trackers that get the metrics beside `metrics.jsonl`.
    """

    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    trackers: Sequence[str] = ()


@dataclass(frozen=True)
class Trained:
    """What a training took.

    Attributes:
        steps: Optimizer steps.
        seconds: Wall-clock time, that before an interruption included.
        step_s: Median wall-clock time of a step with its data: the pace, whatever else the machine did meanwhile.
        skipped: Damaged samples in whose place this process took another, interruptions included.
    """

    steps: int
    seconds: float
    step_s: float
    skipped: int


def total_steps(config: TrainingConfig, source: SampleSource, seed: int) -> int:
    """Optimizer steps of a training; an epoch is one pass over the samples, drawn class-balanced or not."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    samples = len(TrainingOrder.of(source, seed, config.class_balanced))
    return config.epochs * math.ceil(samples / config.batch)


def train(
    task: Task,
    source: SampleSource,
    config: TrainingConfig,
    *,
    seed: int,
    folder: Path,
    start: Checkpoint | None,
    architectures: Mapping[str, str],
    title: str,
    reporter: Reporter,
    accelerator: Accelerator,
    keeping: Keeping | None = None,
) -> Trained:
    """Train a task.

    Args:
        task: Detector, or student with method; already prepared by the method on a fresh start.
        source: The training split.
        config: How.
        seed: Order of samples and augmentation.
        folder: The stage: `checkpoints/` and `metrics.jsonl` are written there.
        start: The checkpoint to go on from; None starts afresh.
        architectures: File stem ("raw", "method") to the hash written into the weights.
        title: Shown in the progress bar.
        reporter: Where progress goes.
        accelerator: Device and processes.
        keeping: Checkpoints and trackers.

    Raises:
        UserError: If a loss is not finite; names the step, the terms and the samples of the batch. If a checkpoint
            cannot be written.
        TrainingStoppedError: If a signal asked for it, after a checkpoint was written.
    """
    keeping = keeping or Keeping()
    steps = total_steps(config, source, seed)
    if start is not None and start.finished:
        return Trained(steps, **{name: start.progress[name] for name in ("seconds", "step_s", "skipped")})
    training = _Training(task, config, steps, folder, start, architectures, accelerator, keeping.checkpoints)
    if start is not None:
        training.resume(start)
        reporter.say(f"{title}: goes on from step {start.step} of {steps}")
    batches = training_batches(
        source,
        batch=training.micro_batch,
        micro_batches=training.accumulation,
        seed=seed,
        steps=steps,
        start_step=training.step,
        class_balanced=config.class_balanced,
        workers=config.workers,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
    )
    log = MetricsLog(folder / "metrics.jsonl", training.step, writes=accelerator.is_main_process)
    trackers = Trackers(keeping.trackers, title, folder, writes=accelerator.is_main_process)
    with reporter.bar(title, steps) as bar, StopRequest() as stop, trackers:

        def write(record: Mapping[str, Any]) -> None:
            log.write(record)
            trackers.write(record)

        training.run(batches, write, bar, stop)
    if training.step < steps:
        assert stop.signal is not None
        raise TrainingStoppedError(
            f"{title}: stopped after step {training.step} of {steps}, which is kept; the same command goes on",
            stop.signal,
        )
    skipped = training.skipped_in_all()
    training.save(finished=True)
    if skipped:
        reporter.say(f"{title}: {skipped} damaged samples were skipped, the first: {training.first_skipped}")
    return Trained(steps, training.seconds, training.pace, skipped)


@dataclass(frozen=True)
class Rehearsal:
    """What a few steps of a training took.

    Attributes:
        steps: Optimizer steps of the whole training.
        step_s: Seconds a step, its data included.
        data_s: Of that, waiting for data.
        memory: Peak bytes of the process or GPU.
        checkpoint: Bytes of one checkpoint.
    """

    steps: int
    step_s: float
    data_s: float
    memory: int
    checkpoint: int


def rehearse(
    task: Task,
    source: SampleSource,
    config: TrainingConfig,
    *,
    seed: int,
    accelerator: Accelerator,
    rehearsed: int = REHEARSED,
) -> Rehearsal:
    """Do a few steps of a training in a folder that is removed; the first warms up and is not measured.

    Args:
        task: As `train` takes it.
        source: The training split.
        config: How.
        seed: Order of samples and augmentation.
        accelerator: Device and processes.
        rehearsed: Steps to do.

    Raises:
        TrainingStoppedError: If a signal asked for it.
    """
    steps = total_steps(config, source, seed)
    with tempfile.TemporaryDirectory() as folder:
        kept = CheckpointConfig(minutes=1e9)
        training = _Training(
            task, config, rehearsed, Path(folder), None, {"raw": "", "method": ""}, accelerator, kept
        )
        batches = training_batches(
            source,
            batch=training.micro_batch,
            micro_batches=training.accumulation,
            seed=seed,
            steps=rehearsed,
            class_balanced=config.class_balanced,
            workers=config.workers,
        )
        with SilentReporter().bar("", rehearsed) as bar, StopRequest() as stop:
            training.run(batches, lambda record: None, bar, stop)
        training.save(finished=False)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    if training.step < rehearsed:
        assert stop.signal is not None
        raise TrainingStoppedError("stopped before anything was measured", stop.signal)
    whole, waiting = fmean(training.durations[1:]), fmean(training.waits[1:])
    return Rehearsal(steps, whole, waiting, peak_memory(accelerator.device), size)


class _Training:
    """The state of one training; everything in it that moves is in its checkpoint."""

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        steps: int,
        folder: Path,
        start: Checkpoint | None,
        architectures: Mapping[str, str],
        accelerator: Accelerator,
        kept: CheckpointConfig,
    ) -> None:
        self.config, self.steps, self.architectures, self.kept = config, steps, architectures, kept
        self.accelerator = accelerator
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.micro_batch, self.accumulation = split_batch(config, accelerator.num_processes)
        self.task = task.place(accelerator.device)
        if start is not None:
            _freeze(task, start.progress["frozen"])
        if config.batch_norm == "synchronized" and accelerator.num_processes > 1:
            self.task = nn.SyncBatchNorm.convert_sync_batchnorm(self.task)
        self._train_mode()
        self.optimizer = build_optimizer(self.task, config)
        self.wrapped = accelerator.prepare(self.task)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.precision == "fp16")
        self.ema = Ema(self.task.detector, config.ema) if config.ema else None
        self.step = 0
        self.seconds = 0.0
        self.durations: list[float] = []
        self.waits: list[float] = []
        self.skipped = 0
        self.first_skipped = ""

    @property
    def pace(self) -> float:
        """Median seconds a step, of those done since the training was last resumed."""
        return median(self.durations) if self.durations else self.seconds / max(self.step, 1)

    def resume(self, start: Checkpoint) -> None:
        """Go back to a checkpoint."""
        for stem, module in self.task.saved.items():
            checkpoint.load_weights(start.folder / f"{stem}.safetensors", module)
        state, progress = start.state(), start.progress
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            average = load_file(start.folder / "ema.safetensors")
            self.ema.load(average, state["ema_updates"])
        self.step, self.seconds = start.step, progress["seconds"]
        if self.accelerator.is_main_process:
            self.skipped = progress["skipped"]
        rank = self.accelerator.process_index
        # Of more processes than there were, the new ones go on with the numbers they were started with.
        if rank < len(state["rng"]):
            _set_rng_state(state["rng"][rank])

    def run(self, batches: Any, write: Callable[[Mapping[str, Any]], None], bar: Bar, stop: StopRequest) -> None:
        """Every step that is left, or until it is asked to stop."""
        saved = started = time.monotonic()
        before = self.seconds
        while self.step < self.steps:
            waited = time.monotonic()
            micro_batches = [next(batches) for _ in range(self.accumulation)]
            loaded = time.monotonic()
            record = self._optimizer_step(micro_batches)
            now = time.monotonic()
            self.step += 1
            self.seconds = before + now - started
            self.durations.append(now - waited)
            self.waits.append(loaded - waited)
            record |= {"data_s": round(loaded - waited, 5), "step_s": round(now - loaded, 5)}
            if self._is_logged(self.step):
                write({"step": self.step} | self._completed(record))
            bar.update(self.step, note=f"loss {record['loss']:.3f}")
            due = now - saved > 60 * self.kept.minutes or self.step % (self.kept.steps or self.steps) == 0
            stopping, saving = self._agreed(stop.signal is not None, due)
            if (stopping or saving) and self.step < self.steps:
                self.save(finished=False)
                saved = time.monotonic()
            if stopping:
                stop.signal = stop.signal or 0
                return

    def _agreed(self, *wishes: bool) -> list[bool]:
        """What any process wishes."""
        if self.accelerator.num_processes == 1:
            return list(wishes)
        flags = torch.tensor(wishes, dtype=torch.int32, device=self.accelerator.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in flags.tolist()]

    def _train_mode(self) -> None:
        self.task.train()
        if self.config.batch_norm == "frozen":
            for module in self.task.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _optimizer_step(self, micro_batches: list[Batch]) -> dict[str, Any]:
        config = self.config
        factor = lr_factor(config.schedule, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.optimizer.lr * group["lr_factor"] * factor
            beta = first_beta(config.schedule, self.step, self.steps, config.optimizer.betas[0])
            group["betas"] = (beta, config.optimizer.betas[1])
        outputs = []
        for place, batch in enumerate(micro_batches, start=1):
            self.skipped += len(batch.skipped)
            self.first_skipped = self.first_skipped or next(iter(batch.skipped), "")
            last = place == len(micro_batches)
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                outputs.append(self._backward(batch.to(self.accelerator.device)))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(trained_parameters(self.task), config.clip_norm or math.inf)
        # The one synchronisation with the device in a step. The weights have not changed yet.
        *losses, grad_norm = _numbers([*(loss for loss, _ in outputs), norm])
        for batch, loss, (_, output) in zip(micro_batches, losses, outputs, strict=True):
            if not math.isfinite(loss):
                self._stop_on_non_finite(output, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.task.detector)
        record: dict[str, Any] = {"loss": sum(losses) / self.accumulation, "lr": config.optimizer.lr * factor}
        if self._is_logged(self.step + 1):
            record |= self._logged([output for _, output in outputs])
        return record | {"grad_norm": round(grad_norm, 5)}

    def _is_logged(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or step in (1, self.steps)

    def _backward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        """Forward and backward pass of one micro-batch; returns the loss and its parts, detached."""
        dtype = AUTOCAST[self.config.precision]
        with torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None):
            output: StepOutput = self.wrapped(batch)
        loss = torch.stack([term.value * term.weight for term in output.terms.values()]).sum()
        self.scaler.scale(loss / self.accumulation).backward()
        return loss.detach(), output.detached(metrics=self._is_logged(self.step + 1))

    def _logged(self, outputs: Sequence[StepOutput]) -> dict[str, Any]:
        """Terms and metrics, means over the micro-batches."""
        names = [(name, term.weight) for name, term in outputs[0].terms.items()]
        metrics = list(outputs[0].metrics)
        values = [[*(t.value for t in output.terms.values()), *output.metrics.values()] for output in outputs]
        means = iter([sum(numbers) / self.accumulation for numbers in zip(*map(_numbers, values), strict=True)])
        return {
            "terms": {name: {"value": next(means), "weight": weight} for name, weight in names},
            "metrics": {name: next(means) for name in metrics},
        }

    def _stop_on_non_finite(self, output: StepOutput, batch: Batch) -> None:
        values = _numbers([term.value for term in output.terms.values()])
        terms = {name: str(value) for name, value in zip(output.terms, values, strict=True)}
        path = self.folder / NON_FINITE
        about = {"step": self.step + 1, "terms": terms, "samples": list(batch.tokens)}
        checkpoint.write_atomically(path, json.dumps(about, indent=1) + "\n")
        shown = ", ".join(f"{name} {value}" for name, value in terms.items())
        raise UserError(
            f"the loss is not finite at step {self.step + 1} ({shown}) for the samples {', '.join(batch.tokens)}:"
            f" lower the learning rate, or look at these samples; they are kept in {path}"
        )

    def _completed(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record with means over the processes, memory, and what was skipped."""
        if self.accelerator.num_processes > 1:
            numbers = [record["loss"], *(t["value"] for t in record["terms"].values()), *record["metrics"].values()]
            mean = iter(self.accelerator.reduce(torch.tensor(numbers).to(self.accelerator.device), "mean").tolist())
            record["loss"] = next(mean)
            record["terms"] = {n: {"value": next(mean), "weight": t["weight"]} for n, t in record["terms"].items()}
            record["metrics"] = {name: next(mean) for name in record["metrics"]}
        record["memory_gb"] = round(peak_memory(self.accelerator.device) / 1e9, 3)
        skipped = self.skipped_in_all()
        return record | {"skipped": skipped} if skipped else record

    def skipped_in_all(self) -> int:
        """Damaged samples that all processes have skipped."""
        if self.accelerator.num_processes == 1:
            return self.skipped
        return int(self.accelerator.reduce(torch.tensor(self.skipped).to(self.accelerator.device)).item())

    def save(self, *, finished: bool) -> None:
        """Write a checkpoint; a finished one keeps the weights alone. All processes take part."""
        rng, skipped = gather_object([_rng_state()]), self.skipped_in_all()
        if not self.accelerator.is_main_process:
            return
        files: dict[str, Mapping[str, Tensor]] = {
            stem: module.state_dict() for stem, module in self.task.saved.items()
        }
        if self.ema:
            files["ema"] = self.ema.average
        # The average and the objective of a pretraining are determined by the detector's architecture.
        about = {stem: self.architectures.get(stem, self.architectures["raw"]) for stem in files}
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng,
            "ema_updates": self.ema.updates if self.ema else 0,
        }
        progress = {
            "seconds": self.seconds,
            "step_s": self.pace,
            "skipped": skipped,
            "frozen": [name for name, value in self.task.named_parameters() if not value.requires_grad],
        }
        checkpoint.save_checkpoint(self.checkpoints, self.step, files, about, None if finished else state, progress)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocations, or on the CPU what the process has held at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return host_memory()


def host_memory() -> int:
    """Peak bytes that this process has held in the machine's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _numbers(values: Sequence[Tensor]) -> list[float]:
    """Scalars on one device, read with one transfer."""
    return torch.stack([value.detach().float() for value in values]).tolist() if values else []


def _freeze(task: Task, names: Sequence[str]) -> None:
    parameters = dict(task.named_parameters())
    for name in names:
        parameters[name].requires_grad_(False)


def _rng_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_rng_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
