"""The report of attention routing: what the page shows where."""

from layerroute.capabilities.attention.figures import FIGURES
from layerroute.capabilities.attention.words import words
from layerroute.lab.report.page import COST, TOKENS, Page, Section, figures, fold, tables

PAGE = Page(
    figures=FIGURES,
    words=words,
    paper="attention.md.j2",
    package="layerroute.capabilities.attention",
    sections=(
        Section(
            id="results",
            heading="Results",
            blocks=(
                *tables(
                    "main", "differences", "recall", "recall_differences", "recall_at_cost", "recall_lengths"
                ),
                *tables("copies", "copies_differences", "copies_at_cost"),
                fold("Recall by the distance of key and question", *tables("recall_distances")),
                *figures("figure-7", "figure-14", "figure-8", "figure-2"),
                fold("Loss by place in the sequence", *tables("positions")),
            ),
        ),
        Section(
            id="routing-section",
            heading="Routing",
            blocks=(*tables("routing"), *figures("figure-3", "figure-10", "figure-11")),
        ),
        Section(
            id="tokens-section",
            heading="Where single tokens went",
            blocks=(
                TOKENS,
                *tables("kinds", "kinds_by_arm"),
                *figures("figure-9", "figure-13"),
                fold("Kinds of tokens by layer", *tables("kinds_by_layer")),
                *tables("agreement"),
                fold("The same as a heatmap", *figures("figure-5")),
            ),
        ),
        Section(
            id="cost",
            heading="Computational cost",
            blocks=(*tables("efficiency"), COST, *figures("figure-6", "figure-12", "figure-4")),
        ),
        Section(
            id="fairness-section",
            heading="Fairness and controls",
            blocks=(
                *tables("fairness", "controls"),
                fold("Parameters and FLOPs by part", *tables("parts")),
                fold("Settings of each arm", *tables("settings")),
            ),
        ),
        Section(id="architecture", heading="Architecture", blocks=figures("figure-1")),
    ),
    results=(
        (
            "Main results",
            (
                *tables("main", "differences", "controls", "recall", "recall_differences"),
                *tables("recall_at_cost", "recall_lengths", "recall_distances"),
                *tables("copies", "copies_differences", "copies_at_cost"),
                *figures("figure-2"),
                *tables("positions"),
            ),
        ),
        ("Routing", (*tables("routing"), *figures("figure-3"))),
        ("Computational cost", (*tables("efficiency"), COST)),
    ),
)
