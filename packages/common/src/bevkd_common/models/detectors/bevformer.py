"""BEVFormer: a camera detector with a recurrent BEV map.

Source: BEVFormer (arXiv 2203.17270), numerics of its released detectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevkd_common.config.detectors.bevformer import BevFormerConfig
from bevkd_common.data.needs import DataNeeds, KeyframeQueue
from bevkd_common.data.samples import Batch, Cameras
from bevkd_common.models.bevformer.encoder import BevFormerEncoder, EncoderLayer
from bevkd_common.models.bevformer.memory import BevMemory, Moment, queue
from bevkd_common.models.detector import Detections, Losses, Outputs, SetTargets
from bevkd_common.models.grid_mask import GridMask
from bevkd_common.models.heads.detr_head import DetrHead, build_detr_head
from bevkd_common.models.image_backbones import ImageBackbone, ImageNormalizer, build_image_backbone
from bevkd_common.models.image_necks import ImagePyramid
from bevkd_common.models.lazy import take
from bevkd_common.models.taps import Attention, BevMap, ImageMap, TapSpec


class BevFormer(nn.Module):
    """Image features, BEV queries that attend to them and to an earlier BEV map, query head; a `Detector`.

    The earlier map comes from the state, where one is given, or from the key frames of the batch's history: these
    are computed in evaluation mode and without gradients, each from the map before it.

    Args:
        normalizer: From uint8 images to the backbone's input.
        grid_mask: Hides parts of the images in training.
        image_backbone: Feature maps of the images.
        image_neck: Levels of equal width.
        encoder: The map of the ground.
        head: Boxes.
        image_size: Height and width of the images in pixels.
        frames: Key frames of a queue, the present one included; with one, there is no earlier map.
        taps: What the maps are; `tsa{i}` and `sca{i}` of each layer, `bev_neck` and `head`.
    """

    def __init__(
        self,
        *,
        normalizer: ImageNormalizer,
        grid_mask: GridMask,
        image_backbone: ImageBackbone,
        image_neck: ImagePyramid,
        encoder: BevFormerEncoder,
        head: DetrHead,
        image_size: tuple[int, int],
        frames: int,
        taps: Mapping[str, TapSpec],
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.grid_mask = grid_mask
        self.image_backbone = image_backbone
        self.image_neck = image_neck
        self.encoder = encoder
        self.head = head
        self.image_size = image_size
        self.frames = frames
        self.taps = taps
        history = KeyframeQueue(frames, recurrent=True) if frames > 1 else None
        self.needs = DataNeeds(cameras=True, can_bus=True, history=history)

    def forward(self, batch: Batch, want: frozenset[str], state: object | None = None) -> Outputs:
        """Compute the taps wanted and what they depend on.

        Args:
            batch: With cameras and the ego's motion.
            want: Taps.
            state: Of the key frame before, as that call returned it; ignored for samples of another scene.

        Returns:
            With a state, in evaluation mode and if the map was computed.

        Raises:
            ValueError: If there is no such tap, the batch lacks something, or the state is not of such a batch.
        """
        if unknown := want - self.taps.keys():
            raise ValueError(f"BEVFormer has no tap {sorted(unknown)}, it has {sorted(self.taps)}")
        needed = want - {"head"} | ({"bev_neck"} if "head" in want else set())
        if needed <= {"image_neck"}:
            return Outputs(self._image_taps(self.image_features(_cameras(batch))[0], batch) if needed else {})
        *earlier, present = queue(batch, self.frames)
        memory = self._seen(earlier, batch.scenes) if state is None else _recalled(state, batch)
        features, size = self.image_features(present.cameras)
        maps = take(self.encoder.maps(features, size, present, memory), needed - {"image_neck"})
        keep = "bev_neck" in maps and self.frames > 1 and not self.training
        found = maps | self._image_taps(features, batch)
        return Outputs(
            taps={name: value for name, value in found.items() if name in want},
            head=self.head(maps["bev_neck"]) if "head" in want else (),
            state=BevMemory.of(maps["bev_neck"], present, batch.scenes) if keep else None,
        )

    def _image_taps(self, features: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The finest level of the image features, [B, N, C, H, W]."""
        return {"image_neck": features[0].unflatten(0, (len(batch), -1))}

    def image_features(self, cameras: Cameras) -> tuple[list[Tensor], tuple[int, int]]:
        """Maps [B · N, C, H, W] of the images, finest first, and the size of the images with their padding."""
        images = self._prepared(cameras.images.flatten(0, 1))
        return self.image_neck(self.image_backbone(images)), (images.shape[2], images.shape[3])

    def _prepared(self, images: Tensor) -> Tensor:
        """Return the input of the backbone: normalised, padded with zeros below and to the right to whole cells."""
        (height, width), size = self.image_size, tuple(images.shape[-2:])
        if size != self.image_size:
            raise ValueError(f"BEVFormer takes images of {height} x {width}, the batch has {size[0]} x {size[1]}")
        coarsest = self.image_backbone.strides[-1]
        return self.grid_mask(F.pad(self.normalizer(images), (0, -width % coarsest, 0, -height % coarsest)))

    @torch.no_grad()
    def _seen(self, moments: Sequence[Moment], scenes: tuple[str, ...]) -> BevMemory | None:
        """The map of the last of these moments; a moment that no sample has is passed over."""
        memory = None
        with _in_evaluation(self):
            for moment in moments:
                if moment.present.any():
                    bev = self.encoder(*self.image_features(moment.cameras), moment, memory)
                    memory = BevMemory.of(bev, moment, scenes)
        return memory

    @property
    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """See `Detector`."""
        return {
            "image_backbone": self.image_backbone,
            "image_neck": self.image_neck,
            "encoder": self.encoder,
            "encoder.bev_queries": self.encoder.queries,
            **self.head.parts,
        }

    def targets(self, outputs: Outputs, batch: Batch) -> SetTargets:
        """See `DetrHead.targets`."""
        return self.head.targets(outputs.head, batch.boxes, batch.labels)

    def losses(self, outputs: Outputs, targets: SetTargets, batch: Batch) -> Losses:
        """See `DetrHead.losses`."""
        return Losses(self.head.losses(outputs.head, targets))

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """Boxes of each sample."""
        return self.head.decode(outputs.head)


