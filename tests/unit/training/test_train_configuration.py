import pytest

from layerroute.errors import UserError
from layerroute.training.configuration import (
    ObjectiveConfig,
    RateScheduleConfig,
    ScheduleConfig,
    TrainConfig,
)


def test_defaults_are_those_of_the_method() -> None:
    config = TrainConfig()
    assert (config.adam_beta1, config.adam_beta2, config.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert (config.weight_decay, config.max_gradient_norm, config.warmup_share) == (0.1, 1.0, 0.1)
    temperature = ObjectiveConfig().temperature
    assert (temperature.start, temperature.end, temperature.begin, temperature.finish) == (1.0, 0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_steps": 0}, "train.max_steps must be at least 1, got 0"),
        ({"batch_size": 6, "gradient_accumulation": 4}, "multiple of train.gradient_accumulation"),
        ({"learning_rate": 0.0}, "train.learning_rate must be a positive number"),
        ({"learning_rate": float("nan")}, "train.learning_rate must be a positive number"),
        ({"warmup_share": 1.0}, "0 <= share < 1"),
        ({"adam_beta2": 1.0}, "train.adam_beta2"),
        ({"save_every": -1}, "train.save_every must not be negative"),
        ({"keep_checkpoints": 0}, "train.keep_checkpoints"),
        ({"weight_decay": -0.1}, "train.weight_decay"),
    ],
)
def test_train_settings_that_cannot_be_used_are_told(settings: dict, told: str) -> None:
    with pytest.raises(UserError, match="train"):
        TrainConfig(**settings)
    with pytest.raises(UserError) as error:
        TrainConfig(**settings)
    assert told in str(error.value)


def test_schedules_are_shares_of_the_run() -> None:
    with pytest.raises(UserError, match=r"begin=0\.5, finish=0\.2"):
        ScheduleConfig(start=1.0, end=0.5, begin=0.5, finish=0.2)
    with pytest.raises(UserError, match="finite"):
        ScheduleConfig(start=float("inf"), end=0.5)
    with pytest.raises(UserError, match=r"objective.rate.start .* got 1.5"):
        RateScheduleConfig(start=1.5)


def test_a_value_moves_between_two_shares_of_the_run() -> None:
    rate = RateScheduleConfig(start=1.0).towards(0.3)
    assert [rate.value(done) for done in (0.0, 0.3, 0.45, 0.6, 1.0)] == pytest.approx([1, 1, 0.65, 0.3, 0.3])
    step = ScheduleConfig(start=1.0, end=0.0, begin=0.5, finish=0.5)
    assert (step.value(0.49), step.value(0.5)) == (1.0, 0.0)
    assert RateScheduleConfig().towards(0.3).value(0.0) == 0.3


def test_objective_settings_that_cannot_be_used_are_told() -> None:
    with pytest.raises(UserError, match=r"objective.balance_weight must not be negative"):
        ObjectiveConfig(balance_weight=-1.0)
    with pytest.raises(UserError, match=r"objective.temperature.end must be above 0"):
        ObjectiveConfig(temperature=ScheduleConfig(start=1.0, end=0.0))
