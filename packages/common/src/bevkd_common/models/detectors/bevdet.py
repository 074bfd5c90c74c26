"""BEVDet: a camera detector that lifts image features to the bird's-eye view.

Source: BEVDet (arXiv 2112.11790), numerics of its released R50 detector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from bevkd_common.config.detectors.bevdet import BevDetConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch, Cameras
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import inverse_rigid
from bevkd_common.models.bev_encoders import BevNeck, bev_stage
from bevkd_common.models.depth_losses import DepthLoss, sigmoid_depth_loss
from bevkd_common.models.depth_nets import JointDepthNet
from bevkd_common.models.detector import CenterTargets, Detections, Losses, Outputs, Term
from bevkd_common.models.earlier_frame import Earlier
from bevkd_common.models.heads.center_head import CenterHead, build_center_head
from bevkd_common.models.image_backbones import ImageBackbone, ImageNormalizer, build_image_backbone
from bevkd_common.models.image_necks import ImageFpn
from bevkd_common.models.lift_splat import LiftSplat
from bevkd_common.models.own_axes import in_axes
from bevkd_common.models.taps import BevMap, Meaning, TapSpec

DEPTH = "depth"
"""Name of the depth logits among the outputs, and of their loss."""


class BevDet(nn.Module):
    """Images to features, to the ground, through a convolutional encoder, to boxes; a `Detector`.

    Args:
        normalizer: From uint8 images to the backbone's input.
        image_backbone: Feature maps of the images.
        image_neck: One feature map a camera, of the backbone's.
        lift_splat: The features on the ground.
        bev_stages: Stages at falling resolution.
        bev_neck: Back to the resolution of the head, from a list of the lifted map and every stage.
        head: Dense boxes.
        image_size: Height and width of the images in pixels.
        taps: What the maps are; `bev_in`, one `bev_block{i}` a stage, `bev_neck` and `head`.
        earlier: An earlier frame beside the present one (BEVDet4D); the first stage takes twice the channels then.
        depth_weight: Of the loss that compares the present frame's depths with the LiDAR (BEVDepth); None has none.
        depth_loss: That loss.
        float32_bev: Whether autocast ends where the bird's-eye-view map begins.
        axes_T_lidar: [4, 4] to the axes of the detector's own maps, where they are not the LiDAR's; boxes come and
            go in LiDAR axes all the same. Maps cannot be compared with others' then: `head` is the only tap.
    """

    def __init__(
        self,
        *,
        normalizer: ImageNormalizer,
        image_backbone: ImageBackbone,
        image_neck: nn.Module,
        lift_splat: LiftSplat,
        bev_stages: Iterable[nn.Module],
        bev_neck: nn.Module,
        head: CenterHead,
        image_size: tuple[int, int],
        taps: Mapping[str, TapSpec],
        earlier: Earlier | None = None,
        depth_weight: float | None = None,
        depth_loss: DepthLoss = sigmoid_depth_loss,
        float32_bev: bool = False,
        axes_T_lidar: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.image_backbone = image_backbone
        self.image_neck = image_neck
        self.lift_splat = lift_splat
        self.bev_stages = nn.ModuleList(bev_stages)
        self.bev_neck = bev_neck
        self.head = head
        self.image_size = image_size
        self.taps = taps if axes_T_lidar is None else {"head": taps["head"]}
        self.earlier = earlier
        self.depth_weight = depth_weight
        self.depth_loss = depth_loss
        self.float32_bev = float32_bev
        self.axes_T_lidar: Tensor | None
        self.register_buffer("axes_T_lidar", axes_T_lidar, persistent=False)
        history = earlier.history if earlier else None
        self.needs = DataNeeds(cameras=True, history=history, depth=depth_weight is not None)

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """Compute the maps that are wanted, and nothing behind the last of them.

        Raises:
            ValueError: If there is no such tap, or the batch has no images of the right size.
        """
        if unknown := want - self.taps.keys():
            raise ValueError(f"BEVDet has no tap {sorted(unknown)}, it has {sorted(self.taps)}")
        needed = {"bev_neck" if name == "head" else name for name in want}
        if not want:
            return Outputs({})
        lifted, logits = self.lifted(self.in_own_axes(batch))
        maps: dict[str, Tensor] = {}
        arising = self._maps(lifted)
        with torch.autocast(lifted.device.type, enabled=False) if self.float32_bev else nullcontext():
            while not needed <= maps.keys():
                name, value = next(arising)
                maps[name] = value
            head = self.head(maps["bev_neck"]) if "head" in want else ()
        return Outputs(
            taps={name: maps[name] for name in want if name != "head"},
            head=head,
            extras={} if self.depth_weight is None else {DEPTH: logits},
        )

    def in_own_axes(self, batch: Batch) -> Batch:
        """The batch in the axes of the detector's maps."""
        return batch if self.axes_T_lidar is None else in_axes(batch, self.axes_T_lidar)

    def _maps(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The maps with their names in the order in which they arise, each computed when it is asked for."""
        yield "bev_in", x
        maps = [x]
        for index, stage in enumerate(self.bev_stages):
            maps.append(stage(maps[-1]))
            yield f"bev_block{index}", maps[-1]
        yield "bev_neck", self.bev_neck(maps)

    def lifted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The image features on the ground [B, C, Y, X], of one frame or of two, and the present depth logits.

        Raises:
            ValueError: If the batch lacks cameras or, where it is needed, an earlier frame.
        """
        if batch.cameras is None:
            raise ValueError("BEVDet needs images, the batch was loaded without cameras")

        def lift(cameras: Cameras, known: Cameras | None = None) -> tuple[Tensor, Tensor]:
            return self.lift_splat(self.image_features(cameras), cameras, batch.aug_T_lidar, known)

        lifted, logits = lift(batch.cameras)
        if self.earlier is None:
            return lifted, logits
        return self.earlier(lifted, batch, lambda cameras, known=None: lift(cameras, known)[0]), logits

    def image_features(self, cameras: Cameras) -> Tensor:
        """One feature map [B, N, C, H, W] a camera.

        Raises:
            ValueError: If the images are not of the right size.
        """
        (height, width), size = self.image_size, tuple(cameras.images.shape[-2:])
        if size != self.image_size:
            raise ValueError(f"BEVDet takes images of {height} x {width}, the batch has {size[0]} x {size[1]}")
        images = self.normalizer(cameras.images.flatten(0, 1))
        features = self.image_neck(self.image_backbone(images))
        return features.unflatten(0, cameras.images.shape[:2])

    @property
    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """See `Detector`."""
        return {
            "image_backbone": self.image_backbone,
            "image_neck": self.image_neck,
            "depth_net": self.lift_splat.depth_net,
            "bev_neck": self.bev_neck,
            **self.head.parts,
        }

    def targets(self, outputs: Outputs, batch: Batch) -> CenterTargets:
        """Heat maps and box codes of the batch's boxes."""
        batch = self.in_own_axes(batch)
        boxes = batch.boxes if self.earlier is None else self.earlier.learned(batch.boxes, batch)
        return self.head.targets(boxes, batch.labels)

    def losses(self, outputs: Outputs, targets: CenterTargets, batch: Batch) -> Losses:
        """The losses of the head, and of the depths where they are supervised.

        Raises:
            ValueError: If depths are supervised and the batch has none.
        """
        terms = self.head.losses(outputs.head, targets)
        if self.depth_weight is None:
            return Losses(terms)
        if batch.depth is None:
            raise ValueError("depths are supervised, the batch was loaded without them")
        value = self.depth_loss(outputs.extras[DEPTH], batch.depth, self.lift_splat.depth_bins, self.image_size)
        return Losses(terms | {DEPTH: Term(value, self.depth_weight)})

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """Boxes of each sample."""
        found = self.head.decode(outputs.head)
        if self.earlier is not None:
            found = [
                replace(detections, boxes=self.earlier.told(detections.boxes, batch, sample))
                for sample, detections in enumerate(found)
            ]
        if self.axes_T_lidar is not None:
            lidar_T_axes = inverse_rigid(self.axes_T_lidar)
            found = [replace(detections, boxes=detections.boxes.transform(lidar_T_axes)) for detections in found]
        return found


def build(
    config: BevDetConfig,
    classes: tuple[str, ...],
    earlier: Earlier | None = None,
    *,
    depth_net: nn.Module | None = None,
    depth_weight: float | None = None,
) -> BevDet:
    """Unpack a configuration.

    Args:
        config: The configuration.
        classes: Class names in label order.
        earlier: What joins an earlier frame, for detectors that have one.
        depth_net: What tells depths; BEVDet's own where not given.
        depth_weight: See `BevDet`.

    Raises:
        UserError: If the image backbone or its checkpoint cannot be had, or the tasks of the head do not fit the
            classes of the data set.
    """
    image_backbone = build_image_backbone(config.image_backbone)
    stages, neck = config.bev_stages, config.bev_neck
    strides = [prod(stage.stride for stage in stages[: depth + 1]) for depth in range(len(stages))]
    lifted = config.lift_channels * (1 if earlier is None else 2)
    channels = [lifted, *(stage.channels for stage in stages)]
    motion = Meaning.VELOCITY if earlier is None else earlier.motion
    head = build_center_head(config.head, neck.channels, config.grid, classes, motion)
    taps: dict[str, TapSpec] = {"bev_in": BevMap(lifted, config.grid)}
    for depth, (stage, stride) in enumerate(zip(stages, strides, strict=True)):
        taps[f"bev_block{depth}"] = BevMap(stage.channels, coarser(config.grid, stride), "relu")
    taps["bev_neck"] = BevMap(neck.channels, config.grid, "relu" if neck.extra_norm_act else "none")
    taps["head"] = head.maps
    return BevDet(
        normalizer=ImageNormalizer(config.normalization),
        image_backbone=image_backbone,
        image_neck=ImageFpn(image_backbone.channels, config.image_neck_channels),
        lift_splat=LiftSplat(
            depth_net=JointDepthNet(config.image_neck_channels, config.depth_bins.count, config.lift_channels)
            if depth_net is None
            else depth_net,
            image_size=config.image_size,
            stride=image_backbone.strides[0],
            depth_bins=config.depth_bins,
            grid=config.grid,
            z_range=config.z_range,
            index_mode=config.index_mode,
        ),
        bev_stages=[
            bev_stage(inputs, stage.channels, stage.blocks, stage.stride)
            for inputs, stage in zip(channels, stages, strict=False)
        ],
        bev_neck=BevNeck(
            fine_channels=stages[0].channels,
            coarse_channels=stages[-1].channels,
            hidden_channels=neck.hidden_channels,
            out_channels=neck.channels,
            coarse_scale=strides[-1] // strides[0],
            fine_scale=strides[0],
            extra_norm_act=neck.extra_norm_act,
        ),
        head=head,
        image_size=config.image_size,
        taps=taps,
        earlier=earlier,
        depth_weight=depth_weight,
    )


def coarser(grid: Grid, stride: int) -> Grid:
    """The grid of a map that is `stride` times coarser."""
    return Grid(grid.x0, grid.y0, grid.cell * stride, grid.nx // stride, grid.ny // stride)
