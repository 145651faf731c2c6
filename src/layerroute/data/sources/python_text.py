"""Text that a bare machine has beside code: documentation strings, Python's own reference, packages' descriptions.

The modules of the standard library are parted in two by a digest of their names: the code of one half is the kind
``python-code``, the documentation strings of the other half are ``python-docs``. So no text is in both.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar

from layerroute.data.sources.base import NamedTexts, clean_text
from layerroute.data.sources.python_code import PythonCode, standard_library
from layerroute.errors import UserError

_PIECE = 3000
"""Characters of a document of documentation strings: those of one module are joined, and parted here."""

_SHORTEST = 80
"""Characters of a documentation string or description below which it is left out."""


class PlainTexts(NamedTexts):
    """Texts that are made on the first use and held in memory.

    Args:
        read: makes (name, text) pairs.
        real_paths: files that they are parts of.
    """

    mark: ClassVar[bytes] = b"plain-texts"

    def __init__(
        self, description: str, read: Callable[[], list[tuple[str, str]]], *, real_paths: Sequence[str] = ()
    ) -> None:
        super().__init__(description)
        self._read, self.real_paths = read, real_paths

    @cached_property
    def items(self) -> Sequence[tuple[str, str]]:  # type: ignore[override]
        # By a digest of the name: neighbours in the alphabet are of one package and much alike.
        return sorted(self._read(), key=lambda item: _digest(item[0]))

    def read(self, content: str) -> bytes:
        return content.encode()


def library_code() -> PythonCode:
    """One half of the standard library's modules as code, in an order that mixes its packages."""
    library = standard_library()
    return PythonCode(
        f"code of {library.describe()}",
        sorted(
            (item for item in library.items if not _documents(item[0])), key=lambda item: _digest(item[0])
        ),
    )


def library_documentation() -> PlainTexts:
    """Documentation strings of the other half as prose: dedented, without doctests, about 3,000 characters each."""
    library = standard_library()
    half = PythonCode("", [item for item in library.items if _documents(item[0])])

    def read() -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for document in half.documents():
            pieces, size = [""], 0
            for string in documentation_strings(document.text):
                if size >= _PIECE:
                    pieces.append("")
                    size = 0
                pieces[-1] += f"{string}\n\n"
                size += len(string)
            found += [
                (f"{document.name}#{index}", piece) for index, piece in enumerate(pieces) if piece.strip()
            ]
        return found

    return PlainTexts(f"documentation strings of {library.describe()}", read, real_paths=half.real_paths)


def reference_texts() -> PlainTexts:
    """Python's language reference (``pydoc_data.topics``) and the descriptions of installed packages.

    Licences are left out: they are copies of each other.

    Raises:
        UserError: the machine has neither.
    """

    def read() -> list[tuple[str, str]]:
        found = {f"topic {name}": without_doctests(text) for name, text in _topics().items()}
        for distribution in importlib.metadata.distributions():
            metadata = distribution.metadata
            body = metadata.get_payload() or metadata.get("Description")  # type: ignore[attr-defined]
            if isinstance(body, str) and distribution.name:
                found[f"package {distribution.name}"] = _prose_lines(body)
        seen: dict[str, str] = {}
        for name, text in sorted(found.items()):
            if len(text) >= _SHORTEST:
                seen.setdefault(clean_text(text), name)  # topics repeat each other
        if not seen:
            raise UserError(
                "this Python carries no reference and no package descriptions; give text of your own"
            )
        return [(name, text) for text, name in seen.items()]

    return PlainTexts("Python's language reference and descriptions of installed packages", read)


def documentation_strings(source: str) -> list[str]:
    """The documentation strings of a module, its classes and functions, in order; empty where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            string = without_doctests(ast.get_docstring(node, clean=False) or "")
            if len(string) >= _SHORTEST:
                found.append(string)
    return found


def without_doctests(text: str) -> str:
    """``text`` dedented, without lines that begin with ``>>>`` or ``...`` and the output below them."""
    kept, in_example = [], False
    for line in inspect.cleandoc(text).splitlines():
        in_example = line.lstrip().startswith((">>>", "...")) or (in_example and bool(line.strip()))
        if not in_example:
            kept.append(line.rstrip())
    return "\n".join(kept).strip()


def _prose_lines(text: str) -> str:
    """A README without badges, images and HTML."""
    marks = ("<", "[![", "![", ".. image", ".. |", "|", ":target:", ":alt:")
    lines = [line.rstrip() for line in without_doctests(text).splitlines()]
    return "\n".join(line for line in lines if not line.lstrip().startswith(marks)).strip()


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # a stripped library
        return {}
    return dict(topics)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _documents(name: str) -> bool:
    """Whether a module gives its documentation strings, not its code."""
    return bool(_digest(name)[-1] & 1) or name.startswith("pydoc_data")
