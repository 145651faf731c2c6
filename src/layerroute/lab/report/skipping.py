"""The report about layer-skipping runs: page, Markdown, figures and their data, from records alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layerroute.lab.compare import Comparison as SkippingComparison
from layerroute.lab.format import MISSING, listing
from layerroute.lab.report.figures_skipping import SkippingFigure, build_skipping_figures
from layerroute.lab.report.html import environment, inline_svg, token_views
from layerroute.lab.table import escape_text

TITLE = "Layer skipping: what per-token routing is worth"
QUESTION = (
    "Does it pay to let each token choose which layers of a pretrained model it runs, against skipping the same share "
    "of compute without looking at the token, with the same training?"
)


def write_skipping_report(
    comparison: SkippingComparison,
    target: Path,
    *,
    mark: str,
    progress: Callable[[str], None],
    bench: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write ``index.html``, ``paper.md`` and ``figures/`` into ``target``; returns the page."""
    folder = target / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figures = build_skipping_figures(comparison, folder, progress, bench)
    tables = comparison.tables | comparison.token_tables
    versions = sorted(
        {
            f"{name} {value}"
            for run in _all(comparison)
            for name, value in (run.value("versions") or {}).items()
        }
    )
    common: dict[str, Any] = {"title": TITLE, "question": QUESTION, "facts": _facts(comparison)}
    templates = environment()
    page = templates.get_template("skipping.html.j2").render(
        **common,
        mark=_markup(mark),
        comparison=comparison,
        tables=tables,
        figures={
            name: entry if entry.absent else replace(entry, svg=inline_svg(folder / f"{entry.name}.svg"))
            for name, entry in figures.items()
        },
        tokens=_tokens(comparison),
        versions=versions,
    )
    (target / "index.html").write_text(page, encoding="utf-8", newline="\n")
    common = {
        "title": TITLE,
        "question": QUESTION,
        "facts": [(name, escape_text(value)) for name, value in common["facts"]],
    }
    text = templates.get_template("skipping.md.j2").render(
        **common,
        verdict=escape_text(comparison.verdict),
        tables={name: table.to_markdown() if table.rows else "" for name, table in tables.items()},
        figures={name: _markdown(entry) for name, entry in figures.items()},
    )
    (target / "paper.md").write_text(text, encoding="utf-8", newline="\n")
    return target / "index.html"


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _markdown(entry: SkippingFigure) -> str:
    if entry.absent:
        return f"*{entry.title}: {entry.absent}*"
    return f"![{entry.title}](figures/{entry.name}.png)\n\n*{entry.title}. {entry.caption}*"


def _all(comparison: SkippingComparison) -> list[Any]:
    return [run for arm in comparison.arms for run in arm.runs]


def _facts(comparison: SkippingComparison) -> list[tuple[str, str]]:
    runs = _all(comparison)

    def distinct(*keys: str, style: Callable[[Any], str] = str) -> str:
        found = list(dict.fromkeys(style(value) for run in runs if (value := run.value(*keys)) is not None))
        return listing(found) if found else MISSING

    facts = [
        ("Model", distinct("recipe", "model", "name")),
        ("Data", distinct("data", "source")),
        (
            "Steps and tokens trained",
            f"{distinct('metrics', 'steps')} steps, {distinct('tokens_seen', style=_thousands)} tokens",
        ),
        (
            "Hardware",
            f"{distinct('hardware', 'cpu')} ({distinct('hardware', 'cores')} cores)"
            + ("" if (accelerator := distinct("hardware", "accelerator")) == MISSING else f"; {accelerator}"),
        ),
    ]
    if comparison.subject is not None:
        facts.append(("Command of the routed arm", str(comparison.subject.example.value("command"))))
    return facts


def _thousands(value: int) -> str:
    return f"{value:,}"


def _tokens(comparison: SkippingComparison) -> dict[str, Any] | None:
    arm = comparison.subject
    routes = None if arm is None else arm.example.token_routes
    if arm is None or routes is None or not routes.sentences:
        return None
    return {
        "arm": arm.label,
        "seed": arm.example.seed,
        "sites": routes.sites,
        "paths": routes.paths,
        "sentences": token_views(routes),
    }
