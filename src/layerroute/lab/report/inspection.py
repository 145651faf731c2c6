"""Where the tokens of one text went: a page and a picture, drawn as figure 5 of a report is."""

from pathlib import Path

from layerroute.lab.report.figures_tokens import TOKENS_SHOWN, heatmap_figure
from layerroute.lab.report.html import environment, token_views
from layerroute.lab.report.style import figure_style, save_figure
from layerroute.lab.runs import TokenRoutes

PAGE_NAME, FIGURE_NAME = "routes.html", "routes"


def write_inspection(
    routes: TokenRoutes,
    rates: dict[str, float],
    folder: Path,
    *,
    checkpoint: str,
    title: str = "Token routes",
) -> list[Path]:
    """Write ``routes.html`` (all tokens, self-contained, every token escaped) and ``routes.png`` into ``folder``.

    Args:
        routes: of one text; its parts are cut into columns for the picture, which shows as many as fit.
        rates: share of tokens on the expensive path by site.
        checkpoint: what the page calls the model.

    Returns the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    views = token_views(routes)
    page = (
        environment()
        .get_template("inspect.html.j2")
        .render(
            title=title,
            checkpoint=checkpoint,
            sites=list(routes.sites),
            paths=list(routes.paths),
            rates=rates,
            count=sum(len(view) for view in views),
            sentences=views,
            height=min(26, max(5, 4 * len(routes.sites))),
        )
    )
    path = folder / PAGE_NAME
    path.write_text(page, encoding="utf-8")
    with figure_style():
        save_figure(heatmap_figure(in_columns(routes)), folder, FIGURE_NAME, formats=("png",))
    return [path, folder / f"{FIGURE_NAME}.png"]


def in_columns(routes: TokenRoutes) -> TokenRoutes:
    """The same tokens in pieces as long as a column of the heatmap."""
    pieces = [
        tuple(part[start : start + TOKENS_SHOWN] for part in sentence)
        for sentence in routes.sentences
        for start in range(0, len(sentence[0]), TOKENS_SHOWN)
    ]
    return TokenRoutes(sites=routes.sites, paths=routes.paths, sentences=tuple(pieces))  # type: ignore[arg-type]
