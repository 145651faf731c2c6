import json

import pytest
import torch

from layerroute.training.meter import TrainingMeter
from layerroute.training.objective import LossTerms


def terms(loss: float) -> LossTerms:
    return LossTerms(total=torch.tensor(loss + 0.5), parts={"lm_loss": torch.tensor(loss)})


def test_a_point_is_the_mean_since_the_last_one(make_decision) -> None:
    meter = TrainingMeter()
    meter.add_batch(terms(1.0), make_decision([[[0, 1], [0, 1]]]))
    meter.add_batch(terms(2.0), make_decision([[[1, 1], [0, 0]]]))
    meter.add_step(tokens=8, seconds=2.0)
    point = meter.take()
    assert point["lm_loss"] == 1.5
    assert point["loss"] == 2.0
    assert point["tokens_per_second"] == 4.0
    assert (point["rate/layer1.mixer"], point["rate/layer2.mixer"]) == (0.25, 0.75)
    meter.add_batch(terms(5.0), make_decision([[[0, 0]]]))
    meter.add_step(tokens=2, seconds=1.0)
    point = meter.take()
    assert (point["lm_loss"], point["rate/layer2.mixer"], point["tokens_per_second"]) == (5.0, 0.0, 2.0)
    assert (meter.tokens, meter.seconds) == (10, 3.0)


def test_without_routing_there_are_no_rates() -> None:
    meter = TrainingMeter()
    meter.add_batch(terms(1.0), None)
    assert not [name for name in meter.take() if "/" in name]


def test_state_restores_a_half_measured_point_exactly(make_decision) -> None:
    def first(meter: TrainingMeter) -> None:
        meter.add_batch(terms(0.1), make_decision([[[0, 1], [1, 1]]], p=0.3))
        meter.add_step(tokens=2, seconds=0.3)

    def second(meter: TrainingMeter) -> None:
        meter.add_batch(terms(0.7), make_decision([[[1, 0], [1, 1]]], p=0.1))
        meter.add_step(tokens=2, seconds=0.7)

    straight, before, after = TrainingMeter(), TrainingMeter(), TrainingMeter()
    for part in (first, second):
        part(straight)
    first(before)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    second(after)
    assert after.take() == straight.take()
    assert after.state_dict() == straight.state_dict()


def test_an_empty_state_can_be_restored() -> None:
    meter = TrainingMeter()
    meter.load_state_dict(json.loads(json.dumps(TrainingMeter().state_dict())))
    meter.add_batch(terms(1.0), None)
    assert meter.take()["loss"] == pytest.approx(1.5)
