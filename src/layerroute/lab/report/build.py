"""Builds a report from runs: figures, HTML page and Markdown paper. The same runs give the same bytes."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from layerroute.capabilities.attention.routing import path_name
from layerroute.capabilities.attention.settings import pattern_text
from layerroute.errors import UserError
from layerroute.lab.compare import Comparison
from layerroute.lab.compare import Comparison as SkippingComparison
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.fairness import machine
from layerroute.lab.format import listing, number, plural
from layerroute.lab.report import wording
from layerroute.lab.report.architecture import describe
from layerroute.lab.report.discussion import discussion
from layerroute.lab.report.figures import FIGURES as NUMBERS
from layerroute.lab.report.figures import FigureEntry, build_figures
from layerroute.lab.report.figures_skipping import FILES as SKIPPING_FILES
from layerroute.lab.report.figures_speed import read_speed_records
from layerroute.lab.report.figures_tokens import heatmap_source
from layerroute.lab.report.html import environment, inline_svg, token_views
from layerroute.lab.report.old import bigram, recall, routing_sentences
from layerroute.lab.report.skipping import write_skipping_report
from layerroute.lab.runs import Run, load_runs
from layerroute.lab.table import Table, escape_text
from layerroute.lab.tokens import TokenKinds, token_groups
from layerroute.records import RECORD_NAME

MARK = '<meta name="generator" content="layerroute report">'
PAGE, PAPER, FIGURES = "index.html", "paper.md", "figures"
SENTENCES_ON_PAGE, TOKENS_ON_PAGE = 24, 400


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
) -> tuple[Path, Comparison | SkippingComparison]:
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
    options: dict[str, Any] = {
        "baseline": baseline,
        "subject": subject,
        "allow_different_data": allow_different_data,
    }
    comparison = compare_runs(found, **options)
    if comparison.question.against == "controls":
        skipping = comparison
        _clear(target)
        return write_skipping_report(skipping, target, mark=MARK, progress=progress, bench=speed), skipping
    _clear(target)
    figures = build_figures(comparison, target / FIGURES, progress, speed)
    context = report_context(comparison, figures, target / FIGURES)
    templates = environment()
    for name, template in ((PAGE, "index.html.j2"), (PAPER, "paper.md.j2")):
        if name == PAPER:
            templates.finalize = _markdown_value
        text = templates.get_template(template).render(context)
        (target / name).write_text(text, encoding="utf-8", newline="\n")
    return target / PAGE, comparison


class Markdown(str):
    """Text that is Markdown already and needs no escaping."""


def _markdown_value(value: Any) -> Any:
    return escape_text(value) if isinstance(value, str) and not isinstance(value, Markdown) else value


def report_context(comparison: Comparison, figures: Sequence[FigureEntry], folder: Path) -> dict[str, Any]:
    """Everything that the templates show."""
    groups, tokens = _token_parts(comparison)
    kinds = groups.get("kind")
    subject, baseline = comparison.subject, comparison.baseline
    versus = f"{subject.label} against {baseline.label}" if subject and baseline else comparison.arms[0].label
    architecture = describe(subject) if subject else None
    example = (subject or comparison.arms[0]).example
    tables = comparison.tables | comparison.token_tables
    return {
        "mark": Markup(MARK),
        "title": f"Attention routing: {versus}",
        "comparison": comparison,
        "recall": recall(comparison),
        "bigram": bigram(comparison),
        "routing_sentences": routing_sentences(comparison),
        "subject": subject,
        "baseline": baseline,
        "architecture": architecture,
        "question": wording.QUESTION,
        "facts": wording.what_was_run(comparison),
        "abstract_result": wording.abstract_result(comparison),
        "discussion": discussion(comparison, kinds),
        "limitations": wording.limitations(comparison),
        "conclusion": wording.conclusion(comparison),
        "takeaways": wording.takeaways(comparison),
        "cost": wording.cost_sentence(comparison),
        "tables": tables,
        "figures": {figure.number: figure for figure in figures},
        "svg": {f.number: inline_svg(folder / f"{f.name}.svg") for f in figures if not f.absent},
        "tokens": tokens,
        "kinds": kinds,
        "temperature": _schedule(example.value("recipe", "objective", "temperature")),
        **_routing_settings(example),
        "patterns": {arm.label: pattern_text(arm.layer_pattern) for arm in comparison.arms},
        "hardware": sorted({machine(run) for run in comparison.runs}),
        "seeds": listing([str(seed) for seed in comparison.seeds]) or "none completed",
        "verbatim": Markdown,
        "commands": list(dict.fromkeys(str(run.value("command")) for run in comparison.runs)),
        "versions": sorted(
            f"{name} {version}" for name, version in (example.value("versions") or {}).items()
        ),
        "revisions": sorted(
            {
                f"{run.value('revision')}{' with uncommitted changes' if run.value('dirty') else ''}"
                for run in comparison.runs
                if run.value("revision")
            }
        ),
        "fingerprints": sorted(
            {str(f) for run in comparison.runs if (f := run.value("data", "fingerprint"))}
        ),
        "listing": listing,
        "plural": plural,
        "number": number,
        "md_table": _markdown_table,
        "md_figure": lambda number: _markdown_figure(next(f for f in figures if f.number == number)),
    }


def _schedule(found: Any) -> dict[str, str] | None:
    if not isinstance(found, dict) or not {"start", "end"} <= found.keys():
        return None
    return {key: f"{found[key]:g}" for key in ("start", "end")}


def _routing_settings(run: Run) -> dict[str, Any]:
    """What the method section says about routing, from the record or else the recipe."""
    budget = run.value("recipe", "model", "routing", "budget")
    context = run.value("routing", "context") or run.value("recipe", "model", "context")
    return {
        "balance_weight": run.value("recipe", "objective", "balance_weight"),
        "budget": None if budget == "none" else budget,
        "estimator": run.value("routing", "estimator")
        or run.value("recipe", "model", "routing", "estimator"),
        "own_context": context == "own_context",
    }


def _markdown_table(table: Table) -> Markdown:
    if table.rows:
        return Markdown(table.to_markdown())
    return Markdown(f"*{table.name}: {' '.join(map(escape_text, table.notes))}*")


def _markdown_figure(figure: FigureEntry) -> Markdown:
    title = escape_text(figure.title)
    if figure.absent:
        return Markdown(f"*Figure {figure.number}: {title}. {escape_text(figure.absent)}*")
    path = f"{FIGURES}/{figure.name}"
    links = ", ".join(
        f"[{word}]({path}.{suffix})" for word, suffix in (("data", "csv"), ("SVG", "svg"), ("PDF", "pdf"))
    )
    return Markdown(
        f"![Figure {figure.number}: {title}]({path}.png)\n\n*Figure {figure.number}: {title}.* "
        f"{escape_text(figure.caption)} ({links})"
    )


def _token_parts(
    comparison: Comparison,
) -> tuple[Mapping[str, TokenKinds], dict[str, Any] | None]:
    source = heatmap_source(comparison)
    if source is None:
        return {}, None
    arm, run = source
    routes = run.token_routes
    assert routes is not None
    sentences = token_views(routes)[:SENTENCES_ON_PAGE]
    view = {
        "arm": arm.label,
        "seed": run.seed,
        "sites": routes.sites,
        "paths": [path_name(path) for path in routes.paths],
        "sentences": [sentence[:TOKENS_ON_PAGE] for sentence in sentences],
        "cut": [max(0, len(sentence) - TOKENS_ON_PAGE) for sentence in sentences],
        "height": min(60, max(6, 5 * len(routes.sites))),
    }
    if arm is not comparison.subject:
        return {}, view
    return token_groups(routes), view


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
        figures / name
        for number in range(1, NUMBERS + 1)
        for name in FigureEntry(number=number, title="", caption="").files
    }
    ours |= {figures / name for name in SKIPPING_FILES}
    page = target / PAGE
    marked = not page.exists() or MARK in page.read_text(encoding="utf-8", errors="replace")[:4000]
    foreign = [file.name for file in files if file not in ours] or ([] if marked else [PAGE])
    if foreign:
        raise UserError(
            f"{target} holds files that are no layerroute report ({listing(sorted(foreign)[:3])}), and "
            "nothing there is overwritten: give another folder with --out."
        )
    for file in files:
        if file.is_file():
            file.unlink()
