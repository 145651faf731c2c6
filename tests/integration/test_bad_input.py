"""Every command × what users get wrong: one line on stderr that says so, exit code 2, nothing on stdout.

All paths are relative to one folder; a command joins by a line in ``CASES``.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from layerroute.cli import transfer_cells
from layerroute.cli.main import COMMANDS, main
from layerroute.skipping import SkipConfig, add_router, load_pretrained, save_router
from tests.tiny import write_recipe
from tests.tiny_pretrained import write_documents, write_pretrained
from tests.unit.lab.record_factory import make_run, sites

SIZES = "--length 32 --tokens-statistics 384 --tokens-selection 128 --rank 4 --layers 2-5 --router-layer 2"
CALIBRATE = f"calibrate base {SIZES} --tokens-heldout 320 --data a.jsonl --heldout few.jsonl --budget 0.25"
TRANSFER = f"transfer base {SIZES} --tokens-heldout 384"
FILES = "files --paths a.jsonl --vocabulary-size 300"

CASES: list[tuple[str, str]] = [
    ("train tiny.yaml --train.maxsteps 3", "Did you mean 'max_steps'?"),
    (
        "train tiny.yaml --model.rope_parameters '{rope_type: linear}'",
        "model.rope_parameters: Missing required keys",
    ),
    ("train tiny.yaml --model.initializer_range -1", "initializer_range must not be negative"),
    ("train nowhere.yaml", "there is no recipe nowhere.yaml"),
    ("validate nowhere.yaml", "there is no recipe nowhere.yaml"),
    ("doctor --jason", "Did you mean '--json'?"),
    (f"{CALIBRATE} --budget 1.5", "between 0 and 1"),
    (f"{CALIBRATE} --also 0", "between 0 and 1"),
    (f"{CALIBRATE} --layers 2-9", "--layers: 9 is out of range"),
    (f"{CALIBRATE} --layers two", "argument --layers: two: give layers like"),
    (f"{CALIBRATE} --layers 0-3 --router token", "raise the layers"),
    (f"{CALIBRATE} --own-text 2", "argument --own-text: 2 is not a share"),
    (f"{CALIBRATE} --own-text 1", "--own-text is a share from 0 to below 1"),
    (f"{CALIBRATE} --own-text some", "--own-text"),
    (f"{CALIBRATE} --rank 0", "argument --rank: 0 is too few"),
    (f"{CALIBRATE} --length 15", "must be at least 16"),
    (
        f"{CALIBRATE} --length 2049 --tokens-statistics 4098 --tokens-selection 4098 --tokens-search 4098 "
        "--tokens-heldout 4098",
        "windows of 2049 tokens are too long: this model reads 2048",
    ),
    (f"{CALIBRATE} --seed -99999999999999999999", "is not a seed of 64 bits"),
    (f"{CALIBRATE} --length 16 --router sequence", "too short: the first 16 decide for the rest"),
    (f"{CALIBRATE} --router sequence --allocation cost", "--allocation: cost is by token; with --router"),
    (
        f"{CALIBRATE} --allocation search",
        "search finds a choice of layers for each prompt; it is for --router: seq",
    ),
    (
        f"{CALIBRATE} --router sequence --allocation search --also 0.5",
        "--also: search finds programs of one budget",
    ),
    (f"{CALIBRATE} --tokens-statistics 31", "error: --tokens-statistics is 31, less than one window"),
    (f"{CALIBRATE} --threads 0", "must be at least 1"),
    (f"{CALIBRATE} --min-share 2", "not a share from 0 to 1"),
    (f"{CALIBRATE} --rounds 2", "--rounds is for --allocation cost"),
    (f"{CALIBRATE} --router sequence --min-share 0.2", "--min-share is for --allocation cost"),
    (f"{CALIBRATE} --allocation even --rounds 2", "--rounds is for --allocation cost"),
    (f"{CALIBRATE} --unit attention --layers 2-9", "out of range"),
    (f"{CALIBRATE} --tokens-heldout 31", "less than one window"),
    (f"{CALIBRATE} --tokens-heldout 32", "--tokens-heldout is 32, less than two windows"),
    (f"{CALIBRATE} --tokens-heldout 64000", "has 3 documents"),
    (f"{CALIBRATE} --record record.txt", "give the name of a .json file"),
    (f"{CALIBRATE} --controls", "--controls needs --out"),
    (f"{CALIBRATE} --data nowhere.txt", "nowhere.txt"),
    (f"{CALIBRATE} --data a=x --data a=y", "names the kind 'a' twice"),
    (f"{CALIBRATE} --heldout a=", "--heldout a=: the kind 'a' has no file"),
    ("calibrate base --budget 0.25 --data a=python-docs b=python-docs", "'a' and 'b' share a text"),
    (
        f"calibrate base {SIZES} --budget 0.25 --data a.jsonl --heldout x=a.jsonl",
        "to calibrate on, too (the kind",
    ),
    ("calibrate none --budget 0.25 --data a.jsonl", "none"),
    (f"headroom base {SIZES} --data a.jsonl --budgets 0.25 1", "between 0 and 1"),
    (f"headroom base {SIZES} --data a.jsonl --budgets 0.1", "less than one of 4 layers"),
    (f"{TRANSFER} --data a=a.jsonl", "leaves one kind of text out, and 1 is given"),
    (f"{TRANSFER} --data a=a.jsonl --data a=b.jsonl", "names the kind 'a' twice"),
    (f"{TRANSFER} --data a=a.jsonl b=few.jsonl", "the kind 'b' has 3 documents of at least 32 tokens"),
    (f"{TRANSFER} --data a=a.jsonl b=pictures", "the kind 'b' holds no text"),
    (f"{TRANSFER} --data a=a.jsonl b=nowhere", "no file or folder"),
    (f"{TRANSFER} --data a=a.jsonl b=a.jsonl", "share a text"),
    (f"{TRANSFER} --data a=a.jsonl b=copy.jsonl", "'a' and 'b' hold the same text"),
    (f"{TRANSFER} --data a=a.jsonl b=b.jsonl --budget 0.1", "less than one of 4 layers"),
    (
        f"{TRANSFER} --data a=a.jsonl b=b.jsonl --unit attention+mlp --budget 0.05",
        "one of 8 halves of layers",
    ),
    (f"{TRANSFER} --data a=a.jsonl b=b.jsonl --budget 0.95", "takes out all of 4 layers"),
    (f"{TRANSFER} --data a=a.jsonl b=b.jsonl --budget 0.5 1.5", "between 0 and 1"),
    (f"{TRANSFER} --data a=a.jsonl b=b.jsonl --budget 0.5 0.5", "names a share twice"),
    (f"{TRANSFER} --data a=a.jsonl b=b.jsonl --out a.jsonl", "is a file; name a folder"),
    (f"{TRANSFER} --data a=a.jsonl b=b.jsonl --against x", "--against is for a ROUTER folder"),
    (f"{TRANSFER} --data a=a.jsonl b=b.jsonl --serve rate", "--serve is for a ROUTER folder"),
    ("transfer one --data a=a.jsonl --length 32", "has no static arms to compare with"),
    ("study study.yaml --out s --workers 0", "--workers"),
    ("study study.yaml --out s --storage nonsense", "not a URL of a database"),
    ("study study.yaml --out s --train.max_stepz 3", "Did you mean 'max_steps'?"),
    *((f"{command} runs/c", "there is no run at") for command in ("compare", "report")),
    *((f"{command} runs", "--allow-different-data") for command in ("compare", "report")),
    *(
        (f"{command} runs/a --baseline basline", "Did you mean 'baseline'?")
        for command in ("compare", "report")
    ),
    *((f"{command} mixed", "answer different questions") for command in ("compare", "report")),
    ("generate nowhere text", "there is no checkpoint nowhere"),
    ("generate a.jsonl text", "is a file"),
    ("generate run text --max-new-tokens 0", "--max-new-tokens"),
    ("generate run text --temperature -1", "--temperature"),
    ("generate run text --temperature nan", "nan is not a temperature"),
    ("generate run text --seed 99999999999999999999", "is not a seed of 64 bits"),
    ("generate run text --top-k 5", "--temperature above 0"),
    ("generate one x --time 0", "--time"),
    ("generate one x --max-new-tokens 3000", "and 3000 new ones are too many: this model reads 2048 in all"),
    ("generate one x --max-new-tokens 3000 --lossless", "are too many: this model reads 2048 in all"),
    ("generate one x --lossless --temperature 0.5", "--lossless is greedy"),
    ("generate one x --lossless --show-routes", "--lossless is greedy"),
    ("generate one x --lossless --draft-tokens 0", "at least 1"),
    ("generate one x --lossless --compile", "leave --compile out"),
    ("generate one x --draft-tokens 4", "--draft-tokens is for --lossless"),
    ("bench decode --compile --shape tiny --cache static", "leave --cache out"),
    ("bench decode --compile --shape tiny --kv evict", "use --kv project"),
    ("bench decode --compile --shape tiny --figure x.png", "--figure draws"),
    ("evaluate run --data nowhere.txt", "nowhere.txt"),
    ("evaluate run --sequence-length 1", "at least 2"),
    *(
        (f"{command} --sequence-length 2049", "windows of 2049 tokens are too long: this model reads 2048")
        for command in ("evaluate one --data a.jsonl", "domains one a=a.jsonl")
    ),
    ("evaluate one --tasks lambada_openia", "Did you mean 'lambada_openai'?"),
    ("evaluate one --data a.jsonl --budget 0.3", "serves one budget"),
    ("evaluate many --data a.jsonl --budget 0.9", "serves budgets of 0.25 to 0.5"),
    ("evaluate one --tasks questions --data a.jsonl", "--data is for text, not for --tasks"),
    ("evaluate one --tasks questions --sequences 3", "--sequences is for text"),
    ("evaluate one --data a.jsonl --limit 3", "--limit is for --tasks"),
    ("evaluate one", "give text with --data"),
    ("inspect run", "--text --file"),
    ("inspect run --file nowhere.txt", "nowhere.txt"),
    ("inspect run --text ''", "the text is empty"),
    ("inspect run --text a --max-tokens 0", "--max-tokens"),
    ("retention one --limit 0", "--limit"),
    ("retention one --windows 0", "--windows"),
    ("retention one", "nothing to score"),
    ("retention one --data a.jsonl --shots 2", "--shots is for --tasks"),
    ("retention one --data a.jsonl --equal-flops", "name one or more"),
    ("retention base --data a.jsonl", "is not a router folder"),
    ("domains one a.jsonl", "write NAME=FILE"),
    ("domains one a=a.jsonl --windows 0", "--windows"),
    ("export nowhere out --to hf", "there is no checkpoint nowhere"),
    ("export one out --to hf --public", "give --push USER/NAME"),
    ("evaluate one --engine vllm --data a.jsonl --device cpu", "--device is not for --engine vllm"),
    ("serve nowhere", "there is no checkpoint nowhere"),
    ("serve one --port 70000", "70000 is not a port from 1 to 65535"),
    ("serve many --serve rat", "--serve: 'rat' is not known. Did you mean 'rate'"),
    ("evaluate many --data a.jsonl --serve rate:5", "--serve: 'rate:5' is no share from 0.01 to 0.5"),
    ("bench gated-deltas --json", "Did you mean 'gated-delta'?"),  # its cases' own: tests/unit/benchmark
    ("data prepare", "needs a SOURCE"),
    ("data prepare pyhton-stdlib", "Did you mean 'python-stdlib'"),
    ("data prepair files", "invalid choice: 'prepair'"),
    ("data prepare files --pahts a.jsonl", "Did you mean '--paths'"),
    ("data prepare files", "data.paths is empty"),
    ("data prepare files --paths pictures/pictur.bin", "Did you mean 'picture.bin'"),
    ("data prepare files --paths broken.txt.xz", "broken.txt.xz is truncated"),
    ("data prepare python-stdlib --vocabulary-size 10", "needs 257"),
    ("data prepare python-stdlib --vocabulary-size many", "--vocabulary-size"),
    ("data prepare python-stdlib --tokenizer no/tokenizer", "cannot be reached from here"),
    ("data prepare hub --dataset no/dataset --max-documents 5", "cannot be reached from here"),
    ("data prepare installed-packages --packages nunpy", "Did you mean 'numpy'"),
    ("data prepare no.yaml", "no.yaml"),
    (f"data show {FILES}", "are not prepared in"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """A base, routers of one budget and of several, a run, records, texts, a recipe and a study."""
    folder = tmp_path_factory.mktemp("bad")
    write_documents(folder, {"a": 60, "few": 3}, length=90)
    write_documents(
        folder, {"b": 60}, length=90, sentence="def self return value for index in range with open"
    )
    shutil.copy(folder / "a.jsonl", folder / "copy.jsonl")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "picture.bin").write_bytes(b"\0\1\2")
    (folder / "broken.txt.xz").write_bytes(b"\xfd7zXZ\x00\x00\x04")
    write_pretrained(folder / "base", folder / "a.jsonl")
    budgets = {"0.25": [0.9, 0.8, 0.7, 0.6], "0.5": [0.7, 0.6, 0.4, 0.3]}
    for name, more in (("one", {}), ("many", {"budgets": budgets})):
        model, _ = load_pretrained(str(folder / "base"))
        add_router(model, SkipConfig(layers=[2, 3, 4, 5], router_layer=2, rank=2, **more))
        save_router(model, folder / name, notes={"model": {"dtype": "float32"}})
    (folder / "run").symlink_to(finished_run)
    write_recipe(folder)
    (folder / "study.yaml").write_text(yaml.safe_dump({"arms": ["tiny.yaml"], "seeds": [1]}))
    make_run(folder / "runs" / "a", "baseline")
    make_run(folder / "runs" / "b", "dynamic", rates=sites(0.5), fingerprint="0f0f")
    make_run(folder / "mixed", "skip", capability="layer_skipping")
    make_run(folder / "mixed", "route", capability="attention_routing")
    return folder


def test_every_command_is_given_something_wrong() -> None:
    assert {words.split()[0] for words, _ in CASES} == set(COMMANDS)


@pytest.mark.parametrize(("words", "told"), CASES, ids=[f"{words[:60]} {told}" for words, told in CASES])
def test_bad_input_is_one_line_and_exit_code_2(
    words: str, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LAYERROUTE_CACHE", str(folder / "cache"))
    monkeypatch.setattr(
        transfer_cells, "transfer_cell", lambda *a, **k: pytest.fail("worked before it checked")
    )
    capsys.readouterr()
    assert main(shlex.split(words)) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("layerroute: error: ")
    assert told in line
    assert captured.out == ""
