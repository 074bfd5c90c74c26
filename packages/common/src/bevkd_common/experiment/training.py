"""Training the stages of one seed, each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bevkd_common.config.model import Config
from bevkd_common.config.training import TrainingConfig
from bevkd_common.data.dataset import SampleSource
from bevkd_common.data.loader import PastableSource, calibration_batches
from bevkd_common.data.samples import Batch
from bevkd_common.engine.checkpoint import load_weights, newest_sound, save_checkpoint
from bevkd_common.engine.tasks import DistillationTask, PretrainingTask, SupervisedTask, Task
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.engine.teacher_cache import TeacherCache, check_repeats
from bevkd_common.engine.train import DTYPES, REHEARSED, Keeping, Rehearsal, host_memory, rehearse, train
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import Arm
from bevkd_common.experiment.build import build_method, build_pretraining, parameter_count
from bevkd_common.experiment.identity import dumped, pretraining_stage
from bevkd_common.experiment.imported import check_settings
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.stages import Stage, fingerprint, stage_weights

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule

CALIBRATION_BATCHES = 4


def train_arm(lab: Laboratory, arm: Arm, stage: Stage, teacher: Stage | None) -> dict[str, Any]:
    """Train an arm, or reuse its stage; returns the record of the training."""
    if (done := stage.trained) is None:
        with lab.alone(stage.folder):
            if (done := stage.trained) is None:
                return _train_arm(lab, arm, stage, teacher)
    lab.reporter.say(f"{arm.title}: trained before, taken from {stage.folder.name}")
    return done


def _train_arm(lab: Laboratory, arm: Arm, stage: Stage, teacher: Stage | None) -> dict[str, Any]:
    first = pretrain(lab, arm)
    pretrained = None if first is None else stage_weights(first.folder)["raw"]
    frozen, cache = None, None
    if arm.method is not None:
        assert teacher is not None
        frozen = lab.detector(lab.recipe.teacher, teacher.folder)
        cache = _teacher_cache(lab, arm, frozen, teacher) if lab.recipe.teacher_cache else None
    task = _task(lab, arm, frozen, pretrained, cache)
    return _run(lab, task, arm.training, stage, arm.detector, arm.method, arm.title)


def pretrain(lab: Laboratory, arm: Arm) -> Stage | None:
    """Pretrain a part of the arm's detector, or reuse the stage; None where the arm has no pretraining."""
    if arm.pretraining is None:
        return None
    stage = pretraining_stage(lab, arm.detector, arm.pretraining)
    if stage.trained is None:
        with lab.alone(stage.folder):
            if stage.trained is None:
                task = _pretraining_task(lab, arm)
                title = f"{'teacher' if arm.role == 'teacher' else 'student'} pretraining"
                _run(lab, task, arm.pretraining, stage, arm.detector, None, title)
    return stage


def adopt(lab: Laboratory, arm: Arm, stage: Stage, checkpoint: Path | None) -> dict[str, Any]:
    """Load a teacher's weights from a file instead of training it.

    Args:
        lab: The seed.
        arm: The teacher.
        stage: Its stage.
        checkpoint: The file; None for a detector that is built with its weights.

    Raises:
        UserError: If the file does not fit the teacher, or was imported for one with other settings.
    """
    if (done := stage.trained) is not None:
        return done
    with lab.alone(stage.folder):
        return stage.trained or _adopt(lab, arm, stage, checkpoint)


def _adopt(lab: Laboratory, arm: Arm, stage: Stage, checkpoint: Path | None) -> dict[str, Any]:
    detector = lab.build(arm.detector)
    architecture = lab.architecture(arm.detector)
    made_for = {} if checkpoint is None else load_weights(checkpoint, detector)
    if checkpoint is not None and "detector" in made_for:
        check_settings(checkpoint, made_for, arm.detector)
    elif made_for.get("architecture", architecture) != architecture:
        lab.reporter.say(f"{checkpoint} was trained under other settings of the teacher; its shapes fit")
    record = {"steps": 0, "seconds": 0.0, "step_s": 0.0, "parameters": parameter_count(detector)}
    if lab.accelerator.is_main_process:
        stage.open()
        weights, about = {"raw": detector.state_dict()}, {"raw": architecture}
        save_checkpoint(stage.folder / "checkpoints", 0, weights, about, None)
        stage.finish_training(record)
    lab.accelerator.wait_for_everyone()
    return record


def rehearse_arm(lab: Laboratory, arm: Arm, steps: int = REHEARSED) -> Rehearsal:
    """Measure a few steps of an arm's training; the teacher has random weights, and nothing is pasted."""
    return _rehearse(lab, _task(lab, arm, lab.build(lab.recipe.teacher), None, None), arm.training, steps)


