"""Whatever is done to a recipe or a data file, the command line answers with 0 or with 2 and one line, and soon."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from layerroute.cli.main import main
from layerroute.recipe import Recipe, load_recipe
from layerroute.recipe.yaml_reader import dump
from tests.tiny import RECIPE, TEXT, merge, write_corpus
from tests.unit.recipe.test_properties import mutated

SECONDS = 60
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Raise where it takes longer than any of this may."""

    def too_long(number: int, frame: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answer(*words: object) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    errors = io.StringIO()
    with no_hang(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(map(str, words)))
    return code, errors.getvalue()


def assert_answered(code: int, errors: str) -> None:
    assert code in (0, 2), (code, errors)
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("layerroute: error: ")]
    assert len(lines) == (1 if code == 2 else 0), errors


@st.composite
def recipe_bytes(draw: st.DrawFn) -> bytes:
    """A recipe with something wrong: in its tree, or in its bytes, or in both."""
    tree = merge(RECIPE, {"data": {"paths": ["corpus.txt"]}})
    if draw(st.booleans()):
        tree = draw(mutated(tree))
    data = dump(tree).encode("utf-8", errors="surrogatepass")
    for _ in range(draw(st.integers(0, 3))):
        at, cut = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        data = data[:at] + draw(st.binary(max_size=6)) + data[at + cut :]
    return data


@pytest.mark.slow
@settings(deadline=None, max_examples=200, suppress_health_check=QUIET)
@given(data=recipe_bytes())
def test_two_hundred_mutated_recipes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mutated.yaml"
    path.write_bytes(data)
    assert_answered(*answer("validate", path))


def is_small(recipe: Recipe) -> bool:
    """Whether a machine for tests can train it."""
    model: dict[str, Any] = dict(recipe.sections["model"])  # type: ignore[call-overload]
    train: Any = recipe.train
    sizes = [model.get(key) or 0 for key in ("hidden_size", "intermediate_size", "vocab_size", "head_dim")]
    counts = [model.get(key) or 0 for key in ("num_attention_heads", "num_key_value_heads", "gdn_conv_size")]
    return (
        all(isinstance(size, int) and size <= 512 for size in sizes)
        and all(isinstance(count, int) and count <= 16 for count in counts)
        and len(model.get("layer_pattern") or []) <= 8
        and recipe.data.source == "files"
        and recipe.data.vocabulary_size <= 2000
        and recipe.data.sequence_length <= 256
        and train.batch_size <= 64
        and train.evaluation_sequences <= 64
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=10, suppress_health_check=QUIET)
@given(tree=mutated(merge(RECIPE, {"model": {"routing": {"router": "linear", "rate": 0.5}}})))
def test_mutated_recipes_that_are_valid_train_or_say_why_not(tmp_path: Path, tree: dict[str, Any]) -> None:
    corpus = tmp_path / "corpus.txt"
    if not corpus.exists():
        write_corpus(corpus)
    path = tmp_path / "mutated.yaml"
    assume(isinstance(tree.get("data"), dict))
    path.write_bytes(dump(tree).encode("utf-8", errors="surrogatepass"))
    short = {
        "train.max_steps": "1",
        "train.gradient_accumulation": "1",
        "data.cache_dir": str(tmp_path / "cache"),
    }
    short |= {"data.paths": f"[{corpus}]"}
    try:
        recipe = load_recipe(path, short)
    except ValueError:
        assume(False)
    assume(is_small(recipe))
    out = tmp_path / "runs" / str(len(list(tmp_path.glob("runs/*"))))
    words = [word for key, value in short.items() for word in (f"--{key}", value)]
    code, errors = answer("train", path, "--out", out, *words)
    if code == 1:  # it diverged, and says so
        assert "so the step was not taken" in errors
    else:
        assert_answered(code, errors)


def parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue()


TEXTS = [f"{TEXT} {number}." for number in range(30)]
PLAIN = "\n".join(TEXTS).encode()
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
FILES = {
    "a.txt": PLAIN,
    "a.jsonl": LINES,
    "a.parquet": parquet(TEXTS),
    "a.txt.gz": gzip.compress(PLAIN, mtime=0),
    "a.jsonl.xz": lzma.compress(LINES),
    "a.jsonl.zst": zstandard.compress(LINES),
    "a.txt.bz2": bz2.compress(PLAIN),
}


@st.composite
def data_file(draw: st.DrawFn) -> tuple[str, bytes]:
    """One of the formats, with up to four places changed, cut or filled, or under another's name."""
    name = draw(st.sampled_from(sorted(FILES)))
    data = FILES[name]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "put", "end", "repeat"])):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
            case "cut":
                data = data[:at] + data[at + draw(st.integers(1, 64)) :]
            case "put":
                data = data[:at] + draw(st.binary(max_size=16)) + data[at:]
            case "end":
                data = data[:at]
            case "repeat":
                data += data[at:]
    return draw(st.sampled_from([name, name, name, *FILES])), data


@pytest.mark.slow
@settings(deadline=None, max_examples=300, suppress_health_check=QUIET)
@given(file=data_file())
def test_three_hundred_mutated_data_files(tmp_path: Path, file: tuple[str, bytes]) -> None:
    name, data = file
    (tmp_path / "good.jsonl").write_bytes(LINES)
    path = tmp_path / name
    path.write_bytes(data)
    options = ["--vocabulary-size", 280, "--sequence-length", 8, "--validation-share", 0.5, "--no-progress"]
    options += ["--cache-dir", tmp_path / "cache"]
    code, errors = answer("data", "prepare", "files", "--paths", path, tmp_path / "good.jsonl", *options)
    assert_answered(code, errors)
    path.unlink()
