"""UniDistill's detectors: a map of cameras, of LiDAR or of both, and the same network behind it.

Source: UniDistill (arXiv 2303.15083), the released code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import torch
from torch import Tensor, nn

from bevkd_common.config.detectors.modalities import BehindMapConfig, CameraConfig, FusionConfig, LidarConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.depth_nets import JointDepthNet
from bevkd_common.models.detector import Detections, Losses, Outputs
from bevkd_common.models.detectors.bevdet import DEPTH_LOGITS
from bevkd_common.models.heads.iou_head import IouHead, build_iou_head
from bevkd_common.models.heads.iou_targets import IouTargets
from bevkd_common.models.image_backbones import ImageNormalizer, build_image_backbone
from bevkd_common.models.image_readers import ImageReader
from bevkd_common.models.lazy import take
from bevkd_common.models.lift_splat import LiftSplat
from bevkd_common.models.necks import SecondFPN
from bevkd_common.models.point_readers import PointReader, build_point_reader
from bevkd_common.models.pre_activation import map_names, norm_parts, preactivation_taps, recorded
from bevkd_common.models.second import NORM_EPS, Second
from bevkd_common.models.taps import BevMap, ImageDepths, ImageMap, TapSpec


class ChannelGate(nn.Module):
    """The maps of LiDAR and cameras side by side, channels weighed by their means, and a convolution.

    Args:
        in_channels: Channels of both maps together.
        out_channels: Channels of the fused map.
        norm_momentum: Of the batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_momentum: float) -> None:
        super().__init__()
        self.gate = nn.Conv2d(in_channels, in_channels, 1)
        self.mix = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels, eps=NORM_EPS, momentum=norm_momentum),
            nn.ReLU(inplace=True),
        )

    def forward(self, points: Tensor, images: Tensor) -> Tensor:
        """The fused map [B, C, Y, X] of two maps [B, C', Y, X], not negative."""
        both = torch.cat([points, images], dim=1)
        return self.mix(both * self.gate(both.mean(dim=(-2, -1), keepdim=True)).sigmoid())


