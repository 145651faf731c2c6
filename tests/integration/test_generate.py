"""generate, inspect and evaluate on a trained checkpoint, through the command line."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from layerroute.cli.main import main
from layerroute.evaluation.generation import IncrementalDecoder, Piece, generate
from layerroute.evaluation.loading import LoadedModel, load_model
from layerroute.records import read_record

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_text_comes_without_colours_from_a_pipe_and_figures_go_to_stderr(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", finished_run, "The router", "--max-new-tokens", 8, "--show-routes") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("The router")
    assert len(captured.out.strip()) > len("The router")
    assert "\x1b" not in captured.out
    assert re.search(
        r"\[8 new tokens; .* tokens/s .* softmax: layer1.mixer \d+%, layer2.mixer \d+%\]", captured.err
    )


def test_a_draw_leaves_the_callers_own_as_it_was(finished_run: Path) -> None:
    loaded = load_model(finished_run)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    drawn = [torch.rand(1)]
    for temperature in (0.0, 1.0):
        generate(loaded, "The router", max_new_tokens=2, temperature=temperature)
        drawn.append(torch.rand(1))
    assert torch.equal(torch.cat(drawn), expected)


def test_hardly_any_temperature_is_none(finished_run: Path) -> None:
    """Divided by it, logits are beyond what fp32 holds."""
    loaded = load_model(finished_run)
    greedy, hardly = (
        generate(loaded, "The router", max_new_tokens=6, temperature=temperature)
        for temperature in (0.0, 1e-40)
    )
    assert greedy.text == hardly.text


def test_inspect_reads_no_more_than_the_model(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadedModel, "context_length", 3)
    text = "The router reads a state of a token"
    assert run("inspect", finished_run, "--text", text, "--out", tmp_path) == 0
    assert "The first 3 of " in (told := capsys.readouterr().out) and "the model reads no more." in told


def test_colours_follow_the_share_of_softmax_sites(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerroute.evaluation.token_routes import route_colour

    assert (route_colour(0.0), route_colour(1.0)) == ("#2f6fb7", "#e07b1a")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run("generate", finished_run, "The router", "--max-new-tokens", 8, "--show-routes") == 0
    coloured = capsys.readouterr().out
    result = generate(load_model(finished_run), "The router", max_new_tokens=8)
    shares = {sum(row) / len(row) for row in result.choice}
    for share in shares:
        red, green, blue = (int(route_colour(share)[i : i + 2], 16) for i in (1, 3, 5))
        assert f"38;2;{red};{green};{blue}m" in coloured
    assert ESCAPE.sub("", coloured).strip() == ("The router" + result.text).strip()
    assert run("generate", finished_run, "The router", "--max-new-tokens", 8) == 0
    assert "38;2;" not in capsys.readouterr().out


def test_streamed_text_and_routes_are_those_of_one_forward_pass(finished_run: Path) -> None:
    loaded = load_model(finished_run)
    pieces: list[Piece] = []
    result = generate(loaded, "The router learns über", max_new_tokens=12, show=pieces.append)
    assert "".join(piece.text for piece in pieces) == "The router learns über" + result.text
    assert "".join(piece.text for piece in pieces if piece.prompt) == "The router learns über"
    ids = loaded.tokenizer(result.prompt, add_special_tokens=False)["input_ids"]
    assert result.prompt_tokens == len(ids)
    full = loaded.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        decision = loaded.model(full[:, :-1], use_cache=False).decision
    assert result.choice == decision.choice[0].tolist()
    flat = [p for row in result.probability for p in row]
    assert flat == pytest.approx(decision.probabilities[0, :, :, 1].flatten().tolist(), abs=1e-5)
    assert result.statistics is not None
    assert list(result.statistics.rate.values()) == pytest.approx(decision.rate().tolist())
    assert pieces[-1].share is None  # the last token was never read
    assert all(piece.share is not None for piece in pieces[:-1])


def test_text_is_shown_as_soon_as_its_route_is_known(finished_run: Path) -> None:
    loaded = load_model(finished_run)
    passes = 0

    def count(*arguments: Any) -> None:
        nonlocal passes
        passes += 1

    shown: list[tuple[bool, int]] = []
    handle = loaded.model.register_forward_hook(count)
    generate(loaded, "The", max_new_tokens=4, show=lambda piece: shown.append((piece.prompt, passes)))
    handle.remove()
    assert {at for prompt, at in shown if prompt} == {1}  # the prompt after its own pass
    # A new token after the pass that read it; the last one, which none reads, at the end.
    assert [at for prompt, at in shown if not prompt] == [2, 3, 4, 4]


def test_sampling_follows_the_seed(finished_run: Path) -> None:
    loaded = load_model(finished_run)
    settings: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.5}
    one, same, other = (generate(loaded, "A token", seed=seed, **settings).text for seed in (1, 1, 2))
    assert one == same != other
    greedy = generate(loaded, "A token", max_new_tokens=16).text
    assert generate(loaded, "A token", seed=5, top_k=1, **settings).text == greedy


def test_beams_and_stop_strings_of_the_models_configuration_break_nothing(finished_run: Path) -> None:
    loaded = load_model(finished_run, device="cpu")
    plain = generate(loaded, "def f", max_new_tokens=8)
    own: Any = loaded.model.generation_config
    own.num_beams = 2
    assert generate(loaded, "def f", max_new_tokens=8).text == plain.text
    own.stop_strings = [plain.text[0]]
    assert generate(loaded, "def f", max_new_tokens=8).new_tokens < plain.new_tokens


def test_what_cannot_be_timed_is_told_before_any_text(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", finished_run, "def f", "--time", 3) == 2
    captured = capsys.readouterr()
    assert not captured.out and "router" in captured.err


def test_an_empty_prompt_begins_a_document(finished_run: Path) -> None:
    assert generate(load_model(finished_run), "", max_new_tokens=3).prompt_tokens == 1


def test_half_a_character_is_held_back(finished_run: Path) -> None:
    tokenizer = load_model(finished_run).tokenizer
    text = "naïve 数据 🙂!"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoder = IncrementalDecoder(tokenizer)
    parts = [decoder.add(token, last=index == len(ids) - 1) for index, token in enumerate(ids)]
    assert "".join(parts) == text
    assert "�" not in "".join(parts)
    assert "" in parts  # the bytes of 数 came one by one
    cut = IncrementalDecoder(tokenizer)
    first = tokenizer("数", add_special_tokens=False)["input_ids"][0]
    assert cut.add(first, last=True) == "�"  # nothing more will come


def test_json_holds_tokens_routes_and_speed(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", finished_run, "The router", "--max-new-tokens", 4, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["prompt"] == "The router"
    assert len(content["tokens"]) - content["prompt_tokens"] == 4
    assert len(content["routing"]["choice"]) == len(content["tokens"]) - 1
    assert content["tokens_per_second"] > 0


def test_the_prompt_can_come_from_stdin(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("A cheap path"))
    assert run("generate", finished_run, "-", "--max-new-tokens", 1) == 0
    assert capsys.readouterr().out.startswith("A cheap path")


def test_inspect_writes_a_page_that_shows_text_as_text(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'The <script>alert("x")</script> & a token\nreads.'
    assert run("inspect", finished_run, "--text", text, "--out", tmp_path / "a") == 0
    out = capsys.readouterr().out
    assert text in out
    assert "layer1.mixer: " in out
    page = (tmp_path / "a" / "routes.html").read_text()
    assert "<script>alert" not in page
    shown = "".join(re.findall(r'<span class="tok"[^>]*>([^<]*)<i', page))
    assert "&lt;" in shown
    import html

    assert html.unescape(shown) == text.replace("\n", "⏎")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert (tmp_path / "a" / "routes.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_reads_files_and_prints_json(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("The router reads a token. " * 30)
    assert run("inspect", finished_run, "--file", file, "--json", "--max-tokens", 50) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["sentences"][0]["tokens"]) == 50
    assert set(content["rate"]) == set(content["sites"])
    assert run("inspect", finished_run, "--file", file, "--out", tmp_path / "b", "--max-tokens", 50) == 0
    assert "The first 50 of" in capsys.readouterr().out


def test_inspect_prints_json_also_where_nothing_can_be_written(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inspection").write_text("in the way")
    assert run("inspect", finished_run, "--text", "def f", "--json") == 0
    assert json.loads(capsys.readouterr().out)["sites"]
    assert run("inspect", finished_run, "--text", "def f") == 2
    assert "inspection is a file; name a folder" in capsys.readouterr().err


def test_evaluate_finds_the_figures_of_the_record_bit_by_bit(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for _ in range(2):
        assert run("evaluate", finished_run / "last", "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    for result in found:
        result.pop("seconds")
    assert found[0] == found[1]
    record = read_record(finished_run)
    assert found[0]["loss"] == record["metrics"]["validation_loss"]
    assert found[0]["accuracy"] == record["metrics"]["validation_accuracy"]
    assert found[0]["routing"]["rate"] == record["routing"]["rate"]
    assert found[0]["copies"] == record["copies"] and record["copies"]["copied"]["tokens"] > 0
    assert record["cache"]["read_per_token"] > 0
    assert run("evaluate", finished_run, "--json") == 0  # the folder of a run means its best model
    assert json.loads(capsys.readouterr().out)["loss"] == record["metrics"]["best_validation_loss"]


def test_evaluate_scores_any_text_file(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("The router reads a token. A path learns quickly.")
    assert run("evaluate", finished_run, "--data", file) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out
    assert "copied tokens  none nats on 0 tokens that end a stretch of 2 from more than 4 tokens back" in out
    assert "layer2.mixer" in out


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A saved model without manifest, as a stranger may give us, that may be damaged."""
    folder = Path(shutil.copytree(finished_run / "best", tmp_path / "model"))
    (folder / "manifest.json").unlink()
    return folder


