"""The plug-in spec of UniDistill: its ablations and its departures from the released code; torch-free."""

from __future__ import annotations

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import Ablation, MethodSpec

from unidistill.config import OFFICIAL, UniDistillConfig

ABLATIONS = {
    "feature_alone": Ablation("Feature distillation alone.", {"relation_weight": 0.0, "response_weight": 0.0}),
    "relation_alone": Ablation("Relation distillation alone.", {"feature_weight": 0.0, "response_weight": 0.0}),
    "response_alone": Ablation("Response distillation alone.", {"feature_weight": 0.0, "relation_weight": 0.0}),
    "adapters": Ablation(
        "A 1x1 convolution on both maps of the student, as the paper has where the teacher is weaker.",
        {"low.adapter": "conv1x1", "high.adapter": "conv1x1"},
    ),
    "whole_map": Ablation("Features are compared everywhere instead of at nine points.", {"area": "whole_map"}),
    "gaussian_area": Ablation("Features are compared around the centres of boxes.", {"area": "gaussian"}),
    "temperature_2": Ablation(
        "The teacher's logits are divided by 2, as in the released code.", {"temperature": 2.0}
    ),
    "transposed_points": Ablation(
        "Maps are read at the points with x and y exchanged, as in the released code.", {"transpose_points": True}
    ),
}
"""The paper's ablations that need one teacher and one student, and those of the quirks of the released code."""

SPEC = MethodSpec(
    kind="unidistill",
    title="UniDistill",
    paper="Zhou et al., UniDistill: A Universal Cross-Modality Knowledge Distillation Framework for 3D Object "
    "Detection in Bird's-Eye View, CVPR 2023, arXiv 2303.15083",
    config=UniDistillConfig,
    build="unidistill.build:build",
    recipes="unidistill.recipes",
    ablations=ABLATIONS,
    departures="unidistill.spec:departures",
)

_SENTENCES: dict[str, str] = {
    "transpose_points": "Maps are read at the nine points; the released code exchanges x and y first.",
    "padding_stamps": "Padded boxes draw nothing; in the released code they mark the cell of the ego.",
    "temperature": "The teacher's logits are divided by {ours:g}, in the released code by {released:g}.",
    "teacher_batch_norm": "The teacher's batch norm takes the statistics of its training; that of the released "
    "code takes those of the batch.",
}


def departures(config: UniDistillConfig, student: Config) -> list[str]:
    """One sentence for each setting that differs from the released code."""
    del student
    sentences = [
        _SENTENCES[key].format(ours=getattr(config, key), released=released)
        for key, released in OFFICIAL.items()
        if getattr(config, key) != released
    ]
    if config.area != "nine_points":
        sentences.append(
            f"Features are compared in the area `{config.area}`, in the paper at nine points of each box."
        )
    adapted = [key for key in ("low", "high") if getattr(config, key).adapter != "none"]
    if adapted:
        sentences.append(f"The student's map has an adapter ({', '.join(adapted)}); the released code has none.")
    left_out = [key for key in ("feature", "relation", "response") if not getattr(config, f"{key}_weight")]
    return [*sentences, *(f"There is no {key} distillation." for key in left_out)]
