"""Drawn augmentations against values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.images import ColorDistortionConfig, ImageInputConfig
from bevkd_common.config.datasets.reading import BevAugmentationConfig
from bevkd_common.data.augment import distort_colors, draw_bev, draw_image, plain_image
from pydantic import ValidationError


def _fixed(**changes) -> BevAugmentationConfig:
    values = {"rotation": (math.pi / 2, math.pi / 2), "scale": (2.0, 2.0), "flip_x": 0.0, "flip_y": 0.0}
    return BevAugmentationConfig(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({}, (-4.0, 2.0, 6.0)),  # (1, 2, 3) turned a quarter: (-2, 1, 3); twice as large
        ({"flip_x": 1.0}, (4.0, 2.0, 6.0)),
        ({"flip_y": 1.0}, (-4.0, -2.0, 6.0)),
        ({"flip_x": 1.0, "flip_y": 1.0}, (4.0, -2.0, 6.0)),
        ({"flip_x": 1.0, "order": "flip_first"}, (-4.0, -2.0, 6.0)),  # (-1, 2, 3) turned: (-2, -1, 3)
        ({"flip_y": 1.0, "order": "flip_first"}, (4.0, 2.0, 6.0)),
    ],
)
def test_order_of_the_bev_augmentation(changes, moved):
    matrix = draw_bev(np.random.default_rng(0), _fixed(**changes))
    assert matrix.dtype == torch.float64
    point = matrix @ torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(point[:3], torch.tensor(moved, dtype=torch.float64))


def test_translation_comes_after_rotation_and_scale():
    """Neither turned nor scaled, but mirrored where the flip is last."""
    shift = {"translation": (0.5, 0.0, 0.2), "flip_x": 1.0}
    last = draw_bev(np.random.default_rng(3), _fixed(**shift))[:3, 3]
    first = draw_bev(np.random.default_rng(3), _fixed(**shift, order="flip_first"))[:3, 3]
    assert last[0] == -first[0] != 0
    assert last[1] == first[1] == 0
    assert last[2] == first[2] != 0


def test_the_bev_augmentation_fills_its_ranges():
    config = BevAugmentationConfig(translation=(0.5, 0.5, 0.5))
    rng = np.random.default_rng(0)
    matrices = torch.stack([draw_bev(rng, config) for _ in range(2000)])
    scales = torch.linalg.vector_norm(matrices[:, :3, 2], dim=1)
    assert 0.95 <= scales.min() < 0.952
    assert 1.048 < scales.max() <= 1.05
    assert abs(scales.mean() - 1) < 0.003
    unmirrored = matrices[(torch.linalg.det(matrices) > 0) & (matrices[:, 0, 0] > 0)]
    angles = torch.atan2(unmirrored[:, 1, 0], unmirrored[:, 0, 0])
    assert 0.2 < len(unmirrored) / 2000 < 0.3  # neither flip: one in four
    assert -0.3925 <= angles.min() < -0.385
    assert 0.385 < angles.max() <= 0.3925
    spread = matrices[:, :3, 3].std(dim=0)
    assert ((spread > 0.45) & (spread < 0.55)).all()
    mirrored_x = ((matrices[:, 0, 0] < 0) & (matrices[:, 1, 1] > 0)).double().mean()
    mirrored_y = ((matrices[:, 0, 0] > 0) & (matrices[:, 1, 1] < 0)).double().mean()
    assert abs(mirrored_x - 0.25) < 0.04
    assert abs(mirrored_y - 0.25) < 0.04


@pytest.mark.parametrize(
    ("test_resize", "scale", "left", "top"),
    [(0.04, 0.48, 32, 176), (0.0, 0.44, 0, 140)],  # BEVDet 1.0; BEVDet 2.0 and BEVDepth
)
def test_images_of_nuscenes_in_evaluation(test_resize, scale, left, top):
    aug = plain_image(ImageInputConfig(test_resize=test_resize), (900, 1600))
    assert aug.scale == pytest.approx(scale)
    assert (aug.crop_left, aug.crop_top, aug.flip, aug.rotation) == (left, top, False, 0.0)
    assert aug.output_size == (256, 704)


def test_evaluation_crops_the_mean_of_the_training_crop():
    aug = plain_image(ImageInputConfig(test_resize=0.0, crop_bottom=(0.0, 0.2)), (900, 1600))
    assert aug.crop_top == int(0.9 * 396) - 256


def test_training_images_of_nuscenes():
    config = ImageInputConfig(crop_bottom=(0.0, 0.1))
    rng = np.random.default_rng(0)
    drawn = [draw_image(rng, config, (900, 1600)) for _ in range(2000)]
    scales = np.array([aug.scale for aug in drawn])
    degrees = np.degrees([aug.rotation for aug in drawn])
    assert 0.38 <= scales.min() < 0.381
    assert 0.549 < scales.max() <= 0.55
    assert -5.4 <= degrees.min() < -5.3
    assert 5.3 < degrees.max() <= 5.4
    assert abs(np.mean([aug.flip for aug in drawn]) - 0.5) < 0.04
    spare = np.array([max(0, int(1600 * aug.scale) - 704) for aug in drawn])
    left = np.array([aug.crop_left for aug in drawn])
    assert (left >= 0).all()
    assert (left <= spare).all()
    assert abs((left[spare > 20] / spare[spare > 20]).mean() - 0.5) < 0.03
    cut = np.array([1 - (aug.crop_top + 256) / int(900 * aug.scale) for aug in drawn])
    assert -0.001 <= cut.min() < 0.003
    assert 0.097 < cut.max() < 0.104


def test_images_are_not_mirrored_where_that_is_off():
    rng = np.random.default_rng(0)
    assert not any(draw_image(rng, ImageInputConfig(flip=False), (900, 1600)).flip for _ in range(20))


def test_a_scale_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="must be positive, its lower bound is 0"):
        BevAugmentationConfig(scale=(0.0, 1.0))


STILL = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0), "swap_channels": False}


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({}, [[200, 100, 0], [0, 100, 200]]),
        ({"brightness": (0.5, 0.5)}, [[100, 50, 0], [0, 50, 100]]),
        ({"contrast": (0.5, 0.5)}, [[150, 100, 50], [50, 100, 150]]),  # half way to the mean of both greys, 100
        ({"saturation": (0, 0)}, [[118, 118, 118], [81, 81, 81]]),  # 0.2989 r + 0.587 g + 0.114 b
        ({"hue": (0.5, 0.5)}, [[0, 100, 200], [200, 100, 0]]),  # opposite colours
    ],
)
def test_each_change_of_colours(change, seen):
    config = ColorDistortionConfig(probability=1.0, **(STILL | change))
    pixels = np.array([[[200, 100, 0], [0, 100, 200]]], dtype=np.uint8)
    distorted = distort_colors(pixels, np.random.default_rng(0), config)
    assert distorted.dtype == np.uint8
    np.testing.assert_allclose(distorted[0].astype(int), seen, atol=1)


def test_channels_change_places_in_all_ways():
    config = ColorDistortionConfig(probability=1.0, **(STILL | {"swap_channels": True}))
    rng, pixels = np.random.default_rng(0), np.array([[[10, 20, 30]]], dtype=np.uint8)
    drawn = [tuple(distort_colors(pixels, rng, config)[0, 0].tolist()) for _ in range(200)]
    assert len(set(drawn)) == 6


def test_colours_are_distorted_as_often_as_is_said():
    """Three changes that show, half of the time each: one image in eight stays as it is."""
    config = ColorDistortionConfig(**(STILL | {"brightness": (0.5, 0.5), "saturation": (0, 0), "contrast": (2, 2)}))
    rng, pixels = np.random.default_rng(0), np.array([[[90, 60, 30], [30, 30, 90]]], dtype=np.uint8)
    same = [(distort_colors(pixels, rng, config) == pixels).all() for _ in range(800)]
    assert 0.09 < np.mean(same) < 0.16


@pytest.mark.parametrize("wrong", [{"hue": (-0.6, 0.1)}, {"contrast": (-0.5, 1)}, {"probability": 0.0}])
def test_colours_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        ColorDistortionConfig(**wrong)
