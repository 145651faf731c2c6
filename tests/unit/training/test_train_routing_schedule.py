from types import SimpleNamespace

import pytest
import torch

from layerroute.routing import routings_of
from layerroute.training.configuration import ObjectiveConfig, RateScheduleConfig, ScheduleConfig
from layerroute.training.routing_schedule import RoutingCallback, progress


@pytest.mark.parametrize("steps", [2, 7, 29, 1000])
def test_a_schedule_ends_with_the_run_whatever_its_length(make_model, steps) -> None:
    model = make_model(routing={"rate": 0.25})
    callback = RoutingCallback(
        model, ObjectiveConfig(rate=RateScheduleConfig(start=1.0, begin=0.0, finish=1.0))
    )
    (module,) = routings_of(model)
    seen = []
    for step in range(steps):
        callback.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=steps), None)
        seen.append((float(module.temperature), float(module.rate[0])))
    assert seen[0] == pytest.approx((1.0, 1.0))
    assert seen[-1] == pytest.approx((0.5, 0.25))
    assert seen == sorted(seen, reverse=True)


def test_one_step_runs_are_at_the_start() -> None:
    assert progress(0, 1) == 0.0


def test_without_a_start_the_rate_is_the_models(make_model) -> None:
    model = make_model(routing={"rate": 0.3})
    callback = RoutingCallback(model, ObjectiveConfig(temperature=ScheduleConfig(start=2.0, end=2.0)))
    callback.on_step_begin(None, SimpleNamespace(global_step=5, max_steps=10), None)
    assert callback.rate == pytest.approx(0.3)
    assert callback.temperature == 2.0


def test_thresholds_move_once_a_step_by_the_decisions_of_all_micro_batches(make_model, make_decision) -> None:
    model = make_model(routing={"budget": "controller", "rate": 0.5, "threshold_step": 0.1})
    callback = RoutingCallback(model, ObjectiveConfig())
    (module,) = routings_of(model)
    state = SimpleNamespace(global_step=0, max_steps=10)
    callback.on_step_begin(None, state, None)
    # Together: 3 of 4 tokens are expensive at the first site, 1 of 4 at the second.
    callback.observe(make_decision([[[1, 0], [1, 0]]]))
    callback.observe(make_decision([[[1, 1], [0, 0]]]))
    callback.on_optimizer_step(None, state, None)
    assert module.thresholds.value.tolist() == pytest.approx([0.1, -0.1])
    # The next step starts from zero: 0 of 2 at both.
    callback.on_step_begin(None, state, None)
    callback.observe(make_decision([[[0, 0], [0, 0]]]))
    callback.on_optimizer_step(None, state, None)
    assert module.thresholds.value.tolist() == pytest.approx([0.0, -0.2])


def test_sequential_routers_get_the_counts_of_their_own_sites(make_model, make_decision) -> None:
    model = make_model(router_mode="sequential", routing={"budget": "controller", "threshold_step": 0.1})
    callback = RoutingCallback(model, ObjectiveConfig())
    assert len(callback.modules) == 2
    callback.observe(make_decision([[[1, 0], [1, 0]]]))
    callback.on_optimizer_step(None, None, None)
    values = torch.cat([module.thresholds.value for module in callback.modules])
    assert values.tolist() == pytest.approx([0.1, -0.1])


def test_a_model_without_routing_has_nothing_to_schedule(make_model) -> None:
    callback = RoutingCallback(make_model(layer_pattern=["gdn", "softmax"]), ObjectiveConfig())
    callback.on_step_begin(None, SimpleNamespace(global_step=0, max_steps=4), None)
    callback.on_optimizer_step(None, None, None)
    assert (callback.modules, callback.rate) == ([], 0.0)
