"""The cases `prefill` and `decode`: honest arms, a gate that can be red, records, table and figure."""

import json
from pathlib import Path

import pytest
import torch

from layerroute.benchmark.cases import load_case
from layerroute.benchmark.memory import peak_memory
from layerroute.benchmark.skipping_models import build_models, draw, spread_out, without_layers
from layerroute.benchmark.timing import Timings
from layerroute.cli.main import main
from layerroute.skipping import SkipConfig, get_router

TINY = ["--shape", "tiny", "--skip", "0.5", "--repeats", "3"]


def prepared(name: str, *options: str):
    import argparse

    case, parser = load_case(name), argparse.ArgumentParser()
    case.add_arguments(parser)
    (comparison,) = case.comparisons(parser.parse_args(["--shape", "tiny", "--skip", "0.5", *options]))
    return comparison.prepare()


def test_prefill_record_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figure = tmp_path / "prefill.json", tmp_path / "prefill.svg"
    command = ["bench", "prefill", *TINY, "--sizes", "2x24", "--out", str(out), "--figure", str(figure)]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "of limit" in table and "KV MB" in table and "2x24, 50% skipped" in table
    assert "<svg" in figure.read_text()
    (row,) = json.loads(out.read_text())["rows"]
    arms = row["arms"]
    assert set(arms) == {"dense", "masked", "sparse", "limit"} and row["baseline"] == "dense"
    flops = {name: arm["executed_flops_per_token"] for name, arm in arms.items()}
    assert max(flops["limit"], flops["sparse"]) < flops["dense"] <= flops["masked"]
    # With `project` every layer keeps the keys of every token; a layer that is gone keeps none.
    assert arms["sparse"]["kv_bytes"] == arms["dense"]["kv_bytes"] == 2 * 8 * 2 * 24 * 2 * 8 * 4
    assert arms["limit"]["layers_removed"] == 2 and arms["limit"]["layers_routed"] == 5
    assert row["limit"]["factor"] == pytest.approx(1.25)
    share = arms["sparse"]["share_of_limit"]["median"]
    assert share > 0 and arms["limit"]["share_of_limit"]["median"] == pytest.approx(1, rel=0.5)
    gate = {check["what"] for check in row["gate"]}
    assert "logits of sparse and masked" in gate and "logits of disabled and dense" in gate
    assert "logits of sparse, these layers skipped by all, and limit" in gate
    exact = [c["tolerance"] for c in row["gate"] if "disabled and dense" in c["what"]]
    assert exact and set(exact) == {0.0}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_decode_leaves_the_cache_as_it_found_it(cache: str) -> None:
    row = prepared("decode", "--sizes", "2x12", "--new-tokens", "3", "--cache", cache)
    checks = row.gate()
    assert checks and all(check.green for check in checks)
    for call in row.arms.values():
        first, again = call(), call()
        assert first["logits"].shape[1] == 3
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("options", [["--kv", "evict"], ["--unit", "mlp"], ["--unit", "attention+mlp"]])
def test_other_ways_to_skip_pass_the_gate(options: list[str]) -> None:
    row = prepared("prefill", "--sizes", "2x20", *options)
    assert all(check.green for check in row.gate())
    facts = row.count()
    assert facts["sparse"]["executed_flops_per_token"] < facts["masked"]["executed_flops_per_token"]
    held = facts["sparse"]["kv_bytes"], facts["dense"]["kv_bytes"]
    assert held[0] < held[1] if "evict" in options else held[0] == held[1]


def test_scoring_reads_all_logits_without_a_cache() -> None:
    row = prepared("prefill", "--sizes", "1x20", "--scoring")
    assert all(check.green for check in row.gate())
    result = row.arms["sparse"]()
    assert set(result) == {"logits"} and result["logits"].shape == (1, 20, 128)


def test_a_sparse_layer_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from layerroute.skipping import execution

    honest = execution.attend_spans
    monkeypatch.setattr(execution, "attend_spans", lambda *a, **k: 1.01 * honest(*a, **k))
    assert main(["bench", "prefill", *TINY, "--sizes", "1x20"]) == 1
    captured = capsys.readouterr()
    assert "the equality gate is red" in captured.err and captured.out == ""


def test_the_structural_limit_has_fewer_layers_and_the_same_weights() -> None:
    config = SkipConfig(router_layer=2, skip_path="identity", sink_tokens=0)
    models = build_models("tiny", config, torch.float32, torch.device("cpu"), seed=0)
    assert models.routed_layers == [2, 3, 4, 5, 6] == list(get_router(models.routed).config.layers)
    shorter = without_layers(models.plain, {3, 5})
    assert len(shorter.model.layers) == 6 and len(models.plain.model.layers) == 8
    assert [layer.self_attn.layer_idx for layer in shorter.model.layers] == list(range(6))
    assert shorter.model.layers[3].mlp.up_proj.weight is models.plain.model.layers[4].mlp.up_proj.weight
    assert models.routed.model.layers[4].mlp.up_proj.weight is models.plain.model.layers[4].mlp.up_proj.weight


def test_draws_have_exactly_the_share_and_layers_are_spread() -> None:
    choice = draw(3, 40, 25, 0.25, seed=1)
    assert choice.shape == (3, 40, 25) and (choice == 0).sum(dim=(1, 2)).tolist() == [250] * 3
    assert not torch.equal(choice[0], choice[1])
    assert spread_out(list(range(4, 29)), 5) == {6, 11, 16, 21, 26}
    assert len(spread_out(list(range(4, 29)), 19)) == 19


def test_the_limit_is_taken_at_exactly_the_share() -> None:
    # 2 of 5 layers removed save 4 of 10 seconds; 50 % of them would save 5.
    timings = Timings(seconds={"dense": [10.0], "limit": [6.0], "sparse": [10.0]}, calls={})
    assert timings.share_of("sparse", "dense", "limit", 1.25).median == pytest.approx(0.5)


def test_peak_memory_counts_what_lives_at_once() -> None:
    def call() -> torch.Tensor:
        first = torch.empty(1000, dtype=torch.uint8)
        view = first[:10]
        del first
        second = torch.empty(500, dtype=torch.uint8)
        del view, second
        third = torch.empty(800, dtype=torch.uint8)
        return third.add_(1)

    peak, result = peak_memory(call, torch.device("cpu"))
    assert peak == 1500 and result.shape == (800,)
