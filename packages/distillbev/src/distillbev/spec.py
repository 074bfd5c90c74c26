"""The plug-in spec of DistillBEV: its ablations and its departures from the released runs; torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import Ablation, MethodSpec

from distillbev.config import DistillBevConfig, TapPair

RELEASED = DistillBevConfig(preset="official")
"""The recipe of the released runs for convolutional students."""
RELEASED_FOR_QUERIES = DistillBevConfig(
    preset="official",
    inherit="decoder",
    taps=(
        TapPair(
            name="bev_neck",
            teacher="bev_neck",
            student="bev_neck",
            adapter="conv1x1",
            alpha=5e-3,
            beta=4e-3,
            w_fp=0.0,
            lam=5e-4,
        ),
    ),
    attention="teacher",
    sample_point="center",
    false_positive_channel_attention=False,
)
"""The recipe of the released runs for BEVFormer, whose query head inherits the decoder."""

_NO_FALSE_POSITIVES = {"false_positive_layers": "none"}
_NO_SCALING = {**_NO_FALSE_POSITIVES, "adaptive_scaling": False}
_NO_ATTENTION = {**_NO_SCALING, "attention": "none", "attention_imitation": "none"}

ABLATIONS = {
    "layers_none": Ablation(
        "Paper, ablation of layers, first row: nothing is distilled or inherited.",
        {"layers": [], "inherit": "none"},
    ),
    "layers_h": Ablation("Paper, ablation of layers: only before the head (H).", {"layers": ["bev_neck"]}),
    "layers_b2_h": Ablation(
        "Paper, ablation of layers: the last stage of the backbone and before the head (B2+H).",
        {"layers": ["bev_block2", "bev_neck"]},
    ),
    "layers_b1_b2_h": Ablation(
        "Paper, ablation of layers, the chosen row: B1+B2+H.",
        {"layers": ["bev_block1", "bev_block2", "bev_neck"]},
    ),
    "layers_b0_b1_b2_h": Ablation(
        "Paper, ablation of layers: all stages of the backbone and before the head (B0+B1+B2+H).",
        {"layers": ["bev_block0", "bev_block1", "bev_block2", "bev_neck"]},
    ),
    "plain": Ablation(
        "Paper, ablation of components, first row: every cell weighs the same, no attention.",
        {**_NO_ATTENTION, "region_decomposition": False},
    ),
    "fgbg": Ablation(
        "Paper, ablation of components: foreground and background apart, no attention, scaling or false positives.",
        _NO_ATTENTION,
    ),
    "fgbg_attention": Ablation(
        "Paper, ablation of components: foreground, background and attention, no scaling or false positives.",
        _NO_SCALING,
    ),
    "fgbg_attention_scaling": Ablation(
        "Paper, ablation of components, last row but the recipe itself: all but false positives.",
        _NO_FALSE_POSITIVES,
    ),
    "inheritance_alone": Ablation("The teacher's head at the start, no distillation loss.", {"weight": 0.0}),
    "losses_alone": Ablation("The distillation losses, the head starts at random.", {"inherit": "none"}),
    "eta_20": Ablation(
        "False positives weigh 20 times the foreground, as in the paper's supplement; the scripts have 10.",
        {"eta": 20.0},
    ),
    "false_positives_everywhere": Ablation(
        "False positives are a region at every layer; upstream, an in-place sigmoid spoils this setting.",
        {"false_positive_layers": "all"},
    ),
    "abs_mean_attention": Ablation(
        "Attention imitation as the paper's prose has it: means of absolute values, no learnable kernel.",
        {"attention_imitation": "abs_mean", "attention_kernel": "identity"},
    ),
    "align_corners_false": Ablation("Adapters interpolate at metric cell centres.", {"align_corners": False}),
}
"""The paper's ablations that need one teacher and one student, and ours of the points it leaves open."""

SPEC = MethodSpec(
    kind="distillbev",
    title="DistillBEV",
    paper="Wang et al., DistillBEV: Boosting Multi-Camera 3D Object Detection with Cross-Modal Knowledge "
    "Distillation, ICCV 2023, arXiv 2309.15109",
    config=DistillBevConfig,
    build="distillbev.build:build",
    recipes="distillbev.recipes",
    ablations=ABLATIONS,
    departures="distillbev.spec:departures",
    published="distillbev.paper:published",
    published_ablations="distillbev.paper:published_ablations",
)


