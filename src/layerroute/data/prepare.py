"""From a :class:`DataConfig` to packed tokens on disk, and back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from layerroute.data.configuration import BPE, DataConfig
from layerroute.data.progress import Stage, stages
from layerroute.data.recall.prepared import RecallData
from layerroute.data.sequence import TokenSequence
from layerroute.data.sources import Source, make_source, make_validation_source
from layerroute.data.spool import Spool, fill, split_by_digest
from layerroute.data.tokenizer import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    TokenizerBundle,
    load_pretrained,
    tokenizer_fingerprint,
    train_bpe,
    transformers_tokenizer,
)
from layerroute.errors import UserError
from layerroute.folders import open_or_build, read_entry
from layerroute.integrity import DamagedError, Manifest, file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CACHE = "token cache"
_WAY_OUT = "set data.cache_dir or LAYERROUTE_CACHE to a folder"
_FORMAT = 2  # part of every entry's name: raise it when the meaning of what is cached changes
_SPLITS = ("train", "validation")
_FILES = ("train.bin", "validation.bin", TOKENIZER_FILE, CONFIG_FILE)
_LARGEST_UINT16_VOCABULARY = 1 << 16


@dataclass(frozen=True)
class PreparedData:
    """Tokens, tokenizer and provenance of one prepared source.

    Attributes:
        config: what was asked for.
        folder: the cache entry: ``train.bin``, ``validation.bin``, tokenizer files and ``manifest.json``.
        manifest: counts, checksums, and what the data were made of.
        train, validation: the memory-mapped tokens.
    """

    config: DataConfig
    folder: Path
    manifest: Manifest
    train: TokenSequence
    validation: TokenSequence

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the tokens of both splits and the tokenizer: equal where the data are equal."""
        return str(self.manifest["fingerprint"])

    @property
    def vocabulary_size(self) -> int:
        """Rows that an embedding needs: the largest token id plus one."""
        return int(self.manifest["tokenizer"]["vocabulary_size"])

    @property
    def end_of_text(self) -> int:
        """Id of the token after each document."""
        return int(self.manifest["tokenizer"]["end_of_text_id"])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer for transformers (imported at the first use), with end-of-text as eos, bos and padding."""
        return transformers_tokenizer(self.folder)

    def describe(self) -> dict[str, Any]:
        """Return the ``data`` section of a result record."""
        return {
            "source": self.manifest["source"]["description"],
            "fingerprint": self.fingerprint,
            "tokenizer": self.manifest["tokenizer"]["name"],
            "vocabulary_size": self.vocabulary_size,
            "train_tokens": len(self.train),
            "validation_tokens": len(self.validation),
        }


def prepare_data(config: DataConfig, progress: bool = True) -> PreparedData:
    """Return the data of ``config``: from the cache where it holds them intact, else read, split and tokenized now.

    Args:
        config: source, tokenizer, split and limits. ``sequence_length`` is no part of what is cached.
        progress: draw progress bars on stderr, if that is a terminal.

    Raises:
        UserError: input that cannot be used, a hub that cannot be reached, a cache folder that cannot be written.
    """
    plan = _Plan(config)

    def build(folder: Path) -> Manifest:
        with stages(progress) as stage:
            return plan.build(folder, stage)

    return _open(config, plan.entry, open_or_build(plan.entry, _FILES, build, what=_CACHE, way_out=_WAY_OUT))


def open_data(config: DataConfig, progress: bool = True) -> PreparedData | RecallData:
    """The data of a recipe, text or generated; see :func:`prepare_data`."""
    return RecallData(config) if config.source == "recall" else prepare_data(config, progress)


def find_prepared(config: DataConfig) -> PreparedData | None:
    """Return the data of ``config`` if the cache holds them intact, else None. Nothing is built."""
    plan = _Plan(config)
    with contextlib.suppress(FileNotFoundError, DamagedError):
        return _open(config, plan.entry, read_entry(plan.entry, _FILES))
    return None


def list_prepared(cache_folder: Path) -> list[tuple[Path, Manifest]]:
    """Return folder and manifest of every intact entry of ``cache_folder``, sorted by folder."""
    found = []
    for entry in sorted(cache_folder.joinpath("tokens").glob("[!.]*")):
        with contextlib.suppress(FileNotFoundError, DamagedError):
            found.append((entry, read_entry(entry, _FILES)))
    return found


class _Plan:
    """The sources of a configuration and the cache entry that they lead to."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.source: Source = make_source(config)
        self.validation_source: Source | None = make_validation_source(config)
        self.key = self._key()
        self.entry = config.cache_folder() / "tokens" / self.key

    def _key(self) -> str:
        """Return the entry's name: a digest of all that decides on what it holds, of the sources as they are now."""
        config = self.config
        identity = {
            "format": _FORMAT,
            "source": self.source.fingerprint(),
            "validation": self.validation_source.fingerprint() if self.validation_source else None,
            "split": None if self.validation_source else [config.validation_share, config.split_seed],
            "tokenizer": tokenizer_fingerprint(config.tokenizer, config.vocabulary_size),
            "limits": [config.max_documents, config.max_characters],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]

    def build(self, folder: Path, stage: Stage) -> Manifest:
        """Write the files of the entry into ``folder`` and return its manifest."""
        config = self.config
        with contextlib.ExitStack() as stack:
            # What is wrong with it is told before a source is read, which may take hours.
            bundle = None if config.tokenizer == BPE else load_pretrained(config.tokenizer)
            parts = self._read(stack, folder, stage)
            spool, trains = parts["train"]
            if bundle is None:
                texts = spool.texts(trains, stage("training the tokenizer"))
                bundle = train_bpe(texts, config.vocabulary_size)
            bundle.save(folder)
            dtype = "uint16" if bundle.vocabulary_size <= _LARGEST_UINT16_VOCABULARY else "uint32"
            counts, digests = {}, {}
            for name, (documents, selected) in parts.items():
                counts[name], digests[name] = _write_tokens(
                    folder / f"{name}.bin",
                    bundle,
                    documents.texts(selected, stage(f"tokenizing ({name})")),
                    dtype,
                )
            source = {
                "description": self.source.describe(),
                "content_sha256": spool.content_sha256(),
                "also_in_validation": int((~trains).sum()) if self.validation_source else 0,
            }
        tokenizer = file_sha256(folder / TOKENIZER_FILE)
        content = json.dumps([digests, tokenizer, dtype], sort_keys=True)
        name = f"bpe-{config.vocabulary_size}" if config.tokenizer == BPE else _name(config.tokenizer)
        return {
            "format": _FORMAT,
            "key": self.key,
            "fingerprint": hashlib.sha256(content.encode()).hexdigest(),
            "source": source,
            "tokenizer": {
                "name": f"{name} ({tokenizer[:12]})",
                "sha256": tokenizer,
                "vocabulary_size": bundle.vocabulary_size,
                "end_of_text": bundle.end_of_text,
                "end_of_text_id": bundle.end_of_text_id,
                "begin_ids": list(bundle.begin),
            },
            "dtype": dtype,
            **counts,
        }

    def _read(
        self, stack: contextlib.ExitStack, folder: Path, stage: Stage
    ) -> dict[str, tuple[Spool, NDArray[np.bool_]]]:
        """Read the sources once; return, by split, the documents and which of them are the split's."""
        config = self.config
        described = self.source.describe()
        spool = stack.enter_context(contextlib.closing(Spool(folder, seed=config.split_seed)))
        limits = {"max_documents": config.max_documents, "max_characters": config.max_characters}
        fill(spool, self.source, stage("reading documents"), **limits)
        if len(spool) == 0:
            raise UserError(f"{described} holds no text; give a source that does")
        if self.validation_source is None:
            validates = split_by_digest(spool.digests, config.validation_share, described)
            parts = {"train": (spool, ~validates), "validation": (spool, validates)}
        else:
            held_out = stack.enter_context(contextlib.closing(Spool(folder, seed=config.split_seed)))
            fill(held_out, self.validation_source, stage("reading validation documents"))
            trains = ~np.isin(spool.digests, held_out.digests)
            if not trains.any():
                raise UserError(
                    f"every document of {described} is also one of data.validation_paths; give training documents "
                    "of their own"
                )
            everything = np.ones(len(held_out), dtype=np.bool_)
            parts = {"train": (spool, trains), "validation": (held_out, everything)}
        if self._key() != self.key:
            raise UserError(
                "the data changed while they were read; wait until whatever writes them is done, and start again"
            )
        return parts


