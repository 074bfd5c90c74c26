"""BEVDet: a camera detector that lifts image features to a BEV map.

Source: BEVDet (arXiv 2112.11790), numerics of its released R50 detector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bevkd_common.config.detectors.bevdet import BevDetConfig, LiftConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch, Cameras
from bevkd_common.geometry.transforms import inverse_rigid
from bevkd_common.models.bev_encoders import BevNeck, bev_stage
from bevkd_common.models.depth_losses import DepthLoss, sigmoid_depth_loss
from bevkd_common.models.depth_nets import JointDepthNet
from bevkd_common.models.detector import CenterTargets, Detections, Losses, Outputs, Term
from bevkd_common.models.earlier_frame import Earlier
from bevkd_common.models.heads.center_head import CenterHead, build_center_head
from bevkd_common.models.image_backbones import ImageBackbone, ImageNormalizer, build_image_backbone
from bevkd_common.models.image_necks import ImageFpn
from bevkd_common.models.lazy import take
from bevkd_common.models.lift_splat import LiftSplat
from bevkd_common.models.own_axes import in_axes
from bevkd_common.models.pre_activation import map_names, norm_parts, preactivation_taps, recorded
from bevkd_common.models.taps import BevMap, ImageDepths, ImageMap, Meaning, TapSpec

DEPTH = "depth"
"""Name of the depth logits among the extras of the outputs, and of their loss."""
DEPTH_LOGITS = "depth_logits"
"""Name of the tap."""


class BevDet(nn.Module):
    """Image features, lift to a BEV map, convolutional encoder, centre-point head; a `Detector`.

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
        float32_bev: Whether everything behind the lift runs in float32 under autocast.
        axes_T_lidar: [4, 4] to the axes of the detector's own maps, where they are not the LiDAR's; boxes come and
            go in LiDAR axes all the same. BEV maps cannot be compared with others' then and are not offered.
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
        own = ("image_neck", DEPTH_LOGITS, "head")
        described = {**taps, **preactivation_taps(taps, self.stages)}
        self.taps = described if axes_T_lidar is None else {name: described[name] for name in own}
        self.earlier = earlier
        self.depth_weight = depth_weight
        self.depth_loss = depth_loss
        self.float32_bev = float32_bev
        self.axes_T_lidar: Tensor | None
        self.register_buffer("axes_T_lidar", axes_T_lidar, persistent=False)
        history = earlier.history if earlier else None
        self.needs = DataNeeds(cameras=True, history=history, depth=depth_weight is not None)

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """Compute the taps wanted and what they depend on.

        Raises:
            ValueError: If there is no such tap, or the batch has no images of the right size.
        """
        if unknown := want - self.taps.keys():
            raise ValueError(f"BEVDet has no tap {sorted(unknown)}, it has {sorted(self.taps)}")
        supervised = "head" in want and self.depth_weight is not None
        needed = map_names(want) - {"head"} | ({"bev_neck"} if "head" in want else set())
        needed |= {DEPTH_LOGITS} if supervised else set()
        with recorded(self.stages, want) as preactivations:
            maps = take(self._maps(self.in_own_axes(batch)), needed)
        maps |= preactivations
        return Outputs(
            taps={name: value for name, value in maps.items() if name in want},
            head=self._in_bev(self.head, maps["bev_neck"]) if "head" in want else (),
            extras={DEPTH: maps[DEPTH_LOGITS]} if supervised else {},
        )

    def in_own_axes(self, batch: Batch) -> Batch:
        """Return the batch in the axes of the detector's maps."""
        return batch if self.axes_T_lidar is None else in_axes(batch, self.axes_T_lidar)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The modules that make BEV maps, by the name of the map."""
        blocks = {f"bev_block{index}": stage for index, stage in enumerate(self.bev_stages)}
        return blocks | {"bev_neck": self.bev_neck}

    def _maps(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield all maps in the order in which they are computed, each when it is asked for."""
        if batch.cameras is None:
            raise ValueError("BEVDet needs images, the batch was loaded without cameras")
        features = self.image_features(batch.cameras)
        yield "image_neck", features
        logits, context = self.lift_splat.depth_net(features, batch.cameras, batch.aug_T_lidar)
        yield DEPTH_LOGITS, logits
        x = self._with_earlier(self.lift_splat.splat(logits, context, batch.cameras), batch)
        yield "bev_in", x
        maps = [x]
        for index, stage in enumerate(self.bev_stages):
            maps.append(self._in_bev(stage, maps[-1]))
            yield f"bev_block{index}", maps[-1]
        yield "bev_neck", self._in_bev(self.bev_neck, maps)

    def _in_bev(self, module: nn.Module, x: Any) -> Any:
        """Run a module behind the lift in the precision that is used there."""
        with (
            torch.autocast(self.lift_splat.frustum.device.type, enabled=False)
            if self.float32_bev
            else nullcontext()
        ):
            return module(x)

    def _with_earlier(self, lifted: Tensor, batch: Batch) -> Tensor:
        """Put the map of the earlier frame beside the present one, if the detector has an earlier frame."""
        if self.earlier is None:
            return lifted

        def lift(cameras: Cameras, known: Cameras | None = None) -> Tensor:
            return self.lift_splat(self.image_features(cameras), cameras, batch.aug_T_lidar, known)[0]

        return self.earlier(lifted, batch, lift)

    def lifted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the lifted features [B, C, Y, X], of one frame or of two, and the present depth logits.

        Raises:
            ValueError: If the batch lacks cameras or, where it is needed, an earlier frame.
        """
        maps = take(self._maps(batch), {"bev_in", DEPTH_LOGITS})
        return maps["bev_in"], maps[DEPTH_LOGITS]

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
            **norm_parts(self.stages),
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
        depth_net: Predicts depths and context; None takes BEVDet's own.
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
    taps = image_taps(config, image_backbone.strides[0]) | {"bev_in": BevMap(lifted, config.grid)}
    for depth, (stage, stride) in enumerate(zip(stages, strides, strict=True)):
        taps[f"bev_block{depth}"] = BevMap(stage.channels, config.grid.coarsened(stride), "relu")
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


def image_taps(config: LiftConfig, stride: int) -> dict[str, TapSpec]:
    """Describe the taps of the images: features of the neck, and logits of the depths."""
    size = (config.image_size[0] // stride, config.image_size[1] // stride)
    return {
        "image_neck": ImageMap(config.image_neck_channels, stride, size),
        DEPTH_LOGITS: ImageDepths(config.depth_bins, stride, size),
    }
