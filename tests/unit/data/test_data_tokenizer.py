"""Byte-level BPE: any text survives, pieces change nothing, and no document can end itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerroute.data import tokenizer as module
from layerroute.data.tokenizer import (
    END_OF_TEXT,
    TokenizerBundle,
    load_pretrained,
    parse_tokenizer,
    pieces,
    tokenizer_fingerprint,
    train_bpe,
    transformers_tokenizer,
)
from layerroute.data.windows import DocumentEncoder
from layerroute.errors import UserError


def packed(bundle: TokenizerBundle, texts: list[str]) -> list[int]:
    parts = [ids for ids, _ in bundle.encode(texts)]
    return np.concatenate(parts).tolist() if parts else []


def documents(bundle: TokenizerBundle, tokens: list[int]) -> list[str]:
    """Decode packed tokens back into the documents."""
    found: list[str] = []
    current: list[int] = []
    for token in tokens:
        if token == bundle.end_of_text_id:
            found.append(bundle.tokenizer.decode(current, skip_special_tokens=False))
            current = []
        else:
            current.append(token)
    assert not current, "the stream ends with an end of text"
    return found


# Text that UTF-8 can hold, with the spellings that could go wrong more often than by chance.
_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.sampled_from(
            ["\n", " ", "\r\n", "\t", "  \n", END_OF_TEXT, "<|", "'s", "über", "\x00", "\u2028", "🙂"]
        ),
    ),
    max_size=12,
).map("".join)


@given(written=st.lists(_text, max_size=5))
@settings(deadline=None, max_examples=200)
def test_any_documents_survive_packing(bundle: TokenizerBundle, written: list[str]) -> None:
    tokens = packed(bundle, written)
    assert documents(bundle, tokens) == written
    assert tokens.count(bundle.end_of_text_id) == len(written)


@given(_text, st.integers(1, 30))
@settings(deadline=None, max_examples=200)
def test_pieces_make_up_the_text(text: str, size: int) -> None:
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= size for piece in cut)


@given(
    words=st.lists(st.sampled_from(["word", "42", "...", "don't", "é数", "x = y;"]), min_size=1, max_size=60)
)
@settings(deadline=None, max_examples=100)
def test_pieces_at_lines_and_spaces_have_the_tokens_of_the_whole(
    bundle: TokenizerBundle, words: list[str]
) -> None:
    for joined in (" ".join(words), "\n".join(words)):
        whole = bundle.tokenizer.encode(joined).ids
        cut = [token for piece in pieces(joined, 12) for token in bundle.tokenizer.encode(piece).ids]
        assert cut == whole


def test_a_document_longer_than_a_batch_is_one_document(
    bundle: TokenizerBundle, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(texts)
    whole = packed(bundle, ["before", text, "after"])
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 100)
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 60)
    monkeypatch.setattr(module, "pieces", lambda text: pieces(text, 60))
    parts = list(bundle.encode(["before", text, "after"]))
    assert len(parts) > 50
    assert sum(ended for _, ended in parts) == 3
    assert np.concatenate([ids for ids, _ in parts]).tolist() == whole


def test_text_that_spells_the_end_of_text_is_text(bundle: TokenizerBundle) -> None:
    tokens = packed(bundle, [f"a {END_OF_TEXT} b"])
    assert tokens.count(bundle.end_of_text_id) == 1
    assert tokens[-1] == bundle.end_of_text_id
    assert bundle.tokenizer.encode_special_tokens is False, "left as it was found"


def test_the_vocabulary_has_the_size_asked_for_and_the_end_of_text(bundle: TokenizerBundle) -> None:
    assert bundle.vocabulary_size == 340
    assert bundle.tokenizer.id_to_token(bundle.end_of_text_id) == END_OF_TEXT


def test_a_text_too_small_for_the_vocabulary_warns(caplog: pytest.LogCaptureFixture) -> None:
    small = train_bpe(["abc abc abd"], 5000)
    assert 257 <= small.vocabulary_size < 300
    assert f"has {small.vocabulary_size} entries" in caplog.text


def test_training_is_deterministic_and_so_are_the_saved_files(texts: list[str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train_bpe(iter(texts), 340).save(tmp_path / name)
    for file in (module.TOKENIZER_FILE, module.CONFIG_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_transformers_tokenizer_agrees(bundle: TokenizerBundle, texts: list[str], tmp_path: Path) -> None:
    bundle.save(tmp_path)
    wrapped = transformers_tokenizer(tmp_path)
    for text in texts[:5]:
        ids = wrapped(text)["input_ids"]
        assert ids == bundle.tokenizer.encode(text).ids
        assert wrapped.decode(ids) == text
    assert wrapped.eos_token_id == wrapped.pad_token_id == wrapped.bos_token_id == bundle.end_of_text_id
    assert wrapped.padding_side == "left"
    assert len(wrapped) == bundle.vocabulary_size


def test_a_saved_transformers_folder_loads_as_pretrained(
    bundle: TokenizerBundle, texts: list[str], tmp_path: Path
) -> None:
    bundle.save(tmp_path)
    transformers_tokenizer(tmp_path).save_pretrained(tmp_path / "saved")
    loaded = load_pretrained(str(tmp_path / "saved"))
    assert packed(loaded, texts[:3]) == packed(bundle, texts[:3])
    file = load_pretrained(str(tmp_path / module.TOKENIZER_FILE))
    assert packed(file, texts[:3]) == packed(bundle, texts[:3])


def test_gpt2s_vocabulary_and_merges_load_as_pretrained(
    bundle: TokenizerBundle, texts: list[str], tmp_path: Path
) -> None:
    model = json.loads(bundle.tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    loaded = load_pretrained(str(tmp_path))
    assert loaded.end_of_text == END_OF_TEXT
    samples = [*texts[:3], END_OF_TEXT]
    assert packed(loaded, samples) == packed(bundle, samples)


def test_the_end_of_text_of_a_pretrained_tokenizer(bundle: TokenizerBundle, tmp_path: Path) -> None:
    """A separator of base models comes first, then the tokenizer's own eos_token, then customary names."""
    content = json.loads(bundle.tokenizer.to_str())

    def load(tokens: list[str], config: dict[str, object] | None) -> str:
        folder = tmp_path / hashlib.sha256(json.dumps([tokens, config]).encode()).hexdigest()[:8]
        folder.mkdir()
        content["added_tokens"] = []
        del content["model"]["vocab"][next(iter(content["model"]["vocab"]))]
        vocabulary = {token: index for index, token in enumerate([*tokens, *map(str, range(5))])}
        content["model"] = {**content["model"], "vocab": vocabulary, "merges": []}
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        if config is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return load_pretrained(str(folder)).end_of_text

    assert load(["<|im_end|>", END_OF_TEXT], {"eos_token": "<|im_end|>"}) == END_OF_TEXT
    assert load(["<stop>", "</s>"], {"eos_token": {"content": "<stop>"}}) == "<stop>"
    assert load(["a", "</s>"], None) == "</s>"
    with pytest.raises(UserError, match="has no end-of-text token"):
        load(["a"], {"eos_token": "missing"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"model": {"type": "BPE"}', "cannot be read"),
    ],
)
def test_damaged_tokenizers_are_told(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_pretrained(str(tmp_path))


def test_tokenizers_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; give a tokenizer's folder"):
        load_pretrained(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"holds neither tokenizer\.json nor vocab\.json"):
        load_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="needs the Hugging Face hub, which cannot be reached from here"):
        load_pretrained("someone/no-such-tokenizer")
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"give intact vocab\.json and merges\.txt"):
        load_pretrained(str(tmp_path))
    for name in ("not a name/at all/whatever", "x" * 300):
        with pytest.raises(UserError, match="cannot be named so"):
            load_pretrained(name)
    with pytest.raises(UserError, match="does not exist; give a tokenizer's folder"):
        load_pretrained("~nobody-here/tokenizer")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="which holds no tokens; give its folder"):
        load_pretrained(str(tmp_path / "tokenizer_config.json"))


