"""Tokenizers: a byte-level BPE trained on the training documents, or a pretrained one.

``tokenizers`` and ``transformers`` are imported when first needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from layerroute.data.configuration import BPE
from layerroute.data.sources.base import read_bytes
from layerroute.errors import UserError, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import Model
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

# What base models end documents with. It comes before the tokenizer's own eos_token, which in chat models ends a turn.
_SEPARATORS = (END_OF_TEXT, "<|end_of_text|>")
_OTHER_SEPARATORS = ("</s>", "<eos>", "<|eot_id|>", "[SEP]")

_PIECE_CHARACTERS = 1 << 18
_FIRST_BATCH_CHARACTERS, _BATCH_CHARACTERS = 1 << 16, 1 << 21


def end_of_text(known: Container[str], own: object) -> str | None:
    """The token that ends documents: what base models end them with, or else the tokenizer's own ``eos_token``.

    Args:
        known: the vocabulary.
        own: the ``eos_token``, which in chat models ends a turn; None for a tokenizer that names none.
    """
    for candidate in (*_SEPARATORS, own, *_OTHER_SEPARATORS):
        if isinstance(candidate, str) and candidate in known:
            return candidate
    return None


def begin_of_text(asked: Sequence[int], plain: Sequence[int]) -> tuple[int, ...]:
    """What a tokenizer puts before a text: the ids before ``plain`` in ``asked``, the same text with special tokens."""
    for place in range(len(asked) - len(plain) + 1):
        if list(asked[place : place + len(plain)]) == list(plain):
            return tuple(int(token) for token in asked[:place])
    return ()


@dataclass(frozen=True)
class TokenizerBundle:
    """A tokenizer and the token that ends documents. What begins one is the tokenizer's own affair: see ``begin``."""

    tokenizer: Tokenizer
    end_of_text: str
    chat_template: str | None = None

    @property
    def end_of_text_id(self) -> int:
        identity = self.tokenizer.token_to_id(self.end_of_text)
        assert identity is not None  # checked where the bundle is made
        return int(identity)

    @property
    def begin(self) -> tuple[int, ...]:
        """Ids before each document: those that the tokenizer puts before a text by itself; mostly none."""
        return begin_of_text(
            self.tokenizer.encode("a").ids, self.tokenizer.encode("a", add_special_tokens=False).ids
        )

    @property
    def vocabulary_size(self) -> int:
        """Largest token id plus one: the rows that an embedding needs."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Iterable[str]) -> Iterator[tuple[NDArray[np.uint32], int]]:
        """Yield the packed tokens of documents, and how many ended in them; see :mod:`layerroute.data.windows`."""
        return encode_texts(self.tokenizer, texts, before=self.begin, after=(self.end_of_text_id,))

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, the same bytes for the same tokenizer."""
        (folder / TOKENIZER_FILE).write_text(self.tokenizer.to_str(), encoding="utf-8")
        begin = self.tokenizer.id_to_token(self.begin[-1]) if self.begin else self.end_of_text
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": begin,
            "eos_token": self.end_of_text,
            "pad_token": self.end_of_text,
            "unk_token": self.end_of_text,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        }
        if self.chat_template:
            config["chat_template"] = self.chat_template
        (folder / CONFIG_FILE).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> TokenizerBundle:
    """Train a byte-level BPE as GPT-2's: the 256 bytes, then merges inside words; any text survives a round trip.

    Where the text is too small for ``vocabulary_size`` entries the tokenizer has fewer, and a warning says how many.
    """
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bundle = TokenizerBundle(tokenizer, END_OF_TEXT)
    if bundle.vocabulary_size < vocabulary_size:
        _log.warning(
            "the training text is too small for a vocabulary of %d: the tokenizer has %d entries",
            vocabulary_size,
            bundle.vocabulary_size,
        )
    return bundle


