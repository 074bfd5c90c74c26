"""What a queue of key frames shows and what going through their scene shows is the same."""

import pytest
import torch
from bevkd_common.config.datasets.images import ImageInputConfig
from bevkd_common.config.datasets.nuscenes import NuScenesConfig
from bevkd_common.config.detectors.bevformer import BevFormerConfig
from bevkd_common.data.nuscenes.dataset import build
from bevkd_common.data.samples import collate
from bevkd_common.models.detectors.bevformer import build as build_bevformer

CLASSES = tuple(f"class{number}" for number in range(10))
CONFIG = NuScenesConfig(
    version="v1.0-small",
    train_split="small_train",
    val_split="small_val",
    can_bus="ego_poses",
    images=ImageInputConfig(height=32, width=96, test_resize=0.0),
)


@pytest.fixture
def bevformer():
    torch.manual_seed(0)
    config = {
        "image_size": [32, 96], "image_backbone": {"kind": "small_resnet", "strides": [16]}, "image_levels": 1,
        "channels": 16, "grid": {"x0": -16, "y0": -16, "cell": 2.0, "nx": 16, "ny": 16}, "encoder_layers": 1,
        "attention_heads": 2, "frames": 3,
        "head": {"queries": 4, "layers": 1, "attention_heads": 2},
    }  # fmt: skip
    return build_bevformer(BevFormerConfig.model_validate(config), CLASSES).eval()


@torch.no_grad()
def test_a_queue_shows_what_going_through_the_scene_shows(small_world, bevformer):
    dataset, want = build(CONFIG, small_world.root), frozenset({"bev_neck"})
    queues = dataset.source("train", bevformer.needs)
    one_by_one = dataset.source("train", bevformer.needs.at_test)
    assert one_by_one.scenes == ("scene-9001",) * 3 + ("scene-9002",) * 2
    state, compared = None, 0
    for index in range(len(queues)):
        alone = collate([one_by_one.load(index, seed=None)])
        assert alone.history is None
        outputs = bevformer(alone, want, state)
        state = outputs.state
        fresh = bevformer(collate([queues.load(index, seed=None)]), want)
        torch.testing.assert_close(outputs.taps["bev_neck"], fresh.taps["bev_neck"], rtol=1e-3, atol=1e-3)
        forgetful = bevformer(alone, want).taps["bev_neck"]
        begins = index in (0, 3)
        assert torch.equal(forgetful, outputs.taps["bev_neck"]) == begins
        compared += 1
    assert compared == 5
