"""Configuration of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bevkd_common.config.model import Config

Precision = Literal["fp32", "bf16", "fp16"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimizerConfig(Config):
    """The AdamW optimizer."""

    lr: PositiveFloat
    """Peak learning rate at the recipe's effective batch; it is never rescaled with the batch."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Coefficients of the running averages of gradient and squared gradient."""
    lr_factors: Mapping[str, PositiveFloat] = Field(default_factory=dict)
    """Factor on `lr` for parts of the detector, by module path ("image_backbone")."""


class CosineSchedule(Config):
    """Linear warm-up, then a half cosine to `final_factor`."""

    kind: Literal["cosine"] = "cosine"
    warmup: Fraction = 0.1
    """Length of the warm-up as a fraction of all steps."""
    warmup_factor: Fraction = 0.001
    """Factor on the learning rate at the first step."""
    final_factor: Fraction = 0.0
    """Factor on the learning rate at the last step."""


class StepSchedule(Config):
    """Linear warm-up, then a multiplication by `factor` at each milestone."""

    kind: Literal["step"] = "step"
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    """Length of the warm-up in steps."""
    warmup_factor: Fraction = 0.001
    """Factor on the learning rate at the first step."""
    milestones: tuple[Fraction, ...] = (2 / 3, 22 / 24)
    """Fractions of all steps."""
    factor: Fraction = 0.1
    """Factor on the learning rate at each milestone."""


class OneCycleSchedule(Config):
    """Cosine from `start_factor` up to 1 and down to `final_factor`; the first Adam beta moves inversely."""

    kind: Literal["one_cycle"] = "one_cycle"
    peak_at: Fraction = 0.4
    """Position of the peak as a fraction of all steps."""
    start_factor: Fraction = 0.1
    """Factor on the learning rate at the first step."""
    final_factor: Fraction = 1e-5
    """Factor on the learning rate at the last step."""
    low_beta: Fraction | None = 0.805
    """First Adam beta at the peak (0.9 x 0.85 / 0.95, as mmcv's cyclic hook does); None keeps it constant."""


Schedule = Annotated[CosineSchedule | StepSchedule | OneCycleSchedule, Field(discriminator="kind")]


class EmaConfig(Config):
    """An exponential moving average (EMA) of weights and buffers, scored beside the raw weights."""

    decay: Fraction = 0.999
    """Decay after the warm-up."""
    warmup_updates: PositiveInt = 2000
    """The decay at update n is `decay * (1 - exp(-n / warmup_updates))`."""
    initial_updates: Annotated[int, Field(ge=0)] = 0
    """Number of updates at which the warm-up of the decay starts."""


class CheckpointConfig(Config):
    """Interval between the checkpoints from which an interrupted training resumes; whichever limit comes first."""

    minutes: PositiveFloat = 2.0
    """Minutes between two checkpoints."""
    steps: PositiveInt | None = None
    """Steps between two checkpoints; None sets no limit."""


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
    """Configuration of one training."""

    steps: PositiveInt | None = None
    """Optimizer steps; give this or `epochs`."""
    epochs: PositiveInt | None = None
    """Passes over the training split; give this or `steps`."""
    batch: PositiveInt
    """Effective batch, a constant of the recipe: fewer or smaller devices accumulate gradients."""
    micro_batch: PositiveInt | None = None
    """Samples that a device processes at once; None is `batch`."""
    optimizer: OptimizerConfig
    """The optimizer."""
    schedule: Schedule = CosineSchedule()
    """The learning-rate schedule."""
    clip_norm: PositiveFloat | None = 35.0
    """L2 norm to which the gradient is clipped; None does not clip."""
    precision: Precision = "fp32"
    """Precision of the forward pass (automatic mixed precision)."""
    batch_norm: Literal["own", "synchronized", "frozen"] = "own"
    """Batch-norm statistics in training: those of each device, those of all devices together (GPUs only), or the
    running ones, frozen."""
    ema: EmaConfig | None = None
    """Exponential moving average of the weights; None keeps none."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes of a device."""
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
