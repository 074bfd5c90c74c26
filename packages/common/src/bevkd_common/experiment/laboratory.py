"""Training and scoring the arms of one seed, each stage once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from bevkd_common.config.model import Config
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.training import TrainingConfig
from bevkd_common.data.dataset import Dataset, PartlyLiftedSource, SampleSource, VirtualPointDataset
from bevkd_common.data.loader import PastableSource, calibration_batches
from bevkd_common.data.needs import DataNeeds
from bevkd_common.engine.checkpoint import (
    Checkpoint,
    load_weights,
    newest_sound,
    read_json,
    save_checkpoint,
    write_atomically,
)
from bevkd_common.engine.evaluate import evaluate
from bevkd_common.engine.tasks import DistillationTask, PretrainingTask, SupervisedTask, Task
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.engine.teacher_cache import TeacherCache, check_repeats
from bevkd_common.engine.train import AUTOCAST, DTYPES, Keeping, Rehearsal, rehearse, train
from bevkd_common.errors import UserError
from bevkd_common.evaluation.evaluator import Evaluator, Submission
from bevkd_common.evaluation.results import Results
from bevkd_common.experiment.arms import Arm
from bevkd_common.experiment.build import (
    architecture_hash,
    build_detector,
    build_evaluator,
    build_method,
    build_pretraining,
    build_submission,
    dataset_spec,
    detector_spec,
    method_spec,
)
from bevkd_common.experiment.imported import check_settings
from bevkd_common.experiment.sources import source_hash
from bevkd_common.experiment.stages import Stage, alone_in, fingerprint, stage_weights
from bevkd_common.progress import Reporter

if TYPE_CHECKING:
    from bevkd_common.distill.method import MethodModule
    from bevkd_common.models.detector import DetectorModule

CALIBRATION_BATCHES = 4
WEIGHT_KINDS = ("raw", "ema")


@dataclass(frozen=True)
class Scores:
    """What a stage scored.

    Attributes:
        primary: The weights that the arm is judged by: "ema" where an average is kept, else "raw".
        results: By kind of weights.
    """

    primary: str
    results: Mapping[str, Results]


class Laboratory:
    """One seed of an experiment: its data, its teacher, and the stages that stand on them."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        *,
        seed: int,
        root: Path,
        reporter: Reporter,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.dataset, self.seed = recipe, dataset, seed
        self.keeping = Keeping(recipe.checkpoints, recipe.trackers)
        self.root, self.reporter, self.accelerator = root, reporter, accelerator

    def stage(self, arm: Arm, teacher: Stage | None) -> Stage:
        """The stage of an arm; its fingerprint covers config, data, seed, parents and the sources it uses.

        Args:
            arm: With a fixed number of steps.
            teacher: The stage of the teacher, for an arm with a method.

        Raises:
            UserError: If a file of the teacher cannot be read.
        """
        modules: list[str] = []
        inputs: dict[str, Any] = {}
        if arm.pretraining is not None:
            inputs["pretrained"] = self.pretraining_stage(arm, arm.pretraining).fingerprint
        if arm.role == "teacher" and self.recipe.teacher_checkpoint is not None:
            inputs["checkpoint"] = _content(self.recipe.teacher_checkpoint)
        if (files := detector_spec(arm.detector).finished) is not None:
            inputs["files"] = [_content(file) for file in files(arm.detector)]
        kind: str = "baseline" if arm.method is None else "distilled"
        if arm.method is not None:
            assert teacher is not None
            modules += [_module(detector_spec(self.recipe.teacher).build), _module(method_spec(arm.method).build)]
            inputs |= {
                "method": _dump(arm.method),
                "teacher": teacher.fingerprint,
                "teacher_precision": self.recipe.teacher_precision,
                "teacher_cache": self.recipe.teacher_cache,
            }
        inputs |= self._inputs(arm.detector, arm.training, modules)
        return Stage("teacher" if arm.role == "teacher" else kind, inputs, self.root)

    def pretraining_stage(self, arm: Arm, training: TrainingConfig) -> Stage:
        """The stage that trains a part of an arm's detector first; the arms of one student share it."""
        reference = detector_spec(arm.detector).pretraining
        assert reference is not None
        return Stage("pretraining", self._inputs(arm.detector, training, [_module(reference)]), self.root)

    def _inputs(self, detector: Config, training: TrainingConfig, modules: Sequence[str]) -> dict[str, Any]:
        """What determines any training of a detector on this data; `modules` are used beside the usual ones."""
        used = ["bevkd_common.engine.train", _module(dataset_spec(self.recipe.dataset).build)]
        used += [_module(detector_spec(detector).build), *modules]
        extras = {}
        if detector_spec(detector).virtual_points(detector) and isinstance(self.dataset, VirtualPointDataset):
            extras["virtual_points"] = self.dataset.virtual_points.manifest.settings_hash
        return {
            **extras,
            "detector": _dump(detector),
            "training": _dump(training),
            "dataset": _dump(self.recipe.dataset),
            "data": self.dataset.fingerprint,
            "seed": self.seed,
            "sources": source_hash(used),
        }

    def train(self, arm: Arm, stage: Stage, teacher: Stage | None) -> dict[str, Any]:
        """Train an arm, or take what is there; returns the record of the training."""
        if (done := stage.trained) is None:
            with self._alone(stage.folder):
                if (done := stage.trained) is None:
                    return self._train(arm, stage, teacher)
        self.reporter.say(f"{arm.title}: trained before, taken from {stage.folder.name}")
        return done

    def _train(self, arm: Arm, stage: Stage, teacher: Stage | None) -> dict[str, Any]:
        first = self.pretrain(arm)
        pretrained = None if first is None else stage_weights(first.folder)["raw"]
        start = self._start(stage)
        task = self._task(arm, teacher, pretrained, prepared=start is not None)
        return self._run_training(task, arm.training, stage, start, arm.detector, arm.method, arm.title)

    def pretrain(self, arm: Arm) -> Stage | None:
        """Train a part of the arm's detector first, unless that was done; None where the arm has no such stage."""
        if arm.pretraining is None:
            return None
        stage = self.pretraining_stage(arm, arm.pretraining)
        if stage.trained is None:
            with self._alone(stage.folder):
                if stage.trained is None:
                    task, start = self._pretraining_task(arm), self._start(stage)
                    title = "student, a part of it first"
                    self._run_training(task, arm.pretraining, stage, start, arm.detector, None, title)
        return stage

    def rehearse(self, arm: Arm) -> Rehearsal:
        """Measure a few steps of an arm's training; the teacher has random weights, and nothing is pasted."""
        frozen = build_detector(self.recipe.teacher, self.dataset.classes, seed=self.seed)
        task = self._task_under(arm, frozen, None, prepared=False)
        source = self.dataset.source("train", self._needs(task))
        return rehearse(task, source, arm.training, seed=self.seed, accelerator=self.accelerator)

    def rehearse_pretraining(self, arm: Arm, training: TrainingConfig) -> Rehearsal:
        """The same of what an arm's detector learns first."""
        task = self._pretraining_task(arm)
        source = self.dataset.source("train", self._needs(task))
        return rehearse(task, source, training, seed=self.seed, accelerator=self.accelerator)

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """No other experiment trains or scores in a stage's folder meanwhile; it may have been done before."""
        if self.accelerator.is_main_process:
            # The other processes of this one would give up before a long wait is over.
            with alone_in(folder, wait=self.accelerator.num_processes == 1, say=self.reporter.say):
                self.accelerator.wait_for_everyone()
                yield
        else:
            self.accelerator.wait_for_everyone()
            yield

    def _start(self, stage: Stage) -> Checkpoint | None:
        return newest_sound(stage.folder / "checkpoints", self.reporter.say)

    def _run_training(
        self,
        task: Task,
        training: TrainingConfig,
        stage: Stage,
        start: Checkpoint | None,
        detector: Config,
        method: Config | None,
        title: str,
    ) -> dict[str, Any]:
        if self.accelerator.is_main_process:
            stage.open()
        self.accelerator.wait_for_everyone()
        trained = train(
            task,
            self._training_source(task, training),
            training,
            seed=self.seed,
            folder=stage.folder,
            start=start,
            architectures={"raw": self._architecture(detector), "method": fingerprint(_dump_or_none(method))},
            title=f"{title}, seed {self.seed}",
            reporter=self.reporter,
            accelerator=self.accelerator,
            keeping=self.keeping,
        )
        record: dict[str, Any] = {
            "steps": trained.steps,
            "seconds": round(trained.seconds, 2),
            "step_s": round(trained.step_s, 6),
            "parameters": parameters(task.detector),
        }
        if trained.skipped:
            record["skipped"] = trained.skipped
        if unlifted := self._unlifted(self._needs(task)):
            record["unlifted"] = unlifted
        if self.accelerator.is_main_process:
            stage.finish_training(record)
        self.accelerator.wait_for_everyone()
        return record

    def _training_source(self, task: Task, training: TrainingConfig) -> SampleSource:
        source = self.dataset.source("train", self._needs(task))
        if training.paste is None:
            return source
        if not isinstance(source, PastableSource):
            raise UserError(f"objects of {self.dataset.name} cannot be pasted; leave `paste` out")
        with self.accelerator.main_process_first(), self.reporter.bar("objects to paste", len(source)) as bar:
            return source.pasting(
                training.paste, self.dataset.classes, workers=training.workers, progress=bar.update
            )

    def _unlifted(self, needs: DataNeeds) -> int:
        """Sweeps of both splits that are read without virtual points."""
        if not needs.virtual_points:
            return 0
        sources = [self.dataset.source("train", needs), self.dataset.source("val", needs.at_test)]
        return sum(len(source.unlifted) for source in sources if isinstance(source, PartlyLiftedSource))

    def adopt(self, arm: Arm, stage: Stage, checkpoint: Path | None) -> dict[str, Any]:
        """Take a teacher's weights from a file instead of training it; of one that comes with weights, as it is.

        Raises:
            UserError: If the file does not fit the teacher, or was imported for one with other settings.
        """
        if (done := stage.trained) is not None:
            return done
        with self._alone(stage.folder):
            return stage.trained or self._adopt(arm, stage, checkpoint)

    def _adopt(self, arm: Arm, stage: Stage, checkpoint: Path | None) -> dict[str, Any]:
        detector = build_detector(arm.detector, self.dataset.classes, seed=self.seed)
        architecture = self._architecture(arm.detector)
        made_for = {} if checkpoint is None else load_weights(checkpoint, detector)
        if checkpoint is not None and "detector" in made_for:
            check_settings(checkpoint, made_for, arm.detector)
        elif made_for.get("architecture", architecture) != architecture:
            self.reporter.say(f"{checkpoint} was trained under other settings of the teacher; its shapes fit")
        about = {"raw": architecture}
        record = {"steps": 0, "seconds": 0.0, "step_s": 0.0, "parameters": parameters(detector)}
        if self.accelerator.is_main_process:
            stage.open()
            save_checkpoint(stage.folder / "checkpoints", 0, {"raw": detector.state_dict()}, about, None)
            stage.finish_training(record)
        self.accelerator.wait_for_everyone()
        return record

    def score(self, arm: Arm, folder: Path, *, again: bool = False) -> Scores:
        """Evaluate every kind of weights that a stage keeps, or take the scores that are there.

        Args:
            arm: What the stage trained.
            folder: Of the stage.
            again: Whether to evaluate although there are scores.
        """
        if not again and (scores := self._scored(folder)) is not None:
            return scores
        with self._alone(folder):
            return (None if again else self._scored(folder)) or self._score(arm, folder)

    def _scored(self, folder: Path) -> Scores | None:
        path = folder / "results.json"
        saved = read_json(path) if path.is_file() else None
        if saved is None or saved["evaluation"] != self._evaluation_fingerprint():
            return None
        results = {kind: Results.model_validate(value) for kind, value in saved["results"].items()}
        return Scores(saved["primary"], results)

    def _score(self, arm: Arm, folder: Path) -> Scores:
        weights = stage_weights(folder)
        results = {kind: self._evaluate(arm, folder, kind) for kind in WEIGHT_KINDS if kind in weights}
        primary = "ema" if "ema" in results else "raw"
        if self.accelerator.is_main_process:
            dumped = {kind: value.model_dump(mode="json") for kind, value in results.items()}
            content = {"evaluation": self._evaluation_fingerprint(), "primary": primary, "results": dumped}
            write_atomically(folder / "results.json", json.dumps(content, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        return Scores(primary, results)

    def submission(self, arm: Arm, folder: Path, config: Config, dataset: Dataset) -> object:
        """The official submission of the weights that an arm is judged by.

        Args:
            arm: What the stage trained.
            folder: Of the stage.
            config: Of `dataset`.
            dataset: The evaluated split of this one, which may be another than the laboratory's.

        Raises:
            UserError: If the data set has no official submission.
        """
        submission = build_submission(config, dataset, "val")
        self._run(arm, folder, None, dataset, submission)
        return submission.content()

    def detector(self, config: Config, folder: Path, kind: str | None = None) -> DetectorModule:
        """A trained detector on the device, in eval mode.

        Args:
            config: Its configuration.
            folder: Of its stage.
            kind: Which weights; None takes those that the arm is judged by.
        """
        weights = stage_weights(folder)
        detector = build_detector(config, self.dataset.classes, seed=self.seed)
        kind = kind or ("ema" if "ema" in weights else "raw")
        load_weights(weights[kind], detector, architecture=self._architecture(config))
        return detector.to(self.accelerator.device).eval()

    def method(
        self, config: Config, folder: Path, teacher: DetectorModule, student: DetectorModule
    ) -> MethodModule:
        """A trained method on the device, in eval mode."""
        method = build_method(config, teacher, student, names=self._names())
        weights = stage_weights(folder)
        if "method" in weights:
            load_weights(weights["method"], method)
        return method.to(self.accelerator.device).eval()

    def _task(self, arm: Arm, teacher: Stage | None, pretrained: Path | None, *, prepared: bool) -> Task:
        frozen, cache = None, None
        if arm.method is not None:
            assert teacher is not None
            frozen = self.detector(self.recipe.teacher, teacher.folder)
            cache = self._teacher_cache(arm, frozen, teacher) if self.recipe.teacher_cache else None
        return self._task_under(arm, frozen, pretrained, prepared=prepared, cache=cache)

    def _teacher_cache(self, arm: Arm, frozen: DetectorModule, teacher: Stage) -> TeacherCache:
        needs = frozen.needs | build_detector(arm.detector, self.dataset.classes, seed=self.seed).needs
        check_repeats(self.dataset.source("train", needs), frozen.needs)
        # What the teacher sees depends on what is loaded for the student too, such as the number of sweeps.
        what = [_dump(self.recipe.dataset), asdict(needs), arm.training.precision, self.recipe.teacher_precision]
        return TeacherCache(teacher.folder / "seen" / fingerprint(what)[:12])

    def _task_under(
        self,
        arm: Arm,
        frozen: DetectorModule | None,
        pretrained: Path | None,
        *,
        prepared: bool,
        cache: TeacherCache | None = None,
    ) -> Task:
        student = build_detector(arm.detector, self.dataset.classes, seed=self.seed)
        if pretrained is not None:
            load_weights(pretrained, student, architecture=self._architecture(arm.detector))
        if arm.method is None:
            return SupervisedTask(student)
        assert frozen is not None
        torch.manual_seed(self.seed + 1)
        method = build_method(arm.method, frozen, student, names=self._names())
        if not prepared:
            self._prepare(method, frozen, student)
        precision = self.recipe.teacher_precision
        seeing = FrozenTeacher(frozen, None if precision is None else DTYPES[precision], cache)
        return DistillationTask(student, seeing, method)

    def _pretraining_task(self, arm: Arm) -> PretrainingTask:
        classes = self.dataset.classes
        detector = build_detector(arm.detector, classes, seed=self.seed)
        return PretrainingTask(detector, build_pretraining(arm.detector, classes, seed=self.seed))

    def _prepare(self, method: MethodModule, teacher: DetectorModule, student: DetectorModule) -> None:
        source = self.dataset.source("train", teacher.needs | student.needs)
        device = self.accelerator.device
        batches = calibration_batches(source, batch=4, batches=CALIBRATION_BATCHES, seed=self.seed)
        method.to(device)
        student.to(device)
        method.prepare(teacher, student, (batch.to(device) for batch in batches))

    def _evaluate(self, arm: Arm, folder: Path, kind: str) -> Results:
        evaluator = build_evaluator(self.recipe.dataset, self.dataset, "val")
        self._run(arm, folder, kind, self.dataset, evaluator)
        if self.accelerator.is_main_process:
            evaluator.evidence().save(folder / f"evidence-{kind}.npz")
        return evaluator.compute()

    def _run(
        self, arm: Arm, folder: Path, kind: str | None, dataset: Dataset, evaluator: Evaluator | Submission
    ) -> None:
        detector = self.detector(arm.detector, folder, kind)
        evaluate(
            detector,
            dataset.source("val", detector.needs.at_test),
            evaluator,
            batch=self.recipe.evaluation.batch,
            workers=self.recipe.evaluation.workers,
            accelerator=self.accelerator,
            precision=AUTOCAST[arm.training.precision],
            title=f"scoring {arm.title}, seed {self.seed}" + (f" ({kind})" if kind == "ema" else ""),
            reporter=self.reporter,
        )

    def _evaluation_fingerprint(self) -> str:
        spec = dataset_spec(self.recipe.dataset)
        sources = source_hash([_module(spec.build_evaluator), "bevkd_common.engine.evaluate"])
        return fingerprint([_dump(self.recipe.dataset), self.dataset.fingerprint, sources])

    def _architecture(self, config: Config) -> str:
        return architecture_hash(config, self.dataset.classes)

    def _names(self) -> tuple[str, str]:
        return self.recipe.selects.teacher, self.recipe.selects.student

    @staticmethod
    def _needs(task: Task) -> DataNeeds:
        if isinstance(task, DistillationTask):
            return task.teacher.detector.needs | task.detector.needs
        if isinstance(task, PretrainingTask):
            return task.objective.needs
        return task.detector.needs


def parameters(detector: nn.Module) -> int:
    """Learned parameters."""
    return sum(parameter.numel() for parameter in detector.parameters())


def _content(path: Path) -> str:
    """Hash of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"the teacher's file {path} cannot be read: {error.strerror}") from None


def _module(reference: str) -> str:
    return reference.partition(":")[0]


def _dump(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _dump_or_none(config: Config | None) -> dict[str, Any] | None:
    return None if config is None else _dump(config)
