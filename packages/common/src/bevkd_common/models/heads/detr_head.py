"""The query head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevkd_common.config.detectors.detr_head import DetrHeadConfig
from bevkd_common.errors import UserError
from bevkd_common.geometry.boxes import Boxes, folded
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Detections, SetTargets, Term
from bevkd_common.models.heads.center_decode import collect, within
from bevkd_common.models.heads.center_losses import code_loss, gaussian_focal_loss
from bevkd_common.models.heads.detr_code import CENTER as CODE_CENTER
from bevkd_common.models.heads.detr_code import CODE, CODE_CHANNELS, decode, encode, with_center
from bevkd_common.models.heads.detr_decoder import Decoder
from bevkd_common.models.heads.detr_losses import class_loss
from bevkd_common.models.heads.detr_targets import BACKGROUND, match, matching_cost
from bevkd_common.models.heads.heatmap_queries import HeatmapQueries, Start
from bevkd_common.models.taps import Branch, Meaning, Queries
from bevkd_common.ops.normalizers import mean_over_ranks


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of the decoder.

    Attributes:
        layers: Number of layers.
        attention_heads: Heads of every attention.
        points: Sampling points per head and query.
        hidden_channels: Channels inside the feed-forward networks.
        dropout: See `DecoderLayer`.
    """

    layers: int
    attention_heads: int
    points: int
    hidden_channels: int
    dropout: float


@dataclass(frozen=True)
class QuerySupervision:
    """Matching and losses of a query head.

    Attributes:
        class_weight: Loss weight of the classes.
        box_weight: Loss weight of the boxes.
        class_cost: Weight of the classes in the matching.
        box_cost: Weight of the boxes in the matching.
        code_weights: Weights of the ten numbers of a box code in the loss.
        heatmap_weight: Loss weight of the heat map at whose peaks the queries start; None learns their positions.
        heading_weight: Loss weight of the headings that these queries start from; None leaves headings to the
            decoder alone.
        symmetric_classes: Classes whose headings are learned up to half a turn, see `folded`.
    """

    class_weight: float
    box_weight: float
    class_cost: float
    box_cost: float
    code_weights: tuple[float, ...]
    heatmap_weight: float | None = None
    heading_weight: float | None = None
    symmetric_classes: tuple[str, ...] = ()


