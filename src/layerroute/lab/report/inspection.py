"""Where the tokens of one text went: a page and a picture, drawn as the tokens of a report are."""

from pathlib import Path

from layerroute.lab.format import percent
from layerroute.lab.report.html import environment, tokens_view
from layerroute.lab.report.style import figure_style, save_figure
from layerroute.lab.report.tokens import TOKENS_SHOWN, draw_tokens
from layerroute.lab.runs import TokenRoutes
from layerroute.lab.table import Table, figures, words

PAGE_NAME, FIGURE_NAME = "routes.html", "routes"


def write_inspection(
    routes: TokenRoutes,
    rates: dict[str, float],
    folder: Path,
    *,
    checkpoint: str,
) -> list[Path]:
    """Write ``routes.html`` (all tokens, self-contained, every token escaped) and ``routes.png`` into ``folder``.

    Args:
        routes: of one text; its parts are cut into columns for the picture, which shows as many as fit.
        rates: share of tokens on the expensive path by site.
        checkpoint: what the page calls the model.

    Returns the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = sum(len(sentence[0]) for sentence in routes.sentences)
    expensive = routes.paths[-1]
    table = Table.of(
        "Table of sites",
        f"Share of tokens on {expensive}",
        [words("site", lambda site: site), figures(expensive, rates.get, percent)],
        rates,
    )
    page = (
        environment()
        .get_template("inspect.html.j2")
        .render(
            title="Token routes",
            checkpoint=checkpoint,
            count=count,
            rates=table,
            tokens=tokens_view(routes, len(routes.sentences), count),
        )
    )
    path = folder / PAGE_NAME
    path.write_text(page, encoding="utf-8")
    with figure_style():
        save_figure(draw_tokens(in_columns(routes))[0], folder, FIGURE_NAME, formats=("png",))
    return [path, folder / f"{FIGURE_NAME}.png"]


def in_columns(routes: TokenRoutes) -> TokenRoutes:
    """The same tokens in pieces as long as a column of the heatmap."""
    pieces = [
        tuple(part[start : start + TOKENS_SHOWN] for part in sentence)
        for sentence in routes.sentences
        for start in range(0, len(sentence[0]), TOKENS_SHOWN)
    ]
    return TokenRoutes(sites=routes.sites, paths=routes.paths, sentences=tuple(pieces))  # type: ignore[arg-type]