def rehearse_pretraining(lab: Laboratory, arm: Arm, training: TrainingConfig, steps: int = REHEARSED) -> Rehearsal:
    """Measure a few steps of the pretraining of an arm's detector."""
    return _rehearse(lab, _pretraining_task(lab, arm), training, steps)


def _rehearse(lab: Laboratory, task: Task, training: TrainingConfig, steps: int) -> Rehearsal:
    source = lab.dataset.source("train", task.needs)
    task.place(lab.accelerator.device).prepare(_calibration(lab, task))
    return rehearse(task, source, training, seed=lab.seed, accelerator=lab.accelerator, rehearsed=steps)


def _run(
    lab: Laboratory,
    task: Task,
    training: TrainingConfig,
    stage: Stage,
    detector: Config,
    method: Config | None,
    title: str,
) -> dict[str, Any]:
    start = newest_sound(stage.folder / "checkpoints", lab.reporter.say)
    if start is None:
        task.place(lab.accelerator.device).prepare(_calibration(lab, task))
    if lab.accelerator.is_main_process:
        stage.open()
    lab.accelerator.wait_for_everyone()
    about = {"raw": lab.architecture(detector), "method": fingerprint(None if method is None else dumped(method))}
    source = _training_source(lab, task, training)
    trained = train(
        task,
        source,
        training,
        seed=lab.seed,
        folder=stage.folder,
        start=start,
        architectures=about,
        title=f"{title}, seed {lab.seed}",
        reporter=lab.reporter,
        accelerator=lab.accelerator,
        keeping=Keeping(lab.recipe.checkpoints, lab.recipe.trackers),
    )
    record: dict[str, Any] = {
        "steps": trained.steps,
        "seconds": round(trained.seconds, 2),
        "step_s": round(trained.step_s, 6),
        "parameters": parameter_count(task.detector),
        "memory": host_memory(),
        "threads": torch.get_num_threads(),
        "side_by_side": lab.side_by_side,
    }
    if trained.skipped:
        record["skipped"] = trained.skipped
    if source.notes:
        record["notes"] = list(source.notes)
    if lab.accelerator.is_main_process:
        stage.finish_training(record)
    lab.accelerator.wait_for_everyone()
    return record


def _training_source(lab: Laboratory, task: Task, training: TrainingConfig) -> SampleSource:
    source = lab.dataset.source("train", task.needs)
    if training.paste is None:
        return source
    if not isinstance(source, PastableSource):
        raise UserError(f"objects of {lab.dataset.name} cannot be pasted; leave `paste` out")
    with lab.accelerator.main_process_first(), lab.reporter.bar("objects to paste", len(source)) as bar:
        return source.pasting(training.paste, lab.dataset.classes, workers=training.workers, progress=bar.update)


def _task(
    lab: Laboratory, arm: Arm, frozen: DetectorModule | None, pretrained: Path | None, cache: TeacherCache | None
) -> Task:
    student = lab.build(arm.detector)
    if pretrained is not None:
        load_weights(pretrained, student, architecture=lab.architecture(arm.detector))
    if arm.method is None:
        return SupervisedTask(student)
    assert frozen is not None
    torch.manual_seed(lab.seed + 1)
    method = build_method(arm.method, frozen, student, names=lab.names)
    precision = lab.recipe.teacher_precision
    teacher = FrozenTeacher(frozen, None if precision is None else DTYPES[precision], cache)
    return DistillationTask(student, teacher, method)


def _pretraining_task(lab: Laboratory, arm: Arm) -> PretrainingTask:
    detector = lab.build(arm.detector)
    return PretrainingTask(detector, build_pretraining(arm.detector, lab.dataset.classes, seed=lab.seed))


def _teacher_cache(lab: Laboratory, arm: Arm, frozen: DetectorModule, teacher: Stage) -> TeacherCache:
    needs = frozen.needs | lab.build(arm.detector).needs
    check_repeats(lab.dataset.source("train", needs), frozen.needs)
    # What the teacher reads depends on what is loaded for the student too, such as the number of sweeps.
    loaded = asdict(needs) | {"clouds": sorted(needs.clouds)}
    what = [dumped(lab.recipe.dataset), loaded, arm.training.precision, lab.recipe.teacher_precision]
    return TeacherCache(teacher.folder / "seen" / fingerprint(what)[:12])


def _calibration(lab: Laboratory, task: Task) -> Iterator[Batch]:
    """A few batches of the training split on the device; nothing is read before the first is asked for."""
    source = lab.dataset.source("train", task.needs)
    for batch in calibration_batches(source, batch=4, batches=CALIBRATION_BATCHES, seed=lab.seed):
        yield batch.to(lab.accelerator.device)
