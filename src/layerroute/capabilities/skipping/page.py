"""The report of layer skipping: what the page shows where."""

from layerroute.capabilities.skipping.figures import FIGURES, LOOKS
from layerroute.capabilities.skipping.words import words
from layerroute.lab.report.page import COST, TOKENS, Page, Section, figures, fold, tables

PAGE = Page(
    figures=FIGURES,
    words=words,
    paper="skipping.md.j2",
    package="layerroute.capabilities.skipping",
    looks=LOOKS,
    sections=(
        Section(
            id="results",
            heading="Results",
            blocks=(
                *tables("main", "differences", "equal_cost"),
                COST,
                fold("Loss by place in the sequence", *tables("positions")),
                *figures("compute", "bars", "speed"),
            ),
        ),
        Section(
            id="where",
            heading="Where tokens skip",
            blocks=(
                *figures("layers"),
                TOKENS,
                *tables("kinds", "kinds_by_arm"),
                *figures("kinds", "kinds_by_layer"),
                fold("Kinds of tokens by layer", *tables("kinds_by_layer")),
                *tables("agreement"),
                fold("The same as a heatmap", *figures("heatmap")),
                fold("Share of tokens that skip each site, by arm", *tables("sites")),
            ),
        ),
        Section(
            id="training",
            heading="Training",
            blocks=figures("convergence", "validation", "terms", "annealing"),
        ),
    ),
    results=(
        (
            "Loss against compute",
            (
                *tables("main", "differences", "equal_cost"),
                COST,
                *figures("compute", "bars", "speed"),
                *tables("positions"),
            ),
        ),
        (
            "Where tokens skip",
            (
                *figures("layers"),
                *tables("kinds", "kinds_by_arm"),
                *figures("kinds", "kinds_by_layer"),
                *tables("kinds_by_layer", "agreement"),
                *figures("heatmap"),
                *tables("sites"),
            ),
        ),
        ("Training", figures("convergence", "validation", "terms", "annealing")),
    ),
)
