"""Loss on tokens that repeat what stood far back, apart from that on the rest of the same text."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from layerroute.data.copies import CopiesConfig, copied_tokens
from layerroute.evaluation.perplexity import Autocast, forward
from layerroute.evaluation.texts import Batch
from layerroute.objectives import shift_labels, token_cross_entropy


def copies_section(
    model: nn.Module,
    batches: Sequence[Batch],
    tokenizer: PreTrainedTokenizerBase,
    rule: CopiesConfig,
    *,
    precision: Autocast = nullcontext,
) -> dict[str, Any]:
    """The record's ``copies``: cross-entropy in nats of copied tokens and of the rest, over windows without padding.

    ``copied`` and ``rest`` have each the ``loss`` and the number of ``tokens``, and by window ``window_losses`` and
    ``window_tokens``; a loss over no token is None. ``margin`` is the loss on the rest less that on copied tokens.
    Where a batch says which documents tokens are of, attention keeps to them: a copy is then of its own document
    (``within``), else of its sequence.
    """
    sums: tuple[list[NDArray[np.float64]], ...] = ([], [])
    counts: tuple[list[NDArray[np.int64]], ...] = ([], [])
    apart = False
    for batch in batches:
        ids, documents = batch["input_ids"].numpy(), _documents(batch)
        apart = apart or documents is not None
        blank = blank_tokens(tokenizer, np.unique(ids).tolist())
        marks = copied_tokens(ids, rule, blank=blank, documents=documents)
        logits = forward(model, batch, precision).logits
        targets = shift_labels(batch["input_ids"].to(logits.device))
        losses = token_cross_entropy(logits, targets)[:, :-1].double().cpu().numpy()
        for place, which in enumerate((marks[:, 1:], ~marks[:, 1:])):
            sums[place].append((losses * which).sum(axis=1))
            counts[place].append(which.sum(axis=1))
    copied, rest = (_part(np.concatenate(sums[place]), np.concatenate(counts[place])) for place in range(2))
    known = copied["tokens"] and rest["tokens"]
    return {
        "length": rule.length,
        "beyond": rule.beyond,
        "within": "document" if apart else "sequence",
        "margin": rest["loss"] - copied["loss"] if known else None,
        "copied": copied,
        "rest": rest,
    }


def blank_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Those of ``ids`` that are special tokens, or nothing but white space."""
    special = set(tokenizer.all_special_ids)
    return [token for token in ids if token in special or not str(tokenizer.decode([token])).strip()]


def _documents(batch: Batch) -> NDArray[np.int64] | None:
    """(B, T) rising numbers of the documents that attention keeps apart; None where it sees the whole sequence."""
    if "document_ids" in batch:
        return batch["document_ids"].numpy()
    if "position_ids" in batch:
        return np.cumsum(batch["position_ids"].numpy() == 0, axis=1)
    return None


def _part(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> dict[str, Any]:
    tokens = int(counts.sum())
    windows = zip(sums.tolist(), counts.tolist(), strict=True)
    return {
        "loss": float(sums.sum()) / tokens if tokens else None,
        "tokens": tokens,
        "window_losses": [round(loss / count, 6) if count else None for loss, count in windows],
        "window_tokens": counts.tolist(),
    }
