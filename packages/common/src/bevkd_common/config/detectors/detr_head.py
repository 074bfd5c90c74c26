"""The query head, which BEVFormer and the transformer teachers of DistillBEV share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from bevkd_common.config.datasets.images import Bounds
from bevkd_common.config.detectors.center_head import Box6
from bevkd_common.config.model import Config


class DetrHeadConfig(Config):
    """The head of BEVFormer: a decoder predicts a box from each query, without non-maximum suppression.

    Defaults are BEVFormer's on nuScenes, from its released configurations. The width of the decoder is that of the
    BEV map.
    """

    queries: PositiveInt = 900
    """Boxes predicted per sample; ground-truth boxes beyond this number are not matched."""
    queries_from: Literal["learned", "heatmap"] = "learned"
    """Initial positions of the queries: learned and the same for every sample, as in BEVFormer; or the peaks of a
    heat map, as in TransFusion (arXiv 2203.11496), which a training of minutes needs to converge."""
    heatmap_weight: NonNegativeFloat = 1.0
    """Loss weight of the heat map."""
    heading_weight: NonNegativeFloat | None = None
    """Loss weight of the headings that cells predict for objects centred in them, with `queries_from: heatmap`; the
    decoder refines them layer by layer, like the positions. None leaves headings to the decoder, as in BEVFormer,
    where a training of minutes does not learn them. Source: the dense regression of CenterPoint; two-stage
    Deformable DETR, whose queries start from boxes."""
    layers: PositiveInt = 6
    """Layers of the decoder; each predicts boxes and has a loss."""
    attention_heads: PositiveInt = 8
    """Attention heads of the decoder."""
    points: PositiveInt = 4
    """Sampling points of an attention head on the BEV map."""
    hidden_channels: PositiveInt = 512
    """Width inside the feed-forward networks."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout probability in the decoder."""
    z_range: Bounds = (-5.0, 3.0)
    """Lowest and highest centre that can be predicted, metres; along x and y it is the extent of the BEV map."""
    class_weight: NonNegativeFloat = 2.0
    """Loss weight of the classification."""
    box_weight: NonNegativeFloat = 0.25
    """Loss weight of the boxes."""
    class_cost: NonNegativeFloat = 2.0
    """Weight of the classification in the matching of queries and boxes."""
    box_cost: NonNegativeFloat = 0.25
    """Weight of the L1 distance of boxes in the matching."""
    code_weights: tuple[NonNegativeFloat, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
    """Weights of x, y, log w, log l, z, log h, sin yaw, cos yaw, vx, vy in the box loss."""
    symmetric_classes: tuple[str, ...] = ()
    """Classes whose front looks like their rear: of two headings, half a turn apart, the one in [-π/2, π/2) is
    the target, because the two cannot be distinguished. Source: the metric of nuScenes, which scores barriers up to
    half a turn, and no heading of cones."""
    max_detections: PositiveInt = 300
    """Number of pairs of query and class, those with the highest scores, that become detections."""
    center_range: Box6 = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    """Lower x, y, z and upper x, y, z in metres; detections with a centre outside are dropped."""

    @model_validator(mode="after")
    def _check(self) -> DetrHeadConfig:
        if len(self.code_weights) != 10:
            raise ValueError(f"`code_weights` must be 10 numbers, got {len(self.code_weights)}")
        if self.heading_weight is not None and self.queries_from != "heatmap":
            raise ValueError("`heading_weight` needs `queries_from: heatmap`: learned queries start at no cell")
        if self.z_range[0] == self.z_range[1]:
            raise ValueError(f"`z_range` is empty: both borders are {self.z_range[0]:g}")
        return self
