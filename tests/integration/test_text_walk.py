"""Text formats × tokenizers × whatever reads text: the same documents, the same tokens, the same score.

The rule is written down once more here, plainly, and every window that a model is given is held against it. A format
joins by being registered in ``records.FORMATS``, a command by having ``--text-field``.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import random
import shutil
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from layerroute.cli.main import COMMANDS, main
from layerroute.data import DataConfig, prepare_data
from layerroute.data.sources.records import FORMATS
from layerroute.data.windows import DocumentEncoder
from layerroute.errors import UserError
from layerroute.skipping import SkipConfig, add_router, save_router
from layerroute.skipping.calibration import draw_windows
from tests.parity.skipping_models import sharpen
from tests.text_formats import as_records
from tests.tiny_pretrained import LLAMA, SENTENCE

T = 24
"""Tokens of a window."""

# Name: (special tokens, those that the tokenizer names, what it puts before a text, what ends a document)
TOKENIZERS: dict[str, tuple[list[str], dict[str, str], str | None, str | None]] = {
    "plain": (["<eos>"], {"eos_token": "<eos>"}, None, "<eos>"),
    "chat": (["<|endoftext|>", "<|im_end|>"], {"eos_token": "<|im_end|>"}, None, "<|endoftext|>"),
    "bos": (["<s>", "</s>"], {"bos_token": "<s>", "eos_token": "</s>"}, "<s>", "</s>"),
    "endless": (["<pad>"], {"pad_token": "<pad>"}, None, None),
}
SUFFIXES = ["a.txt", *(f"a{one.endings[0]}" for one in FORMATS.values()), "a.json.gz", "a.csv.gz"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of one to two windows, with what could go wrong in them."""
    draw = random.Random(0)
    odd = ["<eos>", "<|endoftext|>", "<s>", "a,b", '"quoted"', "a\tb", "\n", "über", "\u2028"]
    return [
        " ".join(draw.choices([*SENTENCE.split(), draw.choice(odd)], k=draw.randint(24, 40)))
        for _ in range(40)
    ]


def write_base(folder: Path, name: str, text: str) -> Path:
    special, named, begin, _ = TOKENIZERS[name]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([text], vocab_size=300, special_tokens=special)
    backend = trained._tokenizer
    if begin is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A",
            pair=f"{begin} $A {begin} $B",
            special_tokens=[(begin, backend.token_to_id(begin))],
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    tokenizer.save_pretrained(folder / name)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{"vocab_size": len(tokenizer)} | LLAMA)).save_pretrained(folder / name)
    model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    add_router(model, SkipConfig(layers=[2, 3, 4, 5], router_layer=2, rank=2))
    sharpen(model)
    save_router(model.eval(), folder / f"{name}-router")
    return folder / name


@pytest.fixture(scope="module")
def bases(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name in TOKENIZERS:
        write_base(folder, name, "\n".join(texts))
    return folder


def by_the_rule(base: Path, name: str, texts: list[str]) -> list[list[int]]:
    """The documents as tokens, by the slow way: each alone, by transformers itself."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    _, _, begin, end = TOKENIZERS[name]
    first, last = ([tokenizer.convert_tokens_to_ids(t)] if t else [] for t in (begin, end))
    found = []
    for text in texts:
        own = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer(text.replace("<", "("))["input_ids"][: len(first)] == first, (
            "what the Python way begins with"
        )
        found.append(first + own + last)
    return found


def stream_windows(documents: list[list[int]], begin: list[int]) -> list[list[int]]:
    stream = [token for document in documents for token in document]
    return [begin + stream[at + len(begin) : at + T] for at in range(0, len(stream), T)]


def begin_of(base: Path, name: str) -> list[int]:
    begin = TOKENIZERS[name][2]
    return [] if begin is None else [AutoTokenizer.from_pretrained(base).convert_tokens_to_ids(begin)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Every row of token ids that a model is given, in order."""
    rows: list[list[int]] = []
    forward = LlamaForCausalLM.forward

    def watched(self: Any, input_ids: Any = None, **rest: Any) -> Any:
        rows.extend(input_ids.tolist())
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(LlamaForCausalLM, "forward", watched)
    return rows


def write(path: Path, texts: list[str]) -> Path:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    content = texts[0].encode() if plain.suffix == ".txt" else as_records(plain, texts)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# What reads text: the words of the command, for a router folder, its base and a file.
READERS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "evaluate": lambda router, base, file: [router, "--data", file, "--sequence-length", T, "--json"],
    "domains": lambda router, base, file: [
        router,
        f"a={file}",
        "--sequence-length",
        T,
        "--windows",
        9999,
        "--json",
    ],
    "retention": lambda router, base, file: [
        *(router, "--data", file, "--sequence-length", T, "--windows", 9999, "--json")
    ],
    "calibrate": lambda router, base, file: [base, "--budget", 0.4, *DRAW, "--data", file],
    "headroom": lambda router, base, file: [base, *DRAW, "--data", file],
    "inspect": lambda router, base, file: [router, "--file", file, "--json"],
}
DRAW = ["--length", T, "--tokens-selection", 20 * T, "--layers", "2-5", "--router-layer", 2]
PACKED = ("evaluate", "domains", "retention")
"""Read all documents as one stream; the others draw a window from each, and are stopped once they have."""
ALIKE = ("domains", "retention")
"""Give each window the same weight, and so leave out the short rest of the text."""


