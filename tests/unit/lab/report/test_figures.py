"""Figures of both capabilities, from made-up runs: their data come from the records, and what is missing is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from layerroute.capabilities.attention.figures import (
    heads_data,
    panels_of,
    training_data,
)
from layerroute.capabilities.recall.figures import _side_by_side, recall_data
from layerroute.lab.arms import Arm
from layerroute.lab.report.figures import View, bars_data, bars_start
from layerroute.lab.report.style import GDN, SOFTMAX, arm_styles, figure_style, save_figure
from layerroute.lab.report.tokens import _columns, draw_tokens, token_label, tokens_data, visible
from layerroute.lab.runs import Run, TokenRoutes, load_runs
from tests.unit.lab.record_factory import make_run, record, sites
from tests.unit.lab.report.walk import drawn, spec, view


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> View:
    root = tmp_path_factory.mktemp("runs")
    for seed, shift in ((42, 0.0), (43, 0.1)):
        make_run(root, "baseline", seed, loss=4.1 + shift)
        make_run(root, "dynamic", seed, loss=4.2 + shift, rates=sites(0.52, 0.95))
    make_run(root, "random", rates=sites(0.7, 0.7), control="random")
    make_run(root, "all_gdn", pattern=["gdn"] * 4, status="failed")
    heads = {f"layer{layer}.head{head}": 0.1 * head + 0.2 * layer for layer in (1, 2) for head in range(3)}
    make_run(root, "per_head", rates=heads, heads=3)
    return view(load_runs([root]))


def run(
    arm: str, seed: int, *, executed: float | None, recalled: float | None = None, **settings: Any
) -> Run:
    content = record(arm, seed, **settings)
    content["flops"]["executed_per_token"] = executed
    if recalled is not None:
        rate = None if content["routing"] is None else content["routing"]["mean_rate"]
        point = {"loss": 1.0, "answers": 9, "mean_rate": rate}
        points = [point | {"multiple": m, "length": 128 * m, "accuracy": recalled / m} for m in (1, 2, 4)]
        content["recall"] = {
            "task": "mqar",
            "pairs": 16,
            "chance": 1 / 32,
            "by_length": points,
            "by_distance": [],
        }
    return Run(content, Path(f"{arm}-{seed}/record.json"))


@pytest.fixture(scope="module")
def recalled() -> View:
    rates = sites(0.25, 0.25)
    runs = []
    for seed in (1, 2, 3):
        loss = seed / 100
        runs.append(run("baseline", seed, executed=3e6, recalled=0.9, loss=4.0 + loss))
        runs.append(run("dynamic", seed, executed=2e6, recalled=0.8, loss=4.2 + loss, rates=rates))
        runs.append(
            run("random", seed, executed=2.5e6, recalled=0.3, loss=4.5 + loss, rates=rates, control="random")
        )
    return view(runs)


def test_baseline_is_blue_and_solid_the_subject_orange_and_dashed_and_others_are_told_apart(
    shown: View,
) -> None:
    styles = shown.styles
    assert (styles["baseline"].color, styles["baseline"].dashes) == (GDN, "-")
    assert styles["dynamic"].color == SOFTMAX
    assert styles["dynamic"].dashes != "-"
    assert styles["random"].dashes not in ("-", styles["dynamic"].dashes)
    arms = [Arm(f"arm{n}", (Run(record(f"arm{n}"), Path(f"arm{n}/record.json")),)) for n in range(16)]
    many = arm_styles(arms, arms[0], arms[1])
    assert len({style.color for style in many.values()}) == 16
    assert len({style.marker for style in list(many.values())[:8]}) == 8


def test_training_data_hold_every_run_and_no_zero_for_missing(shown: View) -> None:
    data = training_data(shown.arms)
    assert set(data["arm"]) == {"baseline", "dynamic", "random", "all_gdn", "per_head"}
    assert set(data[data["panel"] == "Load balance loss"]["arm"]) == {"dynamic", "per_head"}
    assert not (data["value"] == 0).any()
    accuracy = data[(data["panel"] == "Validation accuracy") & (data["step"] == 200)]["value"]
    assert accuracy.between(15, 30).all()  # percent


def test_training_has_four_panels_star_band_and_bigram(shown: View) -> None:
    figure, data, _ = drawn("figure-2", shown)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["Training loss", "Validation loss", "Validation accuracy", "Load balance loss"]
    validation = panels["Validation loss"]
    dynamic = data[(data["arm"] == "dynamic") & (data["panel"] == "Validation loss")]
    mean = dynamic.groupby("step")["value"].mean()
    star = next(line for line in validation.lines if (line.get_marker(), line.get_color()) == ("*", SOFTMAX))
    assert (star.get_xdata()[0], star.get_ydata()[0]) == pytest.approx((mean.idxmin(), mean.min()))
    assert len(validation.collections) == 2
    assert any(np.allclose(line.get_ydata(), 4.9871) for line in validation.lines)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"baseline  4.150 (n = 2)", "all_gdn  not completed", "bigram, back-off  4.987"} <= set(labels)


def test_routing_draws_learned_routers_and_the_even_split(shown: View) -> None:
    figure, data, _ = drawn("figure-3", shown)
    assert set(data["arm"]) == {"dynamic", "random", "per_head"}
    assert np.allclose(data["gdn"] + data["softmax"], 1)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles[:2] == ["dynamic: layer1.mixer", "dynamic: layer2.mixer"]
    for axes in figure.axes[:2]:
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
    found = view(load_runs([tmp_path]))
    assert len(panels_of(found.arms[0])) == panels
    assert len(drawn("figure-3", found)[0].axes) == panels


def test_bars_are_means_with_intervals_where_there_are_seeds(shown: View) -> None:
    data = bars_data(shown.arms).set_index("arm")
    assert data.loc["baseline", "validation_loss"] == pytest.approx(4.15)
    assert data.loc["baseline", "half_width_95"] == pytest.approx(12.706 * 0.05, rel=1e-3)
    assert np.isnan(float(data.loc["per_head", "half_width_95"])), "one seed has no interval"
    assert len(drawn("figure-8", shown)[0].axes[0].patches) == 4


def test_bars_begin_at_0_only_where_losses_are_far_apart() -> None:
    close = pd.DataFrame({"arm": ["a", "b"], "validation_loss": [3.7, 3.9], "half_width_95": [0.05, None]})
    assert bars_start(close) > 3
    assert bars_start(close.assign(validation_loss=[0.003, 3.4])) == 0


def test_the_caption_says_where_bars_begin(shown: View) -> None:
    assert "does not begin at 0" in drawn("figure-8", shown)[2]
    wide = view([run("baseline", 1, executed=None, loss=0.003), run("other", 1, executed=None, loss=3.4)])
    assert "does not begin at 0" not in drawn("figure-8", wide)[2]


def test_the_map_has_a_cell_for_every_layer_and_head(shown: View) -> None:
    data = heads_data(shown.arms)
    assert set(data["arm"]) == {"per_head"}, "arms whose heads choose together have no map"
    assert data[(data["layer"] == 2) & (data["head"] == 1)]["rate"].iloc[0] == pytest.approx(0.5)
    assert drawn("figure-11", shown)[0].axes[0].images[0].get_array().shape == (2, 3)


def test_only_learned_routers_anneal(shown: View) -> None:
    figure, data, _ = drawn("figure-10", shown)
    assert set(data["arm"]) == {"dynamic", "per_head"}
    temperature = data[(data["arm"] == "dynamic") & (data["panel"] == "temperature")]
    assert temperature["value"].iloc[0] > temperature["value"].iloc[-1] == pytest.approx(0.5)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Temperature", "Training tokens on the expensive path"]
    assert figure.axes[1].get_ylim()[1] > 100, "a flat rate is not at the edge"


def test_kinds_of_tokens_are_told_as_the_tests_found_them(shown: View) -> None:
    found = shown.tokens()
    assert found is not None and found[0].label == "dynamic"
    figure, data, _ = drawn("figure-9", shown)
    assert len(figure.axes) == data["by"].nunique()
    layers = drawn("figure-13", shown)
    kind = layers[1][layers[1]["by"] == "kind"]
    # The layer's mean is over tokens, not over kinds.
    one = kind[kind["layer"] == "layer1"]
    mean = (one["rate"] * one["tokens"]).sum() / one["tokens"].sum()
    image = np.asarray(layers[0].axes[0].images[0].get_array())
    assert image[:, 0] == pytest.approx(100 * (one["rate"] - mean).to_numpy())
    stars = [text for text in layers[0].axes[0].texts if text.get_text() == "*"]
    assert len(stars) == int((kind.groupby("layer")["layer_p_value"].first() < 0.05).sum()) > 0


def test_the_front_leaves_out_what_another_arm_beats(recalled: View) -> None:
    _, data, caption = drawn("figure-6", recalled)
    assert len(data) == 9 and "interval" in caption
    front = data.groupby("arm")["on_front"].first().to_dict()
    assert front == {"baseline": True, "dynamic": True, "random": False}
    assert data["half_width_95"].iloc[0] == pytest.approx(0.0248, abs=1e-3)


def test_a_point_of_the_front_is_of_the_same_runs_on_both_axes() -> None:
    # Seed 2 has no FLOPs: with its loss the point would be of other runs than its cost.
    runs = [run(arm, seed, executed=2e5, loss=4.0) for arm in ("baseline", "other") for seed in (1, 3)]
    runs += [run("other", 2, executed=None, loss=1.0)]
    _, data, _ = drawn("figure-6", view(runs))
    assert data["mean_loss"].tolist() == pytest.approx([4.0] * 4)
    assert data["half_width_95"].tolist() == pytest.approx([0.0] * 4)


@pytest.mark.parametrize(("flops", "unit"), [(2e5, "thousands"), (2e6, "millions"), (3e9, "billions")])
def test_the_axis_of_flops_has_a_unit_that_fits(flops: float, unit: str) -> None:
    runs = [run(arm, 1, executed=flops * (1 + index / 10)) for index, arm in enumerate(("baseline", "other"))]
    axes = drawn("figure-6", view(runs))[0].axes[0]
    assert unit in axes.get_xlabel()
    assert 0.1 < axes.get_xlim()[1] < 1000


def test_recall_is_told_by_rate_and_by_length(recalled: View) -> None:
    data = recall_data(recalled.arms)
    assert len(data) == 27
    # Three layers after the first: gdn, gdn, softmax; and two routed ones at a quarter, then softmax.
    rates = data.groupby("arm")["rate"].first().to_dict()
    assert rates == pytest.approx({"baseline": 1 / 3, "dynamic": 0.5, "random": 0.5})


def test_recall_is_drawn_against_both_costs_where_records_have_them(recalled: View) -> None:
    runs = [item for arm in recalled.arms for item in arm.runs]
    absent = spec("figure-14").draw(view(runs))
    assert isinstance(absent, str) and "bytes of caches read" in absent
    priced = []
    for number, item in enumerate(runs):
        read = 1000.0 * (1 + number // 3)
        cache = {"read_per_token": read, "keys_values": read, "state": 0.0, "context_length": 128}
        priced.append(Run({**item.record, "cache": cache}, item.path))
    figure, data, caption = drawn("figure-14", view(priced))
    assert len(data) == 9 and "bytes of keys, values and states" in caption
    assert data.groupby("arm")["bytes"].first().to_dict() == {"baseline": 1e3, "dynamic": 2e3, "random": 3e3}
    left, right = figure.axes
    assert "FLOPs" in left.get_xlabel() and "bytes" in right.get_xlabel()
    assert left.get_ylim() == right.get_ylim() == (-4.0, 104.0)


def test_equal_costs_are_not_spread_over_a_panel() -> None:
    runs = [
        run(arm, 1, executed=flops, recalled=0.9, cache={"read_per_token": flops / 100})
        for arm, flops in (("dynamic", 2e6), ("baseline", 2.01e6))
    ]
    for axes in drawn("figure-14", view(runs))[0].axes:
        low, high = axes.get_xlim()
        assert high - low > 0.08 * high


def test_intervals_of_shares_end_at_nothing_and_all() -> None:
    runs = [run("dynamic", seed, executed=2e6, recalled=0.9, rates=sites(0.25)) for seed in (1, 2, 3)]
    runs[0].record["recall"]["by_length"][0]["accuracy"] = 0.05  # a wide interval
    left = drawn("figure-7", view(runs))[0].axes[0]
    parts = [
        part for bars in left.collections if isinstance(bars, LineCollection) for part in bars.get_segments()
    ]
    ends = np.concatenate(parts)[:, 1]
    assert ends.max() == pytest.approx(100.0) and ends.min() >= -1e-9


@pytest.mark.parametrize("name", ["figure-7", "figure-14"])
def test_one_seed_has_no_interval(name: str) -> None:
    cache = {"read_per_token": 5e4}
    runs = [
        run("dynamic", 1, executed=2e6, recalled=0.9, rates=sites(0.25), cache=cache),
        run("baseline", 1, executed=2e6, recalled=0.8, cache=cache),
    ]
    for axes in drawn(name, view(runs))[0].axes:
        assert not [bars for bars in axes.collections if isinstance(bars, LineCollection)]


def test_arms_of_one_rate_stand_side_by_side_and_others_where_they_are() -> None:
    places = _side_by_side({"a": 25.0, "b": 25.3, "c": 24.9, "alone": 50.0, "e": 100.0, "f": 100.0})
    assert places["alone"] == 50.0
    near = sorted(places[name] for name in "abc")
    assert near[1] - near[0] == pytest.approx(2.2) and sum(near) / 3 == pytest.approx(25.067, abs=1e-3)
    assert abs(places["e"] - places["f"]) == pytest.approx(2.2)


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
def test_what_cannot_be_drawn_says_why(number: int, tmp_path: Path) -> None:
    make_run(tmp_path, "baseline", curves=None)
    why = spec(f"figure-{number}").draw(view(load_runs([tmp_path])))
    if number == 6:
        assert why == "it takes two arms whose records have executed FLOPs."
    assert isinstance(why, str) and why.endswith(".")


ROUTES = TokenRoutes(
    sites=("layer1.mixer",),
    paths=("gdn", "softmax"),
    sentences=((("a", " $x$"), ((1,), (0,)), ((0.3,), (0.6,))),),
)


def test_colours_of_tokens_follow_the_choice_also_where_a_threshold_makes_it(shown: View) -> None:
    with figure_style():
        figure, sentences = draw_tokens(ROUTES)
    first, second = np.asarray(figure.axes[0].images[0].get_array())[:, 0]
    assert first > 0 > second and sentences == 1
    figure, data, caption = drawn("figure-5", shown)
    assert figure.axes[2].get_yticklabels()[0].get_text() == "<script>"
    assert "validation sentences" in caption and set(data["path"]) <= {"gdn", "softmax"}


def test_data_of_tokens_have_every_token_and_site(shown: View) -> None:
    found = shown.tokens()
    assert found is not None
    data = tokens_data(found[2])
    assert len(data) == sum(len(sentence[0]) for sentence in found[2].sentences) * 2
    assert not data["token"].str.contains("\n").any()


def test_names_of_many_layers_have_room() -> None:
    places, labels, _ = _columns([f"L{layer}" for layer in range(4, 29)], width=0.9)
    assert labels[0] == "L4" and 2 <= len(labels) == len(places)
    apart = (places[1] - places[0]) / 25 * 0.9  # inches; a name of three letters takes 0.2
    assert apart > 0.21


@pytest.mark.parametrize(
    ("token", "shown_as"),
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
def test_visible(token: str, shown_as: str) -> None:
    assert visible(token) == shown_as


def test_token_label() -> None:
    assert token_label(" " * 20, 12) == "·×20"
    assert token_label("abcdefgh", 5) == "abcd…"
    assert token_label("abc\n", 5) == "abc⏎"


def test_saved_figures_are_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    def save(folder: Path) -> dict[str, bytes]:
        with figure_style():
            save_figure(draw_tokens(ROUTES)[0], folder, "figure-5")
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    first = save(tmp_path / "a")
    changes: dict[str, Any] = {"font.size": 30, "svg.hashsalt": None, "lines.linewidth": 9}
    with matplotlib.rc_context(changes):
        second = save(tmp_path / "b")
        assert matplotlib.rcParams["font.size"] == 30
    assert set(first) == {"figure-5.png", "figure-5.svg", "figure-5.pdf"}
    assert first == second
    assert b"Date" not in first["figure-5.pdf"]
