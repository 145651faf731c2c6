"""Rates and losses of single windows of text: what ``layerroute domains`` compares."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from layerroute.errors import UserError
from layerroute.evaluation.loading import LoadedModel
from layerroute.evaluation.perplexity import forward
from layerroute.evaluation.texts import TEXT_FIELD, Batch, read_texts, text_batches
from layerroute.objectives import shift_labels, token_cross_entropy
from layerroute.routing import collect_decisions


class WindowRates(NamedTuple):
    """Of windows of one text: share of tokens on the expensive path (windows, sites), and loss in nats per token."""

    sites: tuple[str, ...]
    paths: tuple[str, ...]
    rates: NDArray[np.float64]
    losses: list[float]


def whole_windows(
    loaded: LoadedModel,
    files: Sequence[str],
    *,
    windows: int,
    length: int,
    batch_size: int,
    text_field: str = TEXT_FIELD,
) -> list[Batch]:
    """At most ``windows`` whole windows of ``length`` tokens of a text, in batches.

    Raises:
        UserError: the text holds no whole window, the model reads no such window, or it routes nothing.
    """
    loaded.check_windows(length)
    if loaded.execution is None:
        raise UserError(f"{loaded.path} routes nothing, so that there are no rates to compare")
    batches = text_batches(
        loaded.tokenizer,
        read_texts(list(files), text_field),
        length=length,
        batch_size=batch_size,
        limit=windows,
    )
    whole = [batch for batch in batches if batch["input_ids"].shape[1] == length]
    if not whole:
        (rest,) = batches
        raise UserError(
            f"{', '.join(files)}: {rest['input_ids'].shape[1]} tokens are no window of {length}; give more text"
        )
    return whole


def window_rates(loaded: LoadedModel, batches: Sequence[Batch]) -> WindowRates:
    """Read windows of one length, each by itself, in inference mode."""
    sites: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    rates, losses = [], []
    for batch in batches:
        with collect_decisions(loaded.model) as decisions:
            logits = forward(loaded.model, batch, loaded.in_precision).logits
        (decision,) = decisions
        sites, paths = tuple(decision.sites), tuple(decision.paths)
        rates.append((decision.choice == len(paths) - 1).double().mean(dim=1).cpu().numpy())
        targets = shift_labels(batch["input_ids"].to(logits.device))
        by_token = token_cross_entropy(logits, targets).double()
        losses += (by_token.sum(dim=1) / (targets.shape[1] - 1)).tolist()
    return WindowRates(sites, paths, np.concatenate(rates), losses)