class DetrHead(nn.Module):
    """Predicts boxes as a set: each query predicts a box or background.

    A query has a content, a position and a reference point, around which its sampling points lie.

    Args:
        channels: Channels of the input map and of the queries.
        grid: Cells of the input map; predicted centres are within its borders.
        classes: Classes of the data set; labels index them.
        queries: Number of queries.
        z_range: Lowest and highest centre in metres.
        decoder: Sizes of the decoder.
        supervision: Matching and losses.
        max_detections: Best pairs of query and class that become boxes.
        center_range: Lower x, y, z and upper x, y, z in metres of decoded centres.

    Upstream: BEVFormer turns losses that are not finite into zero; here they stop the training.

    Source: BEVFormer, arXiv 2203.17270, section 3.5; Deformable DETR, arXiv 2010.04159.
    """

    def __init__(
        self,
        channels: int,
        grid: Grid,
        classes: tuple[str, ...],
        *,
        queries: int,
        z_range: tuple[float, float],
        decoder: DecoderSizes,
        supervision: QuerySupervision,
        max_detections: int,
        center_range: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.maps = Queries(
            grid=grid,
            classes=classes,
            layers=decoder.layers,
            count=queries,
            channels=channels,
            code=CODE,
            heatmap=supervision.heatmap_weight is not None,
            maps=() if supervision.heading_weight is None else (Branch("headings", 2, Meaning.YAW),),
        )
        self.supervision = supervision
        self.max_detections = max_detections
        x0, y0, x1, y1 = grid.extent
        low, high = torch.tensor([x0, y0, z_range[0]]), torch.tensor([x1, y1, z_range[1]])
        self.low: Tensor
        self.extent: Tensor
        self.code_weights: Tensor
        self.center_range: Tensor
        self._constant("low", low)
        self._constant("extent", high - low)
        self.symmetric: Tensor
        self._constant("symmetric", torch.tensor([name in supervision.symmetric_classes for name in classes]))
        self._constant("code_weights", torch.tensor(supervision.code_weights))
        self._constant("center_range", torch.tensor(center_range))

        self.heatmap_queries: HeatmapQueries | None = None
        if supervision.heatmap_weight is not None:
            headings = supervision.heading_weight is not None
            self.heatmap_queries = HeatmapQueries(channels, grid, len(classes), queries, headings)
        else:
            self.queries = nn.Embedding(queries, 2 * channels)
            self.reference_points = nn.Linear(channels, 3)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        self.decoder = Decoder(
            decoder.layers,
            channels,
            len(classes),
            heads=decoder.attention_heads,
            points=decoder.points,
            hidden_channels=decoder.hidden_channels,
            dropout=decoder.dropout,
        )

    def forward(self, bev: Tensor) -> list[dict[str, Tensor]]:
        """Predictions over a map [B, C, Y, X], layer by layer, the last one final.

        Returns:
            For each layer `class_logits` [B, Q, K] and `box_code` [B, Q, 10], see `encode`; the first also has the
            `heatmap` [B, K, Y, X] of logits if the queries start at its peaks, and the `headings` [B, 2, Y, X] if
            the cells predict headings.
        """
        if self.heatmap_queries is not None:
            start, maps = self.heatmap_queries(bev)
            first, *later = self._decoded(start, bev)
            return [first | maps, *later]
        position, content = self.queries.weight.expand(len(bev), -1, -1).chunk(2, dim=-1)
        with torch.autocast(bev.device.type, enabled=False):
            reference = self.reference_points(position).sigmoid()
        return self._decoded(Start(content, position, reference), bev)

    @property
    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """See `Detector`."""
        return {
            "head": self,
            "head.decoder": self.decoder,
            **({"head.queries": self.queries} if self.heatmap_queries is None else {}),
        }

    def targets(self, predictions: Sequence[Mapping[str, Tensor]], boxes: Boxes, labels: Tensor) -> SetTargets:
        """Match queries with boxes [B, M, 9] of labels [B, M], negative where there is no box.

        Boxes whose centre is outside the map cannot be predicted and are left out.
        """
        offset = boxes.centers - self.low
        inside = ((offset >= 0) & (offset < self.extent))[..., :2].all(dim=-1)
        learned = (labels >= 0) & inside & (boxes.size > 0).all(dim=-1)
        facing = folded(boxes, self.symmetric[labels.clamp(min=0)])
        code = torch.where(learned[..., None], encode(facing), 0.0)
        labels = torch.where(learned, labels, BACKGROUND)
        with torch.no_grad():
            costs = [
                matching_cost(
                    prediction["class_logits"],
                    prediction["box_code"],
                    labels.clamp(min=0),
                    code,
                    self.supervision.class_cost,
                    self.supervision.box_cost,
                )
                for prediction in predictions
            ]
        heatmap = None if self.heatmap_queries is None else self.heatmap_queries.targets(boxes, labels)
        return SetTargets(labels=labels, code=code, matched=match(costs, learned), heatmap=heatmap)

    def losses(self, predictions: Sequence[Mapping[str, Tensor]], targets: SetTargets) -> dict[str, Term]:
        """Terms `classes` and `boxes`, each layer divided by its matched queries, summed over layers.

        Also `heatmap`, divided by the number of peaks, if the queries start at its peaks, and `headings`, divided
        by the number of boxes, if the cells predict headings.
        """
        weights = self.supervision
        matched = torch.stack([(boxes != BACKGROUND).sum() for boxes in targets.matched]).float()
        counts = mean_over_ranks(matched).clamp(min=1)
        class_losses, box_losses = [], []
        for prediction, boxes in zip(predictions, targets.matched, strict=True):
            labels, code = _of_queries(targets, boxes)
            class_losses.append(class_loss(prediction["class_logits"], labels))
            box_losses.append(code_loss(prediction["box_code"], code, boxes != BACKGROUND, self.code_weights))
        terms = {
            "classes": Term((torch.stack(class_losses) / counts).sum(), weights.class_weight),
            "boxes": Term((torch.stack(box_losses) / counts).sum(), weights.box_weight),
        }
        if weights.heatmap_weight is not None:
            assert targets.heatmap is not None
            peaks = mean_over_ranks((targets.heatmap == 1).sum().float()).clamp(min=1)
            heat = gaussian_focal_loss(predictions[0]["heatmap"], targets.heatmap)
            terms["heatmap"] = Term(heat / peaks, weights.heatmap_weight)
        if weights.heading_weight is not None:
            assert self.heatmap_queries is not None
            learned = targets.labels != BACKGROUND
            boxes = mean_over_ranks(learned.sum().float()).clamp(min=1)
            turn = self.heatmap_queries.heading_loss(predictions[0]["headings"], targets.code, learned)
            terms["headings"] = Term(turn / boxes, weights.heading_weight)
        return terms

    @torch.no_grad()
    def decode(self, predictions: Sequence[Mapping[str, Tensor]]) -> list[Detections]:
        """Boxes of the best pairs of query and class of the last layer; one entry per sample."""
        final = predictions[-1]
        scores = final["class_logits"].float().sigmoid()
        classes = scores.shape[2]
        scores, flat = scores.flatten(1).topk(min(self.max_detections, scores[0].numel()), dim=1)
        query = (flat // classes)[..., None].expand(-1, -1, CODE_CHANNELS)
        boxes = decode(final["box_code"].float().gather(1, query))
        return collect(boxes, scores, flat % classes, within(boxes, self.center_range))

    def _decoded(self, start: Start, bev: Tensor) -> list[dict[str, Tensor]]:
        predictions = self.decoder(start.content, start.position, start.reference, bev, start.heading)
        return [prediction | {"box_code": self._in_metres(prediction["box_code"])} for prediction in predictions]

    def _in_metres(self, code: Tensor) -> Tensor:
        """The codes with centres in metres instead of shares of the range."""
        return with_center(code, self.low + code[..., CODE_CENTER] * self.extent)

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)


def _of_queries(targets: SetTargets, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Label [B, Q] and code [B, Q, 10] of the box of each query; without a match, background and any code."""
    # Queries without a match get an additional box at the end, also if no sample has a box.
    labels = nn.functional.pad(targets.labels, (0, 1), value=BACKGROUND)
    code = nn.functional.pad(targets.code, (0, 0, 0, 1))
    index = torch.where(boxes == BACKGROUND, labels.shape[1] - 1, boxes)
    return labels.gather(1, index), code.gather(1, index[..., None].expand(-1, -1, CODE_CHANNELS))


def build_detr_head(config: DetrHeadConfig, channels: int, grid: Grid, classes: tuple[str, ...]) -> DetrHead:
    """Unpack a configuration.

    Raises:
        UserError: If the channels are not a multiple of the attention heads, or a symmetric class is unknown.
    """
    if unknown := set(config.symmetric_classes) - set(classes):
        raise UserError(
            f"`head.symmetric_classes` names {', '.join(sorted(unknown))}, which the data set does not have; "
            f"it has {', '.join(classes)}"
        )
    if channels % config.attention_heads:
        raise UserError(
            f"the {channels} channels of the BEV map cannot be shared by {config.attention_heads} "
            "attention heads; change `head.attention_heads`, or the channels of the map"
        )
    return DetrHead(
        channels,
        grid,
        classes,
        queries=config.queries,
        z_range=config.z_range,
        decoder=DecoderSizes(
            layers=config.layers,
            attention_heads=config.attention_heads,
            points=config.points,
            hidden_channels=config.hidden_channels,
            dropout=config.dropout,
        ),
        supervision=QuerySupervision(
            class_weight=config.class_weight,
            box_weight=config.box_weight,
            class_cost=config.class_cost,
            box_cost=config.box_cost,
            code_weights=config.code_weights,
            heatmap_weight=config.heatmap_weight if config.queries_from == "heatmap" else None,
            heading_weight=config.heading_weight,
            symmetric_classes=config.symmetric_classes,
        ),
        max_detections=config.max_detections,
        center_range=config.center_range,
    )
