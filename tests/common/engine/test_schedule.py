import math

import pytest
from bevkd_common.config.training import CosineSchedule, OneCycleSchedule, StepSchedule
from bevkd_common.engine.schedule import first_beta, lr_factor


def test_cosine_warms_up_then_falls_to_the_final_factor():
    schedule = CosineSchedule(warmup=0.1, warmup_factor=0.001, final_factor=0.01)
    assert lr_factor(schedule, 0, 100) == pytest.approx(0.001)
    assert lr_factor(schedule, 5, 100) == pytest.approx(0.001 + 0.999 / 2)
    assert lr_factor(schedule, 10, 100) == pytest.approx(1.0)
    assert lr_factor(schedule, 55, 100) == pytest.approx((1 + 0.01) / 2)
    assert lr_factor(schedule, 99, 100) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * 89 / 90)) / 2)
    assert lr_factor(schedule, 100, 100) == pytest.approx(0.01)


def test_bevdet_schedule_drops_at_epochs_16_and_22_of_24():
    schedule = StepSchedule()
    steps_per_epoch = 1000
    at = {
        epoch: lr_factor(schedule, epoch * steps_per_epoch, 24 * steps_per_epoch) for epoch in (1, 15, 16, 21, 22)
    }
    assert at == pytest.approx({1: 1.0, 15: 1.0, 16: 0.1, 21: 0.1, 22: 0.01})
    assert lr_factor(schedule, 0, 24000) == pytest.approx(0.001)
    assert lr_factor(schedule, 250, 24000) == pytest.approx(0.5005)


def test_one_cycle_moves_the_rate_up_and_the_first_beta_down():
    schedule = OneCycleSchedule()
    assert lr_factor(schedule, 0, 1000) == pytest.approx(0.1)
    assert lr_factor(schedule, 200, 1000) == pytest.approx(0.55)
    assert lr_factor(schedule, 400, 1000) == pytest.approx(1.0)
    assert lr_factor(schedule, 1000, 1000) == pytest.approx(1e-5)
    assert first_beta(schedule, 0, 1000, 0.9) == pytest.approx(0.9)
    assert first_beta(schedule, 400, 1000, 0.9) == pytest.approx(0.805)
    assert first_beta(schedule, 1000, 1000, 0.9) == pytest.approx(0.9)


def test_other_schedules_leave_the_first_beta_alone():
    assert first_beta(CosineSchedule(), 3, 10, 0.8) == 0.8
    assert first_beta(OneCycleSchedule(low_beta=None), 4, 10, 0.8) == 0.8