class ModalityDetector(nn.Module):
    """Readers of points, images or both, SECOND, SECONDFPN, IoU-aware head.

    Taps: `bev_in` the low-level map, that of both sensors fused; `bev_block{i}` the stages of the backbone;
    `bev_neck` the high-level map; `head`; with cameras also `image_neck` and `depth_logits`.

    Args:
        points: Reader of the LiDAR; None for cameras alone.
        images: Reader of the cameras; None for LiDAR alone.
        fuser: Called with both maps; given with both readers.
        backbone: Stages over the low-level map.
        neck: The stages at one resolution.
        head: Boxes.
        taps: Descriptions of the maps and of the head by tap name.
    """

    def __init__(
        self,
        *,
        points: PointReader | None,
        images: ImageReader | None,
        fuser: nn.Module | None,
        backbone: Second,
        neck: SecondFPN,
        head: IouHead,
        taps: Mapping[str, TapSpec],
    ) -> None:
        super().__init__()
        self.points = points
        self.images = images
        self.fuser = fuser
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.taps = {**taps, **preactivation_taps(taps, self.stages)}
        cameras = DataNeeds(cameras=images is not None)
        self.needs = cameras if points is None else cameras | points.needs

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """Compute the taps wanted and what they depend on.

        Raises:
            ValueError: If there is no such tap, or the batch lacks a sensor.
        """
        if unknown := want - self.taps.keys():
            raise ValueError(f"the detector has no tap {sorted(unknown)}; it has {list(self.taps)}")
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
        """The modules that make BEV maps, by the name of the map."""
        blocks = {f"bev_block{index}": block for index, block in enumerate(self.backbone.blocks)}
        return blocks | {"bev_neck": self.neck}

    def _maps(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield all maps in the order in which they are computed, each when it is asked for."""
        low = []
        if self.points is not None:
            low.append(self.points(batch))
        if self.images is not None:
            if batch.cameras is None:
                raise ValueError("the detector needs images, the batch was loaded without cameras")
            features = self.images.features(batch.cameras)
            yield "image_neck", features
            logits, context = self.images.depths(features, batch)
            yield DEPTH_LOGITS, logits
            low.append(self.images.splat(logits, context, batch.cameras))
        x = low[0] if self.fuser is None else self.fuser(*low)
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
        readers: dict[str, nn.Module | nn.Parameter] = {}
        if self.points is not None:
            readers["reader"] = self.points
        if self.images is not None:
            readers |= {
                "image_backbone": self.images.image_backbone,
                "image_neck": self.images.image_neck,
                "depth_net": self.images.lift_splat.depth_net,
            }
        return {
            **readers,
            "backbone": self.backbone,
            "bev_neck": self.neck,
            **norm_parts(self.stages),
            **self.head.parts,
        }

    def targets(self, outputs: Outputs, batch: Batch) -> IouTargets:
        """Positives and box codes of the batch's boxes."""
        return self.head.targets(batch.boxes, batch.labels)

    def losses(self, outputs: Outputs, targets: IouTargets, batch: Batch) -> Losses:
        """The losses of the head."""
        return Losses(self.head.losses(outputs.head, targets))

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """Boxes of each sample."""
        return self.head.decode(outputs.head)


def build_camera(config: CameraConfig, classes: tuple[str, ...]) -> ModalityDetector:
    """Unpack a configuration of cameras alone.

    Raises:
        UserError: If the image backbone or its checkpoint cannot be had, or the tasks of the head do not fit the
            classes of the data set.
    """
    images, taps = _images(config)
    bev = BevMap(config.lift_channels, config.grid)
    return _assemble(config, classes, None, images, None, bev, taps)


def build_lidar(config: LidarConfig, classes: tuple[str, ...]) -> ModalityDetector:
    """Unpack a configuration of LiDAR alone.

    Raises:
        UserError: If the tasks of the head do not fit the classes of the data set.
    """
    points = build_point_reader(config.reader, config.point_range, config.sweeps)
    return _assemble(config, classes, points, None, None, points.bev, {})


def build_fusion(config: FusionConfig, classes: tuple[str, ...]) -> ModalityDetector:
    """Unpack a configuration of LiDAR and cameras.

    Raises:
        UserError: If the image backbone or its checkpoint cannot be had, or the tasks of the head do not fit the
            classes of the data set.
    """
    points = build_point_reader(config.reader, config.point_range, config.sweeps)
    images, taps = _images(config)
    fuser = ChannelGate(points.bev.channels + config.lift_channels, config.fused_channels, config.norm_momentum)
    bev = BevMap(config.fused_channels, config.grid, "relu")
    return _assemble(config, classes, points, images, fuser, bev, taps)


def _images(config: CameraConfig) -> tuple[ImageReader, dict[str, TapSpec]]:
    backbone = build_image_backbone(config.image_backbone)
    levels = len(backbone.channels)
    reader = ImageReader(
        ImageNormalizer(config.normalization),
        backbone,
        SecondFPN(
            backbone.channels,
            [config.image_neck_channels // levels] * levels,
            [stride / config.lift_stride for stride in backbone.strides],
            transposed_at_one=True,
        ),
        LiftSplat(
            depth_net=JointDepthNet(config.image_neck_channels, config.depth_bins.count, config.lift_channels),
            image_size=config.image_size,
            stride=config.lift_stride,
            depth_bins=config.depth_bins,
            grid=config.grid,
            z_range=config.z_range,
            index_mode=config.index_mode,
        ),
        config.image_size,
    )
    size = (config.image_size[0] // config.lift_stride, config.image_size[1] // config.lift_stride)
    return reader, {
        "image_neck": ImageMap(config.image_neck_channels, config.lift_stride, size),
        DEPTH_LOGITS: ImageDepths(config.depth_bins, config.lift_stride, size),
    }


def _assemble(
    config: BehindMapConfig,
    classes: tuple[str, ...],
    points: PointReader | None,
    images: ImageReader | None,
    fuser: nn.Module | None,
    bev: BevMap,
    taps: dict[str, TapSpec],
) -> ModalityDetector:
    grid: Grid = bev.grid
    head = build_iou_head(config.head, sum(config.neck_channels), grid, classes)
    taps = {**taps, "bev_in": bev}
    for stage, width in enumerate(config.backbone_channels):
        stride = prod(config.backbone_strides[: stage + 1])
        taps[f"bev_block{stage}"] = BevMap(width, grid.coarsened(stride), "relu")
    taps |= {"bev_neck": BevMap(sum(config.neck_channels), grid, "relu"), "head": head.maps}
    return ModalityDetector(
        points=points,
        images=images,
        fuser=fuser,
        backbone=Second(
            bev.channels,
            config.backbone_channels,
            config.backbone_layers,
            config.backbone_strides,
            config.norm_momentum,
        ),
        neck=SecondFPN(
            config.backbone_channels,
            config.neck_channels,
            config.neck_upsampling,
            config.norm_momentum,
            transposed_at_one=True,
        ),
        head=head,
        taps=taps,
    )
