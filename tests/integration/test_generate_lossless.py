"""`layerroute generate --lossless` as users meet it."""

import json
from pathlib import Path

import pytest
import torch

from layerroute.cli.main import main
from layerroute.data.windows import DocumentEncoder
from layerroute.routing import RoutingConfig
from layerroute.skipping import SkipConfig, add_router, load_pretrained, save_router
from tests.tiny_pretrained import write_pretrained

PROMPT = "the router reads a state"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model, and a router that skips at random."""
    root = tmp_path_factory.mktemp("lossless")
    (root / "text.txt").write_text("the router reads a state and decides which tokens skip a layer\n" * 30)
    write_pretrained(root / "base", root / "text.txt", num_hidden_layers=6)
    model, _ = load_pretrained(str(root / "base"))
    skip = SkipConfig(router_layer=1, skip_path="identity", routing=RoutingConfig(control="random", rate=0.5))
    return root / "base", save_router(add_router(model, skip), root / "router")


def full_depth(base: Path, new: int) -> str:
    model, tokenizer = load_pretrained(str(base))
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1] :], clean_up_tokenization_spaces=False)


def test_text_is_full_depths_and_acceptance_is_told(folders, capsys: pytest.CaptureFixture[str]) -> None:
    base, router = folders
    capsys.readouterr()
    assert main(["generate", str(router), PROMPT, "--lossless", "--max-new-tokens", "20", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["text"] == full_depth(base, 20)
    lossless = result["lossless"]
    assert lossless["drafted"] >= lossless["accepted"] and lossless["full_depth_passes"] > 1
    assert main(["generate", str(router), PROMPT, "--lossless", "--max-new-tokens", "20"]) == 0
    captured = capsys.readouterr()
    assert captured.out.rstrip("\n") == PROMPT + result["text"].rstrip("\n")
    assert "of drafts accepted" in captured.err and "tokens for each pass of full depth" in captured.err


def test_bench_lossless_compares_every_prompt(folders, tmp_path: Path) -> None:
    data, out = tmp_path / "text.jsonl", tmp_path / "record.json"
    lines = [
        json.dumps({"text": f"{word} the router reads a state and decides " * 3})
        for word in ("a", "we", "it")
    ]
    data.write_text("\n".join([json.dumps({"text": "short"}), *lines]))
    size = ["--prompts", "3", "--prompt-tokens", "6", "--new-tokens", "12", "--repeats", "3"]
    assert main(["bench", "lossless", str(folders[1]), "--data", str(data), *size, "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert [check["deviation"] for check in row["gate"]] == [0.0, 0.0, 0.0]
    assert 0.0 <= row["arms"]["lossless"]["acceptance"] <= 1.0
    assert row["arms"]["lossless"]["tokens_per_full_depth_pass"] >= 1.0
    assert (
        main(
            [
                "bench",
                "lossless",
                str(folders[1]),
                "--data",
                str(data),
                "--prompts",
                "9",
                "--prompt-tokens",
                "6",
            ]
        )
        == 2
    )


def test_bench_lossless_counts_the_tokens_that_came(folders, tmp_path: Path) -> None:
    base, router = folders
    model, tokenizer = load_pretrained(str(base))
    text = "a the router reads a state and decides " * 3
    ids = torch.tensor([DocumentEncoder.of(tokenizer).opening(text)[:6]])
    new = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 6:].tolist()
    data, out, settings = (tmp_path / "text.jsonl", tmp_path / "record.json", base / "generation_config.json")
    data.write_text(json.dumps({"text": text}))
    before = settings.read_text()
    settings.write_text(json.dumps(json.loads(before) | {"eos_token_id": new[3]}))
    size = ["--prompts", "1", "--prompt-tokens", "6", "--new-tokens", "12", "--repeats", "3"]
    try:
        assert main(["bench", "lossless", str(router), "--data", str(data), *size, "--out", str(out)]) == 0
    finally:
        settings.write_text(before)
    (row,) = json.loads(out.read_text())["rows"]
    came = new.index(new[3]) + 1
    full = row["arms"]["full depth"]
    assert row["tokens"] == came < 12
    assert full["tokens_per_second"] == pytest.approx(came / full["seconds"]["median"])
