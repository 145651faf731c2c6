"""Any text as windows of tokens to score."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from layerroute.data.configuration import DataConfig
from layerroute.data.sources import make_source
from layerroute.errors import UserError


def read_texts(paths: list[str]) -> Iterator[str]:
    """The documents of text, JSON Lines or parquet files (compressed or not), folders and globs.

    Raises:
        UserError: missing, empty or binary files.
    """
    for document in make_source(DataConfig(source="files", paths=paths)).documents():
        yield document.text


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Tensor:
    """One row of token ids: all documents, end-of-text after each, as in training."""
    ids: list[int] = []
    for text in texts:
        # A document that spells a special token is text, and cannot end itself.
        ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids.append(int(tokenizer.eos_token_id))
    return torch.tensor(ids, dtype=torch.int64)


def text_batches(
    ids: Tensor, *, sequence_length: int, batch_size: int, limit: int | None = None
) -> list[dict[str, Tensor]]:
    """Windows of ``sequence_length`` tokens in batches; the rest of the text is a shorter window of its own.

    Args:
        limit: number of windows, None for all.

    Raises:
        UserError: if there are fewer than 2 tokens.
    """
    if len(ids) < 2:
        raise UserError(f"the text has {len(ids)} token; at least 2 are needed to predict one from the other")
    count = len(ids) // sequence_length
    windows = ids[: count * sequence_length].view(count, sequence_length)[:limit]
    batches = [{"input_ids": part} for part in windows.split(batch_size)] if len(windows) else []
    rest = ids[count * sequence_length :]
    if len(rest) >= 2 and (limit is None or count < limit):
        batches.append({"input_ids": rest.unsqueeze(0)})
    return batches
