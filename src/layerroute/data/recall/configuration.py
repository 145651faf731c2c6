"""What is to be recalled: the ``data.recall`` section of a recipe."""

from dataclasses import dataclass, field
from typing import Literal

from layerroute.errors import expect

Task = Literal["mqar", "needle", "copying", "induction"]


@dataclass(kw_only=True, frozen=True)
class CurriculumConfig:
    """Begin with few pairs: with all of them at once even softmax attention stays at chance for a long time.

    The largest number of pairs grows geometrically. Every second batch has that number, the others fewer, evenly from
    ``start`` on.

    Attributes:
        start: pairs at the beginning of the run.
        begin: share of the run from which they grow. How to recall is learnt with few pairs, and carries over to many.
        finish: share of the run at which the task's own number is reached.
        shortest: sequences with fewer pairs are shorter in proportion, with as large a share of noise, but have so many
            tokens at least. A batch then has more rows, and about as many tokens as ever. Needs ``noise``. None
            (default): all have ``data.sequence_length``.
    """

    start: int = 2
    begin: float = 0.0
    finish: float = 0.5
    shortest: int | None = None

    def __post_init__(self) -> None:
        expect(self.start >= 1, f"data.recall.curriculum.start is {self.start}; it must be 1 or more")
        expect(
            0.0 < self.finish <= 1.0,
            f"data.recall.curriculum.finish is a share of the run, 0 < finish <= 1, got {self.finish}",
        )
        expect(
            0.0 <= self.begin < self.finish,
            f"data.recall.curriculum.begin is a share of the run, 0 <= begin < finish, got {self.begin}",
        )