def _byte_level(model: Model) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def tokenizer_fingerprint(name: str, vocabulary_size: int) -> str:
    """Return what tells tokenizers apart before they are made: BPE by size, local ones by content, others by name."""
    if name == BPE:
        return f"bpe {vocabulary_size}"
    files = _local_files(name)
    if files is None:
        return f"hub {name}"
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} ".encode() + hashlib.sha256(read_bytes(path)).digest())
    return f"local {digest.hexdigest()}"


def load_pretrained(name: str) -> TokenizerBundle:
    """Load a tokenizer by its name on the Hugging Face hub, or from a local folder or ``tokenizer.json``.

    A folder holds ``tokenizer.json`` (with ``tokenizer_config.json`` if it likes), or GPT-2's ``vocab.json`` and
    ``merges.txt``. No code of the folder or repository is run.

    Raises:
        UserError: no such folder or file, damaged files, a hub that cannot be reached, no end-of-text token.
    """
    files = _local_files(name) or _download(name)
    by_name = {path.name: path for path in files}
    if {"vocab.json", "merges.txt"} <= by_name.keys() and TOKENIZER_FILE not in by_name:
        tokenizer = _from_vocabulary(name, by_name["vocab.json"], by_name["merges.txt"])
    else:
        file = next(path for path in files if path.name != CONFIG_FILE)
        tokenizer = parse_tokenizer(read_bytes(file), f"the tokenizer {name!r}")
    # Files may ask for both: a padded text has no beginning that could be told, and none is cut here.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = _config(name, by_name.get(CONFIG_FILE))
    own = config.get("eos_token")
    own = own.get("content") if isinstance(own, dict) else own
    end = end_of_text(tokenizer.get_vocab(with_added_tokens=True), own)
    if end is None:
        raise UserError(
            f"the tokenizer {name!r} has no end-of-text token; name one in the eos_token of its {CONFIG_FILE}"
        )
    template = config.get("chat_template")
    return TokenizerBundle(tokenizer, end, template if isinstance(template, str) else None)


def parse_tokenizer(data: bytes, what: str) -> Tokenizer:
    """Return the tokenizer of the content of a ``tokenizer.json``. Raises UserError, naming ``what``, if damaged."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(data.decode())
    except BaseException as error:
        # The library's own errors are plain Exceptions, and its panics derive from BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{what} cannot be read ({one_line(error, 200)}); give a folder with an intact {TOKENIZER_FILE}"
        ) from error


def transformers_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Wrap the tokenizer saved in ``folder`` for transformers. This imports transformers."""
    from transformers import PreTrainedTokenizerFast

    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config.pop("tokenizer_class")
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / TOKENIZER_FILE), **config)


def encode_texts(
    tokenizer: Tokenizer, texts: Iterable[str], *, before: Sequence[int] = (), after: Sequence[int] = ()
) -> Iterator[tuple[NDArray[np.uint32], int]]:
    """Yield the tokens of all texts, each with ids ``before`` and ``after`` it: (tokens, texts that ended in them).

    Text that spells a special token is tokenized as the text it is, so that a document cannot end itself. Memory is
    bounded whatever the length of a text: see :func:`pieces`.
    """
    first, last = np.array(before, dtype=np.uint32), np.array(after, dtype=np.uint32)
    spelled = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    # Whoever padded a batch with this tokenizer left it so; transformers sets both anew for each of its own calls.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    try:
        for batch in _batches(texts):
            encodings = tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
            parts: list[NDArray[np.uint32]] = []
            for encoding, piece in zip(encodings, batch, strict=True):
                parts += (
                    [first] * piece.begins + [np.array(encoding.ids, dtype=np.uint32)] + [last] * piece.ends
                )
            yield np.concatenate(parts), sum(piece.ends for piece in batch)
    finally:
        tokenizer.encode_special_tokens = spelled