_SENTENCES: dict[str, str | dict[str | bool, str]] = {
    "weight": "All distillation losses are multiplied by {ours:g}.",
    "inherit": {
        "none": "The student's head starts at random; the paper copies the teacher's {part}.",
        "head": "The student's whole head is copied from the teacher's; the paper copies the {part} alone.",
    },
    "region_decomposition": "Regions are not weighted apart (equation 1 is off).",
    "adaptive_scaling": "Foreground cells do not count by the size of their object (equation 3 is off).",
    "attention": {
        "teacher": "Cells are weighed by the teacher's attention alone; the released runs take both models'.",
        "teacher_student": "Cells are weighed by both models' attention; the released runs take the teacher's.",
        "none": "Cells are not weighed by attention (equation 6 is off).",
    },
    "attention_imitation": {
        "abs_mean": "Attention imitation compares means of absolute values; the released code takes signed means.",
        "none": "There is no attention imitation (equation 8 is off).",
    },
    "attention_kernel": "Attention imitation has no learnable 3x3 kernel; the released code has one.",
    "false_positive_layers": {
        "none": "The teacher's false positives are not a region.",
        "all": "The teacher's false positives are a region at every layer; in the paper before the head only.",
    },
    "tau": "The temperature of the attention is {ours:g}, in the paper {paper:g}.",
    "student_ratio": "The student's attention weighs {ours:g} times the teacher's, in the released runs {paper:g}.",
    "gamma_teacher": "The teacher sees an object above a probability of {ours:g}, in the paper {paper:g}.",
    "gamma_ground_truth": "False positives need a ground truth below {ours:g}, in the paper {paper:g}.",
    "eta": "False positives weigh {ours:g} times the foreground at every layer, in the released runs 10 times.",
    "sample_point": {
        "center": "A cell is foreground by its centre; the released code takes its lower corner.",
        "corner": "A cell is foreground by its lower corner; the released code takes its centre.",
    },
    "overlap": "The smallest of several boxes owns a cell; the released code takes the first.",
    "ensure_center_cell": "A box without a sample point gets its centre's cell; in the released code it vanishes.",
    "false_positive_channel_attention": {
        False: "No channel attention weighs the false positives; the released code has it, the paper does not.",
        True: "Channel attention weighs the false positives, which neither the paper nor the released runs have.",
    },
    "align_corners": "Adapters interpolate at metric cell centres; the released code aligns the corners.",
}
"""What a departure means, by key; where several values can depart, by value."""


def departures(config: DistillBevConfig, student: Config) -> list[str]:
    """One sentence for each setting that differs from the released recipe for the student's kind of head."""
    # Imported here: listings of methods and recipes load no detector's configuration.
    from bevkd_common.config.detectors.detr_head import DetrHeadConfig

    queries = isinstance(getattr(student, "head", None), DetrHeadConfig)
    released, part = (RELEASED_FOR_QUERIES, "decoder") if queries else (RELEASED, "branches")
    sentences = list(_layer_departures(config, released))
    for key, sentence in _SENTENCES.items():
        ours, paper = getattr(config, key), getattr(released, key)
        if ours != paper:
            template = sentence if isinstance(sentence, str) else sentence[ours]
            sentences.append(template.format(ours=ours, paper=paper, part=part))
    return sentences


def _layer_departures(config: DistillBevConfig, released: DistillBevConfig) -> Iterator[str]:
    ours = {_pair(tap): tap for tap in config.active_taps}
    theirs = {_pair(tap): tap for tap in released.active_taps}
    if missing := [pair for pair in theirs if pair not in ours]:
        yield f"Nothing is distilled at {', '.join(missing)}; the paper distils at {', '.join(theirs)}."
    if added := [pair for pair in ours if pair not in theirs]:
        yield f"Distillation takes place at {', '.join(added)} too; the paper distils at {', '.join(theirs)}."
    for pair in ours:
        if pair in theirs:
            yield from _tap_departures(pair, ours[pair], theirs[pair])


def _pair(tap: TapPair) -> str:
    return tap.student if tap.student == tap.teacher else f"{tap.student} after the teacher's {tap.teacher}"


def _tap_departures(pair: str, ours: TapPair, theirs: TapPair) -> Iterator[str]:
    if ours.adapter != theirs.adapter:
        yield f"The adapter of {pair} is {ours.adapter}, in the paper {theirs.adapter}."
    weights = [
        f"{symbol} {getattr(ours, key):g} (paper {getattr(theirs, key):g})"
        for key, symbol in (("alpha", "alpha"), ("beta", "beta"), ("w_fp", "w_fp"), ("lam", "lambda"))
        if getattr(ours, key) != getattr(theirs, key)
    ]
    if weights:
        yield f"Weights at {pair}: {', '.join(weights)}."
    if ours.false_positives != theirs.false_positives:
        here, there = ("a region", "are not") if ours.false_positives else ("no region", "are")
        yield f"The teacher's false positives are {here} at {pair}; in the paper they {there}."
    if ours.normalize != theirs.normalize:
        yield f"Both maps at {pair} are divided by the teacher's root mean square; the paper leaves them raw."