@dataclass(kw_only=True, frozen=True)
class RecallConfig:
    """A recall task.

    ``mqar`` (multi-query associative recall, Arora et al. 2024): ``pairs`` of key and value, then queries, each a key
    whose value is due, with filler between. ``needle``: one key and value (with ``pairs`` > 1 further ones of other
    keys, as distractors) at random depths of a haystack of filler, and the key once more at the end. ``copying``:
    ``pairs`` values, then all of them again in order. ``induction``: values, among them once a key; at its second
    appearance, at the end, the value that followed it is due.

    Attributes:
        task: one of these.
        pairs: pairs, needles, or values to be copied.
        queries: of ``mqar``: how many of the keys are asked for, each once. Default: all.
        keys, values, fillers: sizes of the vocabularies that each part is drawn from.
        gap_power: of ``mqar``: a query stands in slot i after the pairs with a weight of i^(gap_power − 1): 1 (default)
            spreads them evenly, smaller values put them early (0.01 is that of the original).
        noise: of ``mqar``: the share of filler in a sequence of ``data.sequence_length`` tokens, spread evenly between
            pairs and between queries. The rest is pairs and queries, so that it says how many queries there are: keys
            are asked for in turn, each as often as the others or once more. None (default): pairs stand together at
            the beginning, and filler is what room they leave.
        writes: of ``mqar``: how often each key is told, each time with another value than the last time. The last
            value counts.
        curriculum: fewer pairs at first. None: all from the beginning.
        evaluation_multiples: of ``data.sequence_length``: lengths at which recall is measured at the end of a run, with
            as many pairs and more between them.

    Raises:
        UserError: values out of range.
    """

    task: Task = "mqar"
    pairs: int = 8
    queries: int | None = None
    keys: int = 64
    values: int = 64
    fillers: int = 16
    gap_power: float = 1.0
    noise: float | None = None
    writes: int = 1
    curriculum: CurriculumConfig | None = None
    evaluation_multiples: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])

    def __post_init__(self) -> None:
        for name in ("pairs", "keys", "values", "fillers", "writes"):
            value = getattr(self, name)
            expect(value >= 1, f"data.recall.{name} is {value}; it must be 1 or more")
        multiples = self.evaluation_multiples
        expect(
            all(value >= 1 for value in multiples),
            f"data.recall.evaluation_multiples is {multiples}; each must be 1 or more",
        )
        expect(self.values >= 2, "data.recall.values is 1: there would be nothing to recall; give 2 or more")
        expect(
            self.task not in ("mqar", "needle") or self.pairs <= self.keys,
            f"data.recall.pairs is {self.pairs}, and every key comes once: set data.recall.keys to that or more",
        )
        expect(
            self.queries is None or (self.task == "mqar" and 1 <= self.queries <= self.pairs),
            f"data.recall.queries is {self.queries}; it is for mqar, from 1 to data.recall.pairs ({self.pairs})",
        )
        expect(
            0.0 < self.gap_power <= 1.0, f"data.recall.gap_power is {self.gap_power}; it must be in (0, 1]"
        )
        expect(
            self.gap_power == 1.0 or self.task == "mqar",
            f"data.recall.gap_power is {self.gap_power}; it is for mqar, and {self.task} has no such gaps",
        )
        expect(
            self.curriculum is None or self.task != "induction",
            "data.recall.curriculum is for tasks with pairs, and induction has one key; leave it out",
        )
        expect(
            self.writes == 1 or self.task == "mqar",
            f"data.recall.writes is {self.writes}; it is for mqar, and others tell everything once",
        )
        if self.noise is not None:
            expect(0.0 < self.noise < 1.0, f"data.recall.noise is {self.noise}; it must be in (0, 1)")
            expect(
                self.task == "mqar" and self.queries is None and self.gap_power == 1.0,
                "data.recall.noise is for mqar, says how many queries there are, and spreads them evenly: leave "
                "data.recall.queries and data.recall.gap_power out",
            )
        shortest = self.curriculum.shortest if self.curriculum else None
        expect(
            shortest is None or (self.noise is not None and shortest >= 1),
            f"data.recall.curriculum.shortest is {shortest}; it is a number of tokens, and needs data.recall.noise",
        )
        start = self.curriculum.start if self.curriculum else 1
        expect(
            start <= self.pairs,
            f"data.recall.curriculum.start is {start}; it must not be above data.recall.pairs ({self.pairs})",
        )

    def room(self, length: int, pairs: int) -> int:
        """With ``noise``: queries for which so many pairs leave room in a training sequence of ``length`` tokens."""
        assert self.noise is not None
        return round(length * (1 - self.noise)) // 2 - pairs * self.writes

    def asked(self, length: int) -> int:
        """Queries of ``mqar`` in a training sequence of ``length`` tokens; longer ones for evaluation have as many.

        Raises:
            UserError: so much noise leaves no room for a query.
        """
        if self.noise is None:
            return self.queries or self.pairs
        queries = self.room(length, self.pairs)
        told = self.pairs * self.writes
        expect(
            queries >= 1,
            f"data.recall.noise is {self.noise}: of data.sequence_length {length} it leaves "
            f"{round(length * (1 - self.noise))} tokens, and {told} pairs and a query need {2 * told + 2}",
        )
        return queries

    def length_at(self, pairs: int, length: int) -> int:
        """Tokens of a training sequence with so many pairs, where those with all of them have ``length``."""
        plan = self.curriculum
        if plan is None or plan.shortest is None:
            return length
        # Rounded down, so short a sequence may leave its pairs no room for a question.
        least = self.least_length(1, pairs)
        return min(length, max(plan.shortest, least, -(-length * pairs // self.pairs)))

    def least_length(self, queries: int | None = None, pairs: int | None = None) -> int:
        """Tokens that a sequence needs; of ``mqar`` with these numbers of ``queries`` and ``pairs``, if given."""
        if self.task == "mqar":
            return 2 * (pairs or self.pairs) * self.writes + 2 * (queries or self.queries or self.pairs)
        if self.task == "needle":
            return 2 * self.pairs + 3
        return 2 * self.pairs + 1 if self.task == "copying" else 5

    @property
    def vocabulary_size(self) -> int:
        """End-of-text and mark, then keys, values and fillers."""
        return FIRST_KEY + self.keys + self.values + self.fillers

    def names(self) -> list[str]:
        """The text of each token, by id."""
        parts = (("k", self.keys), ("v", self.values), ("f", self.fillers))
        return ["<|endoftext|>", "?", *(f"{letter}{n}" for letter, count in parts for n in range(count))]

    def pairs_at(self, batch: int, batches: int, *, at: int | None = None) -> int:
        """The number of pairs of a training batch, by the curriculum, which is ``at`` so far (default: ``batch``)."""
        plan = self.curriculum
        if plan is None:
            return self.pairs
        begin = plan.begin * batches
        grown = (batch if at is None else at) - begin
        share = min(1.0, max(0.0, grown) / max(1.0, plan.finish * batches - begin))
        most = round(plan.start * (self.pairs / plan.start) ** share)
        if batch % 2 == 0 or most == plan.start:
            return most
        # A fixed walk through the smaller numbers: 0.618… leaves no gaps and needs no random state.
        return plan.start + int((batch * 0.6180339887498949 % 1.0) * (most - plan.start))


END, MARK, FIRST_KEY = 0, 1, 2
"""Ids of the end-of-text token, of the mark that announces a question, and of the first key."""
