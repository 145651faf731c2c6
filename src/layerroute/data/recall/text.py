"""The recall tasks in plain English, for models that read text: documents with a context and the word that follows it.

What is recalled stands in the context, so that a model which can look back needs no knowledge. Length is a matter of
filler: sentences that say nothing about what is asked.
"""

from dataclasses import dataclass

from layerroute.data.recall.configuration import Task
from layerroute.data.recall.tasks import Draw
from layerroute.errors import UserError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KEYS = _words(
    "river garden window market bottle castle engine forest hammer island jacket kitchen ladder meadow needle office "
    "palace rabbit saddle table valley wagon anchor basket candle desert feather guitar harbor insect jungle lantern "
    "mirror napkin orchard pencil quarry ribbon shelter temple umbrella village whistle barrel carpet dragon elbow "
    "fountain glacier helmet iron jewel kettle lemon magnet nest ocean parrot quilt rocket spoon tunnel uncle vase"
)
VALUES = _words(
    "red blue green yellow white black brown purple orange silver gold pink gray small large round square heavy light "
    "soft hard warm cold wet dry old new young fast slow deep high low long short wide thin thick sharp clean dirty "
    "bright dark loud quiet sweet bitter salty fresh rich poor strong weak rough smooth empty full open closed early "
    "late cheap rare simple"
)
FILLERS = (
    "The road goes on for many miles.",
    "People walk there in the morning.",
    "It rained for most of the week.",
    "Nobody knew how long it would take.",
    "The train was late again.",
    "They talked about the weather.",
    "There was not much to see.",
    "A bell rang in the distance.",
    "The shop opens at nine.",
    "He wrote a letter and went home.",
    "The children played until dinner.",
    "She read a book by the fire.",
)


@dataclass(kw_only=True, frozen=True)
class TextRecall:
    """A recall task in text.

    Attributes:
        task: ``mqar``: facts at the beginning, then filler, then questions about all of them of which the last is open;
            ``needle``: facts among the filler, one is asked for (one pair: a single needle; more: distractors);
            ``copying``: a list of words, filler, and the list again but for its last word; ``induction``: a list in
            which one word comes twice, and is followed by what followed it.
        pairs: facts, or words of the list.
        filler: sentences of filler.
        seed: other documents.
    """

    task: Task
    pairs: int = 4
    filler: int = 10
    documents: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"pairs": 2 if self.task in ("copying", "induction") else 1, "filler": 0, "documents": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"recall: {name} is {getattr(self, name)}; {self.task} needs {low} or more")
        if self.pairs > len(KEYS):
            raise UserError(f"recall: pairs is {self.pairs}; there are {len(KEYS)} words")

    @property
    def name(self) -> str:
        """``needle-4-pairs-10-filler``: what scores are listed under."""
        return f"{self.task}-{self.pairs}-pairs-{self.filler}-filler"

    def rows(self) -> list[dict[str, str]]:
        """The documents, each ``context`` and ``target``, the one word that is right after it."""
        make = {"mqar": _mqar, "needle": _needle, "copying": _copying, "induction": _induction}[self.task]
        # The filler is drawn last: documents of different lengths ask for the same things.
        return [
            make(self, Draw(f"text {self.task} {self.pairs} {self.seed} {n}")) for n in range(self.documents)
        ]


def _facts(task: TextRecall, draw: Draw) -> list[tuple[str, str]]:
    keys = draw.distinct(len(KEYS), 1, task.pairs)[0]
    values = draw.integers(len(VALUES), task.pairs)
    return [(KEYS[key], VALUES[value]) for key, value in zip(keys, values, strict=True)]


def _filler(task: TextRecall, draw: Draw) -> list[str]:
    return [FILLERS[number] for number in draw.integers(len(FILLERS), task.filler)] if task.filler else []


def _statement(key: str) -> str:
    return f"The {key} is"


def _mqar(task: TextRecall, draw: Draw) -> dict[str, str]:
    facts = _facts(task, draw)
    order = draw.distinct(task.pairs, 1, task.pairs)[0]
    told = [f"{_statement(key)} {value}." for key, value in facts]
    asked = [f"{_statement(facts[n][0])} {facts[n][1]}." for n in order[:-1]]
    key, value = facts[order[-1]]
    return _document([*told, *_filler(task, draw), *asked, _statement(key)], value)


def _needle(task: TextRecall, draw: Draw) -> dict[str, str]:
    facts = _facts(task, draw)
    places = draw.uniform(task.pairs)
    sentences = _filler(task, draw)
    for place, (key, value) in sorted(zip(places, facts, strict=True), reverse=True):
        sentences.insert(int(place * (task.filler + 1)), f"{_statement(key)} {value}.")
    return _document([*sentences, _statement(facts[0][0])], facts[0][1])


def _copying(task: TextRecall, draw: Draw) -> dict[str, str]:
    words = [KEYS[number] for number in draw.distinct(len(KEYS), 1, task.pairs)[0]]
    begin = "List:"
    return _document(
        [f"{begin} {', '.join(words)}.", *_filler(task, draw), f"{begin} {', '.join(words[:-1])},"], words[-1]
    )


def _induction(task: TextRecall, draw: Draw) -> dict[str, str]:
    words = [KEYS[number] for number in draw.distinct(len(KEYS), 1, task.pairs)[0]]
    place = int(draw.integers(task.pairs - 1, 1)[0])
    sentences = [f"List: {', '.join(words)}.", *_filler(task, draw)]
    return _document([*sentences, f"List: {words[place]},"], words[place + 1])


def _document(sentences: list[str], target: str) -> dict[str, str]:
    return {"context": " ".join(sentences), "target": target}
