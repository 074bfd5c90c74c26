import pytest
from bevkd_common.config.detectors.center_head import CenterHeadConfig, NmsConfig
from bevkd_common.config.detectors.centerpoint import CenterPointConfig, describe
from pydantic import ValidationError


def test_defaults_are_the_released_detector():
    config = CenterPointConfig()
    assert (config.bev.nx, config.bev.ny) == (512, 512)
    assert config.head_stride == 4
    assert len(config.head.tasks) == len(config.head.nms) == 6
    assert [rule.threshold for rule in config.head.nms] == [4, 12, 10, 1, 0.85, 0.175]
    assert {rule.kind for rule in config.head.nms} == {"circle"}


def test_the_plan_names_pillars_backbone_and_sweeps():
    assert describe(CenterPointConfig()) == "pillars of 0.2 m, SECOND 64/128/256, 10 sweeps"


def test_cells_run_along_x_then_y():
    config = CenterPointConfig(point_range=(0, -6.4, -5, 12.8, 12.8, 3))
    assert (config.bev.nx, config.bev.ny) == (64, 96)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_layers": (3, 5)}, "the same length"),
        ({"neck_channels": (128,)}, "the same length"),
        (
            dict.fromkeys(
                ("backbone_channels", "backbone_layers", "backbone_strides", "neck_channels", "neck_upsampling"), ()
            ),
            "the same length",
        ),
        ({"backbone_layers": (3, -1, 5)}, "must not be negative"),
        ({"point_range": (51.2, -51.2, -5, -51.2, 51.2, 3)}, "lower x, y, z"),
        ({"point_range": (-51.2, -51.2, 3, 51.2, 51.2, 3)}, "lower x, y, z"),
        ({"point_range": (-51.2, -51.0, -5, 51.2, 51.0, 3)}, "along y must be a multiple of 8 pillars of 0.2 m"),
        ({"point_range": (-51.25, -51.2, -5, 51.25, 51.2, 3)}, "along x must be a multiple"),
        ({"neck_upsampling": (0.5, 1, 4)}, "all stages to the same resolution"),
        ({"neck_upsampling": (0.75, 1.5, 3)}, "whole numbers or one over them"),
        ({"pillar": 0}, "greater than 0"),
        ({"pillars": 0.2}, "Extra inputs"),
    ],
)
def test_impossible_detectors_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        CenterPointConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "must not be empty"),
        ({"tasks": (("car",), ())}, "must not be empty"),
        ({"tasks": (("car",), ("bus", "car"))}, "name a class twice: car, bus, car"),
        ({"tasks": (("car", "bus"),)}, "1 tasks, 6 rules"),
        ({"code_weights": (1.0,) * 9}, "must be 10 numbers, got 9"),
        ({"symmetric_classes": ("bollard",)}, "names bollard, which no task has"),
        (
            {"tasks": (("car", "bus"),), "nms": (NmsConfig(kind="rotate", threshold=0.2, size_factors=(1.0,)),)},
            "of task car, bus must be 2 numbers",
        ),
        ({"nms": ({"kind": "rotate", "threshold": 4.0},) * 6}, "must be below 1"),
        ({"nms": ({"threshold": 4.0, "size_factors": (1.0,)},) * 6}, "circles have no size"),
        ({"score_threshold": 1.5}, "less than or equal to 1"),
    ],
)
def test_impossible_heads_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        CenterHeadConfig(**changes)
