"""What the report of attention routing says, chosen by the verdict and by how routing fared."""

import math
from collections.abc import Sequence
from typing import Any

from layerroute.capabilities.attention.architecture import describe
from layerroute.capabilities.attention.routing import (
    COLLAPSED_ABOVE,
    Balance,
    routing_sentence,
    site_routing,
)
from layerroute.capabilities.attention.settings import pattern_text
from layerroute.capabilities.attention.tables import bigram_sentence, training_spread
from layerroute.capabilities.recall.lengths import rate_sentence
from layerroute.lab.arms import Arm, on_common_seeds
from layerroute.lab.compare import Comparison
from layerroute.lab.fairness import NOISY, unequal
from layerroute.lab.format import listing, number, plural, signed_percent
from layerroute.lab.pairs import Pair
from layerroute.lab.report.words import Said, Words, limitations, needed_next, not_equal, patterns
from layerroute.lab.runs import Run
from layerroute.lab.tokens import TokenKinds
from layerroute.outcomes import Outcome

_UNDECIDED = (
    "These runs do not compare routing by token with static layer assignment of equal cost and treatment, so "
    "nothing is concluded."
)


def words(comparison: Comparison, kinds: TokenKinds | None) -> Words:
    """All sentences of the report; ``kinds`` are those of the subject's tokens."""
    subject, baseline = comparison.subject, comparison.baseline
    versus = f"{subject.label} against {baseline.label}" if subject and baseline else comparison.arms[0].label
    said = outcome_said(comparison)
    answer = [comparison.answer, *comparison.answers_beside]
    bigram = list(filter(None, [bigram_sentence(comparison.arms)]))
    learned = sorted((arm for arm in comparison.arms if arm.kind.learned), key=lambda arm: arm is not subject)
    routing = list(filter(None, map(routing_sentence, learned)))
    takeaways = [*answer, *routing, *bigram]
    if comparison.missing:
        takeaways.append(f"Missing controls: {listing(comparison.missing)}.")
    return Words(
        title=f"{comparison.question.title}: {versus}",
        question=comparison.question.text,
        answer=answer,
        also=[*comparison.caveats, *routing[:3], *bigram],
        abstract=" ".join([*answer, *routing[:1], *comparison.caveats]),
        discussion=discussion(comparison, kinds, said),
        limitations=limitations(
            comparison,
            context="What O(n) saves over O(n²) grows with the context, and is small here.",
            measure=_measure(comparison),
            more=[
                "Speed: training computes what its estimator needs, for straight-through estimators both paths. "
                "The FLOPs at the measured rate are those of an ideal sparse execution, not a measured saving."
            ]
            if any(arm.kind.routed for arm in comparison.arms)
            else [],
        ),
        conclusion=said.conclusion,
        takeaways=takeaways,
        cost=cost_sentence(comparison),
        settings=_settings((subject or comparison.arms[0]).example)
        | {
            "architecture": describe(subject) if subject else None,
            "patterns": {
                arm.label: pattern_text(arm.layer_pattern) for arm in comparison.arms if arm.layer_pattern
            },
        },
    )


def outcome_said(comparison: Comparison) -> Said:
    """What the outcome of the primary comparison comes to."""
    pair, outcome = comparison.primary, comparison.outcome
    if pair is None or outcome is None:
        return Said(
            heading="What these runs can say",
            conclusion="These runs do not compare routing by token with static layer assignment.",
        )
    ours, theirs, missing = pair.subject.label, pair.rival.label, comparison.missing
    if outcome is Outcome.WINS:
        verb = "is" if len(missing) == 1 else "are"
        but = (
            f", but {plural(len(missing), 'control')} {verb} missing, so that this cannot yet be credited to routing"
            if missing
            else ""
        )
        return Said(
            heading="Dynamic routing has the lower loss",
            conclusion=(
                f"In these runs {ours} achieved a lower validation loss than {theirs} at equal executed FLOPs{but}."
            ),
            more=(*_credit(comparison, pair), not_equal(pair.subject, pair.rival)),
        )
    if outcome in (Outcome.LOSES, Outcome.NO_DIFFERENCE):
        loses = outcome is Outcome.LOSES
        reasons = [
            "the router adds parameters and noise that outweigh what it wins",
            "deciding by layer is enough, and deciding by token is not needed",
        ]
        if pair.subject.example.value("recipe", "objective", "balance_weight"):
            reasons.append("the balance loss keeps the router from the split that would be best")
        return Said(
            heading=f"Static assignment {'has the lower loss' if loses else 'does as well'}",
            conclusion=(
                "In these runs routing by token did not achieve what static layer assignment achieves: its loss is "
                "higher."
                if loses
                else "In these runs routing by token achieved no improvement over static layer assignment that "
                "exceeds the noise."
            ),
            reasons=reasons,
            more=(not_equal(pair.subject, pair.rival),),
        )
    if outcome is Outcome.ONE_SEED:
        return Said(
            heading="One seed cannot tell",
            conclusion=(
                "Whether routing by token improves on static layer assignment is not decided by these runs: one seed "
                "cannot tell."
            ),
            more=(
                "Runs of one configuration that differ in the seed alone end at different losses. With one seed "
                f"of {ours} and of {theirs} that spread is unknown, so the difference seen here supports neither "
                "the hypothesis nor its opposite.",
                not_equal(pair.subject, pair.rival),
            ),
        )
    unlike = outcome in (Outcome.UNALIKE, Outcome.UNEQUAL_COST)
    return Said(
        heading="The arms cannot be compared",
        conclusion=_UNDECIDED
        if unlike
        else "These runs do not compare routing by token with static layer assignment.",
    )


