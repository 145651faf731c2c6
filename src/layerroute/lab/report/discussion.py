"""The discussion: its branch is chosen by the verdict and by how routing fared."""

import math
from dataclasses import dataclass

from layerroute.capabilities.attention.routing import Balance, path_name, site_routing
from layerroute.capabilities.recall.lengths import rate_sentence
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.fairness import unequal
from layerroute.lab.format import listing, number, percent, plural
from layerroute.lab.pairs import ENOUGH_SEEDS, Pair
from layerroute.lab.question import Outcome
from layerroute.lab.report.old import recall
from layerroute.lab.tokens import TokenKinds


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the discussion: a heading and its paragraphs."""

    heading: str
    paragraphs: tuple[str, ...]


def discussion(comparison: Comparison, kinds: TokenKinds | None) -> list[Section]:
    """The discussion, its branch chosen by the verdict and by how routing fared."""
    sections = [_verdict_section(comparison), _recall_section(comparison)]
    if comparison.subject is not None:
        sections.append(_patterns_section(comparison.subject, kinds))
        sections.append(_balance_section(comparison.subject))
    sections.append(_next_section(comparison))
    return [section for section in sections if section.paragraphs]


def _verdict_section(comparison: Comparison) -> Section:
    outcome, pair = comparison.outcome, comparison.primary
    if pair is None or outcome is None:
        return Section(heading="What these runs can say", paragraphs=(comparison.answer,))
    ours, theirs = pair.subject.label, pair.rival.label
    if outcome is Outcome.WINS:
        return Section(
            heading="Dynamic routing has the lower loss",
            paragraphs=(pair.sentence, *_credit(comparison, pair)),
        )
    if outcome in (Outcome.LOSES, Outcome.NO_DIFFERENCE):
        heading = (
            "Static assignment has the lower loss"
            if outcome is Outcome.LOSES
            else "Static assignment does as well"
        )
        explanations = [
            "the router adds parameters and noise that outweigh what it wins",
            "deciding by layer is enough, and deciding by token is not needed",
        ]
        if pair.subject.example.value("recipe", "objective", "balance_weight"):
            explanations.append("the balance loss keeps the router from the split that would be best")
        number_of = {2: "Two", 3: "Three"}[len(explanations)]
        reasons = f"{number_of} explanations are open, and these runs do not separate them: {'; '.join(explanations)}."
        return Section(heading=heading, paragraphs=(pair.sentence, reasons, *_unequal(pair)))
    if outcome is Outcome.ONE_SEED:
        text = (
            "Runs of one configuration that differ in the seed alone end at different losses. With one seed "
            f"of {ours} and of {theirs} that spread is unknown, so the difference seen here supports neither "
            "the hypothesis nor its opposite."
        )
        return Section(heading="One seed cannot tell", paragraphs=(pair.sentence, text, *_unequal(pair)))
    return Section(heading="The arms cannot be compared", paragraphs=(pair.sentence,))


def _recall_section(comparison: Comparison) -> Section:
    """What recall adds to the loss; empty where it was not measured."""
    paragraphs = [recall(comparison)] if recall(comparison) else []
    if paragraphs:
        paragraphs += filter(None, map(rate_sentence, comparison.arms))
    return Section(heading="Recall", paragraphs=tuple(paragraphs))


def _unequal(pair: Pair) -> tuple[str, ...]:
    differs = unequal(pair.subject, pair.rival)
    if not differs:
        return (
            f"{pair.subject.label} and {pair.rival.label} are equal in parameters, compute, learning rate "
            "and data.",
        )
    return (
        f"The two arms also differ in what they were given: {pair.subject.label} has {listing(differs)}. Any "
        "of these can move the loss by itself.",
    )


def _credit(comparison: Comparison, pair: Pair) -> tuple[str, ...]:
    """What the win may be credited to, by the controls at the same rate."""
    paragraphs = []
    same_rate = {
        arm: check.name
        for check in comparison.controls
        if check.name in ("random at the same rate", "periodic at the same rate")
        for arm in check.arms
    }
    against = [p for p in comparison.pairs if p.subject is pair.subject and p.rival.label in same_rate]
    beaten = [p.rival.label for p in against if p.outcome is Outcome.WINS]
    level = [f"{p.rival.label} ({p.outcome})" for p in against if p.outcome is not Outcome.WINS]
    if not against:
        paragraphs.append(
            "No control that routes without looking at the token (random or periodic, at the same rate) is "
            "among the runs. So it is open whether it matters which tokens take softmax attention, or only "
            "how many do."
        )
    if beaten:
        paragraphs.append(
            f"{pair.subject.label} also ends below {listing(beaten)}, which "
            f"{'sends' if len(beaten) == 1 else 'send'} as many tokens to softmax attention without looking "
            "at them: here it matters which tokens go there."
        )
    if level:
        paragraphs.append(
            "Against routing without looking at the token, at the same rate, it is not shown to be better: "
            f"{listing(level)}. A mixture of both attentions, and not the choice by token, may explain the "
            "result."
        )
    return (*paragraphs, *_unequal(pair))


def _patterns_section(subject: Arm, kinds: TokenKinds | None) -> Section:
    paragraphs = []
    sites = site_routing(subject)
    expensive = path_name(subject.paths[1])
    if sites:
        most = max(sites, key=lambda site: site.rate.mean)
        least = min(sites, key=lambda site: site.rate.mean)
        if len(sites) > 1 and most.rate.mean - least.rate.mean > 0.05:
            paragraphs.append(
                f"Sites differ: {most.site} sends {percent(most.rate.mean)} of its tokens to {expensive}, "
                f"{least.site} {percent(least.rate.mean)}."
            )
    if kinds is None:
        paragraphs.append(
            "No record holds the decisions of single tokens, so nothing can be said about which tokens go "
            "where."
        )
    elif kinds.p_value is None:
        paragraphs.append(
            "The stored sentences are too few to test whether kinds of tokens take different paths."
        )
    elif kinds.differ:
        first, last = kinds.kinds[0], kinds.kinds[-1]
        paragraphs.append(
            f"Kinds of tokens take different paths (permutation test, {kinds.p_text}; {kinds.tokens} tokens "
            f"of {plural(kinds.sentences, 'sentence')}, one run): {expensive} takes {percent(first.rate)} of "
            f"the decisions on tokens of the kind “{first.kind}” and {percent(last.rate)} on “{last.kind}”. "
            "This describes these sentences; it does not say that such tokens need that path."
        )
    else:
        paragraphs.append(
            "Whether a token is punctuation, a number or part of a word is not seen to decide its path "
            f"(permutation test, {kinds.p_text}; {kinds.tokens} tokens of "
            f"{plural(kinds.sentences, 'sentence')}, one run)."
        )
    return Section(heading="Routing patterns", paragraphs=tuple(filter(None, paragraphs)))


def _balance_section(subject: Arm) -> Section:
    sites = site_routing(subject)
    weight = subject.example.value("recipe", "objective", "balance_weight")
    if not sites:
        return Section(heading="Load balancing", paragraphs=())
    collapsed = [site for site in sites if Balance.COLLAPSED in site.balances]
    with_weight = f"With a balance loss of weight α = {weight:g}" if weight else "Without a balance loss"
    if not collapsed:
        balanced = all(balance is Balance.BALANCED for site in sites for balance in site.balances)
        state = "every site stayed within 40 to 60%" if balanced else "no site passed 90% on one path"
        text = f"{with_weight}, {state}."
        if weight:
            text += " Whether the loss is what prevented collapse would take a run without it."
        return Section(heading="Load balancing", paragraphs=(text,))
    text = f"{with_weight}, routing collapsed at {listing([site.site for site in collapsed])}."
    paragraphs = [text]
    if any(site.undecided for site in collapsed):
        paragraphs.append(
            "The router is undecided there: its probabilities stay near one half for nearly every token "
            f"(entropy {number(max(site.doubt.mean for site in collapsed if site.doubt is not None))} of at "
            f"most {number(math.log(2))} nats), and the hard choice at inference turns a slight common "
            "preference into one path for all. With noise, as in training, such a router still splits its "
            "tokens, and the balance loss, which is 1 as soon as the mean probabilities are even, does not "
            "see the collapse."
        )
    tries = ["a slower annealing of the temperature", "a budget held by a threshold instead of a loss"]
    if not weight or weight < 0.05:
        tries.insert(0, "a stronger balance loss (α = 0.05)")
    return Section(
        heading="Routing collapse", paragraphs=(*paragraphs, f"Worth trying next: {listing(tries, 'or')}.")
    )


def _next_section(comparison: Comparison) -> Section:
    steps = []
    fewest = min((len(arm.seeds) for arm in comparison.arms), default=0)
    if fewest < ENOUGH_SEEDS:
        steps.append(f"at least {ENOUGH_SEEDS} seeds of every arm")
    if comparison.missing:
        steps.append(f"the missing controls ({listing(comparison.missing)})")
    if comparison.primary is not None and unequal(comparison.primary.subject, comparison.primary.rival):
        steps.append("arms that are equal in parameters, compute and learning rate")
    unseen = [] if recall(comparison) else ["associative recall"]
    if "recall_lengths" not in comparison.tables:
        unseen.append("contexts beyond the trained length")
    if unseen:
        steps.append(f"tasks that language-model loss does not see: {', and '.join(unseen)}")
    if recall(comparison):
        steps.append("natural text, in which nobody has planted what is to be recalled")
    return Section(heading="What would settle it", paragraphs=(f"Needed next: {listing(steps)}.",))