def _write_tokens(
    path: Path, bundle: TokenizerBundle, texts: Iterable[str], dtype: str
) -> tuple[dict[str, int], str]:
    """Write the packed tokens of ``texts``; return the counts, and the SHA-256 of what was written."""
    digest = hashlib.sha256()
    tokens = documents = 0
    layout = np.dtype(dtype).newbyteorder("<")
    with path.open("wb") as file:
        for ids, ended in bundle.encode(texts):
            data = ids.astype(layout).tobytes()
            file.write(data)
            digest.update(data)
            tokens += len(ids)
            documents += ended
    return {"documents": documents, "tokens": tokens}, digest.hexdigest()


def _open(config: DataConfig, entry: Path, manifest: Manifest) -> PreparedData:
    layout = np.dtype(manifest["dtype"]).newbyteorder("<")
    train, validation = (
        TokenSequence(
            np.memmap(entry / f"{name}.bin", layout, mode="r", shape=(manifest[name]["tokens"],)),
            end_of_text=manifest["tokenizer"]["end_of_text_id"],
            sequence_length=config.sequence_length,
            begin=manifest["tokenizer"]["begin_ids"],
            name=shown,
        )
        for name, shown in zip(_SPLITS, ("training", "validation"), strict=True)
    )
    return PreparedData(config, entry, manifest, train, validation)


def _name(tokenizer: str) -> str:
    """Return a hub name as it is and a local folder by its last part: records name no folders of a machine."""
    path = os.path.expanduser(tokenizer)
    return Path(path).resolve().name if os.path.exists(path) else tokenizer
