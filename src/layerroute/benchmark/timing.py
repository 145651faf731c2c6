"""Wall time of several ways to do the same work, measured in turn so that a noisy machine is noisy to all alike."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial

import torch

Arm = Callable[[], object]
_WARM = 2.0  # seconds of untimed work after which an arm is warm


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, quartiles and extremes of a sample."""

    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> "Spread":
        """Summarise at least one number; quartiles are interpolated and stay within the sample."""
        if len(sample) == 1:
            return cls(median=sample[0], q1=sample[0], q3=sample[0], minimum=sample[0], maximum=sample[0])
        q1, median, q3 = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(median=median, q1=q1, q3=q3, minimum=min(sample), maximum=max(sample))

    def to_dict(self) -> dict[str, float]:
        """For benchmark records."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds a call of each arm, one number a round.

    Attributes:
        seconds: by arm, in rounds; the i-th numbers of all arms were measured one after the other.
        calls: how often an arm was called for one number (fast ones several times).
    """

    seconds: dict[str, list[float]]
    calls: dict[str, int]

    def spread(self, arm: str) -> Spread:
        """Of an arm's seconds a call."""
        return Spread.of(self.seconds[arm])

    def speedup(self, arm: str, baseline: str) -> Spread:
        """How many times as fast as ``baseline`` an arm is, from the ratio of each round's pair."""
        pairs = zip(self.seconds[baseline], self.seconds[arm], strict=True)
        return Spread.of([base / own for base, own in pairs])

    def share_of(self, arm: str, whole: str, limit: str, factor: float) -> Spread:
        """Which share of the limit's speed an arm reaches, round by round; the limit saves ``factor`` times as much."""
        rounds = zip(self.seconds[limit], self.seconds[whole], self.seconds[arm], strict=True)
        return Spread.of([(full - factor * (full - best)) / own for best, full, own in rounds])


def measure(
    arms: Mapping[str, Arm],
    *,
    repeats: int,
    warmup: int = 2,
    shortest: float = 0.02,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    pace: Callable[[], float] | None = None,
) -> Timings:
    """Time all arms in turn: A B A B, after a warm-up.

    Args:
        arms: what to call, by name; results are dropped.
        repeats: rounds, each with one number for each arm; at least 1.
        warmup: untimed calls of each arm before the first round; at least 1, and no more once they took two seconds.
        shortest: seconds that one number should take at least; quicker arms are called several times for it.
        synchronize: waits for a device; called before each reading of the clock.
        pace: seconds by which warm-up and ``shortest`` go, where those are not the clock's: an arm that waits takes
            hardly any CPU seconds, and would be called for ever to fill them.
    """
    if repeats < 1 or warmup < 1:
        raise ValueError(f"repeats and warmup must be at least 1, got {repeats} and {warmup}")

    def timed(arm: Arm, calls: int, clock: Callable[[], float] = clock) -> float:
        synchronize()
        start = clock()
        for _ in range(calls):
            arm()
        synchronize()
        return (clock() - start) / calls

    calls: dict[str, int] = {}
    for name, arm in arms.items():
        tried: list[float] = []
        while len(tried) < warmup and sum(tried) < _WARM:
            tried.append(timed(arm, 1, pace or clock))
        once = min(tried)
        calls[name] = max(1, math.ceil(shortest / max(once, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would be charged to whichever arm it falls into
    try:
        for _ in range(repeats):
            for name, arm in arms.items():
                seconds[name].append(timed(arm, calls[name]))
    finally:
        if enabled:
            gc.enable()
    return Timings(seconds=seconds, calls=calls)


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large square matrix product, the best of five; once a process."""
    size = 8192 if device.type == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=dtype)
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    found = measure({"product": lambda: left @ left}, repeats=5, synchronize=wait)
    return 2 * size**3 / min(found.seconds["product"])
