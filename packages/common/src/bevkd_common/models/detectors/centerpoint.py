"""CenterPoint with pillars."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor, nn

from bevkd_common.config.centerpoint import CenterPointConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Detections, Outputs, Targets, Term
from bevkd_common.models.heads.center_head import CenterHead, build_center_head
from bevkd_common.models.necks import SecondFPN
from bevkd_common.models.pillars import PillarFeatureNet, scatter_to_bev
from bevkd_common.models.second import Second
from bevkd_common.models.taps import BevMap, TapSpec
from bevkd_common.ops.voxelize import VoxelSpec

POINT_FEATURES = 5
"""x, y, z, intensity, seconds before the key frame."""


class CenterPoint(nn.Module):
    """Pillars, SECOND, SECONDFPN, centre-point head.

    Taps: `bev_in` the canvas of pillars, `bev_block{i}` the stages of the backbone, `bev_neck` the map that
    the head sees, `head` its logits. All maps have passed a ReLU.

    Args:
        spec: How points become pillars.
        needs: The cloud that `spec` names.
        pillars: Features of a pillar.
        backbone: Stages over the canvas.
        neck: The stages at one resolution.
        head: Boxes.
        taps: What the maps are, by tap name, in the order in which they are computed.

    Source: CenterPoint; as in mmdet3d 1.4.
    """

    def __init__(
        self,
        *,
        spec: VoxelSpec,
        needs: DataNeeds,
        pillars: PillarFeatureNet,
        backbone: Second,
        neck: SecondFPN,
        head: CenterHead,
        taps: Mapping[str, TapSpec],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.needs = needs
        self.taps = taps
        self.pillars = pillars
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """Compute the taps wanted and what they stand on, nothing above."""
        if unknown := want - self.taps.keys():
            raise ValueError(f"CenterPoint has no tap {sorted(unknown)}; it has {list(self.taps)}")
        last = max((level for level, name in enumerate(self.taps) if name in want), default=-1)
        maps: dict[str, Tensor] = {}
        if last < 0:
            return Outputs(taps={})
        voxels = batch.voxels(self.spec)
        nx, ny, _ = self.spec.cells
        x = scatter_to_bev(self.pillars(voxels), voxels.coordinates, len(batch), ny, nx)
        maps["bev_in"] = x
        stages = self.backbone(x, depth=last)
        maps |= {f"bev_block{i}": stage for i, stage in enumerate(stages)}
        head: list[dict[str, Tensor]] = []
        if last > len(self.backbone.blocks):
            maps["bev_neck"] = self.neck(stages)
        if "head" in want:
            head = self.head(maps["bev_neck"])
        return Outputs(taps={name: value for name, value in maps.items() if name in want}, head=head)

    def targets(self, outputs: Outputs, batch: Batch) -> Targets:
        """Heat maps and box codes of the batch's boxes."""
        return self.head.targets(batch.boxes, batch.labels)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Term]:
        """The losses of the head."""
        return self.head.losses(outputs.head, targets)

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """Boxes of each sample."""
        return self.head.decode(outputs.head)


def build(
    config: CenterPointConfig,
    classes: tuple[str, ...],
    needs: DataNeeds | None = None,
    point_features: int = POINT_FEATURES,
) -> CenterPoint:
    """Unpack a configuration.

    Args:
        config: Sizes.
        classes: Of the data set.
        needs: Where they are more than the points of the sweeps.
        point_features: Numbers that a point comes with.

    Raises:
        UserError: If the tasks of the head do not fit the classes of the data set.
    """
    x0, y0, z0, x1, y1, z1 = config.point_range
    nx, ny = config.cells

    def grid(stride: float) -> Grid:
        return Grid(x0, y0, config.pillar * stride, round(nx / stride), round(ny / stride))

    needs = needs or DataNeeds(sweeps=config.sweeps)
    spec = VoxelSpec(
        range_min=(x0, y0, z0),
        range_max=(x1, y1, z1),
        size=(config.pillar, config.pillar, z1 - z0),
        max_points=config.max_points,
        max_voxels=config.max_pillars,
        cloud="painted" if needs.virtual_points else "points",
    )
    head = build_center_head(config.head, sum(config.neck_channels), grid(config.head_stride), classes)
    taps: dict[str, TapSpec] = {"bev_in": BevMap(config.pillar_channels, grid(1), "relu")}
    for stage, channels in enumerate(config.backbone_channels):
        stride = prod(config.backbone_strides[: stage + 1])
        taps[f"bev_block{stage}"] = BevMap(channels, grid(stride), "relu")
    taps["bev_neck"] = BevMap(sum(config.neck_channels), head.maps.grid, "relu")
    taps["head"] = head.maps
    return CenterPoint(
        spec=spec,
        needs=needs,
        pillars=PillarFeatureNet(
            spec, point_features, config.pillar_channels, config.point_scales, config.norm_momentum
        ),
        backbone=Second(
            config.pillar_channels,
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
