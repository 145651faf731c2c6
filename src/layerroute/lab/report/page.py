"""What a capability says of its report: figures, sections of the page, words, and the paper's text."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import layerroute.capabilities
from layerroute.lab.arms import Arm
from layerroute.lab.report.figures import FigureSpec
from layerroute.lab.report.style import Look
from layerroute.lab.report.words import Words
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
        capability: as records name it.
        sections: of the page, between its head and the discussion.
        results: of the paper: (heading, blocks) each; what no section of the paper shows is in its appendix.
        words: all sentences, from the comparison and the kinds of the subject's tokens.
        paper: a template that extends ``paper.md.j2``, in the folder ``templates`` of the capability.
        looks: marker and colour of each kind of arm; None: every arm has its own.
        kind_of: what an arm is.
    """

    capability: str
    figures: Sequence[FigureSpec]
    sections: Sequence[Section]
    results: Sequence[tuple[str, Sequence[Block]]]
    words: Callable[[Any, TokenKinds | None], Words]
    paper: str = "paper.md.j2"
    looks: Mapping[str, Look] | None = None
    kind_of: Callable[[Arm], str] = lambda arm: str(arm.kind)


def capabilities() -> list[str]:
    """The packages of capabilities that have something to say of their report."""
    home = layerroute.capabilities
    names = [f"{home.__name__}.{folder.name}" for folder in pkgutil.iter_modules(home.__path__)]
    return [name for name in names if importlib.util.find_spec(f"{name}.page") is not None]


def pages() -> dict[str, Page]:
    """The ``PAGE`` of every capability that has one in its module ``page``, by the capability's name in records."""
    found = [importlib.import_module(f"{name}.page").PAGE for name in capabilities()]
    return {page.capability: page for page in found}
