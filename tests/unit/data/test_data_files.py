"""The ``files`` source: every format under every compression, and one line for every file that cannot be used."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from layerroute.data.sources import readers
from layerroute.data.sources.files import FilesSource
from layerroute.data.sources.records import FORMATS
from layerroute.errors import UserError
from tests.text_formats import as_records


def _zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": _zstd,
}
TEXTS = ["first text\nof two lines", "second: über 数据\r\n\ttab", "third 🙂"]


def source(*paths: Path | str, field: str = "text", separator: str | None = None) -> FilesSource:
    return FilesSource([str(path) for path in paths], text_field=field, separator=separator)


def read(*paths: Path | str, field: str = "text", separator: str | None = None) -> list[str]:
    return [document.text for document in source(*paths, field=field, separator=separator).documents()]


def refusal(*paths: Path | str, field: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        read(*paths, field=field)
    message = str(caught.value)
    assert "\n" not in message
    return message


def read_or_complaint(path: Path) -> tuple[list[str], str]:
    try:
        return read(path), ""
    except UserError as error:
        return [], str(error)


def parquet(texts: list[str | None], **columns: list[object]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, **columns}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_under_every_compression(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](TEXTS[1].encode()))
    assert read(tmp_path / f"a.txt{suffix}") == [TEXTS[1]]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    "name", [f"{form}{ending}" for form, one in FORMATS.items() for ending in one.endings]
)
def test_records_of_every_format_under_every_compression(name: str, suffix: str, tmp_path: Path) -> None:
    """Other columns, a blank text and none: the texts come back, in order and to the letter."""
    texts = [*TEXTS, "  ", "last\u2028 of \x85 all"]
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESS[suffix](as_records(path, texts)))
    assert read(path) == [*TEXTS, texts[-1]]
    assert "text" in refusal(path, field="txt")


ROWS = [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}]


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        {"version": 1, "data": ROWS},
        {"meta": [{"licence": "x"}], "rows": ROWS},
        {"text": ["one", "two"], "id": [1, 2]},
        "\n".join(map(json.dumps, ROWS)),
        "\ufeff" + json.dumps(ROWS),
    ],
)
def test_json_is_read_as_records(content: object, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert read(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '{"a": {"b": 1}}', "holds an object without a list of objects"),
        ("a.json", '["one", "two"]', "holds a list of str"),
        ("a.json", "17", "holds int"),
        ("a.json", '[{"text": "a"}, 4]', "a.json[1] holds int, not an object"),
        ("a.json", '{"a": [{"text": "x"}], "b": [{"text": "y"}]}', "several lists of objects (a, b)"),
        ("a.json", '{"text": "a"', "a.json is not valid JSON"),
        ("a.json", '[{"body": "a"}]', "has no key 'text'; set data.text_field (--text-field)"),
        ("a.csv", "id,body\n1,a\n", "a.csv has no column 'text'; set data.text_field (--text-field)"),
        ("a.csv", "id;text\n1;a\n", "a.csv has no column 'text'"),
        ("a.csv", "id,text\n1,a,b\n", "a.csv:2 has 3 fields, and its first line names 2 columns"),
        ("a.csv", "text,text\n1,a\n", "names a column twice"),
        ("a.csv", 'id,text\n1,"never closed\n2,b\n', "is no .csv line (unexpected end of data)"),
        ("a.tsv", "id,text\n1,a\n", "a.tsv has no column 'text'"),
        ("a.csv", b"text\nab\xff\n", "a.csv is binary, not UTF-8 text"),
    ],
)
def test_what_cannot_be_read_as_records_is_refused_by_name(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    """None of it becomes text: keys and addresses are nobody's prose."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in refusal(path)


def test_a_folder_leaves_out_json_and_tables_without_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "package.json").write_text('{"name": "x", "version": 1}')
    (tmp_path / "numbers.csv").write_text("x,y\n1,2\n")
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "numbers.parquet")
    assert "has no column 'text'" in refusal(tmp_path / "numbers.parquet")
    assert read(tmp_path) == ["text"]
    assert "skipped 3 files without text: numbers.csv, numbers.parquet, package.json" in caplog.text


def test_zstd_that_begins_with_a_frame_to_skip(tmp_path: Path) -> None:
    """As pzstd and seekable archives write it (RFC 8878, 3.1.2)."""
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"\x5a\x2a\x4d\x18\x04\x00\x00\x00skip" + _zstd(b"text"))
    assert read(path) == ["text"]


