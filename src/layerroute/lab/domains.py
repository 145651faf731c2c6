"""Do kinds of text take different paths? Rates with bootstrap intervals, and a test against shuffled windows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerroute.lab.format import MISSING, number, percent, probability
from layerroute.lab.table import Cell, Column, Row, Table

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
        rows = tuple(
            Row(
                cells=(
                    Cell(found.domain),
                    Cell(str(found.windows), found.windows),
                    Cell(percent(found.rate), found.rate),
                    Cell(MISSING if found.low is None else f"{percent(found.low)} to {percent(found.high)}"),
                    Cell(number(found.loss), found.loss),
                )
            )
            for found in self.domains
        )
        test = "too few windows for a test" if self.p_value is None else f"p {probability(self.p_value)}"
        labels = ("Windows", f"{self.expensive} share", "95% interval", "Loss (nats)")
        return Table(
            name="Table of domains",
            title=f"Share of decisions for {self.expensive} by kind of text",
            columns=(Column(label="Text"), *(Column(label=label, numeric=True) for label in labels)),
            rows=rows,
            notes=(
                "Hard decisions in inference mode; bootstrap over windows. Permutation test against windows shuffled "
                f"between the texts: {test}. Windows of one document are alike, so that few documents carry less than "
                "this interval says.",
            ),
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
            drawn = values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
            low, high = (float(bound) for bound in np.quantile(drawn, [0.025, 0.975]))
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
    enough = len(means) > 1 and all(len(values) >= FEWEST_WINDOWS for values in means.values())
    p_value = _permutation(list(means.values()), generator) if enough else None
    return Domains(expensive=expensive, domains=tuple(found), p_value=p_value)


def _permutation(groups: Sequence[NDArray[np.float64]], generator: np.random.Generator) -> float:
    everything = np.concatenate(groups)
    sizes = [len(group) for group in groups]
    ends = np.cumsum(sizes)[:-1]

    def spread(values: NDArray[np.float64]) -> float:
        parts = np.split(values, ends)
        return float(sum(len(part) * (part.mean() - everything.mean()) ** 2 for part in parts))

    observed = spread(everything)
    reached = sum(spread(generator.permutation(everything)) >= observed - 1e-15 for _ in range(RESAMPLES))
    return (1 + reached) / (1 + RESAMPLES)
