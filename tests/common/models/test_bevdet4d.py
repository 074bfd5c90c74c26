"""BEVDet4D: BEVDet with an earlier frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bevkd_common.config.detectors.bevdet4d import BevDet4dConfig
from bevkd_common.config.detectors.image_backbones import TimmBackboneConfig
from bevkd_common.data.needs import AdjacentFrames, DataNeeds
from bevkd_common.data.samples import Cameras, History
from bevkd_common.geometry.transforms import rigid
from bevkd_common.models.detectors.bevdet import BevDet
from bevkd_common.models.detectors.bevdet4d import build
from bevkd_common.models.weights.bevdet4d import BEVDET4D_R50
from pydantic import ValidationError


@pytest.fixture
def tiny4d(classes, tiny_config) -> Callable[..., BevDet]:
    def make(**changes) -> BevDet:
        torch.manual_seed(0)
        return build(BevDet4dConfig.model_validate(tiny_config | changes), classes)

    return make


def test_4d_has_the_parameters_and_the_keys_of_the_released_model(classes, parameters, released_shapes):
    model = build(BevDet4dConfig(image_backbone=TimmBackboneConfig(name="resnet50", strides=(16, 32))), classes)
    sizes = {name: parameters(module) for name, module in model.named_children()}
    assert sizes["earlier"] == 184_896
    assert sizes["bev_stages"] == 12_541_824
    assert parameters(model) + 3 * 3 + 59 * 16 * 44 * 3 == 48_432_266
    manifest = released_shapes("bevdet_repo_bevdet4d_r50")
    blank = {key: torch.empty(shape, device="meta") for key, shape in manifest.items()}
    theirs = {key: tuple(value.shape) for key, value in BEVDET4D_R50.rename(blank).items()}
    assert len(manifest) == len(theirs) + len(BEVDET4D_R50.ignored) == 748
    assert theirs == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_4d_asks_for_an_earlier_frame(tiny4d, batch_of):
    model = tiny4d(nearest_s=0.5, farthest_s=1.0)
    assert model.needs == DataNeeds(cameras=True, history=AdjacentFrames(nearest_s=0.5, farthest_s=1.0))
    assert not tiny4d(scene_start="key_frame").needs.history.later
    assert model.taps["bev_in"].channels == 16
    with pytest.raises(ValueError, match="loaded without history"):
        model(batch_of(), frozenset({"head"}))
    with pytest.raises(ValidationError, match="`nearest_s` 2 must be below `farthest_s` 1"):
        BevDet4dConfig(nearest_s=2, farthest_s=1)


def test_4d_of_two_equal_frames_sees_everything_twice(tiny4d, batch_of, with_history):
    model, batch = tiny4d().eval(), batch_of()
    batch = with_history(batch)
    same = replace(batch.history, cameras=Cameras(**{n: v[:, None] for n, v in vars(batch.cameras).items()}))
    lifted, _ = model.lifted(replace(batch, history=same))
    assert lifted.shape == (2, 16, 16, 32)
    torch.testing.assert_close(lifted[:, :8], lifted[:, 8:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model.lifted(batch)[0][:, :8], model.lifted(batch)[0][:, 8:], atol=1e-3)


@pytest.mark.parametrize("alignment", ["corner", "center"])
def test_4d_moves_the_earlier_map_with_the_ego(alignment, tiny4d, batch_of, with_history):
    """What the earlier frame saw 3 cells ahead and 2 to the right is there, less the ego's way."""
    model, batch = tiny4d(alignment=alignment).eval(), batch_of()
    stood = model.lifted(with_history(batch))[0][:, 8:]
    drove = rigid(torch.eye(3), torch.tensor([-2 * 0.8, -3 * 0.8, 0.0]))
    moved = model.lifted(with_history(batch, drove))[0][:, 8:]
    torch.testing.assert_close(moved[:, :, :-3, :-2], stood[:, :, 3:, 2:], atol=1e-3, rtol=1e-3)
    assert float(moved[:, :, -3:].detach().abs().max()) < 1e-3
    assert float(stood.detach().abs().max()) > 0.01


def test_4d_learns_nothing_through_the_earlier_frame(tiny4d, batch_of, with_history):
    model, batch = tiny4d().train(), with_history(batch_of())
    lifted, _ = model.lifted(batch)
    lifted[:, :8].sum().backward()
    alone = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.lifted(batch)[0].sum().backward()
    assert len(alone) > 20
    for name, parameter in model.named_parameters():
        if name in alone:
            torch.testing.assert_close(parameter.grad, alone[name])


def test_4d_learns_displacements_and_tells_velocities(tiny4d, batch_of, with_history):
    batch = with_history(batch_of(), seconds=(2.0, -0.5))
    displacement, velocity = tiny4d(), tiny4d(motion="velocity")
    outputs = displacement(batch, frozenset({"head"}))
    in_metres = displacement.targets(outputs, batch).regression[0]
    in_metres_a_second = velocity.targets(outputs, batch).regression[0]
    torch.testing.assert_close(in_metres[0, :, 8:], 2.0 * in_metres_a_second[0, :, 8:])
    torch.testing.assert_close(in_metres[1, :, 8:], 0.5 * in_metres_a_second[1, :, 8:])
    assert float(in_metres_a_second[..., 8:].nan_to_num().abs().max()) > 0.1
    torch.testing.assert_close(in_metres[..., :8], in_metres_a_second[..., :8])
    for mine, plain, gap in zip(
        displacement.decode(outputs, batch), velocity.decode(outputs, batch), (2.0, 0.5), strict=True
    ):
        assert len(mine.boxes) == len(plain.boxes)
        torch.testing.assert_close(mine.boxes.velocity * gap, plain.boxes.velocity)
        torch.testing.assert_close(mine.boxes.centers, plain.boxes.centers)


def test_4d_without_another_frame_learns_velocities(tiny4d, batch_of, with_history):
    batch = with_history(batch_of(), seconds=(0.0, 0.0))
    absent = replace(batch.history, present=torch.zeros(2, 1, dtype=torch.bool))
    batch = replace(batch, history=absent)
    model, velocity = tiny4d(), tiny4d(motion="velocity")
    outputs = model(batch, frozenset({"head"}))
    one, other = (m.targets(outputs, batch).regression[0] for m in (model, velocity))
    torch.testing.assert_close(one, other, equal_nan=True)


def test_4d_takes_the_nearest_of_a_longer_history(tiny4d, batch_of, with_history):
    model, batch = tiny4d().eval(), with_history(batch_of())
    longer = History(
        cameras=Cameras(**{n: torch.cat([v.flip(0), v], dim=1) for n, v in vars(batch.history.cameras).items()}),
        lidar_T_past=batch.history.lidar_T_past.repeat(1, 2, 1, 1),
        seconds=batch.history.seconds.repeat(1, 2),
        present=batch.history.present.repeat(1, 2),
    )
    assert torch.equal(model.lifted(replace(batch, history=longer))[0], model.lifted(batch)[0])
