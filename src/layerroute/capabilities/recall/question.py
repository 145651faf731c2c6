"""The question: does a learned router recall more of what it has read than arms that could refute that."""

from collections.abc import Callable, Mapping, Sequence

from layerroute.capabilities.attention.kinds import (
    ALL_GDN,
    ALL_SOFTMAX,
    KINDS,
    PERIODIC,
    RANDOM,
    STATIC,
    kind_of,
)
from layerroute.capabilities.recall.lengths import rate_sentence, recall_distances, recall_lengths
from layerroute.capabilities.recall.measures import (
    ARM_FIELDS,
    BYTES,
    lengths,
    recall_by_seed,
    share_cell,
    with_softmax,
)
from layerroute.lab.arms import Arm
from layerroute.lab.at_cost import at_cost_table, by_kind
from layerroute.lab.claims import briefly, claims, claims_table, of_subject, told
from layerroute.lab.compare import Comparison
from layerroute.lab.controls import EQUAL_COST, SAME_RATE
from layerroute.lab.fairness import cache_bytes
from layerroute.lab.format import percent
from layerroute.lab.question import PHRASES, Control, Metric, Question, Shown
from layerroute.lab.statistics import t_interval
from layerroute.lab.table import Cell, Table, cells
from layerroute.outcomes import Outcome

RECALL = Metric(
    label="answers recalled",
    unit=" points",
    column="Δ recalled",
    by_seed=recall_by_seed,
    lower_is_better=False,
    digits=1,
    factor=100,
)


def _same_layers(subject: Arm, rival: Arm) -> bool:
    return rival.layer_pattern == subject.layer_pattern


def _softmax_where_it_routes(subject: Arm, rival: Arm) -> bool:
    unrouted = tuple("softmax" if kind == "routed" else kind for kind in subject.layer_pattern)
    return rival.layer_pattern == unrouted


CONTROLS = (
    Control(name="random at its rate", kinds=(RANDOM,), match=SAME_RATE, also=_same_layers),
    Control(name="periodic at its rate", kinds=(PERIODIC,), match=SAME_RATE, also=_same_layers),
    Control(name="static at its FLOPs", kinds=(STATIC,), match=EQUAL_COST),
    Control(name="softmax where it routes", also=_softmax_where_it_routes),
    Control(name="all-softmax", kinds=(ALL_SOFTMAX,)),
    Control(name="all-GDN", kinds=(ALL_GDN,)),
)


def recall_sentence(comparison: Comparison) -> str:
    """The answer about the subject's recall in one sentence; empty where it has no pair."""
    return told(
        of_subject(QUESTION, comparison),
        lambda subject, estimate: f"Recall: {with_softmax(subject)} answers {share_cell(estimate).text}",
    )


def recall_brief(comparison: Comparison) -> str:
    """What can be told of the subject's recall, in a clause; empty where it has no pair."""
    said = {Outcome.WINS: "more", Outcome.LOSES: "less"}
    return briefly(of_subject(QUESTION, comparison), "recalls", said, "in recall")


def recall_table(arms: Sequence[Arm]) -> Table | None:
    """Answers recalled by arm, at the length of training and at the longest measured; None without recall data."""
    known = [arm for arm in arms if recall_by_seed(arm)]
    if not known:
        return None
    longest = max((multiple for arm in known for multiple in lengths(arm)), default=1)

    def recalled(multiple: int) -> Callable[[Arm], Cell]:
        return lambda arm: share_cell(t_interval([*recall_by_seed(arm, multiple=multiple).values()]))

    fields = [
        *ARM_FIELDS,
        *([BYTES] if any(map(cache_bytes, known)) else []),
        cells("Recalled", recalled(1)),
    ]
    if longest > 1:
        fields.append(cells(f"Recalled at {longest}×", recalled(longest)))
    chance = known[0].example.value("recall", "chance")
    return Table.of(
        "Table of recall",
        "Answers recalled at the length of training",
        fields,
        known,
        notes=[
            f"± is the 95% t interval over seeds. Blind guessing reaches {percent(chance)}. The softmax rate is over "
            "the layers after the first, which no parallel router can route."
        ],
    )


def _tables(comparison: Comparison) -> Mapping[str, Table | None]:
    arms = comparison.arms
    return {
        "recall": recall_table(arms),
        "recall_differences": claims_table(
            claims(QUESTION, arms),
            name="Table of recall differences",
            title="Differences in answers recalled (percentage points), paired by seed",
        ),
        "recall_at_cost": at_cost_table(
            by_kind(QUESTION, arms),
            name="Table of recall at equal cost",
            title="Answers recalled by learned routers less those of rivals at the router's FLOPs and bytes",
            gain="Recall rises",
        ),
        "recall_lengths": recall_lengths(arms),
        "recall_distances": recall_distances(arms),
    }


QUESTION = Question(
    capability="attention_routing",
    kinds=KINDS,
    kind_of=kind_of,
    metric=RECALL,
    controls=CONTROLS,
    correction="all",
    asked=lambda arms: any(map(recall_by_seed, arms)),
    answer=recall_sentence,
    brief=recall_brief,
    tables=_tables,
    phrases={
        **PHRASES,
        Outcome.WINS: "recalls more than {second} ({amount})",
        Outcome.LOSES: "recalls less than {second} ({amount})",
        Outcome.NO_DIFFERENCE: (
            "cannot be told from {second} ({amount}; below about {least} points would go unseen)"
        ),
        Outcome.UNPAIRED: "cannot be paired with {second}",
    },
    words={
        Outcome.WINS: "recalls more",
        Outcome.LOSES: "recalls less",
        Outcome.NOT_CORRECTED: "recalls {more}, before correction",
        Outcome.UNALIKE: "no verdict: {reasons}",
        Outcome.UNEQUAL_COST: "no verdict: {reasons}",
    },
    terminal=(
        Shown(table="recall", hide=frozenset({"Kind"})),
        Shown(
            table="recall_differences",
            hide=frozenset({"Detectable"}),
            below=lambda comparison: [*map(rate_sentence, comparison.arms)],
        ),
        Shown(table="recall_at_cost", hide=frozenset({"Seeds", "Detectable"})),
    ),
)
