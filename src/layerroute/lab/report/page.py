"""What a capability says of its report: figures, sections of the page, words, and the paper's text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from layerroute.lab.compare import Comparison
from layerroute.lab.question import questions
from layerroute.lab.report.figures import GENERAL, FigureSpec
from layerroute.lab.report.style import Look
from layerroute.lab.report.words import Words, general_words
from layerroute.lab.tokens import TokenKinds


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a section: a table or figure by name, the sentence on cost, tokens to hover over, or a fold."""

    kind: Literal["table", "figure", "cost", "tokens", "fold"]
    name: str = ""
    blocks: tuple["Block", ...] = ()


def tables(*names: str) -> tuple[Block, ...]:
    """Tables by name; one that the comparison does not have is left out."""
    return tuple(Block(kind="table", name=name) for name in names)


def figures(*names: str) -> tuple[Block, ...]:
    """Figures by name."""
    return tuple(Block(kind="figure", name=name) for name in names)


def fold(summary: str, *blocks: Block) -> Block:
    """Blocks that are shown when their summary is clicked; none where all are left out."""
    return Block(kind="fold", name=summary, blocks=blocks)


TOKENS, COST = Block(kind="tokens"), Block(kind="cost")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page."""

    id: str
    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Page:
    """The report of one capability.

    Attributes:
        sections: of the page, between its head and the discussion.
        results: of the paper: (heading, blocks) each; what no section of the paper shows is in its appendix.
        words: all sentences, from the comparison and the kinds of the subject's tokens.
        paper: a template that extends ``paper.md.j2``, in the folder ``templates`` of ``package``.
        looks: marker and colour of each kind of arm; None: every arm has its own.
    """

    figures: Sequence[FigureSpec]
    sections: Sequence[Section]
    results: Sequence[tuple[str, Sequence[Block]]]
    words: Callable[[Comparison, TokenKinds | None], Words]
    paper: str = "paper.md.j2"
    looks: Mapping[str, Look] | None = None
    package: str = ""


def page_of(comparison: Comparison) -> Page:
    """The report of a comparison: what its question says of it, or all tables and the general figures."""
    if comparison.question.page is not None:
        found: Page = comparison.question.page()
        return found
    names = [name for name in (*comparison.tables, *comparison.token_tables) if name != "runs"]
    blocks = (*tables(*names), TOKENS, *figures(*(figure.name for figure in GENERAL)))
    return Page(
        figures=GENERAL,
        sections=(Section(id="results", heading="Results", blocks=blocks),),
        results=(("Results", tuple(block for block in blocks if block is not TOKENS)),),
        words=general_words,
    )


def all_figures() -> set[str]:
    """Names of the figures of every capability."""
    pages = [question.page() for question in questions() if question.page is not None]
    return {figure.name for page in pages for figure in page.figures} | {figure.name for figure in GENERAL}
