from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.report.figures_routing import panels_of, routing_data, routing_figure
from layerroute.lab.report.figures_tokens import (
    _columns,
    heatmap_data,
    heatmap_figure,
    heatmap_source,
    token_label,
    visible,
)
from layerroute.lab.report.figures_training import training_data, training_figure
from layerroute.lab.report.style import GDN, SOFTMAX, arm_styles, figure_style, save_figure
from layerroute.lab.runs import Run, TokenRoutes, load_runs
from tests.unit.lab.record_factory import make_run, record, sites


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("runs")
    for seed, shift in ((42, 0.0), (43, 0.1)):
        make_run(root, "baseline", seed, loss=4.1 + shift)
        make_run(root, "dynamic", seed, loss=4.2 + shift, rates=sites(0.52, 0.95))
    make_run(root, "random", rates=sites(0.7, 0.7), control="random")
    make_run(root, "all_gdn", pattern=["gdn"] * 4, status="failed")
    return compare_runs(load_runs([root]))


def test_styles_are_the_drafts(comparison: Comparison) -> None:
    styles = arm_styles(comparison.arms, comparison.baseline, comparison.subject)
    assert (styles["baseline"].color, styles["baseline"].dashes) == (GDN, "-")
    assert styles["dynamic"].color == SOFTMAX
    assert styles["dynamic"].dashes != "-"
    assert len({style.color for style in styles.values()}) == len(comparison.arms)
    assert styles["random"].dashes not in ("-", styles["dynamic"].dashes)


def test_sixteen_arms_have_sixteen_colours() -> None:
    arms = [Arm(f"arm{n}", (Run(record(f"arm{n}"), Path(f"arm{n}/record.json")),)) for n in range(16)]
    styles = arm_styles(arms, arms[0], arms[1])
    assert len({style.color for style in styles.values()}) == 16
    assert len({style.marker for style in list(styles.values())[:8]}) == 8


def test_a_single_evaluation_is_a_point_in_every_panel(tmp_path: Path) -> None:
    for arm in ("baseline", "other"):
        make_run(tmp_path, arm, 1)
    alone = compare_runs(load_runs([tmp_path]), allow_different_data=True)
    data = training_data(alone)
    last = data[data["panel"].str.startswith("Validation")]["step"].max()
    data = data[~data["panel"].str.startswith("Validation") | (data["step"] == last)]
    with figure_style():
        panels = {axes.get_title(loc="left"): axes for axes in training_figure(alone, data).axes}
    for title in ("Validation loss", "Validation accuracy"):
        points = [line for line in panels[title].lines if len(line.get_xdata()) == 1]
        assert {line.get_marker() for line in points} - {"None", ""}, title


def test_training_data_holds_every_run_and_no_zero_for_missing(comparison: Comparison) -> None:
    data = training_data(comparison)
    assert set(data["arm"]) == {"baseline", "dynamic", "random", "all_gdn"}
    assert set(data[data["panel"] == "Load balance loss"]["arm"]) == {"dynamic"}
    assert not (data["value"] == 0).any()
    accuracy = data[(data["panel"] == "Validation accuracy") & (data["step"] == 200)]["value"]
    assert accuracy.between(15, 30).all()  # percent


def test_training_figure_has_four_panels_star_band_and_bigram(comparison: Comparison) -> None:
    data = training_data(comparison)
    with figure_style():
        figure = training_figure(comparison, data)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["Training loss", "Validation loss", "Validation accuracy", "Load balance loss"]
    validation = panels["Validation loss"]
    stars = [line for line in validation.lines if line.get_marker() == "*"]
    assert len(stars) == 3
    dynamic = data[(data["arm"] == "dynamic") & (data["panel"] == "Validation loss")]
    mean = dynamic.groupby("step")["value"].mean()
    star = next(line for line in stars if line.get_color() == SOFTMAX)
    assert star.get_xdata()[0] == mean.idxmin()
    assert star.get_ydata()[0] == pytest.approx(mean.min())
    assert len(validation.collections) == 2
    assert any(np.allclose(line.get_ydata(), 4.9871) for line in validation.lines)
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert "baseline  4.150 (n = 2)" in labels
    assert "all_gdn  not completed" in labels
    assert "bigram, back-off  4.987" in labels


def test_a_diverged_run_does_not_set_the_scale(tmp_path: Path) -> None:
    make_run(tmp_path, "baseline", loss=4.1)
    make_run(tmp_path, "dynamic", rates=sites(0.5), status="failed")
    found = compare_runs(load_runs([tmp_path]))
    data = training_data(found)
    data.loc[(data["status"] == "failed") & (data["panel"] == "Validation loss"), "value"] = 500.0
    with figure_style():
        figure = training_figure(found, data)
    assert figure.axes[1].get_ylim()[1] < 10