def test_every_command_that_reads_text_walks_here() -> None:
    reading = set()
    for name, (module, _) in COMMANDS.items():
        parser = argparse.ArgumentParser()
        importlib.import_module(module).add_arguments(parser)
        options = parser._option_string_actions
        if "--text-field" in options and name != "data":  # `data` is training's reader: see below
            reading.add(name)
        assert "--data" not in options or "--text-field" in options, f"{name} reads text by no rule"
    # `transfer` draws its windows as `calibrate` does, by the same function.
    assert reading == {*READERS, "transfer"}


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def every_pair() -> list[Any]:
    """All triples of command, tokenizer and file; the plain run has so many that each pair is among them."""
    found = []
    triples = product(enumerate(READERS), enumerate(TOKENIZERS), enumerate(SUFFIXES))
    for (first, command), (second, tokenizer), (third, file) in triples:
        long = () if (first + third) % len(TOKENIZERS) == second else (pytest.mark.walk,)
        found.append(pytest.param(command, tokenizer, file, marks=long, id=f"{command}-{tokenizer}-{file}"))
    return found


def test_the_plain_run_has_every_pair() -> None:
    short = [one.values for one in every_pair() if not one.marks]
    for left, right in combinations((READERS, TOKENIZERS, SUFFIXES), 2):
        places = [(READERS, TOKENIZERS, SUFFIXES).index(one) for one in (left, right)]
        assert {tuple(one[place] for place in places) for one in short} == set(product(left, right))


