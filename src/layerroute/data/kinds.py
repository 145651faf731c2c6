"""Kinds of text: a name, the files behind it, and its share of what is read (``--data NAME=PATH``)."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from layerroute.errors import UserError

UNNAMED = "text"
"""The kind of files that are given without a name."""

_WORD = re.compile(r"([A-Za-z_][\w-]*)(?::([^=/]*))?=(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][\w-]*")

KINDS_HELP = (
    "a kind of text: NAME=FILE (txt, jsonl, json, csv, tsv or parquet, compressed or not; also a folder or a glob; "
    "several with commas or as further words). Repeat it for each kind. NAME:SHARE=FILE gives a kind so many parts "
    "(default: equal shares). Without NAME: one kind, 'text'"
)

DEFAULT_HELP = (
    "text of this machine: the Python library's code, its documentation strings, and its reference with packages' "
    "descriptions"
)


_OF_A_DATASET = ("subset", "split", "revision")


@dataclass(kw_only=True, frozen=True)
class KindConfig:
    """One kind of text, from files or from a dataset of the hub.

    Attributes:
        paths: files, folders and globs; or one of ``python-stdlib``, ``python-code``, ``python-docs`` and
            ``python-reference``, the text that is on every machine.
        dataset, subset, split, revision: in place of ``paths``: name of a hub dataset, and which part of it.
        share: its part of the tokens that are drawn, in proportion to the others'. Default 1: equal shares.
        text_field: key or column of the text in records. Default ``text``.

    Raises:
        UserError: neither paths nor a dataset, or both, a part of a dataset beside paths, or a share that is not above
            0.
    """

    paths: list[str] = field(default_factory=list)
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    share: float = 1.0
    text_field: str = "text"

    def __post_init__(self) -> None:
        paths: object = self.paths
        if not (isinstance(paths, list) and all(isinstance(path, str) and path for path in paths)):
            raise UserError(f"a kind of text needs paths, a list of non-empty strings; got {self.paths!r}")
        if bool(paths) == bool(self.dataset):
            raise UserError(
                f"a kind of text needs paths or a dataset, one of the two; got {self.paths!r} and {self.dataset!r}"
            )
        given = [name for name in _OF_A_DATASET if getattr(self, name) != type(self).__dict__[name]]
        if paths and given:
            raise UserError(
                f"{given[0]} is of a dataset, and a kind of text with paths has none; leave it out"
            )
        if not (math.isfinite(self.share) and self.share > 0):
            raise UserError(f"the share of a kind of text must be above 0, got {self.share}")

    @property
    def where(self) -> str:
        """Its files, or its dataset, as they were given."""
        return self.dataset or ", ".join(self.paths)


def default_kinds() -> dict[str, KindConfig]:
    """What is read where no text is given: Python code, its documentation as prose, and reference texts."""
    return {
        "code": KindConfig(paths=["python-code"]),
        "docs": KindConfig(paths=["python-docs"]),
        "reference": KindConfig(paths=["python-reference"]),
    }


def check_kinds(kinds: Mapping[str, KindConfig]) -> None:
    """Raise :class:`UserError` for a name that is no word."""
    for name in kinds:
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} is not a name for a kind of text; use letters, digits, '_' and '-'")


def parse_kinds(
    words: Sequence[str] | None, option: str = "--data", *, text_field: str = "text"
) -> dict[str, KindConfig]:
    """Kinds in the words of the command line; see :data:`KINDS_HELP`. None: :func:`default_kinds`.

    A word whose whole text is an existing file is a path, even with a ``=`` in it.

    Raises:
        UserError: a kind that is named twice or has no path, or a share that is not a number above 0.
    """
    if words is None:
        return default_kinds()
    paths: dict[str, list[str]] = {}
    shares: dict[str, float] = {}
    current = UNNAMED
    for word in words:
        match = None if os.path.exists(word) else _WORD.fullmatch(word)
        if match is None:
            paths.setdefault(current, []).append(word)
            continue
        current, share, rest = match.groups()
        if current in paths:
            raise UserError(
                f"{option} names the kind {current!r} twice; give all its files at once: {current}=FILE,FILE"
            )
        found = [rest] if os.path.exists(rest) else [part for part in rest.split(",") if part]
        if not found:
            raise UserError(f"{option} {word}: the kind {current!r} has no file; write {current}=FILE")
        paths[current] = found
        if share is not None:
            shares[current] = _share(word, share, option)
    return {
        name: KindConfig(paths=found, share=shares.get(name, 1.0), text_field=text_field)
        for name, found in paths.items()
    }


def _share(word: str, text: str, option: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not (math.isfinite(share) and share > 0):
        raise UserError(f"{option} {word}: {text!r} is not a share; write NAME:2=FILE for two parts")
    return share
