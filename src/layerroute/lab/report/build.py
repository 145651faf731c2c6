"""Builds a report from runs: figures, HTML page and Markdown paper. The same runs give the same bytes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from layerroute.errors import UserError
from layerroute.lab.compare import Comparison, compare
from layerroute.lab.fairness import machine
from layerroute.lab.format import listing, number, plural
from layerroute.lab.report.figures import FigureEntry, View, build_figures, files_of
from layerroute.lab.report.first_screen import first_screen
from layerroute.lab.report.html import Numbering, Paper, data_link, environment, inline_svg, tokens_view
from layerroute.lab.report.page import Page, all_figures, page_of
from layerroute.lab.report.speed import read_speed_records
from layerroute.lab.report.style import LineStyle, arm_styles
from layerroute.lab.report.words import facts
from layerroute.lab.runs import load_runs
from layerroute.lab.tokens import token_groups
from layerroute.records import RECORD_NAME

MARK = '<meta name="generator" content="layerroute report">'
PAGE, PAPER, FIGURES = "index.html", "paper.md", "figures"


def build_report(
    directory: str | os.PathLike[str],
    runs: Sequence[str | os.PathLike[str]] = (),
    *,
    out: str | os.PathLike[str] | None = None,
    baseline: str | None = None,
    subject: str | None = None,
    allow_different_data: bool = False,
    bench: Sequence[str | os.PathLike[str]] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Path, Comparison]:
    """Write the report about the runs in ``directory`` and in ``runs``; return the page's path and what it shows.

    Args:
        directory: a run or study directory, or (with ``runs``) any directory that shall hold the report.
        runs: further runs or directories of runs.
        out: folder of the report; default ``directory/report``. An older report there is replaced.
        baseline, subject, allow_different_data: as in `compare_runs`.
        bench: records of ``layerroute bench``, for the figure of speed.
        progress: told in words what is done next.

    Raises:
        UserError: no runs; runs that cannot be compared; ``out`` holds something that is not a report.
    """
    directory = Path(directory)
    sources: list[str | os.PathLike[str]] = [*runs]
    if not runs or _holds_runs(directory):
        sources.insert(0, directory)
    found = load_runs(sources)
    speed = read_speed_records(bench)
    home = directory.parent if directory.is_file() else directory
    target = home / "report" if out is None else Path(out)
    comparison = compare(found, baseline=baseline, subject=subject, allow_different_data=allow_different_data)
    page = page_of(comparison)
    _clear(target)
    write_report(comparison, page, target, bench=speed, progress=progress)
    return target / PAGE, comparison


def view_of(comparison: Comparison, page: Page, bench: Sequence[dict[str, Any]] = ()) -> View:
    """What figures are drawn from."""
    return View(
        comparison=comparison,
        styles=arm_styles(comparison.arms, comparison.baseline, comparison.subject, page.looks),
        looks={
            kind: LineStyle(color=colour, marker=marker)
            for kind, (marker, colour) in (page.looks or {}).items()
        },
        bench=bench,
    )


def write_report(
    comparison: Comparison,
    page: Page,
    target: Path,
    *,
    bench: Sequence[dict[str, Any]] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Write ``index.html``, ``paper.md`` and ``figures/`` of a comparison into ``target``."""
    view = view_of(comparison, page, bench)
    _ = comparison.tables, comparison.token_tables  # made once, before processes fork for figures
    figures = build_figures(page.figures, view, target / FIGURES, progress)
    context = report_context(view, page, figures, target / FIGURES)
    templates = environment(page.package)
    for name, template in ((PAGE, "index.html.j2"), (PAPER, page.paper)):
        if name == PAPER:
            templates.finalize = Paper.value
        text = templates.get_template(template).render(context)
        (target / name).write_text(text, encoding="utf-8", newline="\n")


