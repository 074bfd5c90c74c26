"""What the image part of a camera detector can learn first: how far things are, and what they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevkd_common.config.detectors.bevdet import LiftConfig
from bevkd_common.config.detectors.bevformer import BevFormerConfig
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.data.samples import Batch, Cameras, DepthHits
from bevkd_common.geometry.cameras import project
from bevkd_common.geometry.grid import DepthBins
from bevkd_common.models.detector import Losses, Term
from bevkd_common.models.taps import ImageDepths, ImageMap
from bevkd_common.ops.depth_maps import depth_labels, depth_map

if TYPE_CHECKING:
    from bevkd_common.models.detector import DetectorModule

CLASS_WEIGHT = 5.0
POSITIVE_WEIGHT = 5.0
NEAREST_M = 0.5
"""Depth below which a point counts as not in front of the camera."""


class DepthAndClasses(nn.Module):
    """Depth and classes of the cells of image features, a `Pretraining` of camera detectors.

    The target depth of a cell is that of the nearest LiDAR point in it; its classes are those of the boxes whose
    projection covers its centre. Depths are predicted by the detector if it has the tap `depth_logits`, else by a
    convolution, as the classes are; both convolutions are dropped afterwards.

    Args:
        channels: Of the tap `image_neck`.
        classes: Number of classes.
        depth_bins: Depths that the convolution predicts; None for a detector that predicts its own.
    """

    needs = DataNeeds(cameras=True, clouds=frozenset({LIDAR}), sweeps=1)
    summary = "depth of the LiDAR points and classes of the boxes in each camera"

    def __init__(self, channels: int, classes: int, depth_bins: DepthBins | None = None) -> None:
        super().__init__()
        self.depth_bins = depth_bins
        self.classify = _classifier(channels, classes)
        self.measure = None if depth_bins is None else nn.Conv2d(channels, depth_bins.count, kernel_size=1)

    def trained(self, detector: DetectorModule) -> Sequence[nn.Module]:
        """Return backbone, neck and, if the detector predicts depths, its depth net."""
        names = ("image_backbone", "image_neck", "depth_net")
        return [part for name, part in detector.parts.items() if name in names and isinstance(part, nn.Module)]

    def forward(self, detector: DetectorModule, batch: Batch) -> Losses:
        """Cross entropy over the depth bins where a point falls, and weighted binary cross entropy of classes.

        Raises:
            ValueError: If the batch has no cameras or no points.
        """
        if batch.cameras is None or LIDAR not in batch.clouds:
            raise ValueError("depth and classes of images need a batch with cameras and points")
        image = detector.taps["image_neck"]
        assert isinstance(image, ImageMap)
        own = detector.taps.get("depth_logits") if self.measure is None else None
        outputs = detector(batch, frozenset({"image_neck"} if own is None else {"image_neck", "depth_logits"}))
        # Cells of the padding lie beyond the images.
        height, width = (size // image.stride for size in batch.cameras.images.shape[-2:])
        features = outputs.taps["image_neck"].flatten(0, 1)[..., :height, :width]
        if self.measure is not None and self.depth_bins is not None:
            bins, depths = self.depth_bins, self.measure(features)
        else:
            assert isinstance(own, ImageDepths)
            bins, depths = own.bins, outputs.taps["depth_logits"].flatten(0, 1)
        return _terms(batch, image.stride, bins, depths, self.classify(features))


def _classifier(channels: int, classes: int) -> nn.Conv2d:
    classify = nn.Conv2d(channels, classes, kernel_size=1)
    # A cell that shows an object is rare.
    nn.init.constant_(classify.bias, -3.0)  # type: ignore[arg-type]
    return classify


def _terms(batch: Batch, stride: int, bins: DepthBins, depths: Tensor, classes: Tensor) -> Losses:
    """Both losses of logits [B · N, D, H, W] and [B · N, K, H, W]."""
    label = depth_labels(nearest_depth(batch, stride), bins).flatten(0, 1)
    wrong = F.cross_entropy(depths.float(), label, reduction="sum", ignore_index=-1)
    depth_loss = wrong / (label >= 0).sum().clamp(min=1)
    shown = class_cells(batch, stride, classes.shape[1]).flatten(0, 1)
    weight = torch.where(shown, POSITIVE_WEIGHT, 1.0)
    class_loss = F.binary_cross_entropy_with_logits(classes.float(), shown.float(), weight)
    return Losses({"depth": Term(depth_loss), "classes": Term(class_loss, CLASS_WEIGHT)})


@torch.no_grad()
def nearest_depth(batch: Batch, stride: int) -> Tensor:
    """Depth along the camera axis of the nearest LiDAR point in each feature cell, metres.

    Args:
        batch: With cameras and points; every point counts, whatever its age.
        stride: Pixels per cell.

    Returns:
        [B, N, H, W], infinite where no point falls.
    """
    assert batch.cameras is not None
    cameras = batch.cameras
    samples, count = cameras.images.shape[:2]
    hits = []
    for sample, cloud in enumerate(batch.cloud(LIDAR).split()):
        pixels, depth = project(cloud[:, :3], *_projection(cameras, sample))
        image = torch.arange(sample * count, (sample + 1) * count, device=batch.device)
        inner = torch.ones_like(depth, dtype=torch.bool)
        hits.append(
            DepthHits(
                image[:, None].expand_as(depth).flatten(), pixels.flatten(0, 1), depth.flatten(), inner.flatten()
            )
        )
    every = DepthHits(*(torch.cat(parts) for parts in zip(*(vars(hit).values() for hit in hits), strict=True)))
    shape = (int(cameras.images.shape[-2]), int(cameras.images.shape[-1]))
    nearest = depth_map(every, samples * count, shape, stride=stride, between=(NEAREST_M, torch.inf))
    return nearest.unflatten(0, (samples, count))


@torch.no_grad()
def class_cells(batch: Batch, stride: int, classes: int) -> Tensor:
    """Which classes each feature cell shows: of boxes whose projection's bounds hold its centre.

    A box counts where all its corners are in front of the camera.

    Args:
        batch: With cameras.
        stride: Pixels per cell.
        classes: How many there are.

    Returns:
        Bool [B, N, classes, H, W].
    """
    assert batch.cameras is not None
    cameras = batch.cameras
    height, width = (size // stride for size in cameras.images.shape[-2:])
    corners = batch.boxes.corners().flatten(1, 2)[:, None]
    pixels, depth = (value.unflatten(2, (-1, 8)) for value in project(corners, *_projection(cameras)))
    visible = (depth > NEAREST_M).all(dim=-1) & batch.valid[:, None]
    low, high = pixels.amin(dim=-2) / stride, pixels.amax(dim=-2) / stride
    x = torch.arange(width, device=batch.device) + 0.5
    y = torch.arange(height, device=batch.device) + 0.5
    columns = (x > low[..., :1]) & (x < high[..., :1]) & visible[..., None]
    rows = (y > low[..., 1:]) & (y < high[..., 1:])
    covered = (rows[..., :, None] & columns[..., None, :]).float()
    label = F.one_hot(batch.labels.clamp(min=0), classes).float()
    return torch.einsum("bnmhw,bmk->bnkhw", covered, label) > 0


def _projection(cameras: Cameras, sample: int | slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    return (
        cameras.intrinsics[sample],
        torch.linalg.inv(cameras.lidar_T_cam[sample]),
        cameras.image_aug[sample],
    )


def build(config: LiftConfig, classes: tuple[str, ...]) -> DepthAndClasses:
    """Build the objective of a detector that predicts depths."""
    return DepthAndClasses(config.image_neck_channels, len(classes))


def build_of_features(config: BevFormerConfig, classes: tuple[str, ...]) -> DepthAndClasses:
    """Build the objective of a BEVFormer; depths reach as far as its map, one metre per bin."""
    reach = math.ceil(max(map(abs, config.grid.extent)))
    return DepthAndClasses(config.channels, len(classes), DepthBins(1.0, 1.0 + reach, 1.0))
