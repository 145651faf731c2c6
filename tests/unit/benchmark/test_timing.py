"""Paired timing: arms take turns, ratios are of pairs, quick arms are called often enough."""

import gc

import pytest

from layerroute.benchmark.timing import Spread, Timings, measure


class Clock:
    """Time passes only where an arm lets it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def arm(self, name: str, seconds: float):
        def run() -> None:
            self.calls.append(name)
            self.now += seconds

        return run


def test_arms_take_turns_after_the_warm_up() -> None:
    clock = Clock()
    arms = {"a": clock.arm("a", 1.0), "b": clock.arm("b", 1.5), "slow": clock.arm("s", 4.0)}
    timings = measure(arms, repeats=3, warmup=2, clock=lambda: clock.now)
    # What has run for seconds is warm after one call.
    assert "".join(clock.calls) == "aabbs" + "absabsabs"
    assert timings.seconds == {"a": [1.0] * 3, "b": [1.5] * 3, "slow": [4.0] * 3}


def test_quick_arms_are_called_until_the_time_can_be_read() -> None:
    clock = Clock()
    arms = {"quick": clock.arm("q", 0.003), "slow": clock.arm("s", 0.5)}
    timings = measure(arms, repeats=2, warmup=1, shortest=0.02, clock=lambda: clock.now)
    assert timings.calls == {"quick": 7, "slow": 1}
    assert timings.seconds["quick"] == pytest.approx([0.003, 0.003])
    assert clock.calls.count("q") == 1 + 2 * 7


def test_an_arm_that_waits_is_not_called_for_ever_to_fill_cpu_seconds() -> None:
    clock = Clock()
    arms = {"waits": clock.arm("w", 0.01)}
    timings = measure(arms, repeats=1, warmup=1, clock=lambda: clock.now / 1e6, pace=lambda: clock.now)
    assert timings.calls == {"waits": 2} and timings.seconds["waits"] == [pytest.approx(1e-8)]


def test_the_device_is_waited_for_at_both_ends() -> None:
    clock, waits = Clock(), []

    def synchronize() -> None:
        waits.append(clock.now)
        clock.now += 10.0  # what was still running

    timings = measure(
        {"a": clock.arm("a", 1.0)}, repeats=1, warmup=1, synchronize=synchronize, clock=lambda: clock.now
    )
    assert len(waits) == 4
    assert timings.seconds["a"] == [11.0]


def test_speedup_is_of_pairs_and_not_of_medians() -> None:
    # The machine is twice as slow in the second round, for both.
    timings = Timings(seconds={"base": [2.0, 4.0, 3.0], "own": [1.0, 2.0, 1.0]}, calls={})
    speedup = timings.speedup("own", "base")
    assert (speedup.minimum, speedup.median, speedup.maximum) == (2.0, 2.0, 3.0)
    assert timings.speedup("base", "base").median == 1.0


def test_quartiles() -> None:
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.minimum, spread.q1, spread.median, spread.q3, spread.maximum) == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert Spread.of([7.0]).q3 == 7.0


def test_garbage_collection_waits_and_comes_back_even_after_an_error() -> None:
    clock, seen = Clock(), []

    def arm() -> None:
        seen.append(gc.isenabled())
        clock.now += 1.0
        if len(seen) == 3:
            raise RuntimeError("broken arm")

    with pytest.raises(RuntimeError, match="broken arm"):
        measure({"a": arm}, repeats=5, warmup=1, clock=lambda: clock.now)
    assert seen == [True, False, False]
    assert gc.isenabled()


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"repeats": 1, "warmup": 0}])
def test_nothing_to_measure_is_an_error(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measure({}, **wrong)