def test_mutated_tokenizer_files_never_bring_the_process_down(bundle: TokenizerBundle) -> None:
    """The library answers bad content with plain exceptions, and with panics that derive from BaseException."""
    data = bundle.tokenizer.to_str().encode()
    draw = np.random.default_rng(0)
    complaints = []
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(int(draw.integers(1, 4))):
            changed[int(draw.integers(len(changed)))] = int(draw.integers(256))
        try:
            parse_tokenizer(bytes(changed), "it")
        except UserError as error:
            complaints.append(str(error))
    assert len(complaints) > 20
    assert not any("\n" in complaint for complaint in complaints)


def test_fingerprints_follow_the_content_and_not_the_folder(bundle: TokenizerBundle, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        bundle.save(tmp_path / name)
    same = tokenizer_fingerprint(str(tmp_path / "one"), 4096)
    assert tokenizer_fingerprint(str(tmp_path / "two"), 17) == same
    (tmp_path / "two" / "tokenizer.json").write_text("{}")
    assert tokenizer_fingerprint(str(tmp_path / "two"), 4096) != same
    assert len({same, *(tokenizer_fingerprint("bpe", size) for size in (300, 301)), "hub gpt2"}) == 4
    assert tokenizer_fingerprint("gpt2", 300) == "hub gpt2"


@pytest.mark.parametrize("config", [None, {}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("template", [False, True])
def test_what_begins_a_document_is_what_transformers_puts_there(
    bundle: TokenizerBundle, config: dict[str, object] | None, template: bool, tmp_path: Path
) -> None:
    """The tokenizer's file decides; transformers, too, leaves its add_bos_token aside where there is such a file."""
    content = json.loads(bundle.tokenizer.to_str())
    if template:
        token = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [token, text],
            "pair": [token, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                END_OF_TEXT: {"id": END_OF_TEXT, "ids": [bundle.end_of_text_id], "tokens": [END_OF_TEXT]}
            },
        }
    # As some files ask for: no document is padded or cut, and padding hides nothing of its beginning.
    content["padding"] = {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None}
    content["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": END_OF_TEXT}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(named | config), encoding="utf-8")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if config is None:
        theirs = PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=END_OF_TEXT
        )
    else:
        theirs = AutoTokenizer.from_pretrained(tmp_path)
    loaded = load_pretrained(str(tmp_path))
    assert loaded.begin == DocumentEncoder.of(theirs).begin
    assert loaded.begin == ((bundle.end_of_text_id,) if template else ())
    assert packed(loaded, ["a", "b"]) == DocumentEncoder.of(theirs).stream(["a", "b"]).tolist()
    (tmp_path / "saved").mkdir()
    loaded.save(tmp_path / "saved")
    assert DocumentEncoder.of(transformers_tokenizer(tmp_path / "saved")).begin == loaded.begin
