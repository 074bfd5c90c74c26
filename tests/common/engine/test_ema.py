import math

import pytest
import torch
from bevkd_common.config.training import EmaConfig
from bevkd_common.engine.ema import Ema
from torch import nn


def test_decay_rises_with_the_updates():
    # BEVDet dev3.0 starts at 10560 updates: 0.999 * (1 - exp(-5.28)) = 0.99391.
    ema = Ema(nn.Linear(1, 1), EmaConfig(initial_updates=10560))
    assert ema.decay == pytest.approx(0.99391, abs=1e-5)


def test_one_update_mixes_weights_and_copies_counters():
    model = nn.BatchNorm1d(1)
    ema = Ema(model, EmaConfig(decay=0.5, warmup_updates=1))
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(10.0)
        model.num_batches_tracked.fill_(7)
    ema.update(model)
    decay = 0.5 * (1 - math.exp(-1))
    assert ema.average["weight"].item() == pytest.approx(decay * 1.0 + (1 - decay) * 3.0)
    assert ema.average["running_mean"].item() == pytest.approx((1 - decay) * 10.0)
    assert ema.average["num_batches_tracked"].item() == 7


def test_a_saved_average_is_restored():
    model = nn.Linear(2, 2)
    ema = Ema(model, EmaConfig())
    ema.update(model)
    restored = Ema(nn.Linear(2, 2), EmaConfig())
    restored.load(ema.average, ema.updates)
    assert restored.updates == 1
    assert all(torch.equal(restored.average[name], value) for name, value in ema.average.items())


def test_updating_all_tensors_together_gives_the_bits_of_one_by_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Linear(7, 5).bfloat16())
    ema = Ema(model, EmaConfig(decay=0.9, warmup_updates=3))
    expected = {name: value.clone() for name, value in ema.average.items()}
    for update in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model[1].num_batches_tracked.fill_(update)
        ema.update(model)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name].lerp_(value, 1.0 - ema.decay)
            else:
                expected[name].copy_(value)
    assert len(expected) == 9
    assert all(torch.equal(ema.average[name], value) for name, value in expected.items())