@pytest.mark.parametrize(
    "kind",
    [pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.string_view(), pyarrow.large_string()],
)
def test_parquet_columns_of_every_kind_of_string(kind: pyarrow.DataType, tmp_path: Path) -> None:
    column = pyarrow.array(TEXTS).cast(kind)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), sink)
    (tmp_path / "a.parquet").write_bytes(sink.getvalue().to_pybytes())
    assert read(tmp_path / "a.parquet") == TEXTS


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_truncated_and_damaged_compression_is_told(suffix: str, ending: str, tmp_path: Path) -> None:
    """Cut at many places, and one byte changed at many: never half of the text, never an error of the library."""
    text = "\n".join(json.dumps({"text": " ".join(map(str, range(n, n + 9)))}) for n in range(600))
    whole = COMPRESS[suffix](text.encode())
    path = tmp_path / f"data.{ending}{suffix}"
    path.write_bytes(whole)
    good = read(path)
    for cut in (1, 4, 8, len(whole) // 3, len(whole) // 2, len(whole) - 8):
        path.write_bytes(whole[:-cut])
        message = refusal(path)
        assert path.name in message
        assert "truncated" in message or "damaged" in message
    draw = np.random.default_rng(0)
    for _ in range(40):
        changed = bytearray(whole)
        changed[int(draw.integers(len(whole)))] ^= 1 << int(draw.integers(8))
        path.write_bytes(changed)
        found, message = read_or_complaint(path)
        if message:
            assert path.name in message
            assert "\n" not in message
        else:  # gzip leaves its header unprotected; this zstd carries no checksum
            assert found == good or suffix == ".zst"


def test_a_gzip_of_two_members_is_read_whole(tmp_path: Path) -> None:
    for suffix in (".gz", ".xz", ".bz2", ".zst"):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(COMPRESS[suffix](b"one ") + COMPRESS[suffix](b"two"))
        assert read(path) == ["one two"], suffix


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "a.txt is empty; give a file that holds text"),
        ("a.txt", b" \n\t\n", "a.txt holds no text"),
        ("a.jsonl", b"\n\n", "a.jsonl holds no text"),
        ("a.jsonl", b'{"text": ""}\n{"text": null}\n', "a.jsonl holds no text"),
        ("a.txt", b"abc\x00def", "a.txt is binary, not UTF-8 text (a zero byte at 3)"),
        ("a.md", b"caf\xe9 au lait", "a.md is binary, not UTF-8 text (invalid continuation byte"),
        ("a.txt", b"ends in half of \xc3", "an unfinished character at the end"),
        ("a.py", bytes(range(1, 32)) * 20, "a.py is binary, not UTF-8 text (control characters)"),
        ("a.txt", "utf-16".encode("utf-16"), "UTF-16 text; convert it with: iconv"),
        ("a.txt", gzip.compress(b"text", mtime=0), "gzip data; name it .gz"),
        ("a.txt", lzma.compress(b"text"), "xz data; name it .xz"),
        ("a.txt", b"PK\x03\x04\x14\x00\x00\x00", "a zip archive; unpack it first"),
        ("a", b"\x7fELF\x02\x01\x01\x00", "a is binary"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "gzip data; name it .gz"),
        ("a.gz", b"plain text", "a.gz is named .gz but holds other data"),
        ("a.txt.xz", gzip.compress(b"text", mtime=0), "a.txt.xz is named .xz but holds gzip data"),
        ("a.parquet", b"no parquet", "a.parquet is named .parquet but holds other data"),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", "a.parquet is a damaged parquet file"),
        ("a.jsonl", b'{"text": "a"}\nnot json\n', "a.jsonl:2 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n["text"]\n', "a.jsonl:2 holds list, not an object"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"txt": "b"}\n',
            "a.jsonl:2 has no key 'text'; set data.text_field (--text-field). Did you mean 'txt'",
        ),
        ("a.jsonl", b'{"text": 5}\n', "a.jsonl:1: key 'text' holds int, not text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "invalid start byte in line 2"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl:1 is not valid JSON"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl:1 is not valid JSON"),
    ],
)
def test_unusable_content_is_told(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


def test_parquet_columns_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(["a", None, "", "b"], number=[1, 2, 3, 4]))
    assert read(path) == ["a", "b"]
    told = "has no column 'texts'; set data.text_field (--text-field). Did you mean 'text'"
    assert told in refusal(path, field="texts")
    assert "column 'number' holds int64, not text" in refusal(path, field="number")


def test_mutated_parquet_is_refused_or_read_but_never_a_traceback(tmp_path: Path) -> None:
    whole = parquet([f"text number {n}" for n in range(200)])
    path = tmp_path / "a.parquet"
    draw = np.random.default_rng(0)
    refused = 0
    for turn in range(120):
        changed = bytearray(whole)
        if turn % 3 == 0:
            del changed[int(draw.integers(8, len(changed))) :]
        else:
            changed[int(draw.integers(4, len(changed)))] ^= 1 << int(draw.integers(8))
        path.write_bytes(changed)
        refused += "a.parquet" in read_or_complaint(path)[1]
    assert refused > 40


def test_unpaired_surrogates_become_replacement_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "bad \\ud800 and good \\ud83d\\ude42"}')
    assert read(path) == ["bad \ufffd and good 🙂"]


def test_a_byte_order_mark_is_no_text_and_newlines_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}')
    assert read(tmp_path / "a.txt", tmp_path / "b.jsonl") == ["one\r\ntwo\rthree", "x"]


def test_text_larger_than_a_block_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_BLOCK", 7)
    text = "über 数据 🙂 and more\n" * 20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read(tmp_path / "a.txt") == [text]