def pieces(text: str, size: int = _PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a long text into pieces of at most ``size`` characters whose tokens are those of the whole text.

    Cuts are after a line's end that lies alone between two characters which are no blanks, or else before such a
    space: there byte-level BPE never joins. Only where a piece holds neither is it cut at ``size``, and the tokens
    around that place may differ from the whole text's; the text stays the same. Pretrained tokenizers of other kinds
    may differ at every cut.
    """
    start = 0
    while len(text) - start > size:
        cut = _cut(text, start, start + size)
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def _cut(text: str, start: int, end: int) -> int:
    for blank, offset in (("\n", 1), (" ", 0)):
        at = text.rfind(blank, start + 1, end)
        while at > start:
            if at + 1 < len(text) and not text[at - 1].isspace() and not text[at + 1].isspace():
                return at + offset
            at = text.rfind(blank, start + 1, at)
    return end


class _Piece(NamedTuple):
    """Part of a text, and whether the text begins or ends with it."""

    text: str
    begins: bool
    ends: bool


def _batches(texts: Iterable[str]) -> Iterator[list[_Piece]]:
    """Group the pieces of all texts by characters, few at first: who needs no more has not waited for the rest."""
    batch: list[_Piece] = []
    size, enough = 0, min(_FIRST_BATCH_CHARACTERS, _BATCH_CHARACTERS)
    for text in texts:
        cut = list(pieces(text)) or [""]
        for index, piece in enumerate(cut):
            batch.append(_Piece(piece, index == 0, index == len(cut) - 1))
            size += len(piece)
            if size >= enough:
                yield batch
                batch, size, enough = [], 0, min(2 * enough, _BATCH_CHARACTERS)
    if batch:
        yield batch


def _local_files(name: str) -> list[Path] | None:
    """Return the files of a local tokenizer, or None if ``name`` is to be looked for on the hub."""
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path) and path.name == CONFIG_FILE:
        raise UserError(f"data.tokenizer names {name}, which holds no tokens; give its folder, {path.parent}")
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        present = [path / file for file in (TOKENIZER_FILE, "vocab.json", "merges.txt", CONFIG_FILE)]
        present = [file for file in present if file.is_file()]
        names = {file.name for file in present}
        if TOKENIZER_FILE in names or {"vocab.json", "merges.txt"} <= names:
            return present
        raise UserError(
            f"data.tokenizer names the folder {name}, which holds neither {TOKENIZER_FILE} nor vocab.json with "
            "merges.txt; give a folder that save_pretrained wrote"
        )
    if name.startswith((".", "/", "~")):
        raise UserError(
            f"data.tokenizer names {name}, which does not exist; give a tokenizer's folder, a name on the hub, or "
            f"{BPE!r} to train one"
        )
    return None


def _download(name: str) -> list[Path]:
    """Return the files of a tokenizer on the hub: from the hub's local cache, or else downloaded."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from layerroute.data.sources.hub import hub_user_error

    try:
        try:
            files = [hf_hub_download(name, TOKENIZER_FILE, local_files_only=True)]
            local = True
        except LocalEntryNotFoundError:
            HfApi().model_info(name, timeout=15.0)  # fails at once, where a download would retry for long
            files = [hf_hub_download(name, TOKENIZER_FILE)]
            local = False
        # It only names the end-of-text token and a chat template.
        with contextlib.suppress(EntryNotFoundError):
            files.append(hf_hub_download(name, CONFIG_FILE, local_files_only=local))
    except EntryNotFoundError as error:
        raise UserError(
            f"data.tokenizer names {name!r}, which has no {TOKENIZER_FILE} on the hub; name one that has, or {BPE!r}"
        ) from error
    except Exception as error:
        raise hub_user_error(f"the tokenizer {name!r} (data.tokenizer; {BPE!r} trains one)", error) from error
    return [Path(file) for file in files]


def _from_vocabulary(name: str, vocabulary: Path, merges: Path) -> Tokenizer:
    from tokenizers import AddedToken, models

    try:
        model = models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:
        raise UserError(
            f"the tokenizer {name!r} cannot be read ({error}); give intact vocab.json and merges.txt"
        ) from error
    tokenizer = _byte_level(model)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def _config(name: str, path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        config = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{CONFIG_FILE} of the tokenizer {name!r} is not valid JSON; mend or remove it"
        ) from error
    return config if isinstance(config, dict) else {}
