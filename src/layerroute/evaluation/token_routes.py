"""Which path each token of a few sentences takes: the data of the token × site heatmap."""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from layerroute.evaluation.perplexity import Autocast, forward
from layerroute.routing import RouteDecision, collect_decisions

SHORTEST, LONGEST = 8, 40
WHOLE = 256
"""Tokens of a window that are taken where no window has a sentence."""

_PART = 1 << 22


class Span(NamedTuple):
    """Tokens ``start`` to ``stop`` of window ``window``."""

    window: int
    start: int
    stop: int


def route_colour(share: float) -> str:
    """``#rrggbb`` between GDN blue (0: all cheap) and softmax orange (1: all expensive), as in the report."""
    ends = zip((0x2F, 0x6F, 0xB7), (0xE0, 0x7B, 0x1A), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in ends)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself (a byte that is part of a longer character decodes to U+FFFD)."""
    return [str(tokenizer.decode([int(token)])) for token in ids]


def token_counts(tokens: NDArray[np.unsignedinteger], least: int = 0) -> list[int]:
    """How often each id is in ``tokens``; ``least`` ids are counted at least. Read in parts: it may be a large file."""
    counts = np.zeros(least, dtype=np.int64)
    for start in range(0, len(tokens), _PART):
        part = np.bincount(np.asarray(tokens[start : start + _PART]), minlength=len(counts))
        part[: len(counts)] += counts
        counts = part
    return [int(value) for value in counts]


def sentences(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Cut a token sequence where a sentence or a line ends; half-open ranges of SHORTEST to LONGEST tokens.

    The first and the last piece are left out: they may have begun before the window, or go on after it.
    """
    ends = [
        index + 1
        for index, text in enumerate(texts)
        if "\n" in text or text.rstrip().endswith((".", "!", "?"))
    ]
    ranges = itertools.pairwise(ends)
    return [(start, stop) for start, stop in ranges if SHORTEST <= stop - start <= LONGEST]


def choose_sentences(windows: Sequence[Sequence[str]], count: int) -> list[Span]:
    """Pick ``count`` sentences that differ: from each window in turn the one with most tokens not seen before."""
    seen: set[str] = set()
    chosen: list[Span] = []
    for index, texts in enumerate(windows):
        if len(chosen) == count:
            break
        words = {span: {text.strip() for text in texts[slice(*span)]} - {""} for span in sentences(texts)}
        fresh = {span: len(tokens - seen) for span, tokens in words.items()}
        best = max(fresh, key=fresh.__getitem__, default=None)
        if best is not None and fresh[best] >= SHORTEST // 2:
            seen |= words[best]
            chosen.append(Span(index, *best))
    return chosen


def routes_of(
    model: nn.Module, input_ids: Tensor, *, precision: Autocast = nullcontext
) -> tuple[list[str], list[str], Tensor, Tensor] | None:
    """Sites, paths, choices (B, T, R) and probabilities of the expensive path (B, T, R) in inference mode.

    None for a model without routing.
    """
    decision, _ = _read(model, input_ids, precision)
    return None if decision is None else _routes(decision)


def _read(model: nn.Module, input_ids: Tensor, precision: Autocast) -> tuple[RouteDecision | None, Tensor]:
    """The decision, None for a model without routing, and the logits (B, T, V)."""
    with collect_decisions(model) as decisions:
        logits: Tensor = forward(model, {"input_ids": input_ids}, precision).logits
    return decisions[0] if decisions else None, logits


def _routes(decision: RouteDecision) -> tuple[list[str], list[str], Tensor, Tensor]:
    probability = decision.probabilities[..., -1].float().cpu()
    return list(decision.sites), list(decision.paths), decision.choice.cpu(), probability


def collect_token_routes(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    windows: Tensor,
    *,
    count: int = 16,
    seen: Sequence[int] | None = None,
    precision: Autocast = nullcontext,
) -> dict[str, Any] | None:
    """Routes of ``count`` diverse sentences out of ``windows`` (N, T), each read in the context of its window.

    Each sentence also has ``start``, its place in the window, the ``loss`` of each of its tokens in nats, given what
    comes before (null for a window's first token), and, with ``seen`` (how often the training text holds each id), that
    number for each of its tokens. Fewer sentences come back where the text holds fewer; where it holds none at all, as
    recall data do, whole windows do (their first ``WHOLE`` tokens). None for a model without routing.
    """
    texts = [token_texts(tokenizer, row) for row in windows.tolist()]
    whole = [Span(window, 0, min(WHOLE, windows.shape[1])) for window in range(min(count, len(windows)))]
    spans = choose_sentences(texts, count) or whole
    found: list[dict[str, Any]] = []
    sites: list[str] = []
    paths: list[str] = []
    for span in spans:
        ids = windows[span.window, : span.stop]
        decision, logits = _read(model, ids[None], precision)
        if decision is None:
            return None
        sites, paths, choice, probability = _routes(decision)
        sentence = sentence_routes(texts[span.window], choice[0], probability[0], span.start, span.stop)
        sentence |= {"start": span.start, "loss": _losses(logits[0], ids)[span.start :]}
        if seen is not None:
            sentence["seen"] = [int(seen[token]) for token in ids[span.start :].tolist()]
        found.append(sentence)
    return {"sites": sites, "paths": paths, "sentences": found}


def _losses(logits: Tensor, ids: Tensor) -> list[float | None]:
    """Cross-entropy in nats of every token (T,) but the first, from logits (T, V)."""
    losses = torch.nn.functional.cross_entropy(logits[:-1].float().cpu(), ids[1:].cpu(), reduction="none")
    return [None, *(round(value, 4) for value in losses.tolist())]


def sentence_routes(
    texts: Sequence[str], choice: Tensor, probability: Tensor, start: int = 0, stop: int | None = None
) -> dict[str, Any]:
    """One sentence of ``token_routes.json``: tokens, choice (tokens × sites), probability of the expensive path."""
    stop = len(texts) if stop is None else stop
    return {
        "tokens": list(texts[start:stop]),
        "choice": choice[start:stop].tolist(),
        "probability": [[round(value, 6) for value in row] for row in probability[start:stop].tolist()],
    }
