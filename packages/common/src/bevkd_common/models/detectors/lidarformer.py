"""LidarFormer: LiDAR maps, queries of the ground, and BEVFormer's decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from torch import Tensor, nn

from bevkd_common.config.detectors.lidarformer import LidarFormerConfig
from bevkd_common.data.samples import Batch
from bevkd_common.models.bev_query_encoder import BevQueryEncoder
from bevkd_common.models.detector import Detections, Losses, Outputs, SetTargets
from bevkd_common.models.heads.detr_head import DetrHead, build_detr_head
from bevkd_common.models.image_necks import ImagePyramid
from bevkd_common.models.point_readers import PointReader, build_point_reader
from bevkd_common.models.second import Second
from bevkd_common.models.taps import BevMap, TapSpec


class LidarFormer(nn.Module):
    """Points on a map, SECOND, a feature pyramid, an encoder of ground queries, query head.

    Taps: `bev_in` the map of the points, `bev_block{i}` the stages of the backbone, which have passed a ReLU,
    `bev_neck` the encoder's map, which has passed a layer norm, `head` the queries' predictions.

    Args:
        reader: From points to a map.
        backbone: Stages over that map.
        neck: From the stages to maps of one width.
        encoder: From these to one map.
        head: Boxes.
        taps: What the maps are, by tap name, in the order in which they are computed.

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
        self.taps = taps
        self.reader = reader
        self.backbone = backbone
        self.neck = neck
        self.encoder = encoder
        self.head = head

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """Compute the taps wanted and what they stand on, nothing above."""
        if unknown := want - self.taps.keys():
            raise ValueError(f"LidarFormer has no tap {sorted(unknown)}; it has {list(self.taps)}")
        last = max((level for level, name in enumerate(self.taps) if name in want), default=-1)
        if last < 0:
            return Outputs(taps={})
        maps: dict[str, Tensor] = {"bev_in": self.reader(batch)}
        stages = self.backbone(maps["bev_in"], depth=last)
        maps |= {f"bev_block{i}": stage for i, stage in enumerate(stages)}
        head: list[dict[str, Tensor]] = []
        if last > len(self.backbone.blocks):
            maps["bev_neck"] = self.encoder(self.neck(stages))
        if "head" in want:
            head = self.head(maps["bev_neck"])
        return Outputs(taps={name: value for name, value in maps.items() if name in want}, head=head)

    @property
    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """See `Detector`."""
        return {
            "reader": self.reader,
            "backbone": self.backbone,
            "encoder": self.encoder,
            "encoder.bev_queries": self.encoder.queries.get_parameter("weight"),
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
        coarser = replace(ground, cell=ground.cell * stride, nx=ground.nx // stride, ny=ground.ny // stride)
        taps[f"bev_block{stage}"] = BevMap(channels, coarser, "relu")
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
