"""Images of samples as a detector sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.images import ColorDistortionConfig, ImageInputConfig
from bevkd_common.data.needs import DataNeeds, KeyframeQueue
from bevkd_common.errors import UserError
from PIL import Image


def test_image_matrices_move_pixels_as_the_images_moved(own_world, source):
    """One bright spot in each image lands where the matrix says, but for cuts to whole pixels."""
    rng = np.random.default_rng(0)
    spots = []
    for camera in ("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT"):
        u, v = rng.integers(40, 88), rng.integers(18, 40)
        pixels = np.zeros((48, 128, 3), dtype=np.uint8)
        pixels[v - 1 : v + 2, u - 1 : u + 2] = 255
        Image.fromarray(pixels).save(own_world.root / f"samples/CAM_{camera}/scene-9001_0.jpg", quality=100)
        spots.append((u + 0.5, v + 0.5, 1.0))
    images = ImageInputConfig(height=40, width=112, resize=(-0.06, 0.2), crop_bottom=(0.0, 0.1))
    samples = source(own_world, DataNeeds(cameras=True), images=images)
    expected_of = torch.tensor(spots, dtype=torch.float32)
    misses = []
    flips = set()
    for seed in (None, *range(12)):
        cameras = samples.load(0, seed=seed).cameras
        places = (cameras.image_aug @ expected_of[:, :, None])[:, :2, 0]
        for image, place, matrix in zip(cameras.images, places, cameras.image_aug, strict=True):
            if not (3 < place[0] < 109 and 3 < place[1] < 37):
                continue
            weight = (image.float().mean(dim=0) - 60).clamp(min=0)
            rows, columns = torch.arange(40) + 0.5, torch.arange(112) + 0.5
            center = torch.stack([(weight * columns).sum(), (weight * rows[:, None]).sum()]) / weight.sum()
            misses.append(float(torch.dist(center, place)))
            flips.add(bool(matrix[0, 0] < 0))
    assert len(misses) > 50
    assert np.median(misses) < 0.6
    assert max(misses) < 1.5
    assert flips == {True, False}


def test_an_image_of_the_right_size_is_not_resampled(small_world, source):
    images = ImageInputConfig(height=48, width=128, resize=(0, 0), test_resize=0, flip=True, rotate_degrees=(0, 0))
    samples = source(small_world, DataNeeds(cameras=True), images=images)
    stored = np.asarray(Image.open(small_world.root / "samples/CAM_FRONT/scene-9001_0.jpg"))
    stored = torch.from_numpy(stored.copy()).permute(2, 0, 1)
    plain = samples.load(0, seed=None).cameras
    assert torch.equal(plain.images[1], stored)
    assert torch.equal(plain.image_aug[1], torch.eye(3))
    seen = set()
    for seed in range(6):
        drawn = samples.load(0, seed=seed).cameras
        flipped = bool(drawn.image_aug[1, 0, 0] < 0)
        assert torch.equal(drawn.images[1], stored.flip(-1) if flipped else stored)
        seen.add(flipped)
    assert seen == {True, False}


def test_colours_are_distorted_in_training_alone_and_nothing_else_changes(small_world, source):
    """Every image of the sample and of its history on its own; twice the same with one seed."""
    size = {"height": 48, "width": 128, "resize": (0, 0), "test_resize": 0, "flip": False, "rotate_degrees": (0, 0)}
    needs = DataNeeds(cameras=True, clouds=frozenset({"lidar"}), sweeps=2, history=KeyframeQueue(2))
    colors = ColorDistortionConfig(probability=1.0, swap_channels=False)
    plain = source(small_world, needs, images=ImageInputConfig(**size)).load(1, seed=3)
    distorting = source(small_world, needs, images=ImageInputConfig(**size, colors=colors))
    drawn, again = distorting.load(1, seed=3), distorting.load(1, seed=3)
    assert torch.equal(drawn.cameras.images, again.cameras.images)
    assert torch.equal(drawn.clouds["lidar"].points, plain.clouds["lidar"].points)
    assert torch.equal(drawn.cameras.lidar_T_cam, plain.cameras.lidar_T_cam)
    ratios = []
    for ours, theirs in ((drawn.cameras, plain.cameras), (drawn.history.cameras, plain.history.cameras)):
        before, after = theirs.images.float().flatten(0, -4), ours.images.float().flatten(0, -4)
        ratios += (after.mean(dim=(1, 2, 3)) / before.mean(dim=(1, 2, 3))).tolist()
    assert len(ratios) == 12
    assert len(set(ratios)) == 12
    assert torch.equal(distorting.load(1, seed=None).cameras.images, plain.cameras.images)


def test_an_image_of_another_size(own_world, source):
    path = own_world.root / "samples/CAM_BACK/scene-9001_1.jpg"
    Image.new("RGB", (64, 48)).save(path)
    message = r"scene-9001_1\.jpg has 64 x 48 pixels, the tables say 128 x 48"
    with pytest.raises(UserError, match=message):
        source(own_world).load(1, seed=None)


def test_a_grey_image_becomes_three_channels(own_world, source):
    path = own_world.root / "samples/CAM_BACK/scene-9001_1.jpg"
    Image.new("L", (128, 48), 90).save(path)
    images = source(own_world).load(1, seed=None).cameras.images
    assert images[4].unique().tolist() == [90]