def discussion(
    comparison: Comparison, kinds: TokenKinds | None, said: Said
) -> list[tuple[str, Sequence[str]]]:
    """(heading, paragraphs) each; without those that have nothing to say."""
    verdict = comparison.answer if comparison.primary is None else comparison.primary.sentence
    recall = comparison.answers_beside
    if recall:
        recall = [*recall, *filter(None, map(rate_sentence, comparison.arms))]
    sections: list[tuple[str, Sequence[str]]] = [
        (said.heading, [verdict, *said.paragraphs()]),
        ("Recall", recall),
    ]
    if comparison.subject is not None:
        sections.append(("Routing patterns", patterns(comparison.subject, kinds)))
        sections.append(_balance(comparison.subject))
    sections.append(("What would settle it", [_next(comparison)]))
    return [section for section in sections if section[1]]


def _credit(comparison: Comparison, pair: Pair) -> list[str]:
    """What the win may be credited to, by the controls at the same rate."""
    same_rate = {
        arm
        for check in comparison.controls
        if check.control.name in ("random at the same rate", "periodic at the same rate")
        for arm in check.arms
    }
    against = [p for p in comparison.pairs if p.subject is pair.subject and p.rival.label in same_rate]
    if not against:
        return [
            "No control that routes without looking at the token (random or periodic, at the same rate) is "
            "among the runs. So it is open whether it matters which tokens take softmax attention, or only "
            "how many do."
        ]
    beaten = [p.rival.label for p in against if p.outcome is Outcome.WINS]
    level = [f"{p.rival.label} ({p.outcome})" for p in against if p.outcome is not Outcome.WINS]
    paragraphs = []
    if beaten:
        paragraphs.append(
            f"{pair.subject.label} also ends below {listing(beaten)}, which "
            f"{'sends' if len(beaten) == 1 else 'send'} as many tokens to softmax attention without looking "
            "at them. So here it matters which tokens go there."
        )
    if level:
        paragraphs.append(
            "Against routing that does not look at the token, at the same rate, it is not shown to be better: "
            f"{listing(level)}. So the mixture of both attentions may explain the result, and not the choice by token."
        )
    return paragraphs


def _balance(subject: Arm) -> tuple[str, Sequence[str]]:
    sites = site_routing(subject)
    weight = subject.example.value("recipe", "objective", "balance_weight")
    if not sites:
        return "Load balancing", []
    collapsed = [site for site in sites if Balance.COLLAPSED in site.balances]
    with_weight = f"With a balance loss of weight α = {weight:g}" if weight else "Without a balance loss"
    if not collapsed:
        balanced = all(balance is Balance.BALANCED for site in sites for balance in site.balances)
        most = max(max(rate, 1 - rate) for site in sites for rate in site.rates.values())
        spared = "no site passed 90% on one path"
        if most > COLLAPSED_ABOVE:
            spared += ", but where that is the rate asked for"
        state = "every site stayed within 40 to 60%" if balanced else spared
        whether = (
            " Whether the loss is what prevented collapse would take a run without it." if weight else ""
        )
        return "Load balancing", [f"{with_weight}, {state}.{whether}"]
    paragraphs = [f"{with_weight}, routing collapsed at {listing([site.site for site in collapsed])}."]
    if any(site.undecided for site in collapsed):
        paragraphs.append(
            "The router is undecided there. Its probabilities stay near one half for nearly every token "
            f"(entropy {number(max(site.doubt.mean for site in collapsed if site.doubt is not None))} of at "
            f"most {number(math.log(2))} nats). The hard choice at inference turns a slight common "
            "preference into one path for all. With noise, as in training, such a router still splits its "
            "tokens. The balance loss is 1 as soon as the mean probabilities are even, so it does not see the "
            "collapse."
        )
    tries = ["a slower annealing of the temperature", "a budget held by a threshold instead of a loss"]
    if not weight or weight < 0.05:
        tries.insert(0, "a stronger balance loss (α = 0.05)")
    return "Routing collapse", [*paragraphs, f"Worth trying next: {listing(tries, 'or')}."]


