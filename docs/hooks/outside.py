"""Files of the repository outside of ``docs/`` that the manual shows or links to: the site has a copy of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
OUT_OF_DOCS = re.compile(r"\]\(\.\./([^)#\s]+)")
OF_THE_ROOT = re.compile(r"\]\((?![a-z]+:|#)(docs/)?")
SHOWN = {".json", ".png", ".svg", ".csv", ".html"}
"""Endings that browsers show. Other copies get ``.txt`` behind their names, or a browser would save them."""


def on_files(files: Files, config: Any) -> Files:
    """Add README, CHANGELOG and CONTRIBUTING as pages, and a copy of every file that a page links to."""
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = OF_THE_ROOT.sub(lambda found: "](" if found[1] else "](../", text)
        files.append(File.generated(config, name, content=content))
    for page in [file for file in files if file.is_documentation_page()]:
        for target in OUT_OF_DOCS.findall(page.content_string):
            copy(files, config, ROOT / target)
    return files


def copy(files: Files, config: Any, path: Path) -> None:
    """Add a file; of a folder, its files and a page that lists them."""
    name = address(path)
    if name is None or files.get_file_from_path(name) is not None:
        return
    if path.is_file():
        files.append(File.generated(config, name, content=path.read_bytes()))
        return
    inside = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    lines = [f"- [{p.relative_to(path)}]({path.name}/{address(p, path)})" for p in inside]
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path.relative_to(ROOT)}\n\n"
    files.append(File.generated(config, name, content=head + "\n".join(lines) + "\n"))
    for other in inside:
        copy(files, config, other)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to the copies. One that leads to no file stays as it is, and the strict build refuses it."""
    return OUT_OF_DOCS.sub(lambda found: f"]({address(ROOT / found[1]) or found[1]}", markdown)


def address(path: Path, below: Path = ROOT) -> str | None:
    """Where the copy of a file, or the list of a folder, is in the site; None where there is no such file."""
    if not path.exists():
        return None
    name = path.relative_to(ROOT).as_posix()
    if below == ROOT and name in PAGES:
        return PAGES[name]
    start = "repository/" if below == ROOT else ""
    ending = ".md" if path.is_dir() else "" if path.suffix in SHOWN else ".txt"
    return f"{start}{path.relative_to(below).as_posix()}{ending}"
