"""What type checkers know of the top level: checked by mypy in ``make check``, never run."""

from typing import assert_type

import layerroute
from layerroute.evaluation.generation import Generation

model, tokenizer = layerroute.load("smollm2-135m")
made = layerroute.calibrate(model, tokenizer, budget=0.25)
assert_type(made, layerroute.Calibration)
assert_type(made.cost, float)
assert_type(layerroute.generate(model, tokenizer, "text"), Generation)
with layerroute.router_disabled(model), layerroute.decisions(model) as collected:
    assert_type(collected, list[layerroute.RouteDecision])
layerroute.calibrat(model)  # type: ignore[attr-defined]
layerroute.calibrate(model, tokenizer, budget="much")  # type: ignore[arg-type]
