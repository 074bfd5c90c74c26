"""Draws the augmentations of one sample: one matrix for the BEV, a transform and colours for each image."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevkd_common.config.datasets.images import ColorDistortionConfig, ImageInputConfig
from bevkd_common.config.datasets.reading import BevAugmentationConfig
from bevkd_common.geometry.cameras import ImageAug
from bevkd_common.geometry.transforms import reflection, rigid, rotation_z, scaling


def draw_bev(rng: np.random.Generator, config: BevAugmentationConfig) -> Tensor:
    """The augmentation of the bird's-eye view as one matrix, `aug_T_lidar` [4, 4] float64."""
    angle, scale = rng.uniform(*config.rotation), rng.uniform(*config.scale)
    shift = torch.from_numpy(rng.normal(scale=config.translation))
    flip_x, flip_y = rng.random(2) < (config.flip_x, config.flip_y)
    turn = rigid(rotation_z(torch.tensor(angle, dtype=torch.float64)), torch.zeros(3, dtype=torch.float64))
    move = rigid(torch.eye(3, dtype=torch.float64), shift)
    flip = torch.eye(4, dtype=torch.float64)
    if flip_x:
        flip = reflection("x").double() @ flip
    if flip_y:
        flip = reflection("y").double() @ flip
    similarity = move @ scaling(torch.tensor(scale, dtype=torch.float64)) @ turn
    return flip @ similarity if config.order == "flip_last" else similarity @ flip


def draw_image(rng: np.random.Generator, config: ImageInputConfig, source_size: tuple[int, int]) -> ImageAug:
    """The augmentation of one training image of `source_size` (height, width).

    Upstream: the order of BEVDet: resize, crop, flip, rotate; the crop position is truncated to whole pixels.
    """
    scale = config.width / source_size[1] + rng.uniform(*config.resize)
    height, width = _resized(source_size, scale)
    bottom = rng.uniform(*config.crop_bottom)
    left = rng.uniform(0, max(0, width - config.width))
    flip = rng.random() < 0.5
    degrees = rng.uniform(*config.rotate_degrees)
    return ImageAug(
        scale=scale,
        crop_left=int(left),
        crop_top=int((1 - bottom) * height) - config.height,
        flip=bool(flip) and config.flip,
        rotation=math.radians(degrees),
        output_size=(config.height, config.width),
    )


def plain_image(config: ImageInputConfig, source_size: tuple[int, int]) -> ImageAug:
    """The transform of an evaluation image of `source_size` (height, width): resize and horizontal centre crop.

    Upstream: as in BEVDet.
    """
    scale = config.width / source_size[1] + config.test_resize
    height, width = _resized(source_size, scale)
    return ImageAug(
        scale=scale,
        crop_left=int(max(0, width - config.width) / 2),
        crop_top=int((1 - sum(config.crop_bottom) / 2) * height) - config.height,
        flip=False,
        rotation=0.0,
        output_size=(config.height, config.width),
    )


def distort_colors(
    pixels: npt.NDArray[np.uint8], rng: np.random.Generator, config: ColorDistortionConfig
) -> npt.NDArray[np.uint8]:
    """One image [H, W, 3] with distorted colours.

    Source: SSD, including the order of the changes.
    """
    from torchvision.transforms.v2 import functional as colors  # slow to import, and few data sets need it

    brightness, contrast, saturation, hue, swap = rng.random(5) < config.probability
    contrast_first = rng.random() < 0.5
    ranges = (config.brightness, config.contrast, config.saturation, config.hue)
    factors = [rng.uniform(*bounds) for bounds in ranges]
    order = rng.permutation(3)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    if brightness:
        image = colors.adjust_brightness(image, factors[0])
    if contrast and contrast_first:
        image = colors.adjust_contrast(image, factors[1])
    if saturation:
        image = colors.adjust_saturation(image, factors[2])
    if hue:
        image = colors.adjust_hue(image, factors[3])
    if contrast and not contrast_first:
        image = colors.adjust_contrast(image, factors[1])
    if swap and config.swap_channels:
        image = image[torch.from_numpy(order)]
    return image.permute(1, 2, 0).numpy()


def _resized(source_size: tuple[int, int], scale: float) -> tuple[int, int]:
    return int(source_size[0] * scale), int(source_size[1] * scale)
