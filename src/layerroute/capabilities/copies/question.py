"""The question: does a learned router predict what was copied from far back better than arms that could refute that."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from layerroute.capabilities.attention.kinds import ALL_GDN, ALL_SOFTMAX, WINDOW
from layerroute.capabilities.recall import question as recall
from layerroute.capabilities.recall.measures import ARM_FIELDS, BYTES, with_softmax
from layerroute.lab.arms import Arm, mean_gap
from layerroute.lab.at_cost import at_cost_table, by_kind
from layerroute.lab.claims import briefly, claims, claims_table, of_subject, told
from layerroute.lab.compare import Comparison
from layerroute.lab.controls import EQUAL_COST
from layerroute.lab.format import count, listing
from layerroute.lab.pairs import Pair, difference
from layerroute.lab.question import Control, Metric, Shown
from layerroute.lab.runs import Run
from layerroute.lab.statistics import WindowLosses
from layerroute.lab.table import Table, cells, figures
from layerroute.lab.tables import estimate_cell, interval_note
from layerroute.outcomes import Outcome, outcome_of


def losses(arm: Arm, part: str = "copied") -> dict[int, float]:
    """Loss in nats on ``copied`` tokens, or on the ``rest``, by seed of the completed runs that have it."""
    return arm.by_seed("copies", part, "loss")


def window_losses(arm: Arm) -> WindowLosses:
    """What each window adds to the loss on copied tokens, by seed: their mean is that loss.

    A window counts by its copied tokens. One without any adds nothing.
    """
    return {run.seed: shares for run in arm.completed if (shares := _shares(run))}


def _shares(run: Run) -> list[float]:
    means, tokens = (run.value("copies", "copied", key) or [] for key in ("window_losses", "window_tokens"))
    each = sum(tokens) / len(tokens) if tokens else 0.0
    return [(mean or 0.0) * number / each for mean, number in zip(means, tokens, strict=True)] if each else []


COPIED = Metric(
    label="loss on copied tokens",
    unit=" nats",
    column="Δ copied loss",
    by_seed=losses,
    by_window=window_losses,
)
CONTROLS = (*recall.CONTROLS, Control(name="a window at its cost", kinds=(WINDOW,), match=EQUAL_COST))


def copies_sentence(comparison: Comparison) -> str:
    """The answer about the subject's copied tokens in one sentence; empty where it has no pair."""
    found = told(
        of_subject(QUESTION, comparison),
        lambda subject, estimate: (
            f"Copied tokens: {with_softmax(subject)} has a loss of {estimate_cell(estimate).text} nats on them"
        ),
    )
    return f"{found}{_doubt(comparison.arms)}" if found else ""


def _doubt(arms: Sequence[Arm]) -> str:
    """A sentence where softmax in all layers is not shown to copy better than GDN in all layers; else empty."""
    softmax, linear = (
        [arm for arm in arms if arm.kind is kind and losses(arm)] for kind in (ALL_SOFTMAX, ALL_GDN)
    )
    gaps = [difference(QUESTION, one, other) for one in softmax for other in linear]
    if all(gap is not None and outcome_of(gap.interval) is Outcome.WINS for gap in gaps):
        return ""
    names = (listing([arm.label for arm in some]) for some in (softmax, linear))
    return " {} is not shown to copy better than {}: these runs cannot tell who copies.".format(*names)


def copies_brief(comparison: Comparison) -> str:
    """What can be told of the subject's copied tokens, in a clause; empty where it has no pair."""
    said = {Outcome.WINS: "better", Outcome.LOSES: "worse"}
    return briefly(of_subject(QUESTION, comparison), "copies", said, "on copied tokens")


def copies_table(arms: Sequence[Arm]) -> Table | None:
    """Loss on copied tokens and on the rest by arm; None where no record tells them apart."""
    known = [arm for arm in arms if losses(arm)]
    if not known:
        return None
    first = next(run for run in known[0].completed if run.value("copies", "copied", "loss") is not None)
    rule = {key: first.value("copies", key) for key in ("length", "beyond", "within")}
    copied, rest = (first.value("copies", part, "tokens") for part in ("copied", "rest"))
    return Table.of(
        "Table of copied tokens",
        "Loss (nats per token) on tokens copied from far back, and on the rest of the same text",
        [
            *ARM_FIELDS,
            BYTES,
            cells("Copied ↓", lambda arm: estimate_cell(arm.estimate("copies", "copied", "loss"))),
            cells("Rest ↓", lambda arm: estimate_cell(arm.estimate("copies", "rest", "loss"))),
        ],
        known,
        notes=[
            f"A token is copied if the {rule['length']} tokens that end with it stand earlier in the same "
            f"{rule['within']}, and stood there last more than {rule['beyond']} tokens before. White space and one "
            f"token repeated do not count. {count(copied)} of {count(copied + rest)} predicted tokens are copied. "
            f"{interval_note(known)} The softmax rate is over the layers after the first."
        ],
    )


def _rest(pair: Pair) -> float | None:
    return mean_gap(pair.subject, pair.rival, "copies", "rest", "loss")


def _tables(comparison: Comparison) -> Mapping[str, Table | None]:
    arms = comparison.arms
    return {
        "copies": copies_table(arms),
        "copies_differences": claims_table(
            claims(QUESTION, arms),
            name="Table of copied token differences",
            title="Differences in the loss on copied tokens (nats), paired by seed and window of text",
            more=[figures("Δ on the rest", _rest, COPIED.show)],
        ),
        "copies_at_cost": at_cost_table(
            by_kind(QUESTION, arms),
            name="Table of copied tokens at equal cost",
            title="Loss on copied tokens of learned routers less that of rivals at the router's FLOPs and bytes",
            gain="Loss falls",
        ),
    }


QUESTION = replace(
    recall.QUESTION,
    metric=COPIED,
    controls=CONTROLS,
    asked=lambda arms: any(map(losses, arms)),
    answer=copies_sentence,
    brief=copies_brief,
    tables=_tables,
    phrases={
        **recall.QUESTION.phrases,
        Outcome.WINS: "copies better than {second} ({amount})",
        Outcome.LOSES: "copies worse than {second} ({amount})",
        Outcome.NO_DIFFERENCE: "cannot be told from {second} ({amount}; below about {least} nats would go unseen)",
    },
    words={
        **recall.QUESTION.words,
        Outcome.WINS: "copies better",
        Outcome.LOSES: "copies worse",
        Outcome.NOT_CORRECTED: "is {side} the second, before correction",
    },
    terminal=(
        Shown(table="copies", hide=frozenset({"Kind"})),
        Shown(table="copies_differences", hide=frozenset({"Detectable"})),
        Shown(table="copies_at_cost", hide=frozenset({"Seeds", "Detectable"})),
    ),
)
