"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from bevkd_common.config.training import TrainingConfig
from bevkd_common.config.wording import did_you_mean
from bevkd_common.data.dataset import SampleSource
from bevkd_common.data.loader import TrainingOrder, training_batches
from bevkd_common.data.samples import Batch
from bevkd_common.engine import checkpoint
from bevkd_common.engine.ema import Ema
from bevkd_common.engine.progress import Bar, Reporter
from bevkd_common.engine.schedule import first_beta, lr_factor
from bevkd_common.engine.tasks import DistillationTask, PretrainingTask, StepOutput, Task
from bevkd_common.errors import UserError

CHECKPOINT_INTERVAL_S = 120.0
LOG_EVERY = 10
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    architectures: Mapping[str, str],
    title: str,
    reporter: Reporter,
    accelerator: Accelerator,
) -> Trained:
    """Train a task, from its newest checkpoint if there is one.

    Args:
        task: Detector, or student with method; already prepared by the method on a fresh start.
        source: The training split.
        config: How.
        seed: Order of samples and augmentation.
        folder: The stage: `checkpoints/` and `metrics.jsonl` are written there.
        architectures: File stem ("raw", "method") to the hash written into the weights.
        title: Shown in the progress bar.
        reporter: Where progress goes.
        accelerator: Device and processes.

    Raises:
        UserError: If a loss is not finite; names the step, the terms and the samples of the batch.
    """
    steps = total_steps(config, source, seed)
    training = _Training(task, config, steps, folder, architectures, accelerator)
    training.resume()
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
    metrics = _MetricsLog(folder / "metrics.jsonl", training.step, writes=accelerator.is_main_process)
    with reporter.bar(title, steps) as bar:
        training.run(batches, metrics, bar)
    training.save(finished=True)
    if training.skipped:
        reporter.say(
            f"{title}: {training.skipped} damaged samples were skipped, the first: {training.first_skipped}"
        )
    return Trained(steps, training.seconds, training.pace, training.skipped)


class _Training:
    """The state of one training; everything in it that moves is in its checkpoint."""

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        steps: int,
        folder: Path,
        architectures: Mapping[str, str],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.steps, self.architectures = config, steps, architectures
        self.accelerator = accelerator
        self.checkpoints = folder / "checkpoints"
        self.micro_batch, self.accumulation = split_batch(config, accelerator.num_processes)
        if isinstance(task, DistillationTask):
            task.teacher.to(accelerator.device)
        self.task = task.to(accelerator.device).train()
        self.optimizer = build_optimizer(task, config)
        self.wrapped = accelerator.prepare(task)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.precision == "fp16")
        self.ema = Ema(task.detector, config.ema) if config.ema else None
        self.step = 0
        self.seconds = 0.0
        self.durations: list[float] = []
        self.skipped = 0
        self.first_skipped = ""

    @property
    def pace(self) -> float:
        """Median seconds a step, of those done since the training was last resumed."""
        return median(self.durations) if self.durations else self.seconds / max(self.step, 1)

    def resume(self) -> None:
        """Go back to the newest checkpoint, if there is one."""
        found = checkpoint.latest(self.checkpoints)
        if found is None:
            return
        for stem, module in self._modules().items():
            checkpoint.load_weights(found.folder / f"{stem}.safetensors", module)
        state = found.state()
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if self.ema:
            average = load_file(found.folder / "ema.safetensors")
            self.ema.load(average, state["ema_updates"])
        self.step, self.seconds, self.skipped = found.step, state["seconds"], state["skipped"]

    def run(self, batches: Any, metrics: _MetricsLog, bar: Bar) -> None:
        """Every step that is left."""
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
            record |= {"data_s": round(loaded - waited, 5), "step_s": round(now - loaded, 5)}
            if self.step % LOG_EVERY == 0 or self.step in (1, self.steps):
                metrics.write({"step": self.step} | record)
            bar.update(self.step, note=f"loss {record['loss']:.3f}")
            if now - saved > CHECKPOINT_INTERVAL_S and self.step < self.steps:
                self.save(finished=False)
                saved = time.monotonic()

    def _optimizer_step(self, micro_batches: list[Batch]) -> dict[str, Any]:
        config = self.config
        factor = lr_factor(config.schedule, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.optimizer.lr * group["lr_factor"] * factor
            beta = first_beta(config.schedule, self.step, self.steps, config.optimizer.betas[0])
            group["betas"] = (beta, config.optimizer.betas[1])
        totals: dict[str, Any] = {"loss": 0.0, "lr": config.optimizer.lr * factor, "terms": {}, "metrics": {}}
        for batch in micro_batches:
            self.skipped += len(batch.skipped)
            self.first_skipped = self.first_skipped or next(iter(batch.skipped), "")
            self._backward(batch.to(self.accelerator.device), totals)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(trained_parameters(self.task), config.clip_norm or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.task.detector)
        record = totals | {"grad_norm": round(float(norm), 5)}
        return record | {"skipped": self.skipped} if self.skipped else record

    def _backward(self, batch: Batch, totals: dict[str, Any]) -> None:
        dtype = AUTOCAST[self.config.precision]
        with torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None):
            output: StepOutput = self.wrapped(batch)
        loss = torch.stack([term.value * term.weight for term in output.terms.values()]).sum()
        if not torch.isfinite(loss):
            self._stop_on_non_finite(output, batch)
        self.scaler.scale(loss / self.accumulation).backward()
        totals["loss"] += loss.item() / self.accumulation
        for name, term in output.terms.items():
            seen = totals["terms"].setdefault(name, {"value": 0.0, "weight": term.weight})
            seen["value"] += term.value.item() / self.accumulation
        for name, value in output.metrics.items():
            totals["metrics"][name] = totals["metrics"].get(name, 0.0) + value.item() / self.accumulation

    def _stop_on_non_finite(self, output: StepOutput, batch: Batch) -> None:
        values = ", ".join(f"{name} {term.value.item():g}" for name, term in output.terms.items())
        raise UserError(
            f"the loss is not finite at step {self.step + 1} ({values}) for the samples {', '.join(batch.tokens)}:"
            " lower the learning rate, or look at these samples"
        )

    def save(self, *, finished: bool) -> None:
        """Write a checkpoint; a finished one keeps the weights alone."""
        if not self.accelerator.is_main_process:
            return
        files: dict[str, Mapping[str, Tensor]] = {
            stem: module.state_dict() for stem, module in self._modules().items()
        }
        if self.ema:
            files["ema"] = self.ema.average
        # The average and the objective of a pretraining are determined by the detector's architecture.
        about = {stem: self.architectures.get(stem, self.architectures["raw"]) for stem in files}
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "ema_updates": self.ema.updates if self.ema else 0,
            "seconds": self.seconds,
            "skipped": self.skipped,
        }
        checkpoint.save_checkpoint(self.checkpoints, self.step, files, about, None if finished else state)

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"raw": self.task.detector}
        if isinstance(self.task, DistillationTask) and len(self.task.method.state_dict()):
            modules["method"] = self.task.method
        if isinstance(self.task, PretrainingTask):
            modules["objective"] = self.task.objective
        return modules