def _next(comparison: Comparison) -> str:
    pair, more = comparison.primary, []
    if pair is not None and unequal(pair.subject, pair.rival):
        more.append("arms that are equal in parameters, compute and learning rate")
    natural = "copies" in comparison.tables
    unseen = [] if comparison.answers_beside else ["associative recall"]
    if "recall_lengths" not in comparison.tables:
        unseen.append("contexts beyond the trained length")
    if unseen:
        more.append(f"tasks that language-model loss does not see: {', and '.join(unseen)}")
    if comparison.answers_beside and not natural:
        more.append("natural text, in which nobody has planted what is to be recalled")
    return needed_next(comparison, more)


def _measure(comparison: Comparison) -> str:
    tasks = {
        f"{task} of {run.value('recall', 'pairs')}"
        for run in comparison.runs
        if (task := run.value("recall", "task")) is not None
    }
    natural = "copies" in comparison.tables
    if natural and not tasks:
        return (
            "Measure: language-model loss, apart on tokens that are copied from far back. Retrieval and length beyond "
            "training are not measured here."
        )
    if not tasks:
        return (
            "Measure: language-model loss alone separates such models poorly. Recall, retrieval and length "
            "beyond training are not measured here."
        )
    known = "recall_lengths" in comparison.tables
    beyond = "" if known else "; lengths beyond that of training are not measured"
    made_up = f"Measure: recall of made-up sequences ({listing(sorted(tasks))}){beyond}"
    return f"{made_up}." if natural else f"{made_up}. What it says of natural text is open."


def cost_sentence(comparison: Comparison) -> str:
    """How the routed arm's compute and time stand against the baseline, in one sentence; empty without both."""
    subject, baseline = comparison.subject, comparison.baseline
    if subject is None or baseline is None or not (subject.completed and baseline.completed):
        return ""
    subject, baseline = on_common_seeds(subject, baseline)
    parts = []
    ours, theirs = subject.mean("timing", "train_seconds"), baseline.mean("timing", "train_seconds")
    apart = training_spread(comparison.arms)
    if ours and theirs and (apart is None or apart <= NOISY):
        parts.append(f"{ours / theirs:.2f} times the training time")
    if subject.parameters and baseline.parameters:
        parts.append(f"{signed_percent(subject.parameters / baseline.parameters - 1)} parameters")
    every, used, base = (subject.mean("flops", "forward_per_token"), subject.flops, baseline.flops)
    if every and used and base:
        parts.append(
            f"{signed_percent(every / base - 1)} forward FLOPs per token with every path computed, "
            f"{signed_percent(used / base - 1)} at the measured rate"
        )
    return f"Against {baseline.label}, {subject.label} has {listing(parts)}." if parts else ""


def _settings(run: Run) -> dict[str, Any]:
    """What the method section says about routing, from the record or else the recipe."""
    routing, objective = ("recipe", "model", "routing"), ("recipe", "objective")
    budget, temperature = run.value(*routing, "budget"), run.value(*objective, "temperature")
    scheduled = isinstance(temperature, dict) and {"start", "end"} <= temperature.keys()
    context = run.value("routing", "context") or run.value("recipe", "model", "context")
    return {
        "balance_weight": run.value(*objective, "balance_weight"),
        "budget": None if budget == "none" else budget,
        "estimator": run.value("routing", "estimator") or run.value(*routing, "estimator"),
        "own_context": context == "own_context",
        "temperature": {key: f"{temperature[key]:g}" for key in ("start", "end")} if scheduled else None,
    }
