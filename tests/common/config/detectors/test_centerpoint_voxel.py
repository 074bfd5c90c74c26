import pytest
from bevkd_common.config.detectors.centerpoint_voxel import CenterPointVoxelConfig, describe
from pydantic import ValidationError


def test_defaults_are_the_released_detector():
    config = CenterPointVoxelConfig()
    assert (config.bev.nx, config.bev.ny, config.bev.cell) == (128, 128, 0.8)
    assert (config.head_stride, config.encoder_stride, config.bev_channels) == (1, 8, 256)


def test_the_plan_names_voxels_stages_and_sweeps():
    sizes = "voxels of 0.1 x 0.1 x 0.2 m, sparse encoder 16/32/64/128, SECOND 128/256, 10 sweeps"
    assert describe(CenterPointVoxelConfig()) == sizes


@pytest.mark.parametrize(
    ("z", "layers"),
    [
        ((-5.0, 3.0), 2),  # 41, 21, 11, 5, 2
        ((-3.0, 3.0), 1),  # 31, 16, 8, 3, 1
        ((-5.0, 7.0), 3),  # 61, 31, 16, 7, 3
    ],
)
def test_layers_that_are_left_become_channels(z, layers):
    config = CenterPointVoxelConfig(point_range=(-51.2, -51.2, z[0], 51.2, 51.2, z[1]))
    assert config.bev_channels == 128 * layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_layers": (5,)}, "the same length"),
        ({"neck_upsampling": (1, 4)}, "all stages to the same resolution"),
        ({"encoder_channels": ()}, "must not be empty"),
        ({"point_range": (-51.2, -51.2, 3, 51.2, 51.2, -5)}, "lower x, y, z"),
        ({"point_range": (-51.2, -50.0, -5, 51.2, 50.0, 3)}, "along y must be a multiple of 16 voxels of 0.1 m"),
        ({"voxel_height": 0.3}, "along z must be a multiple of 1 voxels of 0.3 m"),
        ({"point_range": (-51.2, -51.2, -1, 51.2, 51.2, 3)}, "4 stages of `encoder_channels` need more layers"),
        ({"head": {"channels": 30, "deformable": True}}, "must be a multiple of 4 with `deformable`, got 30"),
        ({"pillar": 0.2}, "Extra inputs"),
    ],
)
def test_impossible_detectors_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        CenterPointVoxelConfig(**changes)
