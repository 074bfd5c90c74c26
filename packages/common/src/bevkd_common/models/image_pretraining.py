"""What the image part of a camera detector can learn first: how far things are, and what they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from bevkd_common.models.detectors.bevdet import BevDet
from bevkd_common.models.detectors.bevformer import BevFormer
from bevkd_common.ops.depth_maps import depth_labels, depth_map

CLASS_WEIGHT = 5.0
POSITIVE_WEIGHT = 5.0
NEAREST_M = 0.5
"""Depth below which a point counts as not in front of the camera."""


class DepthAndClasses(nn.Module):
    """Depth and classes of feature cells, a `Pretraining` of detectors that lift image features.

    A cell's depth is that of the nearest LiDAR point in it, as a bin of the detector's own depth distribution; its
    classes are those of the boxes whose projection covers its centre. Classes are told by a convolution that is
    dropped afterwards.

    Args:
        channels: Of the image features.
        classes: How many there are.
    """

    needs = DataNeeds(cameras=True, clouds=frozenset({LIDAR}))
    summary = "depth of the LiDAR points and classes of the boxes in each camera"

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classify = _classifier(channels, classes)

    def trained(self, detector: BevDet) -> Sequence[nn.Module]:
        """Backbone, neck, and what tells depths."""
        return detector.image_backbone, detector.image_neck, detector.lift_splat.depth_net

    def forward(self, detector: BevDet, batch: Batch) -> Losses:
        """Cross entropy over the depth bins where a point falls, and weighted binary cross entropy of classes.

        Raises:
            ValueError: If the batch has no cameras or no points.
        """
        if batch.cameras is None or LIDAR not in batch.clouds:
            raise ValueError("depth and classes of images need a batch with cameras and points")
        features = detector.image_features(batch.cameras)
        own = detector.in_own_axes(batch)
        logits, _ = detector.lift_splat.depth_net(features, own.cameras, own.aug_T_lidar)
        told = self.classify(features.flatten(0, 1))
        stride, bins = detector.lift_splat.stride, detector.lift_splat.depth_bins
        return _terms(batch, stride, bins, logits.flatten(0, 1), told)


class DepthAndClassesOfFeatures(nn.Module):
    """The same for detectors that tell no depths; both are told by convolutions that are dropped afterwards.

    Args:
        channels: Of the image features, whose finest map is trained.
        stride: Of that map, pixels.
        depth_bins: Depths that are told apart, metres.
        classes: How many there are.
    """

    needs = DataNeeds(cameras=True, clouds=frozenset({LIDAR}))
    summary = DepthAndClasses.summary

    def __init__(self, channels: int, stride: int, depth_bins: DepthBins, classes: int) -> None:
        super().__init__()
        self.stride = stride
        self.depth_bins = depth_bins
        self.classify = _classifier(channels, classes)
        self.measure = nn.Conv2d(channels, depth_bins.count, kernel_size=1)

    def trained(self, detector: BevFormer) -> Sequence[nn.Module]:
        """Backbone and neck."""
        return detector.image_backbone, detector.image_neck

    def forward(self, detector: BevFormer, batch: Batch) -> Losses:
        """See `DepthAndClasses`.

        Raises:
            ValueError: If the batch has no cameras or no points.
        """
        if batch.cameras is None or LIDAR not in batch.clouds:
            raise ValueError("depth and classes of images need a batch with cameras and points")
        (features, *_), _ = detector.image_features(batch.cameras)
        height, width = (size // self.stride for size in batch.cameras.images.shape[-2:])
        features = features[..., :height, :width]
        return _terms(batch, self.stride, self.depth_bins, self.measure(features), self.classify(features))


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
        hits.append(DepthHits(image[:, None].expand_as(depth).flatten(), pixels.flatten(0, 1), depth.flatten()))
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
    """For a detector of this configuration."""
    return DepthAndClasses(config.image_neck_channels, len(classes))


def build_of_features(config: BevFormerConfig, classes: tuple[str, ...]) -> DepthAndClassesOfFeatures:
    """For a BEVFormer of this configuration; depths reach as far as its map, a metre a bin."""
    reach = math.ceil(max(map(abs, config.grid.extent)))
    bins = DepthBins(1.0, 1.0 + reach, 1.0)
    return DepthAndClassesOfFeatures(config.channels, config.image_backbone.strides[0], bins, len(classes))