def split_batch(config: TrainingConfig, ranks: int) -> tuple[int, int]:
    """Samples a device sees at once, and how many such micro-batches make one step.

    Raises:
        UserError: If the effective batch cannot be kept.
    """
    micro = config.micro_batch or max(config.batch // ranks, 1)
    if config.batch % (micro * ranks):
        raise UserError(
            f"batch {config.batch} is not a multiple of {ranks} processes x {micro} samples:"
            " set the training's micro_batch so that the effective batch of the recipe is kept"
        )
    return micro, config.batch // (micro * ranks)


def trained_parameters(task: Task) -> list[nn.Parameter]:
    """What the optimizer moves."""
    return [parameter for parameter in task.parameters() if parameter.requires_grad]


def build_optimizer(task: Task, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the detector and what the method or objective owns.

    Each group carries `lr_factor`, which the loop multiplies with the schedule's learning rate.

    Raises:
        UserError: If `lr_factors` names a module that the detector does not have.
    """
    optimizer = config.optimizer
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr_factor": factor}
        for factor, parameters in grouped_parameters(task.detector, optimizer.lr_factors).items()
    ]
    if isinstance(task, PretrainingTask):
        groups.append({"params": list(task.objective.parameters()), "lr_factor": 1.0})
    if isinstance(task, DistillationTask):
        for group in task.method.param_groups():
            extra = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
            groups.append({"params": list(group.parameters), "lr_factor": group.lr_factor} | extra)
    return torch.optim.AdamW(
        groups, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay, fused=True
    )


def grouped_parameters(detector: nn.Module, factors: Mapping[str, float]) -> dict[float, list[nn.Parameter]]:
    """The parameters that move, by the factor of their learning rate; the longest module path that fits decides.

    Raises:
        UserError: If a path names no module of the detector.
    """
    parts = dict(detector.named_modules())
    for path in factors:
        if path not in parts:
            raise UserError(
                f"`lr_factors` names `{path}`, which this detector does not have{did_you_mean(path, parts)}"
            )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            fitting = [path for path in factors if name.startswith(f"{path}.")]
            factor = factors[max(fitting, key=len)] if fitting else 1.0
            groups.setdefault(factor, []).append(parameter)
    return groups


class _MetricsLog:
    """`metrics.jsonl`, one line a logged step; lines beyond the step resumed from are dropped."""

    def __init__(self, path: Path, resumed_at: int, *, writes: bool) -> None:
        self._path, self._writes = path, writes
        if not writes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_text().splitlines() if path.is_file() and resumed_at else []
        lines = [line for line in kept if json.loads(line)["step"] <= resumed_at]
        checkpoint.write_atomically(path, "".join(f"{line}\n" for line in lines))

    def write(self, record: Mapping[str, Any]) -> None:
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
