import pytest

from layerroute.routing import Schedule


def test_linear_over_the_whole_run():
    tau = Schedule(start=1.0, end=0.5)
    assert [tau.value(p) for p in (0, 0.5, 1, 2)] == [1.0, 0.75, 0.5, 0.5]


def test_it_holds_before_and_after_its_span():
    rate = Schedule(start=1.0, end=0.3, begin=0.3, finish=0.6)
    assert rate.value(0.29) == 1.0
    assert rate.value(0.45) == pytest.approx(0.65)
    assert rate.value(0.6) == pytest.approx(0.3)


def test_shapes():
    assert Schedule(start=1.0, end=0.25, shape="exponential").value(0.5) == pytest.approx(0.5)
    assert Schedule(start=0.0, end=1.0, shape="cosine").value(0.25) == pytest.approx(0.1464, abs=1e-4)


def test_a_step_is_a_span_of_no_length():
    step = Schedule(start=1.0, end=0.0, begin=0.5, finish=0.5)
    assert step.value(0.49) == 1.0 and step.value(0.5) == 0.0


@pytest.mark.parametrize(
    "bad", [{"begin": 0.6, "finish": 0.3}, {"shape": "wavy"}, {"start": 0.0, "shape": "exponential"}]
)
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match="schedule"):
        Schedule(**{"start": 1.0, "end": 0.5, **bad})
