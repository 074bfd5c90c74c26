"""LidarFormer: LiDAR BEV maps, BEV queries, and BEVFormer's decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from torch import Tensor, nn

from bevkd_common.config.detectors.lidarformer import LidarFormerConfig
from bevkd_common.data.samples import Batch
from bevkd_common.models.bev_query_encoder import BevQueryEncoder
from bevkd_common.models.detector import Detections, Losses, Outputs, SetTargets
from bevkd_common.models.heads.detr_head import DetrHead, build_detr_head
from bevkd_common.models.image_necks import ImagePyramid
from bevkd_common.models.lazy import take
from bevkd_common.models.point_readers import PointReader, build_point_reader
from bevkd_common.models.pre_activation import map_names, norm_parts, preactivation_taps, recorded
from bevkd_common.models.second import Second
from bevkd_common.models.taps import BevMap, TapSpec


class LidarFormer(nn.Module):
    """Points on a map, SECOND, a feature pyramid, an encoder of BEV queries, query head.

    Taps: `bev_in` the map of the points, `bev_block{i}` the stages of the backbone, which have passed a ReLU,
    `bev_neck` the encoder's map, which has passed a layer norm, `head` the queries' predictions.

    Args:
        reader: From points to a map.
        backbone: Stages over that map.
        neck: From the stages to maps of one width.
        encoder: From these to one map.
        head: Boxes.
        taps: Descriptions of the maps and of the head by tap name.

    Source: DistillBEV, ICCV 2023, the teachers of its BEVFormer students.
    """

    def __init__(
        self,
        *,
        reader: PointReader,
        backbone: Second,
        neck: ImagePyramid,
        encoder: BevQueryEncoder,
        head: DetrHead,
        taps: Mapping[str, TapSpec],
    ) -> None:
        super().__init__()
        self.needs = reader.needs
        self.reader = reader
        self.backbone = backbone
        self.neck = neck
        self.encoder = encoder
        self.head = head
        self.taps = {**taps, **preactivation_taps(taps, self.stages)}

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """Compute the taps wanted and what they stand on, nothing above."""
        if unknown := want - self.taps.keys():
            raise ValueError(f"LidarFormer has no tap {sorted(unknown)}; it has {list(self.taps)}")
        needed = map_names(want) - {"head"} | ({"bev_neck"} if "head" in want else set())
        with recorded(self.stages, want) as preactivations:
            maps = take(self._maps(batch), needed)
        maps |= preactivations
        return Outputs(
            taps={name: value for name, value in maps.items() if name in want},
            head=self.head(maps["bev_neck"]) if "head" in want else (),
        )

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The modules that make convolutional BEV maps, by the name of the map."""
        return {f"bev_block{index}": block for index, block in enumerate(self.backbone.blocks)}

    def _maps(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield all maps in the order in which they are computed, each when it is asked for."""
        x = self.reader(batch)
        yield "bev_in", x
        stages = []
        for index, block in enumerate(self.backbone.blocks):
            x = block(x)
            stages.append(x)
            yield f"bev_block{index}", x
        yield "bev_neck", self.encoder(self.neck(stages))

    @property
    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """See `Detector`."""
        return {
            "reader": self.reader,
            "backbone": self.backbone,
            "encoder": self.encoder,
            "encoder.bev_queries": self.encoder.queries.get_parameter("weight"),
            **norm_parts(self.stages),
            **self.head.parts,
        }

    def targets(self, outputs: Outputs, batch: Batch) -> SetTargets:
        """Which query learns which box of the batch."""
        return self.head.targets(outputs.head, batch.boxes, batch.labels)

    def losses(self, outputs: Outputs, targets: SetTargets, batch: Batch) -> Losses:
        """The losses of the head."""
        return Losses(self.head.losses(outputs.head, targets))

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """Boxes of each sample."""
        return self.head.decode(outputs.head)


def build(config: LidarFormerConfig, classes: tuple[str, ...]) -> LidarFormer:
    """Unpack a configuration."""
    reader = build_point_reader(config.reader, config.point_range, config.sweeps)
    ground = reader.bev.grid
    head = build_detr_head(config.head, config.channels, config.grid, classes)
    taps: dict[str, TapSpec] = {"bev_in": reader.bev}
    for stage, channels in enumerate(config.backbone_channels):
        stride = prod(config.backbone_strides[: stage + 1])
        taps[f"bev_block{stage}"] = BevMap(channels, ground.coarsened(stride), "relu")
    taps["bev_neck"] = BevMap(config.channels, config.grid)
    taps["head"] = head.maps
    return LidarFormer(
        reader=reader,
        backbone=Second(
            reader.bev.channels,
            config.backbone_channels,
            config.backbone_layers,
            config.backbone_strides,
            config.norm_momentum,
        ),
        neck=ImagePyramid(config.backbone_channels, config.channels, config.levels),
        encoder=BevQueryEncoder(
            config.channels,
            config.grid,
            ground,
            config.levels,
            layers=config.encoder_layers,
            heads=config.attention_heads,
            points=config.points,
            hidden_channels=config.hidden_channels,
            dropout=config.dropout,
        ),
        head=head,
        taps=taps,
    )
