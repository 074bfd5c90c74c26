"""What can be chosen about DistillBEV; torch-free.

The knobs fall into four groups: the pairs of maps that are compared and their weights (`taps`), the switches of
the paper's own ablation (`layers`, `region_decomposition`, `attention`, `adaptive_scaling`,
`false_positive_layers`, `inherit`), the thresholds, and the quirks in which paper, scripts and code disagree.
Every switch applies to all taps at once, so that an ablation is one line whatever the recipe's taps are.

Values come from the launch scripts of the released runs ("the scripts"): they override the released
configuration files, and their author points to them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from bevkd_common.config.model import Config
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

AdapterKind = Literal[
    "identity",
    "conv1x1",
    "conv3x3",
    "mlp1",
    "mlp2",
    "mlp3",
    "up2_conv1x1",
    "up2_mlp2",
    "up2_mlp3",
    "up4_conv1x1",
    "up4_mlp2",
    "up4_mlp3",
    "avgpool2_conv1x1",
    "avgpool4_conv1x1",
    "down2_mlp2",
    "down4_mlp2",
]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]

OFFICIAL = {
    "sample_point": "corner",
    "ensure_center_cell": False,
    "false_positive_channel_attention": True,
}
"""Where the released code does otherwise than the defaults below; `preset: official` starts from these."""


class TapPair(Config):
    """A map of the teacher, the map of the student that imitates it, and the weights of this imitation."""

    name: Name
    """Prefix of the logged terms."""
    teacher: str
    """Tap of the teacher."""
    student: str
    """Tap of the student."""
    adapter: AdapterKind
    """Brings the student's map to the teacher's channels and cells.

    Source: the scripts: `up4_mlp3` inside the backbone, `conv1x1` before the head; earlier runs had `up4_mlp2`.
    """
    alpha: NonNegativeFloat = 6e-3
    """Weight of the foreground. Source: equation 7; the scripts for convolutional students."""
    beta: NonNegativeFloat = 4e-2
    """Weight of the background. Source: equation 7; the scripts for convolutional students."""
    w_fp: NonNegativeFloat = 6e-2
    """Weight of the false positives, eta times alpha in the paper. Source: the scripts (eta 10)."""
    lam: NonNegativeFloat = 2.5e-3
    """Lambda, weight of the attention imitation. Source: equation 8; the scripts for convolutional students."""
    false_positives: bool = False
    """Whether the teacher's false positives are a region of their own at this layer.

    Source: the scripts: before the head only; the paper finds that this works best.
    """
    spare: bool = False
    """Whether the pair is in use only where `layers` names it.

    Source: the paper's ablation of layers, in which the first stage of the backbone does harm.
    """
    normalize: Literal["none", "teacher_rms"] = "none"
    """Whether both maps are divided by the teacher's root mean square, measured once on calibration batches.

    Temperature and squared error then mean the same at every layer and for every teacher. Not in the paper.
    """


def _unique_names(taps: tuple[TapPair, ...]) -> tuple[TapPair, ...]:
    names = [tap.name for tap in taps]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"holds the name `{name}` twice")
    return taps


def _unique(layers: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if layers is not None and len(set(layers)) < len(layers):
        raise ValueError("holds a name twice")
    return layers


PAPER_TAPS = (
    TapPair(name="bev_block0", teacher="bev_block0", student="bev_block0", adapter="up4_mlp3", spare=True),
    TapPair(name="bev_block1", teacher="bev_block1", student="bev_block1", adapter="up4_mlp3"),
    TapPair(name="bev_block2", teacher="bev_block2", student="bev_block2", adapter="up4_mlp3"),
    TapPair(name="bev_neck", teacher="bev_neck", student="bev_neck", adapter="conv1x1", false_positives=True),
)
"""B0, B1, B2 and H of the paper, for convolutional students; B0 is for the ablation alone."""


class DistillBevConfig(Config):
    """DistillBEV; the defaults are its released recipe for convolutional students, with quirks corrected."""

    kind: Literal["distillbev"] = "distillbev"
    preset: Literal["clean", "official"] = "clean"
    """Which defaults the quirks take: corrected, or as the released code has them.

    It fills in the keys that are not given; the resolved configuration spells all of them out.
    """
    weight: NonNegativeFloat = 1.0
    """Factor on all distillation losses; 0 leaves the inherited head alone."""
    inherit: Literal["none", "task_heads", "head", "decoder"] = "task_heads"
    """What the student's head copies from the teacher's at the start: nothing; of a centre-point head the branches
    of all tasks (`task_heads`), or the shared convolution too (`head`); of a query head the decoder and its
    branches (`decoder`), or what starts the queries too (`head`).

    Source: the released code copies the branches for convolutional students, the decoder for BEVFormer.
    """

    taps: Annotated[tuple[TapPair, ...], Field(min_length=1), AfterValidator(_unique_names)] = PAPER_TAPS
    """The maps that are compared."""
    layers: Annotated[tuple[str, ...] | None, AfterValidator(_unique)] = None
    """Names of the taps in use; none given, all but the spare ones are.

    The paper's ablation of layers turns this.
    """

    region_decomposition: bool = True
    """Whether foreground, false positives and background are weighted apart (equation 1).

    Without, all cells of a sample weigh the same; the sum of their weights stays what it was.
    """
    adaptive_scaling: bool = True
    """Whether a foreground cell counts 1 / sqrt(area of its object) (equation 3).

    Without, all foreground cells of a sample weigh the same; the sum of their weights stays what it was.
    """
    attention: Literal["teacher_student", "teacher", "none"] = "teacher_student"
    """Whose spatial attention weighs the cells (equation 6).

    Source: the scripts: both for convolutional students, the teacher's alone for BEVFormer.
    """
    attention_imitation: Literal["signed_mean", "abs_mean", "none"] = "signed_mean"
    """The channel mean that equation 8 compares: of the features, of their absolute values, or no such term.

    Source: the released code takes the signed mean; the paper speaks of attention, which is of absolute values.
    """
    attention_kernel: Literal["conv3x3", "identity"] = "conv3x3"
    """What equation 8 does to the student's map first: a learnable convolution, or nothing.

    Source: the released code has the convolution; the paper's text does not mention it.
    """
    false_positive_layers: Literal["none", "chosen", "all"] = "chosen"
    """Where false positives are a region: nowhere, where the tap says so, or at every layer."""

    tau: PositiveFloat = 0.5
    """Temperature of the attention, in units of the features. Source: paper and scripts."""
    student_ratio: NonNegativeFloat = 1.0
    """r, weight of the student's attention relative to the teacher's. Source: the scripts."""
    gamma_teacher: Probability = 0.1
    """Probability above which the teacher sees an object (equation 2). Source: paper and scripts."""
    gamma_ground_truth: Probability = 0.1
    """Value of the Gaussians below which there is none (equation 2). Source: paper and scripts."""
    eta: NonNegativeFloat | None = None
    """Weight of a false positive relative to the foreground; given, it replaces `w_fp` by eta times `alpha`.

    Source: the paper's parametrisation; 10 in the scripts, 20 in the supplement.
    """

    sample_point: Literal["center", "corner"] = "center"
    """Point of a cell that must lie in a box. `official`: the lower corner, half a cell off."""
    overlap: Literal["first", "smallest"] = "first"
    """Which of several boxes owns a cell. Source: the released code takes the first in the list."""
    ensure_center_cell: bool = True
    """Whether a box without a sample point gets the cell of its centre. `official`: no, small objects vanish."""
    false_positive_channel_attention: bool = False
    """Whether the teacher's channel attention weighs the false-positive term.

    `official`: yes, although the scripts switch it off for the other regions and the paper does not have it.
    """
    align_corners: bool = True
    """How adapters interpolate. Source: the released code; it moves features by up to 0.375 source cells."""

    @model_validator(mode="after")
    def _fill_in_preset(self) -> DistillBevConfig:
        # Not a validator of the raw input: strict JSON lists would reach the tuples as Python lists and be refused.
        for name, value in OFFICIAL.items() if self.preset == "official" else ():
            if name not in self.model_fields_set:
                object.__setattr__(self, name, value)
        return self

    @model_validator(mode="after")
    def _check_layers(self) -> DistillBevConfig:
        names = [tap.name for tap in self.taps]
        for layer in self.layers or ():
            if layer not in names:
                raise ValueError(f"`layers` holds `{layer}`, which is none of the `taps`: {', '.join(names)}")
        return self

    @property
    def active_taps(self) -> tuple[TapPair, ...]:
        """The taps that `layers` selects, in the order of `taps`."""
        if self.layers is None:
            return tuple(tap for tap in self.taps if not tap.spare)
        return tuple(tap for tap in self.taps if tap.name in self.layers)