def test_routing_figure_draws_learned_routers_and_the_even_split(comparison: Comparison) -> None:
    data = routing_data(comparison)
    assert set(data["arm"]) == {"dynamic", "random"}
    assert np.allclose(data["gdn"] + data["softmax"], 1)
    with figure_style():
        figure = routing_figure(comparison, data)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["layer1.mixer", "layer2.mixer"]
    for axes in figure.axes:
        assert axes.get_ylim() == (0, 100)
        assert any(set(line.get_ydata()) == {50} for line in axes.lines)
    last = data[
        (data["site"] == "layer2.mixer") & (data["split"] == "validation") & (data["arm"] == "dynamic")
    ]
    share = 100 * last[last["step"] == 200]["softmax"].mean()
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts == [f"softmax {share:.1f}%", f"GDN {100 - share:.1f}%"]


@pytest.mark.parametrize(
    ("rates", "panels"),
    [
        (sites(*[0.5] * 9), 9),
        ({f"layer{layer}.head{head}": 0.5 for layer in (1, 2) for head in range(12)}, 2),
        ({f"layer{layer}.mixer": 0.5 for layer in range(30)}, 1),
    ],
)
def test_many_sites_are_grouped(tmp_path: Path, rates: dict[str, float], panels: int) -> None:
    make_run(tmp_path, "dynamic", rates=rates)
    found = compare_runs(load_runs([tmp_path]))
    assert len(panels_of(found.arms[0])) == panels
    with figure_style():
        figure = routing_figure(found, routing_data(found))
    assert figure is not None
    assert len(figure.axes) == panels


def test_no_curves_no_figure(tmp_path: Path) -> None:
    make_run(tmp_path, "dynamic", rates=sites(0.5), curves=None, token_routes=None)
    found = compare_runs(load_runs([tmp_path]))
    assert routing_figure(found, routing_data(found)) is None
    assert training_data(found).empty
    assert heatmap_source(found) is None


def test_heatmap_colours_follow_the_choice(comparison: Comparison) -> None:
    source = heatmap_source(comparison)
    assert source is not None
    routes = source[1].token_routes
    assert routes is not None
    with figure_style():
        figure = heatmap_figure(routes)
    image = np.asarray(figure.axes[0].images[0].get_array())
    assert ((image > 0) == (np.array(routes.sentences[0][1]) == 1)).all()
    labels = [label.get_text() for label in figure.axes[2].get_yticklabels()]
    assert labels[0] == "<script>"


def test_heatmap_shows_the_choice_where_a_threshold_makes_it() -> None:
    sentence = (("a", "b"), ((1,), (0,)), ((0.3,), (0.6,)))
    routes = TokenRoutes(sites=("layer1.mixer",), paths=("gdn", "softmax"), sentences=(sentence,))
    with figure_style():
        figure = heatmap_figure(routes)
    first, second = np.asarray(figure.axes[0].images[0].get_array())[:, 0]
    assert first > 0 > second


def test_names_of_many_layers_have_room() -> None:
    places, labels = _columns([f"L{layer}" for layer in range(4, 29)], width=0.9)
    assert labels[0] == "L4" and 2 <= len(labels) == len(places)
    apart = (places[1] - places[0]) / 25 * 0.9  # inches; a name of three letters takes 0.2
    assert apart > 0.21


def test_heatmap_data_has_every_token_and_site(comparison: Comparison) -> None:
    source = heatmap_source(comparison)
    assert source is not None
    routes = source[1].token_routes
    assert routes is not None
    data = heatmap_data(routes)
    assert len(data) == sum(len(sentence[0]) for sentence in routes.sentences) * 2
    assert set(data["path"]) <= {"gdn", "softmax"}
    assert not data["token"].str.contains("\n").any()


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "·the"),
        ("\n\t", "⏎⇥"),
        ("a$b^2", "a$b^2"),
        ("\u200b", "\\u200b"),
        ("\x1b[0m", "\\u001b[0m"),
        ("中", "\\u4e2d"),
        ("é", "é"),
    ],
)
def test_visible(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_token_label() -> None:
    assert token_label(" " * 20, 12) == "·×20"
    assert token_label("abcdefgh", 5) == "abcd…"
    assert token_label("abc\n", 5) == "abc⏎"


def _save(folder: Path, routes: TokenRoutes) -> dict[str, bytes]:
    with figure_style():
        save_figure(heatmap_figure(routes), folder, "figure-5")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_saved_figures_are_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    routes = TokenRoutes(
        sites=("layer1.mixer",),
        paths=("gdn", "softmax"),
        sentences=((("a", " $x$"), ((0,), (1,)), ((0.2,), (0.9,))),),
    )
    first = _save(tmp_path / "a", routes)
    changes: dict[str, Any] = {"font.size": 30, "svg.hashsalt": None, "lines.linewidth": 9}
    with matplotlib.rc_context(changes):
        second = _save(tmp_path / "b", routes)
        assert matplotlib.rcParams["font.size"] == 30
    assert set(first) == {"figure-5.png", "figure-5.svg", "figure-5.pdf"}
    assert first == second
    assert b"Date" not in first["figure-5.pdf"]
