"""Rates by site of what the engine has served, in vLLM's /metrics and for whoever asks the model."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


class RateCounters:
    """Tokens that ran, by site, since the model was loaded or ``clear`` was called.

    In Prometheus: ``layerroute_tokens_total`` and ``layerroute_tokens_run_total{site="layer4.mlp"}``. A rate is the
    ratio of the two.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self.tokens = 0
        self.run = dict.fromkeys(sites, 0)
        self._total, by_site = _counters()
        self._by_site = {site: by_site.labels(site) for site in sites}

    def count(self, tokens: int, run: Mapping[str, int]) -> None:
        """Add a step."""
        self.tokens += tokens
        self._total.inc(tokens)
        for site, number in run.items():
            self.run[site] += number
            self._by_site[site].inc(number)

    def rates(self) -> dict[str, float | None]:
        """By site; None before the first token."""
        return {site: number / self.tokens if self.tokens else None for site, number in self.run.items()}

    def clear(self) -> None:
        """Begin anew (not in Prometheus, where counters only rise)."""
        self.tokens, self.run = 0, dict.fromkeys(self.run, 0)


@cache
def _counters() -> tuple[Any, Any]:
    """Once a process, however many models it loads."""
    from prometheus_client import Counter

    return (
        Counter("layerroute_tokens", "Tokens that routers decided about"),
        Counter("layerroute_tokens_run", "Tokens that ran at a site", ["site"]),
    )
