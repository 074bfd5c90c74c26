"""A recipe: one experiment, complete, in one flat file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    JsonValue,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic.annotated_handlers import GetCoreSchemaHandler
from pydantic_core import core_schema

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import DatasetSpec, DetectorSpec, MethodSpec, Spec, installed, load
from bevkd_common.config.training import CheckpointConfig, Precision, TrainingConfig


def _unique(values: tuple[int, ...]) -> tuple[int, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"holds {value} twice")
    return values


def _unique_names(controls: tuple[Control, ...]) -> tuple[Control, ...]:
    names = [control.name for control in controls]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"holds the control `{name}` twice")
    return controls


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=60)]


def kind_of(spec_type: type[Spec], *, where: Callable[[Spec], bool] = lambda _: True) -> GetPydanticSchema:
    """Discriminates on `kind` among what is installed when the model is first used.

    Args:
        spec_type: Sort of plug-in.
        where: Selects among the installed specs.
    """

    def none_found(section: Any) -> None:
        kind = section.get("kind") if isinstance(section, dict) else section
        raise ValueError(installed(spec_type).why_not(str(kind)))

    def schema(_: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        found = installed(spec_type).found
        choices = {kind: handler.generate_schema(spec.config) for kind, spec in found.items() if where(spec)}
        if not choices:
            return core_schema.no_info_before_validator_function(none_found, core_schema.none_schema())
        return core_schema.tagged_union_schema(choices, discriminator="kind")

    return GetPydanticSchema(schema)


class Selects(Config):
    """The names by which `bevkd run METHOD --teacher --student --dataset` finds a recipe."""

    teacher: Name
    """Value of `--teacher`."""
    student: Name
    """Value of `--student`."""
    dataset: Name
    """Value of `--dataset`."""


class EvaluationConfig(Config):
    """How the trained detectors are scored."""

    batch: PositiveInt = 8
    """Samples that a device scores at once."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes of a device."""
    bootstrap: NonNegativeInt = 1000
    """Resamples of the scenes for the paired intervals; 0 leaves the intervals out."""