def test_a_document_too_long_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decompression bomb is one: what it unpacks to is counted while it unpacks."""
    monkeypatch.setattr(readers, "MAXIMUM_DOCUMENT_BYTES", 1 << 21)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a" * (1 << 23)))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * (1 << 23)))
    assert "holds a document of more than" in refusal(tmp_path / "a.txt.gz")
    assert "holds a document of more than" in refusal(tmp_path / "a.jsonl.gz")


def test_a_separator_parts_text_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<|>two<|>  <|>three\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x<|>y"}')
    assert read(tmp_path, separator="<|>") == ["one", "two", "three\n", "x<|>y"]
    names = [document.name for document in source(tmp_path, separator="<|>").documents()]
    assert names == ["a.txt#0", "a.txt#1", "a.txt#3", "b.jsonl:1"]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("separator", ["\n", "<|>", "aa", "aba"])
def test_a_text_is_parted_alike_whatever_the_blocks_that_it_is_read_in(
    block: int, separator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_BLOCK", block)
    draw = np.random.default_rng(0)
    for _ in range(20):
        text = "".join(draw.choice(["a", "b", "ü", "\n", "<|", ">", "<|>"], size=40))
        (tmp_path / "a.txt").write_bytes(text.encode())
        expected = [part for part in text.split(separator) if part.strip()]
        assert read(tmp_path / "a.txt", separator=separator) == expected


def test_a_file_may_be_longer_than_any_of_its_documents_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAXIMUM_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(readers, "_BLOCK", 30)
    (tmp_path / "a.txt").write_text("<|>".join(["word " * 8] * 50))
    assert "set data.document_separator" in refusal(tmp_path / "a.txt")
    assert read(tmp_path / "a.txt", separator="<|>") == ["word " * 8] * 50
    (tmp_path / "a.txt").write_bytes(b"word<|>" * 50 + b"\0")
    with pytest.raises(UserError, match=r"a\.txt is binary.*a zero byte at 350"):  # too late to skip it
        read(tmp_path, separator="<|>")


def test_folders_globs_and_files_give_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "below/c.md", ".hidden.txt", ".git/d.txt", "__pycache__/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == ["a.txt", "b.txt", "below/c.md"]
    assert read(tmp_path / "b.txt", tmp_path) == ["b.txt", "a.txt", "below/c.md"]
    assert read(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert read(tmp_path / "**/*.m[dx]") == ["below/c.md"]
    os.symlink(tmp_path / "a.txt", tmp_path / "z.txt")
    assert read(tmp_path) == ["a.txt", "b.txt", "below/c.md"]


def test_a_folder_may_hold_other_things_and_says_what_it_skips(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (tmp_path / "c.txt").write_bytes(b"")
    assert read(tmp_path) == ["text"]
    assert "skipped 2 files without text: b.png, c.txt" in caplog.text
    assert "b.png is binary" in refusal(tmp_path / "b.png")
    assert "c.txt is empty" in refusal(tmp_path / "c.*")


def test_paths_that_lead_nowhere_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert "Did you mean 'corpus.txt'" in refusal(tmp_path / "corpsu.txt")
    assert "holds no files" in refusal(tmp_path / "empty")
    assert "no file matches" in refusal(tmp_path / "*.jsonl")
    assert "neither a file nor a folder" in refusal(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    assert f"Relative paths start at {tmp_path}" in refusal("zzz/qqq.txt")
    assert "there is no file or folder ~nobody-here/a.txt" in refusal("~nobody-here/a.txt")
    for name in ("a text in the place of a path. " * 100, f"{'x' * 300}/a.txt"):
        assert "there is no file or folder" in refusal(name)


def test_unreadable_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    made = source(path)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read a\.txt"):
        made.fingerprint()
    with pytest.raises(UserError, match=r"a\.txt is gone since it was listed"):
        list(made.documents())

    def deny(*args: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    path.write_text("text")
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(UserError, match=r"cannot read a\.txt: Permission denied"):
        list(made.documents())


def test_fingerprints_follow_content_reading_and_order(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("text a")
        (tmp_path / folder / "b.txt").write_text("text b")
    first = source(tmp_path / "one").fingerprint()
    assert source(tmp_path / "two").fingerprint() == first
    a, b = tmp_path / "one/a.txt", tmp_path / "one/b.txt"
    others = [
        source(b, a).fingerprint(),
        source(tmp_path / "one", field="body").fingerprint(),
        source(tmp_path / "one", separator="x").fingerprint(),
        source(a).fingerprint(),
    ]
    stamp = a.stat()
    a.write_text("text A")
    os.utime(a, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    others.append(source(tmp_path / "one").fingerprint())
    assert len({first, *others}) == 6


def test_positions_rise_to_one(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(b'{"text": "abc"}\n' * 50))
    positions = [document.position or 0.0 for document in source(tmp_path).documents()]
    assert positions == sorted(positions)
    assert 0.0 < positions[0] < 0.5
    assert positions[-1] == pytest.approx(1.0)


def test_long_listings_are_shortened(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("x")
    assert source(tmp_path).describe() == "files 0.txt, 1.txt, 2.txt and 6 more"
