"""What a capability hands to the lab: the question that its runs answer. The lab makes everything else from it.

A capability is a folder of ``layerroute/capabilities`` whose ``question.py`` has a ``QUESTION``. Nothing else names it.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from layerroute.errors import UserError
from layerroute.lab.arms import Arm, Kind
from layerroute.lab.format import listing, number, signed
from layerroute.lab.runs import Run
from layerroute.lab.statistics import WindowLosses
from layerroute.lab.table import Table
from layerroute.outcomes import Outcome

if TYPE_CHECKING:
    from layerroute.lab.compare import Comparison

_NO_VERDICT = "There is no verdict on {first} against {second}: {reasons}.{seen}{alone}"
SENTENCES: Mapping[Outcome, str] = {
    Outcome.WINS: "{first} ends with a {better} {metric} than {second} ({interval}).{few}",
    Outcome.LOSES: "{first} ends with a {worse} {metric} than {second} ({interval}).{few}",
    Outcome.NO_DIFFERENCE: (
        "No difference within noise between {first} and {second} in {metric} ({interval}). A true difference below "
        "about {detectable} would probably have gone unseen.{few}"
    ),
    Outcome.NOT_CORRECTED: (
        "{first} and {second} differ by {interval}. With so many comparisons, this is within noise.{few}"
    ),
    Outcome.ONE_SEED: (
        "With one seed ({seed}) nobody can tell whether {first} or {second} is better. {first} ended {size} {place} "
        "{second} in {metric}, and that may be chance. At least {enough} seeds are needed."
    ),
    Outcome.UNPAIRED: (
        "{first} and {second} have no completed seed in common, so they cannot be compared pair by pair. Run both with "
        "the same seeds."
    ),
    Outcome.OTHER_DATA: (
        "{first} and {second} saw different data or tokenizers. Their losses cannot be compared, whatever the tables "
        "show."
    ),
    Outcome.UNALIKE: _NO_VERDICT,
    Outcome.UNEQUAL_COST: _NO_VERDICT,
    Outcome.UNFINISHED: "{first} and {second} cannot be compared: no run of {lacking} completed.",
}
"""The answer where the question is asked of one pair of arms; see ``Pair.facts`` for what stands in braces."""
PHRASES: Mapping[Outcome, str] = {
    Outcome.WINS: "beats {second} ({amount})",
    Outcome.LOSES: "loses to {second} ({amount})",
    Outcome.NO_DIFFERENCE: "cannot be told from {second} ({amount}; a difference below about {least} would go unseen)",
    **dict.fromkeys(
        (Outcome.WINS_AS_READ, Outcome.LOSES_AS_READ),
        "cannot be told from {second} ({amount}, and the straight line there may have made the difference)",
    ),
    Outcome.NOT_CORRECTED: (
        "is {side} {second} ({amount}), but p = {p} when corrected for the number of comparisons"
    ),
    Outcome.ONE_SEED: "is {mean} from {second} with one seed, which may be chance",
    Outcome.UNPAIRED: "cannot be paired with {second} ({why})",
    Outcome.OTHER_DATA: "saw other data than {second}",
    Outcome.UNALIKE: "has no verdict against {second} ({mean}; {reasons})",
    Outcome.UNEQUAL_COST: "has no verdict against {second} ({mean}; {reasons})",
    Outcome.UNFINISHED: "has no verdict against {second} (no run of {lacking} completed)",
}
"""What is said of the subject against each of several controls."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What arms are compared by.

    Attributes:
        label, unit: in sentences; the unit follows the number.
        column: head of its differences in tables.
        by_seed: the metric of an arm's completed runs.
        by_window: the same by window of text, where it is recorded.
        lower_is_better: whether less of it wins.
        digits: decimals of a difference in tables, and ``told`` in phrases.
        factor: from the record's unit to the one shown (100 for points).
    """

    label: str
    unit: str
    column: str
    by_seed: Callable[[Arm], Mapping[int, float]]
    by_window: Callable[[Arm], WindowLosses] | None = None
    lower_is_better: bool = True
    digits: int = 4
    factor: float = 1.0

    def show(self, value: float | None) -> str:
        """A difference with its sign."""
        return signed(None if value is None else self.factor * value, self.digits)

    def size(self, value: float | None) -> str:
        """A difference without sign."""
        return number(None if value is None else self.factor * value, self.digits)


LOSS = Metric(
    label="validation loss",
    unit=" nats",
    column="Δ val loss",
    by_seed=lambda arm: arm.loss,
    by_window=lambda arm: arm.window_losses,
)
"""Cross-entropy in nats per token on validation text, where no capability says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """How an arm can be equal to the subject.

    Attributes:
        of: the quantity in question; None where it is not known.
        gap: how far an arm's quantity is from the subject's, in this order.
        fits: whether subject and arm, so far apart, count as equal.
        found, nearest: what is said of one that is equal, and of the nearest of those that are not, from the arm's
            quantity, the subject's and the gap.
        no_arm: what is said where there is no arm.
    """

    of: Callable[[Arm], float | None]
    gap: Callable[[float, float], float | None]
    fits: Callable[[Arm, Arm, float], bool]
    found: Callable[[float, float, float], str]
    nearest: Callable[[float, Arm, float, float], str]
    no_arm: str = "no such arm"