class Control(Config):
    """One more training of the student, reported beside the baseline and the distilled student."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
    """Name of the arm."""
    base: Literal["baseline", "distilled"]
    """The arm that this one changes."""
    steps_factor: PositiveFloat = 1.0
    """Training steps as a factor of the base arm's."""
    equal_time: bool = False
    """As many steps as fit into the wall-clock time of the distilled arm."""
    overrides: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Dotted keys of the sections `student`, `student_training` and `method`, and their values in this arm."""

    @model_validator(mode="after")
    def _check(self) -> Control:
        if self.name in ("teacher", "baseline", "distilled"):
            raise ValueError(f"every experiment has an arm `{self.name}`; choose another name")
        if self.equal_time and (self.base == "distilled" or self.steps_factor != 1.0):
            raise ValueError("`equal_time` sets the steps of a baseline; leave out `steps_factor`")
        sections = ("student", "student_training", *(("method",) if self.base == "distilled" else ()))
        for key in self.overrides:
            if key.split(".")[0] not in sections:
                raise ValueError(
                    f"a control of the {self.base} cannot override `{key}`, only {', '.join(sections)}"
                )
        return self


class Recipe(Config):
    """One experiment: data, teacher, student, method, their trainings and what is reported."""

    # The sections depend on what is installed; importing this module looks for nothing.
    model_config = ConfigDict(defer_build=True)

    summary: Annotated[str, Field(min_length=1, max_length=120)]
    """One line for listings."""
    selects: Selects
    """The names by which the command line finds the recipe."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_unique)] = (0,)
    """Seeds of the experiment: initial weights, order of the data, augmentation."""
    world_seeds: tuple[NonNegativeInt, ...] | None = None
    """Seed of the data for each of `seeds`, where the data can be made; None keeps the data set's own seed."""
    dataset: Annotated[Config, kind_of(DatasetSpec)]
    """The data set."""
    teacher: Annotated[Config, kind_of(DetectorSpec)]
    """The detector that is distilled from."""
    teacher_pretraining: TrainingConfig | None = None
    """Pretraining of a part of the teacher, before `teacher_training`; the detector defines which part."""
    teacher_training: TrainingConfig | None = None
    """Training of the teacher; None where it is loaded from `teacher_checkpoint` or comes with its weights."""
    teacher_checkpoint: Path | None = None
    """Loaded instead of training the teacher; a relative path starts at the working directory."""
    teacher_precision: Precision | None = None
    """Precision of the teacher's forward pass in distillation; None takes that of the student's training."""
    teacher_cache: bool = False
    """Cache the teacher's outputs on disk, for data whose augmentation is a finite set, such as flips alone."""
    student: Annotated[Config, kind_of(DetectorSpec)]
    """The detector that is trained with and without distillation."""
    student_pretraining: TrainingConfig | None = None
    """Pretraining of a part of the student, shared by all its arms; the detector defines which part."""
    student_training: TrainingConfig
    """Training of the baseline and of the distilled student."""
    method: Annotated[Config, kind_of(MethodSpec)]
    """The distillation method, or a stack of methods."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Scoring of the trained detectors."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """How often a training writes a checkpoint."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that receive the metrics of a training, beside its `metrics.jsonl`."""
    controls: Annotated[tuple[Control, ...], AfterValidator(_unique_names)] = ()
    """Further arms, which `--seeds` trains."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        self._check_teacher()
        student = installed(DetectorSpec).of(self.student)
        if student.finished is not None:
            raise ValueError(
                f"`student`: a detector `{student.kind}` is not trained here; it can only be the teacher"
            )
        for role, detector in (("teacher", installed(DetectorSpec).of(self.teacher)), ("student", student)):
            if getattr(self, f"{role}_pretraining") is not None and detector.pretraining is None:
                raise ValueError(f"`{role}_pretraining`: the detector `{detector.kind}` has no pretraining")
        if self.world_seeds is not None:
            spec = installed(DatasetSpec).of(self.dataset)
            if spec.seed_key is None:
                raise ValueError(f"`world_seeds` needs data that can be made; {spec.kind} cannot")
            if len(self.world_seeds) != len(self.seeds):
                raise ValueError(f"give one of `world_seeds` for each of the {len(self.seeds)} `seeds`")
        return self

    def _check_teacher(self) -> None:
        teacher = installed(DetectorSpec).of(self.teacher)
        fetched = self.teacher_training is not None or self.teacher_checkpoint is not None
        if teacher.finished is None and not fetched:
            raise ValueError("give `teacher_training` or `teacher_checkpoint`")
        if teacher.finished is not None and fetched:
            raise ValueError(
                f"a teacher `{teacher.kind}` comes with its weights and is not trained here: leave out"
                " `teacher_training` and `teacher_checkpoint`"
            )
        if self.teacher_pretraining is not None and self.teacher_training is None:
            raise ValueError("`teacher_pretraining` needs `teacher_training`: a loaded teacher is not pretrained")

    def dataset_for(self, seed: int) -> Config:
        """The data set's configuration under one of the experiment's seeds."""
        if self.world_seeds is None:
            return self.dataset
        seed_key = installed(DatasetSpec).of(self.dataset).seed_key
        assert seed_key is not None
        return _with_value(self.dataset, seed_key.split("."), self.world_seeds[self.seeds.index(seed)])

    def misfits(self) -> list[tuple[str, str]]:
        """What of each detector does not fit the data: a dotted key and a reason."""
        found = []
        for role, detector in (("teacher", self.teacher), ("student", self.student)):
            spec = installed(DetectorSpec).of(detector)
            if spec.check is not None:
                check = load(spec.check)
                found += [
                    (f"{role}.{key}" if key else role, reason) for key, reason in check(detector, self.dataset)
                ]
        return found


_Model = TypeVar("_Model", bound=Config)


def _with_value(config: _Model, path: Sequence[str], value: int) -> _Model:
    head, *rest = path
    return config.model_copy(update={head: _with_value(getattr(config, head), rest, value) if rest else value})
