"""Is routing balanced, leaning or collapsed? The thresholds and the words, in one place.

A site is balanced when the expensive path takes 40 to 60 % of the tokens, collapsed when one path takes more than
90 %, and leaning in between. A rate beyond that which a budget was asked to hold is no collapse where it is held.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from layerroute.lab.arms import Arm
from layerroute.lab.fairness import RATE_TOLERANCE
from layerroute.lab.format import listing, path_name, plural
from layerroute.lab.statistics import Estimate

BALANCED_FROM, BALANCED_TO = 0.40, 0.60
COLLAPSED_ABOVE = 0.90
UNDECIDED_ABOVE = 0.95  # share of the largest possible entropy


class Balance(StrEnum):
    """How a site divides its tokens."""

    BALANCED = "balanced"
    LEANING = "leaning"
    COLLAPSED = "collapsed"


def judge_rate(rate: float, asked: float | None = None) -> Balance:
    """Judge one site by the share of tokens on its expensive path; ``asked``: that of a budget, if there is one."""
    held = asked is not None and abs(rate - asked) <= RATE_TOLERANCE and 0 < rate < 1
    if max(rate, 1 - rate) > COLLAPSED_ABOVE and not held:
        return Balance.COLLAPSED
    return Balance.BALANCED if BALANCED_FROM <= rate <= BALANCED_TO else Balance.LEANING


@dataclass(frozen=True, kw_only=True)
class SiteRouting:
    """One site of one arm over its completed seeds.

    ``asked`` is the rate that a budget is to hold. ``doubt`` is the entropy (nats) of the router's probabilities
    for a single token, averaged over tokens: how unsure it is; None where the record has none.
    """

    site: str
    rates: dict[int, float]
    asked: float | None
    rate: Estimate
    entropy: Estimate | None
    doubt: Estimate | None

    @property
    def balances(self) -> tuple[Balance, ...]:
        """By seed, in the order of the seeds."""
        return tuple(judge_rate(rate, self.asked) for rate in self.rates.values())

    @property
    def undecided(self) -> bool:
        """Whether the router hardly prefers a path for any token, so that its hard choices rest on little."""
        return self.doubt is not None and self.doubt.mean > UNDECIDED_ABOVE * math.log(2)

    def interpretation(self, paths: tuple[str, str]) -> str:
        """One or two words for a table; with several seeds that disagree, how many seeds each."""
        words = [self._word(rate, paths) for rate in self.rates.values()]
        if len(set(words)) == 1:
            return words[0]
        return ", ".join(f"{word} ({words.count(word)}/{len(words)})" for word in dict.fromkeys(words))

    def _word(self, rate: float, paths: tuple[str, str]) -> str:
        balance = judge_rate(rate, self.asked)
        path = path_name(paths[1] if rate > 0.5 else paths[0])
        if balance is Balance.COLLAPSED:
            return f"Collapsed to {path}"
        return "Balanced" if balance is Balance.BALANCED else f"Leaning to {path}"


def site_routing(arm: Arm) -> list[SiteRouting]:
    """Every routed site of ``arm`` that a completed run has a rate for, in the model's order."""
    found = []
    for site in arm.sites:
        rate = arm.estimate("routing", "rate", site)
        if rate is not None:
            found.append(
                SiteRouting(
                    site=site,
                    rates=arm.by_seed("routing", "rate", site),
                    asked=_asked(arm),
                    rate=rate,
                    entropy=arm.estimate("routing", "entropy", site),
                    doubt=None if arm.kind.control else arm.estimate("routing", "token_entropy", site),
                )
            )
    return found


def _asked(arm: Arm) -> float | None:
    """The rate that a budget is to hold; None without a budget."""
    settings = ("recipe", "model", "routing")
    if arm.example.value(*settings, "budget") in (None, "none"):
        return None
    rate = arm.example.value(*settings, "rate")
    return float(rate) if isinstance(rate, int | float) else None


def _holds(arm: Arm, rate: float) -> bool:
    """Whether every seed is within 2 points of ``rate``, in the mean of its sites."""
    served = arm.by_seed("routing", "mean_rate").values()
    return all(abs(value - rate) <= RATE_TOLERANCE for value in served)


def collapse_word(arm: Arm) -> str:
    """The answer to "routing collapse?" for table 1: ``N/A``, a control's name, or how the sites fare."""
    if not arm.kind.routed:
        return "N/A"
    if not arm.kind.learned:
        return f"N/A ({arm.kind})"
    balances = [balance for site in site_routing(arm) for balance in site.balances]
    if not balances:
        return "unknown"
    collapsed = balances.count(Balance.COLLAPSED)
    if not collapsed and (rate := _asked(arm)) is not None:
        return "No, at the rate asked for" if _holds(arm, rate) else "No, but off the rate asked for"
    if collapsed:
        return "Yes" if collapsed == len(balances) else f"Yes, {collapsed} of {len(balances)}"
    return "No" if all(balance is Balance.BALANCED for balance in balances) else "No, but leaning"


def routing_sentence(arm: Arm) -> str:
    """How ``arm`` routed, in one sentence with its numbers; empty for an arm without routed sites."""
    sites = site_routing(arm)
    if not sites:
        return ""
    cheap, expensive = (path_name(path) for path in arm.paths)
    if len(sites) > 6:
        rates = [site.rate.mean for site in sites]
        where = f"{100 * min(rates):.0f} to {100 * max(rates):.0f}% over {len(sites)} sites"
    else:
        where = listing([f"{100 * site.rate.mean:.1f}% at {site.site}" for site in sites])
    seeds = plural(len(sites[0].rates), "seed")
    balances = [balance for site in sites for balance in site.balances]
    if Balance.COLLAPSED in balances:
        collapsed = [site for site in sites if Balance.COLLAPSED in site.balances]
        all_on_one = [
            rate
            for site in collapsed
            for rate in site.rates.values()
            if judge_rate(rate, site.asked) is Balance.COLLAPSED
        ]
        targets = sorted({expensive if rate > 0.5 else cheap for rate in all_on_one})
        verdict = (
            f"routing collapsed (more than 90% on one path) to {listing(targets)} at {len(collapsed)} of "
            f"{plural(len(sites), 'site')}"
        )
    elif (asked := _asked(arm)) is not None:
        kept = "holds" if _holds(arm, asked) else "misses"
        verdict = f"routing did not collapse and {kept} the rate of {100 * asked:g}% that was asked for"
    elif all(balance is Balance.BALANCED for balance in balances):
        verdict = "routing stayed balanced (40 to 60%) at every site"
    else:
        verdict = "routing did not collapse, but leans away from an even split"
    return f"In {arm.label}, {verdict}: {expensive} takes {where} of the validation tokens ({seeds})."
