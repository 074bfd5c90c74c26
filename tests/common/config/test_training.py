import pytest
from bevkd_common.config.training import OptimizerConfig, TrainingConfig
from pydantic import ValidationError

OPTIMIZER = OptimizerConfig(lr=1e-3)


@pytest.mark.parametrize("lengths", [{}, {"steps": 10, "epochs": 1}])
def test_a_training_has_steps_or_epochs(lengths: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="give either `steps` or `epochs`"):
        TrainingConfig(batch=4, optimizer=OPTIMIZER, **lengths)


def test_the_effective_batch_is_a_multiple_of_what_a_device_sees() -> None:
    assert TrainingConfig(steps=1, batch=8, micro_batch=4, optimizer=OPTIMIZER).micro_batch == 4
    with pytest.raises(ValidationError, match="`batch` 8 must be a multiple of `micro_batch` 3"):
        TrainingConfig(steps=1, batch=8, micro_batch=3, optimizer=OPTIMIZER)


def test_configs_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        OPTIMIZER.lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        OptimizerConfig(lr=1e-3, momentum=0.9)  # type: ignore[call-arg]
