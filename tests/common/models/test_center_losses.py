import math

import pytest
import torch
from bevkd_common.models.heads.center_losses import code_loss, gaussian_focal_loss


def logit(p: float) -> torch.Tensor:
    return torch.tensor([math.log(p / (1 - p))])


def test_focal_loss_at_a_centre():
    # -(1 - 0.9)² ln 0.9
    assert gaussian_focal_loss(logit(0.9), torch.tensor([1.0])).item() == pytest.approx(0.00105361, rel=1e-4)


def test_focal_loss_beside_a_centre():
    # -(1 - 0.5)⁴ 0.3² ln 0.7
    assert gaussian_focal_loss(logit(0.3), torch.tensor([0.5])).item() == pytest.approx(0.0020063, rel=1e-4)


def test_focal_loss_far_from_a_centre():
    assert gaussian_focal_loss(logit(0.3), torch.tensor([0.0])).item() == pytest.approx(-0.09 * math.log(0.7))


def test_only_a_target_of_one_is_a_centre():
    loss = gaussian_focal_loss(logit(0.3), torch.tensor([0.99]))
    assert loss.item() == pytest.approx(-(0.01**4) * 0.09 * math.log(0.7), rel=1e-3)


def test_focal_loss_is_a_sum():
    logits = torch.cat([logit(0.9), logit(0.3), logit(0.9)])
    loss = gaussian_focal_loss(logits, torch.tensor([1.0, 0.5, 1.0]))
    assert loss.item() == pytest.approx(2 * 0.00105361 + 0.0020063, rel=1e-4)


def test_probabilities_are_clipped_at_1e_4():
    miss = gaussian_focal_loss(torch.tensor([-50.0]), torch.tensor([1.0]))
    ghost = gaussian_focal_loss(torch.tensor([50.0]), torch.tensor([0.0]))
    assert miss.item() == pytest.approx(-(0.9999**2) * math.log(1e-4), rel=1e-4)
    assert ghost.item() == pytest.approx(-(0.9999**2) * math.log(1e-4), rel=1e-3)


def test_losses_of_bfloat16_predictions_are_computed_in_float32():
    logits = torch.tensor([-2.0, 0.25, 1.5])
    target = torch.tensor([0.3, 1.0, 0.6])
    exact, cast = gaussian_focal_loss(logits, target), gaussian_focal_loss(logits.bfloat16(), target)
    assert cast.dtype == torch.float32
    assert cast.item() == pytest.approx(exact.item(), rel=1e-6)
    code = torch.zeros(1, 1, 10, dtype=torch.bfloat16)
    boxes = code_loss(code, torch.full((1, 1, 10), 0.001), torch.ones(1, 1, dtype=torch.bool), torch.ones(10))
    assert boxes.dtype == torch.float32
    assert boxes.item() == pytest.approx(0.01, rel=1e-6)


def test_code_loss_weighs_masks_and_sums():
    target = torch.zeros(1, 3, 10)
    prediction = torch.zeros(1, 3, 10)
    prediction[0, 0, 2] = 3.0
    prediction[0, 0, 9] = -5.0
    prediction[0, 1, 4] = 100.0
    prediction[0, 2, 0] = -0.5
    weights = torch.tensor([1.0] * 8 + [0.2] * 2)
    loss = code_loss(prediction, target, torch.tensor([[True, False, True]]), weights)
    assert loss.item() == pytest.approx(3.0 + 0.2 * 5.0 + 0.5)


def test_numbers_without_a_target_do_not_count():
    target = torch.zeros(1, 1, 10)
    target[..., 8:] = math.nan
    prediction = torch.ones(1, 1, 10, requires_grad=True)
    loss = code_loss(prediction, target, torch.ones(1, 1, dtype=torch.bool), torch.ones(10))
    loss.backward()
    assert loss.item() == 8
    assert prediction.grad.flatten().tolist() == [1.0] * 8 + [0.0] * 2


def test_no_boxes_give_zero_and_a_gradient():
    prediction = torch.zeros(2, 0, 10, requires_grad=True)
    loss = code_loss(prediction, torch.zeros(2, 0, 10), torch.zeros(2, 0, dtype=torch.bool), torch.ones(10))
    loss.backward()
    assert loss.item() == 0
