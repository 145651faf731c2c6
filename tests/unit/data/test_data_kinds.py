"""Kinds of text: how they are named, mixed, and what wrong ones are told."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from layerroute.data import DataConfig
from layerroute.data.kinds import KindConfig, default_kinds, parse_kinds
from layerroute.data.sources import make_source
from layerroute.data.sources.mixture import Mixture, kind_sources
from layerroute.data.sources.python_text import documentation_strings, without_doctests
from layerroute.data.texts import Texts, marks_of
from layerroute.errors import UserError


def paths(words):
    return {name: kind.paths for name, kind in parse_kinds(words).items()}


def test_words_become_kinds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths(["a.txt", "b/*.txt"]) == {"text": ["a.txt", "b/*.txt"]}
    assert paths(["prose=a.txt", "b.txt", "code=src,lib/*.py"]) == {
        "prose": ["a.txt", "b.txt"],
        "code": ["src", "lib/*.py"],
    }
    assert paths(["a.txt", "code=src"]) == {"text": ["a.txt"], "code": ["src"]}
    assert paths(["./a=b.txt"]) == {"text": ["./a=b.txt"]}, "a folder before the sign: no name"
    assert {name: kind.share for name, kind in parse_kinds(["a:2=x", "b=y", "c:0.5=z"]).items()} == {
        "a": 2.0,
        "b": 1.0,
        "c": 0.5,
    }


def test_a_file_whose_name_holds_the_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.txt").write_text("text")
    (tmp_path / "c,d.txt").write_text("text")
    assert paths(["a=b.txt"]) == {"text": ["a=b.txt"]}
    assert paths(["x=a=b.txt", "y=c,d.txt"]) == {"x": ["a=b.txt"], "y": ["c,d.txt"]}


def test_a_kind_may_have_more_files_than_a_name_has_letters():
    files = [f"part-{number:03}.txt" for number in range(40)]
    assert paths([f"prose={','.join(files)}"]) == {"prose": files}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prose=a", "code=b", "prose=c"], "names the kind 'prose' twice"),
        (["a.txt", "text=b"], "names the kind 'text' twice"),
        (["prose="], "has no file"),
        (["prose=,"], "has no file"),
        (["prose:x=a"], "'x' is not a share"),
        (["prose:0=a"], "'0' is not a share"),
        (["prose:nan=a"], "'nan' is not a share"),
    ],
)
def test_wrong_words_are_told(words, said):
    with pytest.raises(UserError, match=said):
        parse_kinds(words)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({}, "needs paths"),
        ({"paths": "a.txt"}, "needs paths"),
        ({"paths": ["a"], "share": 0.0}, "above 0"),
        ({"paths": ["a"], "share": float("inf")}, "above 0"),
        ({"paths": ["a"], "subset": "en"}, "subset is of a dataset"),
        ({"paths": ["a"], "split": "test"}, "split is of a dataset"),
    ],
)
def test_wrong_kinds_are_told(made, said):
    with pytest.raises(UserError, match=said):
        KindConfig(**made)


def write(tmp_path, name, count, text="words of {name} {index}"):
    file = tmp_path / f"{name}.jsonl"
    file.write_text("\n".join(json.dumps({"text": text.format(name=name, index=i)}) for i in range(count)))
    return str(file)


def test_kinds_without_text_and_texts_of_two_kinds_are_told_at_once(tmp_path):
    one = write(tmp_path, "one", 3)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "picture.bin").write_bytes(b"\0\1\2")
    with pytest.raises(UserError, match="kind 'b' holds no text"):
        Texts(parse_kinds([f"a={one}", f"b={empty}"]))
    with pytest.raises(UserError, match=r"'a' and 'b' share a text \(one\.jsonl\)"):
        Texts(parse_kinds([f"a={one}", f"b={one}"]))
    for a, b in (("docs", "docs"), ("reference", "reference"), ("docs", "stdlib"), ("stdlib", "code")):
        with pytest.raises(UserError, match="'a' and 'b' share a text"):
            Texts(parse_kinds([f"a=python-{a}", f"b=python-{b}"]))
    with pytest.raises(UserError, match="is not a name for a kind"):
        kind_sources({"a b": KindConfig(paths=[one])})
    (tmp_path / "blank.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"kind 'b': blank\.jsonl"):
        Texts(parse_kinds([f"a={one}", f"b={tmp_path / 'blank.jsonl'}"]))


def test_the_library_is_known_in_its_parts():
    """A run on all of it has seen the default kinds of code and documentation, which have no text in common."""
    texts = Texts()
    assert set(texts.documents) == {"code", "docs", "reference"}
    assert texts.known_as(marks_of(make_source(DataConfig(source="python-stdlib")))) is not None
    docs = Texts(parse_kinds(["python-docs"]))
    assert docs.known_as(marks_of(make_source(DataConfig(source="python-code")))) is None
    assert docs.shared_with(texts) is not None


def test_texts_tell_their_kinds(tmp_path):
    one, two = write(tmp_path, "one", 3), write(tmp_path, "two", 2)
    texts = Texts(parse_kinds([f"a:3={one}", f"b={two}"]))
    assert texts.shares == {"a": 0.75, "b": 0.25}
    assert [len(list(documents)) for documents in texts.documents.values()] == [3, 2]
    assert texts.name == "a: files one.jsonl; b: files two.jsonl"
    alone = Texts(parse_kinds([one]))
    assert alone.name == "files one.jsonl" and alone.fingerprint == texts.fingerprints["a"]
    assert texts.fingerprint != Texts(parse_kinds([f"a={one}", f"b={two}"])).fingerprint, "shares count"


def test_a_copy_of_a_document_is_drawn_once_over_kinds_and_over_what_is_judged_on(tmp_path):
    """Else a router is judged on what it was calibrated on, and intervals count one document as several."""
    texts = {"a": ["one", "two", "one", "three"], "b": ["three", "four", "four"], "judged": ["two", "five"]}
    for name, own in texts.items():
        lines = [json.dumps({"text": text}) for text in own]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = Texts(parse_kinds([f"{name}={tmp_path / name}.jsonl" for name in "ab"]))
    judged = Texts(parse_kinds([f"{tmp_path / 'judged'}.jsonl"]))
    judged.seen = data.seen
    assert [list(own) for own in data.distinct.values()] == [["one", "two", "three"], ["four"]]
    assert [list(own) for own in judged.distinct.values()] == [["five"]]
    again = Texts(parse_kinds([f"{tmp_path / 'a'}.jsonl"]))
    assert list(again.documents["text"]) == texts["a"], "who scores a text scores all of it"


def test_a_mixture_keeps_its_shares_and_ends_where_one_kind_does(tmp_path):
    one, two = write(tmp_path, "one", 200), write(tmp_path, "two", 30)
    mixture = Mixture({"a": KindConfig(paths=[one], share=2.0), "b": KindConfig(paths=[two])})
    names = [document.name.partition(":")[0] for document in mixture.documents()]
    for end in range(3, len(names)):
        assert abs(Counter(names[:end])["b"] - end / 3) <= 2
    assert Counter(names)["b"] == 30 and 55 <= Counter(names)["a"] <= 65
    assert (
        mixture.fingerprint()
        != Mixture({"a": KindConfig(paths=[one]), "b": KindConfig(paths=[two])}).fingerprint()
    )


def test_a_kind_without_text_does_not_end_a_mixture_before_it_begins(tmp_path):
    one, empty = write(tmp_path, "one", 200), tmp_path / "empty"
    empty.mkdir()
    (empty / "picture.bin").write_bytes(b"\0\1\2")
    mixture = Mixture({"a": KindConfig(paths=[one]), "b": KindConfig(paths=[str(empty)])})
    with pytest.raises(UserError, match=r"the kind 'b' holds no text \(files picture\.bin\)"):
        list(mixture.documents())


def test_recipes_have_mixtures(tmp_path):
    one, two = write(tmp_path, "one", 4), write(tmp_path, "two", 4)
    kinds = {"a": {"paths": [one]}, "b": {"paths": [two], "share": 2.0}}
    config = DataConfig(source="kinds", kinds=kinds)  # as read back from a record
    assert config.kinds["b"] == KindConfig(paths=[two], share=2.0)
    assert make_source(config).describe() == "a (1): files one.jsonl; b (2): files two.jsonl"
    with pytest.raises(UserError, match=r"set data\.source to 'kinds'"):
        DataConfig(kinds=kinds)
    with pytest.raises(UserError, match="is not a name for a kind"):
        DataConfig(source="kinds", kinds={"a=b": {"paths": [one]}})


def test_a_kind_may_be_a_dataset_of_the_hub(tmp_path, monkeypatch):
    """Several tasks trained together: here one of files, and one that ``datasets`` streams."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "maths"
    folder.mkdir()
    rows = [json.dumps({"proof": f"step {number}"}) for number in range(6)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    one = write(tmp_path, "one", 4)
    kinds = {"prose": {"paths": [one]}, "maths": {"dataset": str(folder), "text_field": "proof"}}
    with pytest.raises(UserError, match=r"streams without an end; set data\.max_documents"):
        DataConfig(source="kinds", kinds=kinds)
    config = DataConfig(source="kinds", kinds=kinds, max_documents=8)
    texts = [document.text for document in make_source(config).documents()]
    assert {"step 0", "step 5"} <= set(texts) and len(texts) > 6
    assert make_source(config).describe() == "prose (1): files one.jsonl; maths (1): hub maths:train"
    assert config.kinds["maths"].where == str(folder)
    for wrong in ({"paths": [one], "dataset": "owner/name"}, {}):
        with pytest.raises(UserError, match="needs paths or a dataset, one of the two"):
            KindConfig(**wrong)
    with pytest.raises(UserError, match="'maths' and 'more' share a text"):
        kind_sources({"maths": KindConfig(dataset="a/b"), "more": KindConfig(dataset="a/b")})


def test_embedded_kinds_are_apart_and_the_same_each_time():
    kinds = default_kinds()
    assert list(kinds) == ["code", "docs", "reference"]
    first, second = Texts(kinds), Texts(kinds)
    assert first.fingerprint == second.fingerprint
    sources = first.sources
    modules = {
        name: {d.name.partition("#")[0] for d in sources[name].documents()} for name in ("code", "docs")
    }
    assert modules["code"] and modules["docs"] and not modules["code"] & modules["docs"]
    assert not any(name.startswith("pydoc_data") for names in modules.values() for name in names)
    for name, source in sources.items():
        long = sum(len(document.text) > 1300 for document in islice(source.documents(), 400))
        assert long > (100 if name != "reference" else 20), f"{name} has windows enough"
    assert ">>>" not in "".join(document.text for document in sources["docs"].documents()).split("\n")


def test_documentation_strings_are_prose():
    source = '''"""A module that is about several things, told at such length that it is kept, and that means eighty.

    >>> 1 + 1
    2

After the example."""
def f():
    """short"""
'''
    (found,) = documentation_strings(source)
    assert found.endswith("eighty.\n\n\nAfter the example.") and ">>>" not in found
    assert documentation_strings("this is not Python") == []
    assert without_doctests("a\n  >>> x\n  ... y\n  z\n\n  b") == "a\n\nb"
