"""How a model is trained, whatever it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.model import Config

Precision = Literal["fp32", "bf16", "fp16"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class OptimizerConfig(Config):
    """AdamW."""

    lr: PositiveFloat
    """Peak learning rate at the recipe's effective batch; never rescaled silently."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    lr_factors: Mapping[str, PositiveFloat] = Field(default_factory=dict)
    """Learning rate of parts of the detector, by module path ("image_backbone"), as a factor of `lr`."""


class CosineSchedule(Config):
    """Linear warm-up, then a half cosine down to `final_factor`."""

    kind: Literal["cosine"] = "cosine"
    warmup: Fraction = 0.1
    """Share of all steps."""
    warmup_factor: Fraction = 0.001
    final_factor: Fraction = 0.0


class StepSchedule(Config):
    """Linear warm-up, then a factor at each milestone."""

    kind: Literal["step"] = "step"
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    warmup_factor: Fraction = 0.001
    milestones: tuple[Fraction, ...] = (2 / 3, 22 / 24)
    """Shares of all steps."""
    factor: Fraction = 0.1


class OneCycleSchedule(Config):
    """Cosine from `start_factor` up to 1 and down to `final_factor`; the first Adam beta moves the other way."""

    kind: Literal["one_cycle"] = "one_cycle"
    peak_at: Fraction = 0.4
    start_factor: Fraction = 0.1
    final_factor: Fraction = 1e-5
    low_beta: Fraction | None = 0.805
    """First Adam beta at the peak (0.9 x 0.85 / 0.95, as mmcv's cyclic hook computes it); None leaves it alone."""


Schedule = Annotated[CosineSchedule | StepSchedule | OneCycleSchedule, Field(discriminator="kind")]


class EmaConfig(Config):
    """An exponential moving average of the weights and buffers, scored beside the raw weights."""

    decay: Fraction = 0.999
    warmup_updates: PositiveInt = 2000
    """The decay at update n is `decay * (1 - exp(-n / warmup_updates))`."""
    initial_updates: Annotated[int, Field(ge=0)] = 0


class CheckpointConfig(Config):
    """How often a training is kept, so that it can go on after an interruption; whichever comes first."""

    minutes: PositiveFloat = 2.0
    steps: PositiveInt | None = None


class PasteConfig(Config):
    """Objects from other key frames in the LiDAR points of each (GT-database sampling)."""

    counts: Mapping[str, PositiveInt]
    """How many objects of each class a key frame shall hold; as many as it lacks are drawn."""
    min_points: PositiveInt | Mapping[str, PositiveInt] = 5
    """LiDAR points, of all sweeps, that an object must hold; one number, or one for each class that is pasted."""
    difficulties: frozenset[int] | None = None
    """The data set's grades of difficulty of the objects that are pasted; None takes all objects."""

    @model_validator(mode="after")
    def _check(self) -> PasteConfig:
        if lacking := sorted(self.counts.keys() - self.least.keys()) if self.least else []:
            raise ValueError(f"`min_points` must name every class of `counts`; it lacks {', '.join(lacking)}")
        return self

    @property
    def least(self) -> Mapping[str, int]:
        """`min_points` by class; empty where one number holds for all."""
        return {} if isinstance(self.min_points, int) else self.min_points

    def least_of(self, name: str) -> int:
        """Points that an object of a class must hold; a class that is not pasted needs any one."""
        return self.min_points if isinstance(self.min_points, int) else self.min_points.get(name, 1)


class TrainingConfig(Config):
    """One training."""

    steps: PositiveInt | None = None
    """Optimizer steps; give this or `epochs`."""
    epochs: PositiveInt | None = None
    batch: PositiveInt
    """Effective batch, a constant of the recipe: fewer or smaller devices accumulate."""
    micro_batch: PositiveInt | None = None
    """Samples a device sees at once; `batch` where not given."""
    optimizer: OptimizerConfig
    schedule: Schedule = CosineSchedule()
    clip_norm: PositiveFloat | None = 35.0
    """L2 norm to which the gradient is clipped; None does not clip."""
    precision: Precision = "fp32"
    batch_norm: Literal["own", "synchronized", "frozen"] = "own"
    """Batch norm's statistics in training: each device's own, those of all devices together (GPUs), or the running
    ones as they are."""
    ema: EmaConfig | None = None
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes a device."""
    class_balanced: bool = False
    """Class-balanced grouping and sampling (CBGS) of the training split."""
    paste: PasteConfig | None = None
    """Paste objects into the points; for detectors without cameras, whose images would not show them."""

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`")
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"`batch` {self.batch} must be a multiple of `micro_batch` {self.micro_batch}")
        return self
