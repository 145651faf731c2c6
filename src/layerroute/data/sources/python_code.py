"""Python source text that is already on the machine: the standard library, and installed packages."""

import importlib.metadata
import io
import os
import re
import sys
import sysconfig
import tokenize
from pathlib import Path
from typing import ClassVar

from layerroute.data.sources.base import NamedTexts, clean_text, read_bytes
from layerroute.errors import UserError, nearest

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_SOURCE_SUFFIXES = (".py", ".pyi")


class PythonCode(NamedTexts):
    """Python files under a name each; files that do not decode as their own header declares are left out.

    Args:
        files: (document name, path), in the order of reading.
    """

    mark: ClassVar[bytes] = b"python-code"

    def __init__(self, description: str, files: list[tuple[str, Path]]) -> None:
        super().__init__(description)
        self.items = files

    @property
    def real_paths(self) -> list[str]:
        """Where the files are."""
        return [os.path.realpath(path) for _, path in self.items]

    def read(self, content: Path) -> bytes:
        return read_bytes(content)

    def text(self, data: bytes) -> str:
        """As the file's coding line or BOM says (UTF-8 without one); empty where it does not hold."""
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            return clean_text(data.decode(encoding))
        except (SyntaxError, UnicodeDecodeError, LookupError):
            return ""


def standard_library() -> PythonCode:
    """Return the running interpreter's standard library: .py files of ``sys.stdlib_module_names``, sorted.

    Left out: test packages (``test``, ``tests``, ``idle_test``: three times the size of the library, and much of it
    data that no one would write), and what is no part of the library though it lies in its folder (site-packages,
    a distribution's ``sitecustomize``, ``_sysconfigdata_*`` with the paths of one machine). So the documents depend
    on the Python version alone.

    Raises:
        UserError: the interpreter carries no source files (a zipped or stripped library).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, Path]] = []
    for entry in root.iterdir() if root.is_dir() else ():  # not below site-packages, which may be vast
        if entry.name.removesuffix(".py") in sys.stdlib_module_names:
            below = [entry] if entry.suffix == ".py" else entry.rglob("*.py")
            found.extend((path.relative_to(root).as_posix(), path) for path in below)
    found = [item for item in found if not _TEST_FOLDERS.intersection(Path(item[0]).parts)]
    if not found:
        raise UserError(
            f"this Python ({sys.executable}) carries no source files of its standard library in {root}; "
            "use data.source 'files' with data.paths instead"
        )
    version = ".".join(map(str, sys.version_info[:3]))
    return PythonCode(f"python-stdlib {version}", sorted(found))


def installed_packages(names: list[str]) -> PythonCode:
    """Return the .py and .pyi files that the named distributions installed, by package, then by path.

    Raises:
        UserError: a name that is not installed (with the nearest one), or a distribution whose files are not
            listed or hold no Python source (editable installs list none).
    """
    files: list[tuple[str, Path]] = []
    described = []
    for name in dict.fromkeys(_canonical(name) for name in names):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            installed = {_canonical(d.name) for d in importlib.metadata.distributions() if d.name}
            raise UserError(
                f"data.packages names {name!r}, which is not installed.{nearest(name, installed)}"
            ) from None
        listed = [
            (f"{name}/{entry.as_posix()}", Path(str(entry.locate())))
            for entry in distribution.files or ()
            if entry.suffix in _SOURCE_SUFFIXES and ".." not in entry.parts
        ]
        present = sorted(item for item in listed if item[1].is_file())
        if not present:
            raise UserError(
                f"data.packages names {name!r}, which lists no Python source files (an editable install or a "
                "compiled package); name one that is installed as source, or use data.source 'files'"
            )
        files.extend(present)
        described.append(f"{name} {distribution.version}")
    return PythonCode(f"installed-packages {', '.join(described)}", files)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
