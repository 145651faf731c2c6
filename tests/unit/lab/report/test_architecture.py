from pathlib import Path
from typing import Any

import pytest

from layerroute.capabilities.attention.architecture import architecture_data, describe, flops_by_use
from layerroute.capabilities.attention.diagram import architecture_figure, comparison_figure
from layerroute.capabilities.attention.kinds import kind_of
from layerroute.lab.arms import Arm
from layerroute.lab.report.style import figure_style
from layerroute.lab.runs import Run
from tests.unit.lab.record_factory import ROUTED, record, sites
from tests.unit.lab.report.walk import spec, view


def arm(**settings: Any) -> Arm:
    return Arm("dynamic", (Run(record("dynamic", **settings), Path("dynamic/record.json")),), kind_of)


def test_a_small_model_has_a_box_for_each_layer() -> None:
    found = describe(arm(rates=sites(0.52, 0.3)))
    assert found is not None
    assert [segment.name for segment in found.segments] == ["Layer 0", "Layer 1", "Layer 2", "Layer 3"]
    assert [segment.share for segment in found.segments] == [None, 0.52, 0.3, None]
    assert found.reads == 0
    assert found.router == "linear router, parallel"


def test_layers_of_one_kind_are_drawn_as_one_in_a_deep_model() -> None:
    pattern = ["gdn"] * 5 + ["routed"] * 4 + ["softmax"]
    found = describe(arm(pattern=pattern, rates={f"layer{i}.mixer": 0.1 * i for i in range(5, 9)}))
    assert found is not None
    assert [segment.name for segment in found.segments] == ["Layers 0–4", "Layers 5–8", "Layer 9"]
    routed = found.segments[1]
    assert (routed.low, routed.share, routed.high) == pytest.approx((0.5, 0.65, 0.8))
    assert found.reads == 0


def test_a_periodic_pattern_is_drawn_once() -> None:
    found = describe(arm(pattern=["gdn", "gdn", "gdn", "softmax"] * 6))
    assert found is not None
    assert found.repeats == 6
    assert [len(segment.layers) for segment in found.segments] == [6, 6, 6, 6]
    assert found.segments[3].name == "Layers 3, 7, … 23"


def test_an_irregular_deep_pattern_is_drawn_in_full() -> None:
    pattern = ["gdn", "softmax"] * 5 + ["softmax", "gdn", "gdn"]
    found = describe(arm(pattern=pattern))
    assert found is not None
    assert found.repeats == 1
    assert sum(len(segment.layers) for segment in found.segments) == len(pattern)


def test_heads_are_averaged_by_layer() -> None:
    rates = {"layer1.head0": 0.2, "layer1.head1": 0.6, "layer2.head0": 1.0, "layer2.head1": 1.0}
    found = describe(arm(rates=rates, heads=2))
    assert found is not None
    assert [segment.share for segment in found.segments[1:3]] == pytest.approx([0.4, 1.0])
    assert found.granularity == "head"


def test_controls_and_sequential_routers_have_no_common_router() -> None:
    control = describe(arm(rates=sites(0.5, 0.5), control="random"))
    assert control is not None
    assert control.control
    assert control.reads is None
    content = record("dynamic", rates=sites(0.5, 0.5))
    content["routing"]["router"] = "sequential"
    sequential = describe(Arm("dynamic", (Run(content, Path("x/record.json")),), kind_of))
    assert sequential is not None
    assert sequential.sequential
    assert sequential.reads is None


def test_no_layer_pattern_no_figure() -> None:
    nothing = arm(recipe={"model": {}})
    assert describe(nothing) is None
    for name in ("figure-1", "figure-4"):
        assert isinstance(spec(name).draw(view([nothing.example])), str)


def test_flops_of_the_three_uses() -> None:
    found = arm(rates=sites(0.5, 0.5))
    uses = flops_by_use(found)
    assert uses["at the measured rate"] == pytest.approx(uses["at 50/50"])
    assert uses["every path computed"] > uses["at 50/50"]
    assert list(flops_by_use(arm())) == ["every token"]


def test_data_has_a_row_for_each_layer_and_path() -> None:
    data = architecture_data([arm(rates=sites(0.52, 0.3))])
    assert list(data["layer"]) == [0, 1, 1, 2, 2, 3]
    assert list(data["share_of_tokens"]) == pytest.approx([1.0, 0.48, 0.52, 0.7, 0.3, 1.0])


def _texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_the_figure_shows_the_shares_or_says_that_it_does_not_know(status: str) -> None:
    with figure_style():
        described = describe(arm(rates=sites(0.52, 0.3), status=status))
        assert described is not None
        figure = architecture_figure(described)
    texts = _texts(figure)
    if status == "completed":
        assert {"52.0%", "48.0%", "30.0%", "70.0%"} <= set(texts)
    else:
        assert texts.count("?") == 4
    assert {"O(n)", "O(n²)"} <= set(texts)


def test_side_by_side() -> None:
    with figure_style():
        figure = comparison_figure(arm(pattern=ROUTED, rates=sites(0.5, 0.4)), arm())
    assert any("kFLOP" in text for text in _texts(figure))