def report_context(view: View, page: Page, figures: dict[str, FigureEntry], folder: Path) -> dict[str, Any]:
    """Everything that the templates show."""
    comparison = view.comparison
    subject = comparison.subject
    tables, kinds, tokens = comparison.tables | comparison.token_tables, None, None
    shown = view.tokens()
    if shown is not None:
        arm, run, routes = shown
        tokens = tokens_view(routes) | {"arm": arm.label, "seed": run.seed}
        kinds = token_groups(routes).get("kind") if arm is subject else None
    example = (subject or comparison.arms[0]).example
    revisions = {
        f"{run.value('revision')}{' with uncommitted changes' if run.value('dirty') else ''}"
        for run in comparison.runs
        if run.value("revision")
    }
    return {
        "mark": Markup(MARK),
        "comparison": comparison,
        "page": page,
        "screen": first_screen(comparison, view.bench),
        "words": page.words(comparison, kinds),
        "facts": facts(comparison),
        "warnings": _warnings(comparison),
        "tables": tables,
        "figures": figures,
        "label": Numbering(),
        "data": {f.name: data_link(folder / f"{f.name}.csv") for f in figures.values() if not f.absent},
        "svg": {f.name: inline_svg(folder / f"{f.name}.svg") for f in figures.values() if not f.absent},
        "tokens": tokens,
        "paper": Paper(tables, figures, FIGURES),
        "hardware": sorted({machine(run) for run in comparison.runs}),
        "commands": list(dict.fromkeys(str(run.value("command")) for run in comparison.runs)),
        "versions": sorted(
            f"{name} {version}" for name, version in (example.value("versions") or {}).items()
        ),
        "revisions": sorted(revisions),
        "fingerprints": sorted(
            {str(f) for run in comparison.runs if (f := run.value("data", "fingerprint"))}
        ),
        "listing": listing,
        "plural": plural,
        "number": number,
    }


def _warnings(comparison: Comparison) -> list[tuple[str, str]]:
    """What stands in the way of a verdict, as (what, the rest)."""
    found = []
    if not comparison.same_data:
        found.append(("The runs saw different data or tokenizers", ": their losses are not comparable."))
    if comparison.missing:
        where = (
            " What each could show is in the table of controls." if "controls" in comparison.tables else ""
        )
        found.append(("Missing controls:", f" {listing(comparison.missing)}.{where}"))
    for arm in comparison.arms:
        for run in arm.unfinished:
            error = f": {run.value('error')}" if run.value("error") else ""
            found.append((f"{arm.label}, seed {run.seed}: {run.status}", f"{error}. It is in no mean."))
    return found + [("", note) for note in comparison.notes]


def _holds_runs(directory: Path) -> bool:
    if directory.is_file():
        return True
    try:
        load_runs([directory])
    except UserError:
        # A record that is there and broken must be told; a directory without records is only a place to write to.
        return directory.is_dir() and any(directory.rglob(RECORD_NAME))
    return True


def _clear(target: Path) -> None:
    """Make room at ``target`` for a report: an older report goes, anything else is left alone and told."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; give a folder for the report.")
    target.mkdir(parents=True, exist_ok=True)
    figures = target / FIGURES
    files = [*target.iterdir(), *(figures.iterdir() if figures.is_dir() else ())]
    ours = {target / PAGE, target / PAPER, figures} | {
        figures / file for name in all_figures() for file in files_of(name)
    }
    page = target / PAGE
    # An empty one is ours: what a full disk left of it.
    head = page.read_text(encoding="utf-8", errors="replace")[:4000] if page.exists() else ""
    marked = not head or MARK in head
    foreign = [file.name for file in files if file not in ours] or ([] if marked else [PAGE])
    if foreign:
        raise UserError(
            f"{target} holds files that are no layerroute report ({listing(sorted(foreign)[:3])}), and "
            "nothing there is overwritten: give another folder with --out."
        )
    for file in files:
        if file.is_file():
            file.unlink()
