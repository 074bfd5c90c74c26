import subprocess
import sys

import pytest
from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.detectors.bevdet import BevDetConfig, check, describe
from bevkd_common.config.detectors.image_backbones import SmallResNetConfig, TimmBackboneConfig
from bevkd_common.config.model import Config
from bevkd_common.geometry.grid import DepthBins, Grid
from pydantic import ValidationError


class Images(Config):
    images: ImageInputConfig = ImageInputConfig()


def test_defaults_are_the_released_detector():
    config = BevDetConfig()
    assert config.image_size == (256, 704)
    assert config.depth_bins == DepthBins(1.0, 60.0, 1.0)
    assert config.grid == Grid(-51.2, -51.2, 0.8, 128, 128)
    assert config.z_range == (-10.0, 10.0)
    assert config.index_mode == "truncate"
    assert [(s.channels, s.blocks, s.stride) for s in config.bev_stages] == [(128, 2, 2), (256, 2, 2), (512, 2, 2)]
    assert not config.bev_neck.extra_norm_act
    assert config.normalization == "imagenet_rgb"
    images = ImageInputConfig()
    assert (images.height, images.width) == config.image_size
    assert (images.resize, images.test_resize, images.crop_bottom) == ((-0.06, 0.11), 0.04, (0.0, 0.0))
    assert (images.flip, images.rotate_degrees) == (True, (-5.4, 5.4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (250, 704)}, "`image_size` 250 x 704 is not a multiple of the finest stride 16"),
        ({"image_size": (256, 700)}, "not a multiple of the finest stride 16"),
        ({"z_range": (3.0, 3.0)}, "`z_range` is empty"),
        ({"z_range": (3.0, -3.0)}, "lower bound 3 is above the upper bound -3"),
        ({"grid": {"x0": 0, "y0": 0, "cell": 1, "nx": 64, "ny": 60}}, "64 x 60 cells, not a multiple of the 8"),
        ({"grid": {"x0": 0, "y0": 0, "cell": 1, "nx": 60, "ny": 64}}, "60 x 64 cells, not a multiple of the 8"),
        ({"grid": {"x0": 0, "y0": 0, "cell": -1, "nx": 64, "ny": 64}}, "positive cell edge"),
        ({"depth_bins": {"start": 5, "stop": 1, "step": 1}}, "0 < start < stop"),
        ({"bev_stages": [{"channels": 8}]}, "at least 2 items"),
        ({"bev_neck": {"extra_norm": True}}, "Extra inputs are not permitted"),
        ({"image_backbone": {"kind": "resnet"}}, "does not match any of the expected tags"),
        ({"image_backbone": {"kind": "timm", "strides": [32, 16]}}, "powers of two from 2 on, finest first"),
        ({"image_backbone": {"kind": "timm", "strides": [16, 16]}}, "each once"),
        ({"image_backbone": {"kind": "timm", "strides": [12]}}, "powers of two"),
        ({"image_backbone": {"kind": "timm", "strides": [1, 2]}}, "powers of two from 2 on"),
        ({"image_backbone": {"kind": "small_resnet", "blocks": [1, 1]}}, "`blocks` must be 3 numbers"),
        ({"image_backbone": {"kind": "small_resnet", "strides": [8]}}, "3 stages end at stride 16, .* is 8"),
        ({"image_backbone": {"kind": "small_resnet", "strides": [8, 32]}}, "3 stages end at stride 16, .* is 32"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        BevDetConfig.model_validate({"kind": "bevdet"} | changes)


@pytest.mark.parametrize(
    "changes", [{"resize": (0.1, 0.0)}, {"crop_bottom": (0.0, 1.0)}, {"height": 0}, {"rotate_degrees": (1.0, -1.0)}]
)
def test_image_ranges_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValidationError):
        ImageInputConfig.model_validate(changes)


def test_images_of_another_size_do_not_fit():
    assert list(check(BevDetConfig(), Images())) == []
    for images in (ImageInputConfig(height=128), ImageInputConfig(width=352)):
        ((key, reason),) = check(BevDetConfig(), Images(images=images))
        assert key == "image_size"
        assert "256 x 704" in reason
        assert f"{images.height} x {images.width}" in reason


def test_data_without_images_do_not_fit():
    ((key, reason),) = check(BevDetConfig(), TimmBackboneConfig())
    assert key == ""
    assert "reads images" in reason


def test_the_plan_names_backbone_images_and_grid(tmp_path):
    assert describe(BevDetConfig()) == (
        "timm resnet50 from random weights, images of 256 x 704, 128 x 128 cells of 0.8 m"
    )
    small = BevDetConfig(image_size=(64, 176), image_backbone=SmallResNetConfig())
    assert describe(small).startswith("small ResNet 32/64/96 from random weights, images of 64 x 176")
    loaded = BevDetConfig(image_backbone=TimmBackboneConfig(weights=tmp_path / "r50.pth"))
    assert describe(loaded).startswith("timm resnet50 from r50.pth")


def test_the_configuration_imports_no_torch():
    code = "import sys, bevkd_common.config.detectors.bevdet; assert not {'torch', 'timm'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
