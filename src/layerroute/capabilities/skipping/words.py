"""What the report of layer skipping says, chosen by the verdict against each control at equal cost."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from layerroute.capabilities.skipping.kinds import PERIODIC, RANDOM, STATIC, skipped
from layerroute.capabilities.skipping.tables import full_depth, time_note
from layerroute.lab.arms import Kind, mean_gap
from layerroute.lab.compare import Comparison
from layerroute.lab.fairness import unlike_treatment
from layerroute.lab.format import listing, percent, signed
from layerroute.lab.pairs import agreed
from layerroute.lab.report.words import Said, Words, limitations, needed_next, patterns
from layerroute.lab.runs import Run
from layerroute.lab.tokens import TokenKinds
from layerroute.outcomes import Outcome

BLIND = (RANDOM, PERIODIC)
"""Kinds of control that skip by token without looking at it."""


def words(comparison: Comparison, kinds: TokenKinds | None) -> Words:
    """All sentences of the report; ``kinds`` are those of the subject's tokens."""
    said, cost, subject = outcome_said(comparison), cost_sentence(comparison), comparison.subject
    discussion: list[tuple[str, Sequence[str]]] = [(said.heading, [comparison.verdict, *said.paragraphs()])]
    if cost:
        discussion.append(("What skipping costs", [cost]))
    if subject is not None:
        discussion.append(("Where tokens skip", patterns(subject, kinds)))
    more = [
        "benchmarks of tasks (`layerroute retention`)",
        "kinds of text that the router was not fitted on (`layerroute transfer`)",
    ]
    discussion.append(("What would settle it", [needed_next(comparison, more)]))
    takeaways = [comparison.verdict, *([cost] if cost else [])]
    if comparison.missing and subject is not None:
        takeaways.append(f"Missing controls at equal cost: {listing(comparison.missing)}.")
    return Words(
        title=comparison.question.title,
        question=comparison.question.text,
        answer=[comparison.verdict],
        abstract=comparison.verdict,
        discussion=discussion,
        limitations=limitations(
            comparison,
            measure=(
                "Measure: cross-entropy on validation text alone. What skipping does to tasks and to other kinds of "
                "text is not in these records."
            ),
            more=[
                "Speed: FLOPs are counted, and fewer of them need not be less time.",
                time_note(comparison),
            ],
        ),
        conclusion=said.conclusion,
        takeaways=takeaways,
        cost=cost,
        settings=_settings((subject or comparison.arms[0]).example),
    )


def outcome_said(comparison: Comparison) -> Said:
    """What the outcome comes to, and which controls it may be credited against."""
    if comparison.outcome is None:
        return Said(
            heading="What these runs can say",
            conclusion=(
                "These runs do not hold per-token routing against every control at equal executed FLOPs, so nothing is "
                "concluded about routing."
            ),
            more=_against(comparison),
        )
    if comparison.outcome is Outcome.WINS:
        return Said(
            heading="Choosing by token has the lower loss",
            conclusion=(
                "In these runs letting each token choose its layers achieved a lower loss than every control at equal "
                "executed FLOPs."
            ),
            more=_against(comparison),
        )
    loses = comparison.outcome is Outcome.LOSES
    return Said(
        heading="A control has the lower loss" if loses else "No difference is seen from every control",
        conclusion=(
            "In these runs letting each token choose its layers did not achieve what a control achieves at equal "
            "executed FLOPs: its loss is higher."
            if loses
            else "In these runs letting each token choose its layers achieved no improvement over all controls at "
            "equal executed FLOPs that exceeds the noise."
        ),
        reasons=(
            "the layers that matter least are the same for most tokens, so that leaving them out for all is enough",
            "the router adds noise and FLOPs of its own that outweigh what it wins",
        ),
        more=_against(comparison),
    )


def _against(comparison: Comparison) -> list[str]:
    """What each kind of control says: whether tokens matter, and whether layers alone would do."""
    subject = comparison.subject
    if subject is None:
        return []
    beats: dict[Kind, bool] = {}  # by kind of control: whether all of its arms are beaten
    for arm, entries in comparison.judged:
        if entries:
            beats[arm.kind] = agreed(entries) is Outcome.WINS and beats.get(arm.kind, True)
    blind = [str(kind) for kind in BLIND if kind in beats]
    beaten = [str(kind) for kind in BLIND if beats.get(kind)]
    paragraphs = []
    if not blind:
        paragraphs.append(
            "No control that skips without looking at the token (random or periodic) stands at equal cost. So it is "
            "open whether it matters which tokens skip, or only how many do."
        )
    elif beaten == blind:
        paragraphs.append(
            f"{subject.label} ends below {listing(beaten)} skipping of equal cost: here it matters which tokens skip, "
            "or at which layers they do."
        )
    else:
        paragraphs.append(
            f"Against {listing([kind for kind in blind if kind not in beaten])} skipping of equal cost it is not shown "
            "to be better: how much is skipped, and not which tokens skip, may explain the result."
        )
    if STATIC in beats:
        paragraphs.append(
            "Static pruning leaves the same layers out for all tokens. "
            + (
                "Routing ends below it, so that deciding by token is worth more than deciding by layer here."
                if beats[STATIC]
                else "Routing does not end below it, so that choosing the layers well may be all that is needed here."
            )
        )
    return paragraphs


def cost_sentence(comparison: Comparison) -> str:
    """What the subject leaves out, and what that costs in loss; empty without a full-depth arm treated alike."""
    subject, full = comparison.subject, full_depth(comparison)
    if subject is None or full is None or unlike_treatment(subject, full) or not comparison.same_data:
        return ""
    more = mean_gap(subject, full, "metrics", "validation_loss")
    if more is None:
        return ""
    return (
        f"Against the model at full depth, {subject.label} skips {percent(skipped(subject))} of routed compute, "
        f"executes {percent(subject.executed_share)} of the plain model's FLOPs, and its loss differs by "
        f"{signed(more)} nats."
    )


def _settings(run: Run) -> dict[str, Any]:
    """What the method section says, from the recipe; None where it says nothing."""

    def part(*keys: str) -> dict[str, Any]:
        return defaultdict(lambda: None, run.value("recipe", *keys) or {})

    return {
        "skip": part("skip"),
        "routing": part("skip", "routing"),
        "start": part("start"),
        "adapt": part("adapt"),
        "objective": part("objective"),
        "sites": list(run.value("routing", "sites") or ()),
    }