@dataclass(frozen=True, kw_only=True)
class Control:
    """An arm that the claim needs, beside the arm that it is about.

    Attributes:
        name: what it is in tables and sentences.
        refutes: what it could show, in a clause.
        kinds: which arms can play it.
        match: in what it must be equal to the subject; None: any arm of the kind counts.
        also: what else must hold of subject and arm.
        tell: what is said of an arm that plays it without a match.
        claim: whether this is the claim itself, and no control.
    """

    name: str
    refutes: str = ""
    kinds: tuple[Kind, ...] | None = None
    match: Match | None = None
    also: Callable[[Arm, Arm], bool] = lambda subject, arm: True
    tell: Callable[[Arm], str] = lambda arm: ""
    claim: bool = False

    def plays(self, subject: Arm, arm: Arm) -> bool:
        """Whether a completed arm plays this part against ``subject``."""
        if self.kinds is not None and arm.kind not in self.kinds:
            return False
        if self.match is not None:
            ours, theirs = self.match.of(subject), self.match.of(arm)
            gap = None if ours is None or theirs is None else self.match.gap(theirs, ours)
            if gap is None or not self.match.fits(subject, arm, gap):
                return False
        return self.also(subject, arm)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A table in the terminal: without the columns of ``hide``, turned round or not, with sentences below it."""

    table: str
    hide: frozenset[str] = frozenset()
    turned: bool = False
    below: Callable[["Comparison"], Sequence[str]] = lambda comparison: ()


@dataclass(frozen=True, kw_only=True)
class Question:
    """The question that the runs of a capability answer.

    Attributes:
        capability: of the records.
        title, text: the head of the report, and the question itself.
        kinds: of arms, in the order of tables.
        kind_of: tells an arm's kind from its records, never from its name.
        metric: what the verdict is about.
        controls: what the claim must be held against.
        against: ``baseline``: the subject is held against one arm, and all other pairs are beside that; ``controls``:
            against the nearest arm of each kind of control at equal cost.
        baselines: kinds of which the baseline is chosen where none is named.
        correction: of which pairs the p values are corrected for their number (Holm).
        text_alone: whether differences need losses by window, and one seed is judged by them.
        rate_key: dotted key of the recipe in which arms of one method at several rates differ: such arms are read off
            at each other's cost (``against`` controls only).
        phrases, words: what is said of each outcome in an answer about several pairs, and in a cell; see
            ``Pair.facts``. An answer about one pair says the same in every question: ``SENTENCES``.
        opening: how an answer about several controls begins, of the subject.
        asked: whether these arms can answer it. A question with it is asked beside that of the capability.
        answer: a sentence, for questions that are asked beside; ``brief``: a clause of it for the first screen.
        whole: the arm that gives nothing up, if there is one: the first screen tells what the subject loses against it.
        tables: all tables by short name; None where there is nothing to show.
        facts, arm_facts: further keys of the JSON, about all and about one arm.
        remarks: further caveats.
        terminal: what the terminal shows.
        page: what the report shows beyond the tables (a ``layerroute.lab.report.page.Page``); called when one is made.
    """

    capability: str
    title: str = ""
    text: str = ""
    kinds: tuple[Kind, ...]
    kind_of: Callable[[Arm], Kind]
    metric: Metric = LOSS
    controls: tuple[Control, ...] = ()
    against: Literal["baseline", "controls"] = "baseline"
    baselines: tuple[Kind, ...] = ()
    correction: Literal["secondary", "all", "none"] = "secondary"
    text_alone: bool = False
    rate_key: str | None = None
    phrases: Mapping[Outcome, str] = field(default_factory=lambda: PHRASES)
    words: Mapping[Outcome, str] = field(default_factory=dict)
    opening: Callable[[Arm], str] = lambda subject: ""
    asked: Callable[[Sequence[Arm]], bool] | None = None
    answer: Callable[["Comparison"], str] = lambda comparison: ""
    brief: Callable[["Comparison"], str] = lambda comparison: ""
    whole: Callable[["Comparison"], Arm | None] = lambda comparison: None
    tables: Callable[["Comparison"], Mapping[str, Table | None]] | None = None
    facts: Callable[["Comparison"], Mapping[str, Any]] = lambda comparison: {}
    arm_facts: Callable[["Comparison", Arm], Mapping[str, Any]] = lambda comparison, arm: {}
    terminal: tuple[Shown, ...] = (Shown(table="main"), Shown(table="differences"))
    page: Callable[[], Any] | None = None


@cache
def questions() -> tuple[Question, ...]:
    """The question of every capability that there is a folder for.

    Raises:
        ValueError: two of them ask the first question about one capability.
    """
    package = importlib.import_module("layerroute.capabilities")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)
    found = [importlib.import_module(f"{package.__name__}.{name}.question").QUESTION for name in names]
    first = [question.capability for question in found if question.asked is None]
    if len(set(first)) < len(first):
        raise ValueError(f"each capability is asked about once, and these are asked about: {listing(first)}")
    return tuple(found)


def question_of(runs: Sequence[Run]) -> Question:
    """The question that ``runs`` answer, by the capability of their records.

    Raises:
        UserError: no run; different capabilities; one that nobody asks about.
    """
    if not runs:
        raise UserError("there is no run to compare: give run directories as `layerroute train` wrote them.")
    capabilities = sorted({str(run.record["capability"]) for run in runs})
    if len(capabilities) > 1:
        raise UserError(f"runs of {listing(capabilities)} answer different questions: compare them apart.")
    for question in questions():
        if question.capability == capabilities[0] and question.asked is None:
            return question
    known = listing(sorted({question.capability for question in questions()}))
    raise UserError(f"there is no question about runs of {capabilities[0]}, only about those of {known}.")