def spoil_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))


def spoil_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64, "head_dim": 32}))


def spoil_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_pattern": ["gdn", "routed", "softmax"]}))


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


DAMAGES = {
    "another architecture ('llama')": spoil_architecture,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "as a pickle only": pickle_only,
    "cannot be loaded": lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 100),
    "is damaged": lambda folder: (folder / "config.json").write_text("{"),
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "do not fit": spoil_shapes,
    "do not fit its config.json": spoil_layers,
    "holds no model": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("command", ["generate", "evaluate", "inspect"])
@pytest.mark.parametrize("told", DAMAGES)
def test_a_checkpoint_that_cannot_be_used_is_told_and_nothing_takes_its_place(
    copy: Path, told: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[told](copy)
    more = {"generate": ["text"], "evaluate": ["--data", __file__], "inspect": ["--text", "text"]}[command]
    assert run(command, copy, *more) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("layerroute: error:")]
    assert told in line
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_model_alone_has_no_validation_data(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", copy) == 2
    assert "give text with --data" in capsys.readouterr().err


def test_a_model_without_routes_generates_but_has_nothing_to_inspect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny import write_recipe

    recipe = write_recipe(tmp_path, model={"layer_pattern": ["gdn", "softmax"]}, train={"max_steps": 1})
    assert run("train", recipe, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    assert run("generate", tmp_path / "run", "a token", "--max-new-tokens", 2, "--show-routes") == 0
    assert "softmax:" not in capsys.readouterr().err
    assert run("inspect", tmp_path / "run", "--text", "a token") == 2
    assert "no routes to inspect" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--show-routes"]])
def test_a_pipe_gets_the_bytes_as_they_are(
    finished_run: Path, more: list[str], capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """No renderer comes between: tabs, returns, form feeds, bells and markup stay what they are."""
    prompt = "a\tb\rc\x0cd\x07e\x08f\x0bg [bold]h[/bold] :smile: über 🙂\r\n"
    assert run("generate", finished_run, prompt, "--max-new-tokens", 6, *more) == 0
    out = capsysbinary.readouterr().out
    assert out == (prompt + generate(load_model(finished_run), prompt, max_new_tokens=6).text + "\n").encode()


def test_a_prompt_that_is_no_text_is_told(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("generate", finished_run, "a\udcffb") == 2  # as the shell hands a byte that is no UTF-8
    assert "the text is not UTF-8 (at character 2)" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert run("generate", finished_run, "-") == 2
    assert "the prompt on stdin is not UTF-8 text (byte 2)" in capsys.readouterr().err
    assert run("inspect", finished_run, "--text", "a\udcffb") == 2
    assert "the text is not UTF-8" in capsys.readouterr().err
