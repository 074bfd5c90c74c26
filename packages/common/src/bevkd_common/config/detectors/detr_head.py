"""The query head, which BEVFormer and the transformer teachers of DistillBEV share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from bevkd_common.config.datasets.images import Bounds
from bevkd_common.config.detectors.center_head import Box6
from bevkd_common.config.model import Config


class DetrHeadConfig(Config):
    """The head of BEVFormer: a set of queries that a decoder turns into boxes, without suppression.

    Defaults are BEVFormer's on nuScenes, from its released configurations. The width of the decoder is that of the
    map below.
    """

    queries: PositiveInt = 900
    """Boxes that are predicted in a sample; of more objects than this, the rest is not learned."""
    queries_from: Literal["learned", "heatmap"] = "learned"
    """Where queries start: at learned places, the same for every sample, as in BEVFormer; or at the peaks of a heat
    map of the classes, as in TransFusion (arXiv 2203.11496), without which a training of minutes learns nothing."""
    heatmap_weight: NonNegativeFloat = 1.0
    """Weight of the heat map's loss."""
    heading_weight: NonNegativeFloat | None = None
    """Weight of the loss of headings that cells predict for things centred in them, with `queries_from: heatmap`;
    the decoder corrects them layer by layer, as it does the places. None leaves headings to the decoder, as in
    BEVFormer, where a training of minutes learns none. Source: the dense regression of CenterPoint; Deformable DETR
    with two stages, whose queries start from boxes."""
    layers: PositiveInt = 6
    """Layers of the decoder; each is trained to predict boxes."""
    attention_heads: PositiveInt = 8
    points: PositiveInt = 4
    """Places of the map that a head of a query looks at."""
    hidden_channels: PositiveInt = 512
    """Width inside the feed-forward networks."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    z_range: Bounds = (-5.0, 3.0)
    """Lowest and highest centre that can be predicted, metres; along x and y it is the borders of the map."""
    class_weight: NonNegativeFloat = 2.0
    box_weight: NonNegativeFloat = 0.25
    class_cost: NonNegativeFloat = 2.0
    """Weight of the classification in the matching of queries and boxes."""
    box_cost: NonNegativeFloat = 0.25
    """Weight of the boxes' distance in the matching."""
    code_weights: tuple[NonNegativeFloat, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
    """Weights of x, y, log w, log l, z, log h, sin yaw, cos yaw, vx, vy in the box loss."""
    symmetric_classes: tuple[str, ...] = ()
    """Classes whose front is like their rear: of their two headings, half a turn apart, one is learned, that in
    [-π/2, π/2). As annotated, nothing tells the two apart. Source: the metric of nuScenes, which scores barriers by
    their heading up to half a turn, and cones by none."""
    max_detections: PositiveInt = 300
    """Best pairs of query and class that become boxes."""
    center_range: Box6 = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    """Lower x, y, z and upper x, y, z in metres that a decoded centre must not leave."""

    @model_validator(mode="after")
    def _check(self) -> DetrHeadConfig:
        if len(self.code_weights) != 10:
            raise ValueError(f"`code_weights` must be 10 numbers, got {len(self.code_weights)}")
        if self.heading_weight is not None and self.queries_from != "heatmap":
            raise ValueError("`heading_weight` needs `queries_from: heatmap`: learned queries start at no cell")
        if self.z_range[0] == self.z_range[1]:
            raise ValueError(f"`z_range` is empty: both borders are {self.z_range[0]:g}")
        return self