@pytest.mark.parametrize(("command", "tokenizer", "file"), every_pair())
def test_every_reader_takes_the_same_tokens(
    command: str,
    tokenizer: str,
    file: str,
    bases: Path,
    texts: list[str],
    tmp_path: Path,
    seen: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if file == "a.txt" and command in ("calibrate", "headroom"):
        pytest.skip("a text file is one document, and these take a window from each")
    base = bases / tokenizer
    texts = texts[:1] if file == "a.txt" else texts
    words = READERS[command](bases / f"{tokenizer}-router", base, write(tmp_path / file, texts))
    documents = by_the_rule(base, tokenizer, texts)
    if command in PACKED:
        run(command, *words)
        json.loads(capsys.readouterr().out)
        whole = [tuple(row) for row in stream_windows(documents, begin_of(base, tokenizer))]
        wanted = {row for row in whole if len(row) == T or (command not in ALIKE and len(row) > 1)}
        assert {tuple(row) for row in seen} == wanted
        return
    if command == "inspect":  # one document, or the first of several
        run(command, *words)
        json.loads(capsys.readouterr().out)
        end = len(documents[0]) - (TOKENIZERS[tokenizer][3] is not None)
        assert seen == [documents[0][:end]]
        return

    def draw(*given: Any, **options: Any) -> Any:
        seen.extend(draw_windows(*given, **options).ids.tolist())
        raise UserError("enough")

    monkeypatch.setattr("layerroute.skipping.calibration.configure.draw_windows", draw)
    assert main([command, *map(str, words)]) == 2
    assert "enough" in capsys.readouterr().err
    assert seen == [document[:T] for document in documents if len(document) >= T][: len(seen)]
    assert len(seen) == 20


@pytest.mark.parametrize("file", SUFFIXES[1:])
@pytest.mark.parametrize("tokenizer", [name for name, one in TOKENIZERS.items() if one[3]])
def test_training_reads_the_same_tokens(
    tokenizer: str, file: str, bases: Path, texts: list[str], tmp_path: Path
) -> None:
    base = bases / tokenizer
    path = write(tmp_path / file, texts)
    other = write(tmp_path / "other.jsonl", ["something else"])
    prepared = prepare_data(
        DataConfig(
            source="files", paths=[str(path)], validation_paths=[str(other)], tokenizer=str(base),
            sequence_length=T, cache_dir=str(tmp_path / "cache"),
        ),
        progress=False,
    )  # fmt: skip
    documents = by_the_rule(base, tokenizer, texts)
    begin = begin_of(base, tokenizer)
    whole = [row for row in stream_windows(documents, begin) if len(row) == T]
    assert [prepared.train.window(index).tolist() for index in range(prepared.train.windows())] == whole
    again = DocumentEncoder.of(prepared.tokenizer)  # what a model that is trained on them carries along
    assert (list(again.begin), again.end) == (begin, documents[0][-1])


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_prompts_and_inspected_texts_begin_as_documents_do(
    tokenizer: str,
    bases: Path,
    texts: list[str],
    tmp_path: Path,
    seen: list[list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, router = bases / tokenizer, bases / f"{tokenizer}-router"
    begin = begin_of(base, tokenizer)
    (document,) = by_the_rule(base, tokenizer, ["the router reads"])
    opening = document if TOKENIZERS[tokenizer][3] is None else document[:-1]
    for more in ([], ["--lossless"]):
        seen.clear()
        run("generate", router, "the router reads", "--max-new-tokens", 2, *more)
        assert capsys.readouterr().out.startswith("the router reads"), "what begins a document is not printed"
        assert seen[0] == opening
    run("inspect", router, "--text", "the router reads", "--json")
    assert len(json.loads(capsys.readouterr().out)["sentences"][0]["tokens"]) == len(opening)
    assert seen[-1] == opening
    empty = begin or ([] if document == opening else document[-1:])
    seen.clear()
    if empty:
        run("generate", router, "", "--max-new-tokens", 2)
        assert seen[0] == empty
    else:
        assert main(["generate", str(router), ""]) == 2
        told = "the prompt is empty, and the tokenizer has no token that begins or ends a text"
        assert told in capsys.readouterr().err
    assert DocumentEncoder.of(AutoTokenizer.from_pretrained(base)).prompt("the router reads") == opening


def test_one_score_for_the_same_documents_in_every_format(
    bases: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    for file in SUFFIXES[1:]:
        path = write(tmp_path / file, texts)
        run("evaluate", bases / "chat-router", "--data", path, "--sequence-length", T, "--json")
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert len(set(losses)) == 1


def test_tasks_need_a_token_that_ends_a_text(
    bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The harness asks for one: refused by name, or the base model's where the tokenizer names none."""
    pytest.importorskip("lm_eval")
    file = tmp_path / "words.jsonl"
    file.write_text('{"context": "the router", "target": "reads"}\n')
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "the router", "answer": "reads"}\n')
    for command in ("evaluate", "retention"):
        assert main([command, str(bases / "endless-router"), "--tasks", str(file), "--device", "cpu"]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert "has no token that ends a text" in told
        assert "tokenizer_config.json" in told
    shutil.copytree(bases / "chat", tmp_path / "chat")
    config = tmp_path / "chat" / "tokenizer_config.json"
    named = json.loads(config.read_text())
    del named["eos_token"]
    config.write_text(json.dumps(named))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "chat", dtype=torch.float32)
    add_router(model, SkipConfig(layers=[2], router_layer=2, rank=2))
    save_router(model.eval(), tmp_path / "router")
    run("evaluate", tmp_path / "router", "--tasks", file, answers, "--device", "cpu")
