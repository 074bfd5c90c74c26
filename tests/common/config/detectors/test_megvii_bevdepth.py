import pytest
from bevkd_common.config.detectors.image_backbones import SmallResNetConfig, TimmBackboneConfig
from bevkd_common.config.detectors.megvii_bevdepth import MegviiBevDepthConfig, describe
from bevkd_common.geometry.grid import DepthBins, Grid
from pydantic import ValidationError


def test_defaults_are_the_released_detector():
    config = MegviiBevDepthConfig()
    assert (config.image_size, config.feature_stride, config.index_mode) == ((256, 704), 16, "truncate")
    assert config.image_backbone == TimmBackboneConfig(strides=(4, 8, 16, 32), frozen_stages=0)
    assert config.normalization == "imagenet_swapped"
    assert (config.depth_bins, config.lift_channels, config.depth_channels) == (DepthBins(2.0, 58.0, 0.5), 80, 512)
    assert (config.grid, config.z_range) == (Grid(-51.2, -51.2, 0.8, 128, 128), (-5.0, 3.0))
    assert config.bev_strides == (2, 4, 8)
    assert (config.frames, config.depth_weight, config.depth_aggregation, config.mount) == (2, 3.0, False, None)
    assert (config.head.code_weights, config.head.box_weight) == ((1.0,) * 10, 0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (240, 704)}, "240 x 704 is not a multiple of the coarsest stride 32"),
        ({"image_size": (250, 704)}, "250 x 704 is not a multiple of the finest stride 16"),
        ({"lift_stride": 12}, "not a multiple of the finest stride 12|not in whole steps"),
        ({"image_neck_channels": 510}, "510 cannot be divided among 4 levels"),
        ({"grid": {"x0": 0, "y0": 0, "cell": 1, "nx": 64, "ny": 60}}, "64 x 60 cells, not a multiple of the 8"),
        ({"z_range": (3.0, 3.0)}, "`z_range` is empty"),
        ({"frames": 3}, "1 or 2"),
        ({"bev_stages": []}, "at least 1 item"),
        ({"bev_neck": {"channels": 64}}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        MegviiBevDepthConfig.model_validate({"kind": "megvii_bevdepth"} | changes)


def test_the_plan_names_frames_and_supervision():
    assert describe(MegviiBevDepthConfig(depth_aggregation=True)) == (
        "timm resnet50 from random weights, images of 256 x 704, 128 x 128 cells of 0.8 m, and the key frame "
        "before, depths supervised by LiDAR, depths aggregated"
    )
    small = SmallResNetConfig(strides=(4, 8, 16))
    alone = MegviiBevDepthConfig(image_backbone=small, image_neck_channels=48, frames=1, depth_weight=0.0)
    assert describe(alone).endswith("0.8 m, depths without supervision")
