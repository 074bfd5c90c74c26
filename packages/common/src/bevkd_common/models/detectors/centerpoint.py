"""CenterPoint, and its form with pillars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from torch import Tensor, nn

from bevkd_common.config.detectors.centerpoint import CenterPointConfig, LidarDetectorConfig
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.models.detector import CenterTargets, Detections, Losses, Outputs
from bevkd_common.models.heads.center_head import CenterHead, build_center_head
from bevkd_common.models.lazy import take
from bevkd_common.models.necks import SecondFPN
from bevkd_common.models.pillars import PillarFeatureNet, PillarReader, pillar_tokens
from bevkd_common.models.pre_activation import map_names, norm_parts, preactivation_taps, recorded
from bevkd_common.models.second import Second
from bevkd_common.models.taps import BevMap, TapSpec, Tokens
from bevkd_common.ops.voxelize import Voxels, VoxelSpec

POINT_FEATURES = 5
"""x, y, z, intensity, seconds before the key frame."""


PILLARS = "pillars"
"""Name of the tap of pillar features."""


class CenterPoint(nn.Module):
    """A reader of points, SECOND, SECONDFPN, centre-point head.

    Taps: `bev_in` the map that the reader makes, `bev_block{i}` the stages of the backbone, `bev_neck` the input
    of the head, `head` its logits; all of these maps have passed a ReLU. `pillars`, for a reader of pillars, are
    their features.

    Args:
        spec: How points become pillars or voxels.
        cloud: Name of the point cloud that is read.
        sweeps: LiDAR sweeps in it.
        reader: Called with the voxels and the number of samples; gives a map [B, C, Y, X].
        backbone: Stages over that map.
        neck: The stages at one resolution.
        head: Boxes.
        taps: Descriptions of the maps and of the head by tap name.

    Source: CenterPoint; as in mmdet3d 1.4.
    """

    def __init__(
        self,
        *,
        spec: VoxelSpec,
        cloud: str,
        sweeps: int,
        reader: nn.Module,
        backbone: Second,
        neck: SecondFPN,
        head: CenterHead,
        taps: Mapping[str, TapSpec],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.cloud = cloud
        self.needs = DataNeeds(clouds=frozenset({cloud}), sweeps=sweeps)
        self.reader = reader
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.taps = {**taps, **preactivation_taps(taps, self.stages)}

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """Compute the taps wanted and what they stand on, nothing above."""
        if unknown := want - self.taps.keys():
            raise ValueError(f"CenterPoint has no tap {sorted(unknown)}; it has {list(self.taps)}")
        needed = map_names(want) - {"head"} | ({"bev_neck"} if "head" in want else set())
        with recorded(self.stages, want) as preactivations:
            maps = take(self._maps(batch), needed)
        maps |= preactivations
        tokens = {}
        if PILLARS in want:
            tokens[PILLARS] = pillar_tokens(maps[PILLARS], self._voxels(batch), len(batch))
        return Outputs(
            taps={name: value for name, value in maps.items() if name in want - {PILLARS}},
            head=self.head(maps["bev_neck"]) if "head" in want else (),
            tokens=tokens,
        )

    def _voxels(self, batch: Batch) -> Voxels:
        return batch.cloud(self.cloud).voxels(self.spec)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The modules that make BEV maps, by the name of the map."""
        blocks = {f"bev_block{index}": block for index, block in enumerate(self.backbone.blocks)}
        return blocks | {"bev_neck": self.neck}

    def _maps(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield all maps in the order in which they are computed, each when it is asked for."""
        voxels = self._voxels(batch)
        if isinstance(self.reader, PillarReader):
            features = self.reader.pillars(voxels)
            yield PILLARS, features
            x = self.reader.on_canvas(features, voxels, len(batch))
        else:
            x = self.reader(voxels, len(batch))
        yield "bev_in", x
        stages = []
        for index, block in enumerate(self.backbone.blocks):
            x = block(x)
            stages.append(x)
            yield f"bev_block{index}", x
        yield "bev_neck", self.neck(stages)

    @property
    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """See `Detector`."""
        return {
            "reader": self.reader,
            "backbone": self.backbone,
            "bev_neck": self.neck,
            **norm_parts(self.stages),
            **self.head.parts,
        }

    def targets(self, outputs: Outputs, batch: Batch) -> CenterTargets:
        """Heat maps and box codes of the batch's boxes."""
        return self.head.targets(batch.boxes, batch.labels)

    def losses(self, outputs: Outputs, targets: CenterTargets, batch: Batch) -> Losses:
        """The losses of the head."""
        return Losses(self.head.losses(outputs.head, targets))

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """Boxes of each sample."""
        return self.head.decode(outputs.head)


def build(
    config: CenterPointConfig,
    classes: tuple[str, ...],
    cloud: str = LIDAR,
    point_features: int = POINT_FEATURES,
) -> CenterPoint:
    """Unpack a configuration.

    Args:
        config: Sizes.
        classes: Of the data set.
        cloud: Name of the point cloud that is read.
        point_features: Numbers that a point comes with.

    Raises:
        UserError: If the tasks of the head do not fit the classes of the data set.
    """
    spec = VoxelSpec(
        range_min=config.point_range[:3],
        range_max=config.point_range[3:],
        size=(config.pillar, config.pillar, config.point_range[5] - config.point_range[2]),
        max_points=config.max_points,
        max_voxels=config.max_pillars,
    )
    head = build_head(config, classes)
    pillars = PillarFeatureNet(
        spec, point_features, config.pillar_channels, config.point_scales, config.norm_momentum
    )
    reader = PillarReader(pillars, config.bev.ny, config.bev.nx)
    return assemble(config, spec, cloud, reader, config.pillar_channels, head)


def build_head(config: LidarDetectorConfig, classes: tuple[str, ...]) -> CenterHead:
    """The head over the neck of a configuration.

    Raises:
        UserError: If its tasks do not fit the classes of the data set.
    """
    return build_center_head(
        config.head, sum(config.neck_channels), config.bev.coarsened(config.head_stride), classes
    )


def assemble(
    config: LidarDetectorConfig,
    spec: VoxelSpec,
    cloud: str,
    reader: nn.Module,
    channels: int,
    head: CenterHead,
) -> CenterPoint:
    """Put backbone and neck between a reader of so many channels and a head."""
    taps: dict[str, TapSpec] = {"bev_in": BevMap(channels, config.bev, "relu")}
    if isinstance(reader, PillarReader):
        taps[PILLARS] = Tokens(channels, rows=(cloud, spec), columns=("z", "y", "x"), unit="cells")
    for stage, width in enumerate(config.backbone_channels):
        stride = prod(config.backbone_strides[: stage + 1])
        taps[f"bev_block{stage}"] = BevMap(width, config.bev.coarsened(stride), "relu")
    taps["bev_neck"] = BevMap(sum(config.neck_channels), head.maps.grid, "relu")
    taps["head"] = head.maps
    return CenterPoint(
        spec=spec,
        cloud=cloud,
        sweeps=config.sweeps,
        reader=reader,
        backbone=Second(
            channels,
            config.backbone_channels,
            config.backbone_layers,
            config.backbone_strides,
            config.norm_momentum,
        ),
        neck=SecondFPN(
            config.backbone_channels, config.neck_channels, config.neck_upsampling, config.norm_momentum
        ),
        head=head,
        taps=taps,
    )
