"""Any text as windows of tokens to score."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from layerroute.data.configuration import DataConfig
from layerroute.data.sources import Source, make_source
from layerroute.data.windows import DocumentEncoder
from layerroute.errors import UserError

Batch = dict[str, Tensor]
TEXT_FIELD = DataConfig.text_field


def read_texts(paths: list[str], text_field: str = TEXT_FIELD) -> Iterator[str]:
    """The documents of text files and files of records (compressed or not), folders and globs.

    Args:
        text_field: key or column of the text in records.

    Raises:
        UserError: missing, empty or binary files.
    """
    for document in text_source(paths, text_field).documents():
        yield document.text


def text_source(paths: list[str], text_field: str = TEXT_FIELD) -> Source:
    """What ``read_texts`` reads."""
    return make_source(DataConfig(source="files", paths=paths, text_field=text_field))


def text_batches(
    tokenizer: Any,
    texts: Iterable[str],
    *,
    length: int,
    batch_size: int,
    limit: int | None = None,
) -> list[Batch]:
    """Windows of ``length`` tokens of documents in batches; the rest of the text is a shorter window of its own.

    Args:
        tokenizer: of the model; see :mod:`layerroute.data.windows` for what begins and ends a document.
        texts: documents, as ``read_texts`` gives them.
        limit: number of windows, None for all.

    Raises:
        UserError: there are fewer than 2 tokens.
    """
    windows, rest = DocumentEncoder.of(tokenizer).windows(texts, length, limit)
    if not len(windows) and len(rest) < 2:
        raise UserError(
            f"the text has {len(rest)} token; at least 2 are needed to predict one from the other"
        )
    batches = split_rows({"input_ids": torch.from_numpy(windows)}, batch_size) if len(windows) else []
    if len(rest) >= 2:
        batches.append({"input_ids": torch.from_numpy(rest).unsqueeze(0)})
    return batches


def split_rows(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into batches of at most ``size`` rows."""
    parts = {name: value.split(size) for name, value in batch.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