def _cameras(batch: Batch) -> Cameras:
    if batch.cameras is None:
        raise ValueError("BEVFormer needs images, the batch was loaded without cameras")
    return batch.cameras


def _recalled(state: object, batch: Batch) -> BevMemory:
    """The memory of those samples whose scene goes on."""
    if not isinstance(state, BevMemory) or len(state.scenes) != len(batch):
        raise ValueError("the state is not what BEVFormer returned for as many samples")
    same = [before == now for before, now in zip(state.scenes, batch.scenes, strict=True)]
    return replace(state, known=state.known & torch.tensor(same, device=state.known.device))


@contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    """Everything within a module in evaluation mode; afterwards what was training, trains."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def build(config: BevFormerConfig, classes: tuple[str, ...]) -> BevFormer:
    """Unpack a configuration.

    Raises:
        UserError: If the image backbone or its checkpoint cannot be had.
    """
    image_backbone = build_image_backbone(config.image_backbone)
    head = build_detr_head(config.head, config.channels, config.grid, classes)
    taps: dict[str, TapSpec] = {}
    heads, levels = config.attention_heads, config.image_levels
    for layer in range(config.encoder_layers):
        taps[f"tsa{layer}"] = Attention(layer, heads, 2, config.temporal_points, config.grid, "points")
        taps[f"sca{layer}"] = Attention(layer, heads, levels, config.spatial_points, config.grid, "groups")
    stride, coarsest = image_backbone.strides[0], image_backbone.strides[-1]
    height, width = (math.ceil(size / coarsest) * coarsest // stride for size in config.image_size)
    taps["image_neck"] = ImageMap(config.channels, stride, (height, width))
    taps["bev_neck"] = BevMap(config.channels, config.grid)
    taps["head"] = head.maps
    return BevFormer(
        normalizer=ImageNormalizer(config.normalization),
        grid_mask=GridMask(config.grid_mask),
        image_backbone=image_backbone,
        image_neck=ImagePyramid(image_backbone.channels, config.channels, config.image_levels),
        encoder=BevFormerEncoder(
            config.channels,
            config.grid,
            config.z_range,
            anchors=config.anchors,
            layers=config.encoder_layers,
            make_layer=partial(_encoder_layer, config),
            cameras=config.cameras,
            levels=config.image_levels,
            rotation_center=config.rotation_center,
            wrap_yaw=config.wrap_yaw,
            recompute=config.recompute,
        ),
        head=head,
        image_size=config.image_size,
        frames=config.frames,
        taps=taps,
    )


def _encoder_layer(config: BevFormerConfig) -> EncoderLayer:
    return EncoderLayer(
        config.channels,
        heads=config.attention_heads,
        temporal_points=config.temporal_points,
        spatial_points=config.spatial_points,
        levels=config.image_levels,
        hidden_channels=config.hidden_channels,
        dropout=config.dropout,
        shifted=config.shifted,
    )
