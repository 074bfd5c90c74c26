import numpy as np
import pytest
from bevkd_common.config.datasets.world import ObjectCounts, WorldConfig
from bevkd_common.data.synthetic.scene import draw_scene, time_span
from pydantic import ValidationError


@pytest.mark.parametrize(
    "changes",
    [
        {"lidar_rate": 9.0},
        {"lidar_rate": 1.0},
        {"camera_rate": 5.0},
        {"keyframe_rate": 0.0},
        {"image_size": (8, 176)},
        {"image_size": (64, 5000)},
        {"lidar_dropout": 1.0},
        {"train_scenes": 0},
        {"clutter": 0},
        {"objects": {"car": -1.0}},
        {"objects": {"tram": 1.0}},
        {"scenes": 3},
    ],
)
def test_what_makes_no_world_is_refused(changes):
    with pytest.raises(ValidationError):
        WorldConfig.model_validate(changes)


def test_a_config_is_frozen_and_names_its_data_set():
    config = WorldConfig()
    with pytest.raises(ValidationError):
        config.seed = 1
    others = [
        WorldConfig(seed=1),
        WorldConfig(jpeg_quality=91),
        WorldConfig(objects=ObjectCounts(car=5.4)),
        WorldConfig(val_scenes=21),
    ]
    names = {config.name(), WorldConfig().name(), *(other.name() for other in others)}
    assert len(names) == 5
    assert config.name().startswith("synthetic-seed0-")


def test_the_default_has_240_training_and_100_validation_frames():
    config = WorldConfig()
    frames = [scenes * config.keyframes_per_scene for scenes in (config.train_scenes, config.val_scenes)]
    assert frames == [240, 100]
    assert time_span(config) == (-0.5, 2.0)


def test_a_scene_depends_on_its_seed_and_index_alone():
    few, many = WorldConfig(train_scenes=2), WorldConfig(train_scenes=9)
    first, again = draw_scene(few, 1), draw_scene(many, 1)
    np.testing.assert_array_equal(first.arcs.x, again.arcs.x)
    assert first.kinds == again.kinds
    assert draw_scene(few, 0).arcs.x[0] != first.arcs.x[0]
    assert draw_scene(WorldConfig(seed=1), 1).arcs.x[0] != first.arcs.x[0]
