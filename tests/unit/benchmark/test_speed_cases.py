"""The cases `attention`, `peers`, `train-skipping`, `hybrid` and `calibrate`, at sizes of a moment."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from layerroute.benchmark import attention, calibrate, phases
from layerroute.benchmark.cases import load_case
from layerroute.cli.main import main

THREE = ["--repeats", "3"]


def record_of(tmp_path: Path, *command: str) -> dict:
    out = tmp_path / "record.json"
    assert main(["bench", *command, *THREE, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_attention_compares_outputs_and_gradients(tmp_path: Path) -> None:
    record = record_of(tmp_path, "attention", "--sizes", "2x70x2x16", "--rates", "0.3")
    forward, both = record["rows"]
    assert [check["what"] for check in forward["gate"]] == ["outputs of routed and full causal"]
    assert len(both["gate"]) == 4 and set(both["arms"]) == {"full causal", "routed"}


def test_the_chosen_queries_are_as_many_as_asked_in_every_row() -> None:
    problem = attention.Problem((3, 40, 2, 8), 0.25, torch.float32, torch.device("cpu"), seed=0)
    assert torch.bincount(problem.row).tolist() == [10, 10, 10]
    assert all(problem.position.view(3, 10).diff(dim=1).flatten() > 0)
    whole = problem.full_chosen(*problem.inputs.values())
    assert torch.allclose(problem.routed(*problem.inputs.values()), whole, atol=1e-5)


def test_a_wrong_gradient_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = attention.routed_attention

    def crooked(query, key, value, **options):
        return honest(query, key, value, **options) + 0.01 * (value - value.detach()).sum()

    monkeypatch.setattr(attention, "routed_attention", crooked)
    assert main(["bench", "attention", "--sizes", "1x40x2x8", "--rates", "0.5", *THREE]) == 1
    assert "gradients of value of routed and full causal" in capsys.readouterr().err


def test_peers_names_what_is_missing(tmp_path: Path) -> None:
    (row,) = record_of(tmp_path, "peers", "--sizes", "1x50x2x16")["rows"]
    assert set(row["arms"]) == {"full causal", "routed", "fused, dense mask", "eager, dense mask"}
    assert len(row["gate"]) == 3 and "FlexAttention was not asked for" in row["missing"]
    # Each needs the scores of a quarter of the queries, or of all.
    shares = {name: arm["share_of_peak"] * arm["seconds"]["median"] for name, arm in row["arms"].items()}
    assert shares["routed"] < shares["full causal"] / 2
    (row,) = record_of(tmp_path, "peers", "--sizes", "1x50x2x16", "--eager-up-to", "49")["rows"]
    assert "eager, dense mask" not in row["arms"]


def test_training_steps_are_compared_by_gradients_of_router_and_layers(tmp_path: Path) -> None:
    options = ["--shape", "tiny", "--sizes", "1x24", "--skip", "0.5"]
    figure = tmp_path / "train.svg"
    (row,) = record_of(tmp_path, "train-skipping", *options, "--figure", str(figure))["rows"]
    arms = row["arms"]
    assert row["baseline"] == "masked" and set(arms) == {"dense", "masked", "sparse", "limit"}
    compared = {check["what"] for check in row["gate"]}
    for who in ("sparse and masked", "disabled and dense", "sparse, these layers skipped by all, and limit"):
        own = {what for what in compared if what.endswith(f", {who}")}
        assert f"loss, {who}" in own and any("mlp.up_proj" in what for what in own)
    assert any("layerroute" in what for what in compared)
    flops = {name: arm["executed_flops_per_token"] for name, arm in arms.items()}
    assert max(flops["limit"], flops["sparse"]) < flops["dense"] <= flops["masked"]
    assert arms["limit"]["peak_bytes"] < arms["dense"]["peak_bytes"]
    assert row["limit"] == {"arm": "limit", "factor": 1.25, "whole": "dense"}
    assert "<svg" in figure.read_text()


def test_a_gradient_that_sparse_training_loses_turns_the_gate_red(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    from layerroute.skipping import routes

    parser = argparse.ArgumentParser()
    case = load_case("train-skipping")
    case.add_arguments(parser)
    chosen = parser.parse_args(["--shape", "tiny", "--sizes", "1x24", "--skip", "0.5"])
    (comparison,) = case.comparisons(chosen)
    prepared = comparison.prepare()
    assert all(check.green for check in prepared.gate())
    monkeypatch.setattr(routes.SiteRoute, "gate_ran", lambda self, hidden, ran: ran)
    assert any("layerroute" in check.what and not check.green for check in prepared.gate())


def test_a_training_step_that_a_switched_off_router_changes_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = phases.cross_entropy
    calls = iter(range(100))
    # masked, sparse, disabled, dense: the fourth loss is the plain model's
    monkeypatch.setattr(phases, "cross_entropy", lambda *a: honest(*a) * (1.001 if next(calls) == 3 else 1.0))
    assert (
        main(["bench", "train-skipping", "--shape", "tiny", "--sizes", "1x12", "--skip", "0.5", *THREE]) == 1
    )
    assert "loss, disabled and dense" in capsys.readouterr().err


@pytest.mark.parametrize("context", ["full_context", "own_context"])
def test_hybrid_counts_what_sparse_leaves_out(tmp_path: Path, context: str) -> None:
    options = ["--sizes", "2x96", "--hidden-size", "64", "--rates", "0.25", "--context", context]
    (row,) = record_of(tmp_path, "hybrid", *options)["rows"]
    masked, sparse = row["arms"]["masked"], row["arms"]["sparse"]
    assert sparse["executed_flops_per_token"] < masked["executed_flops_per_token"]
    assert masked["kv_bytes"] == sparse["kv_bytes"] > 0
    assert any(check["what"].startswith("cached tensor") for check in row["gate"])


def test_hybrid_is_held_against_models_without_routing(tmp_path: Path) -> None:
    (row,) = record_of(tmp_path, "hybrid", "--sizes", "1x40", "--hidden-size", "64", "--peers")["rows"]
    assert row["baseline"] == "all softmax" and set(row["arms"]) == {"masked", "sparse", "all softmax", "3:1"}
    kept = {name: arm["kv_bytes"] for name, arm in row["arms"].items()}
    assert kept["all softmax"] == 4 * kept["3:1"] > kept["masked"]
    assert sum("cached or not" in check["what"] for check in row["gate"]) == 2


@pytest.mark.parametrize(("model", "section"), [("skipping", "skip"), ("hybrid", "model")])
def test_calibrate_prints_a_configuration(
    model: str, section: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--sizes", "1x24", "--decode-size", "2x6", "--train-size", "1x12"]
    options += ["--shape", "tiny"] if model == "skipping" else []
    record = record_of(tmp_path, "calibrate", "--model", model, *options, "--skip", "0.6")
    assert set(record["conclusion"]) == {"prefill", "decode", "train"}
    assert all(0.0 < value <= 1.0 for value in record["conclusion"].values())
    assert f"{section}:\n  profitability:\n    prefill: " in capsys.readouterr().out
    assert {row["phase"] for row in record["rows"]} == {"prefill", "decode", "train"}
    gates = [check["what"] for row in record["rows"] if row["phase"] == "train" for check in row["gate"]]
    assert any("router" in what or "routing" in what for what in gates)


def test_calibrate_times_no_hybrid_model_whose_sparse_execution_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from layerroute.hybrid import mixers

    honest = mixers.attend_spans
    monkeypatch.setattr(mixers, "attend_spans", lambda *a, **k: 1.01 * honest(*a, **k))
    command = ["bench", "calibrate", "--model", "hybrid", "--sizes", "1x24", "--skip", "0.5", *THREE]
    assert main([*command, "--phases", "prefill"]) == 1
    assert "logits of sparse and masked" in capsys.readouterr().err


def test_a_gdn_state_that_sparse_execution_spoils_turns_the_gate_red(monkeypatch: pytest.MonkeyPatch) -> None:
    from layerroute.hybrid.mixers import GatedDeltaMixer

    parser = argparse.ArgumentParser()
    case = load_case("hybrid")
    case.add_arguments(parser)
    options = ["--sizes", "1x24", "--hidden-size", "64", "--rates", "0.25", "--dtype", "fp32"]
    (row,) = case.comparisons(parser.parse_args(options))
    prepared = row.prepare()
    assert all(check.green for check in prepared.gate())
    honest = GatedDeltaMixer.read

    def spoil(self, hidden, context, index, *, own):
        out = honest(self, hidden, context, index, own=own)
        self._states(context.cache).recurrent_states[0].mul_(1.5)
        return out

    monkeypatch.setattr(GatedDeltaMixer, "read", spoil)
    red = [check.what for check in prepared.gate() if not check.green]
    assert red and all(what.startswith("cached state") for what in red)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.1, 0.9), (0.2, 1.1), (0.5, 1.5)], 0.15),
        ([(0.1, 1.2), (0.2, 1.3)], 0.1),
        ([(0.1, 0.8), (0.5, 0.9)], 1.0),
        (
            [(0.1, 1.1), (0.2, 0.9), (0.3, 1.1)],
            0.25,
        ),  # what wins by chance below a share that loses does not count
    ],
)
def test_the_threshold_is_where_sparse_begins_to_win(points, expected) -> None:
    rows = [
        {"phase": "prefill", "skip": share, "arms": {"sparse": {"speedup": {"median": speedup}}}}
        for share, speedup in points
    ]
    assert calibrate.conclude({"rows": rows})[0] == {"prefill": pytest.approx(expected, abs=1e-3)}
