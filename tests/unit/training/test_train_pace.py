"""The clock of schedules: by steps alone, or standing still while the loss is high."""

import json
from types import SimpleNamespace

import pytest

from layerroute.errors import UserError
from layerroute.routing import routings_of
from layerroute.training.configuration import ObjectiveConfig, RateScheduleConfig, TrainConfig
from layerroute.training.pace import Pace
from layerroute.training.routing_schedule import RoutingCallback


def run(pace: Pace, losses: list[float]) -> list[int]:
    shown = []
    for step, loss in enumerate(losses, 1):
        pace.step_ended(loss)
        shown.append(pace.after(step))
    return shown


def test_without_a_limit_the_clock_counts_steps_whatever_the_loss() -> None:
    pace = Pace(None)
    assert run(pace, [9.0, 1.0, 9.0]) == [1, 2, 3]
    assert (pace.waited, pace.for_batch(7)) == (0, 7)


def test_the_clock_stands_still_while_the_running_mean_is_above_the_limit() -> None:
    pace = Pace(2.0)
    # Means: 3.0, 2.8, 2.62, …: the fifth low loss brings it to 2.18, the seventh to 1.96.
    assert run(pace, [3.0, *[1.0] * 7]) == [0, 0, 0, 0, 0, 0, 0, 1]
    assert pace.waited == 7
    assert run(Pace(2.0), [1.0, 1.0, 1.0, 30.0]) == [1, 2, 3, 3]


def test_data_go_by_the_clock_before_the_step_that_runs_while_they_are_made() -> None:
    pace = Pace(2.0)
    assert [pace.for_batch(0), pace.for_batch(1)] == [0, 0]
    seen = []
    for batch, loss in enumerate([1.0, 1.0, 30.0, 30.0], 2):
        pace.step_ended(loss)
        seen.append(pace.for_batch(batch))
    assert seen == [1, 2, 2, 2]


def test_its_state_goes_on_where_it_was() -> None:
    one, other = Pace(2.0), Pace(2.0)
    run(one, [1.0, 5.0, 1.0])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.state_dict() == one.state_dict()
    for loss in (1.0, 40.0, 1.0):
        one.step_ended(loss)
        other.step_ended(loss)
    assert (other.after(6), other.after(5), other.waited) == (one.after(6), one.after(5), one.waited)


def test_the_rate_stays_where_it_is_while_the_clock_stands(make_model) -> None:
    model, pace = make_model(routing={"rate": 0.5}), Pace(2.0)
    schedule = RateScheduleConfig(start=1.0, begin=0.0, finish=1.0)
    callback = RoutingCallback(model, ObjectiveConfig(rate=schedule), pace)
    (module,) = routings_of(model)
    rates = []
    for step, loss in enumerate([9.0, 9.0, 0.0, 0.0, 0.0]):
        callback.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=6), None)
        rates.append(float(module.rate[0]))
        pace.step_ended(loss if step != 2 else -80.0)
    assert rates == pytest.approx([1.0, 1.0, 1.0, 0.9, 0.8])


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_says_nothing_is_refused(limit: float) -> None:
    with pytest.raises(UserError, match=r"train\.wait_above must be a positive number"):
        TrainConfig(wait_above=limit)
