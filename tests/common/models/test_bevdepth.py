"""BEVDepth of the BEVDet code base: depths that know the camera and learn from the LiDAR."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bevkd_common.config.detectors.bevdepth import BevDepthConfig
from bevkd_common.config.detectors.image_backbones import TimmBackboneConfig
from bevkd_common.data.needs import AdjacentFrames, DataNeeds
from bevkd_common.models.detector import Outputs
from bevkd_common.models.detectors.bevdepth import build
from bevkd_common.models.detectors.bevdet import BevDet
from bevkd_common.models.weights.bevdepth import BEVDEPTH_R50


@pytest.fixture
def tiny_depth(classes, tiny_config) -> Callable[..., BevDet]:
    def make(**changes) -> BevDet:
        torch.manual_seed(0)
        config = tiny_config | {"depth_channels": 16, "frames": 1} | changes
        return build(BevDepthConfig.model_validate(config), classes)

    return make


@pytest.mark.parametrize(
    ("frames", "name", "total", "keys"), [(1, "bevdepth", 53_009_831, 780), (2, "bevdepth4d", 53_342_183, 806)]
)
def test_depth_has_the_parameters_and_the_keys_of_the_released_models(
    frames, name, total, keys, classes, parameters, released_shapes
):
    backbone = TimmBackboneConfig(name="resnet50", strides=(16, 32))
    model = build(BevDepthConfig(image_backbone=backbone, frames=frames), classes)
    assert parameters(model) + 3 * 3 + 59 * 16 * 44 * 3 == total
    manifest = released_shapes(f"bevdet_repo_{name}_r50")
    assert len(manifest) == keys
    blank = {key: torch.empty(shape, device="meta") for key, shape in manifest.items()}
    theirs = {key: tuple(value.shape) for key, value in BEVDEPTH_R50.rename(blank).items()}
    assert theirs == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_depth_asks_for_the_lidar_in_training_alone(tiny_depth):
    assert tiny_depth().needs == DataNeeds(cameras=True, depth=True)
    assert tiny_depth().needs.at_test == DataNeeds(cameras=True)
    assert tiny_depth(depth_weight=0.0).needs == DataNeeds(cameras=True)
    assert tiny_depth(frames=2).needs == DataNeeds(cameras=True, history=AdjacentFrames(), depth=True)


def test_depth_loss_by_hand(tiny_depth, batch_of, with_depth):
    """Two cells of 2 x 4 x 10 x 4 with a point: at 3.2 m (bin 2 of 12) and 12.9 m (bin 11); one out of the bins."""
    model = tiny_depth()
    batch = with_depth(
        batch_of(), (0, 8.1, 7.9, 3.2), (0, 9.0, 7.5, 5.0), (5, 79.0 - 8, 24.2, 12.9), (3, 8.0, 8.0, 0.4)
    )
    logits = torch.full((2, 4, 12, 4, 10), -1.0)
    logits[0, 0, 2, 1, 1] = 3.0
    outputs = Outputs({}, (), {"depth": logits})
    term = model.losses(
        replace(model(batch, frozenset({"head"})), extras=outputs.extras), model.targets(outputs, batch), batch
    ).terms["depth"]
    absent = math.log1p(math.exp(-1.0))  # of a bin rightly told absent
    right, wrong = math.log1p(math.exp(-3.0)), math.log1p(math.exp(1.0))
    expected = (11 * absent + right + 11 * absent + wrong) / logits.numel()
    assert float(term.value) == pytest.approx(expected, rel=1e-5)
    assert term.weight == 100.0


def test_depth_loss_reaches_the_depth_branch_alone(tiny_depth, batch_of, with_depth):
    model = tiny_depth().train()
    batch = with_depth(batch_of(), (0, 8.0, 8.0, 3.0), (6, 40.0, 16.0, 7.0))
    outputs = model(batch, frozenset({"head"}))
    losses = model.losses(outputs, model.targets(outputs, batch), batch).terms
    assert set(losses) > {"depth"}
    losses["depth"].value.backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"image_backbone", "image_neck", "lift_splat"}
    assert model.lift_splat.depth_net.context.weight.grad is None
    with pytest.raises(ValueError, match="loaded without them"):
        model.losses(outputs, model.targets(outputs, batch), batch_of())


def test_depths_depend_on_the_camera(tiny, tiny_depth, batch_of, with_cameras, settled):
    model, batch = tiny_depth().eval(), batch_of()
    plain = model(batch, frozenset({"head"})).extras["depth"]
    wider = with_cameras(batch, intrinsics=batch.cameras.intrinsics * torch.tensor([[2.0], [2.0], [1.0]]))
    assert not torch.allclose(model(wider, frozenset({"head"})).extras["depth"], plain)
    other = settled(tiny(), batch)
    features = other.image_features(batch.cameras)
    assert torch.equal(
        other.lift_splat.depth_net(features, wider.cameras, batch.aug_T_lidar)[0],
        other.lift_splat.depth_net(features, batch.cameras, batch.aug_T_lidar)[0],
    )


def test_the_present_frame_is_supervised(tiny_depth, batch_of, with_history):
    model = tiny_depth(frames=2).eval()
    batch = with_history(batch_of())
    both = model(batch, frozenset({"head"})).extras["depth"]
    alone = tiny_depth(frames=1).eval()
    alone.image_backbone, alone.image_neck, alone.lift_splat = (
        model.image_backbone,
        model.image_neck,
        model.lift_splat,
    )
    assert torch.equal(both, alone(replace(batch, history=None), frozenset({"head"})).extras["depth"])
