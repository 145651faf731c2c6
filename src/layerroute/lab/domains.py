"""Do kinds of text take different paths? Rates with bootstrap intervals, and a test against shuffled windows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerroute.lab.format import percent, probability
from layerroute.lab.statistics import bootstrap, permutation_test
from layerroute.lab.table import Table, cells, figures, interval, plain, words

RESAMPLES = 5000
FEWEST_WINDOWS = 3


@dataclass(frozen=True, kw_only=True)
class DomainRate:
    """One domain.

    ``rate`` is the mean over its windows of the share of decisions for the expensive path, ``low`` and ``high`` its
    95 % bootstrap interval over windows (None with fewer than three); ``loss`` in nats per token; ``sites`` the rate by
    site.
    """

    domain: str
    windows: int
    rate: float
    low: float | None
    high: float | None
    loss: float
    sites: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Domains:
    """All domains, and the p value of the hypothesis that the domain of a window has nothing to do with its rate."""

    expensive: str
    domains: tuple[DomainRate, ...]
    p_value: float | None

    @property
    def table(self) -> Table:
        """One row a domain."""
        test = "too few windows for a test" if self.p_value is None else f"p {probability(self.p_value)}"
        return Table.of(
            "Table of domains",
            f"Share of decisions for {self.expensive} by kind of text",
            [
                words("Text", lambda one: one.domain),
                figures("Windows", lambda one: one.windows, plain),
                figures(f"{self.expensive} share", lambda one: one.rate, percent),
                cells("95% interval", lambda one: interval(one.low, one.high, percent)),
                figures("Loss (nats)", lambda one: one.loss),
            ],
            self.domains,
            notes=[
                "Hard decisions in inference mode; bootstrap over windows. Permutation test against windows shuffled "
                f"between the texts: {test}. Windows of one document are alike, so that few documents carry less than "
                "this interval says."
            ],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "expensive_path": self.expensive,
            "p_value": self.p_value,
            "domains": [asdict(found) for found in self.domains],
        }


def compare_domains(
    rates: Mapping[str, NDArray[np.float64]],
    losses: Mapping[str, Sequence[float]],
    sites: Sequence[str],
    expensive: str,
    *,
    seed: int = 0,
) -> Domains:
    """Compare kinds of text.

    Args:
        rates: by domain, (windows, sites): share of the window's tokens on the expensive path.
        losses: by domain, of the same windows.
        seed: of the resampling: the same rates give the same numbers.
    """
    generator = np.random.default_rng(seed)
    means = {name: table.mean(axis=1) for name, table in rates.items()}
    found = []
    for name, values in means.items():
        low = high = None
        if len(values) >= FEWEST_WINDOWS:
            low, high = np.clip(bootstrap(values, draws=RESAMPLES, generator=generator), 0.0, 1.0).tolist()
        found.append(
            DomainRate(
                domain=name,
                windows=len(values),
                rate=float(values.mean()),
                low=low,
                high=high,
                loss=float(np.mean(losses[name])),
                sites=dict(zip(sites, map(float, rates[name].mean(axis=0)), strict=True)),
            )
        )
    p_value = None
    if len(means) > 1 and all(len(values) >= FEWEST_WINDOWS for values in means.values()):
        everything = np.concatenate(list(means.values()))
        groups = np.repeat(np.arange(len(means)), [len(values) for values in means.values()])
        blocks = np.zeros_like(groups)
        p = permutation_test(everything[:, None], groups, blocks, draws=RESAMPLES, generator=generator)
        p_value = float(p[0])
    return Domains(expensive=expensive, domains=tuple(found), p_value=p_value)
