"""Cross-entropy, perplexity and next-token accuracy over real tokens, with the routing that was served."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerroute.evaluation.routing_statistics import RoutingAccumulator, RoutingStatistics
from layerroute.objectives import shift_labels, token_cross_entropy
from layerroute.objectives.language_model import IGNORE
from layerroute.routing import collect_decisions

Autocast = Callable[[], AbstractContextManager[object]]
"""Makes the context in which a model computes at its precision."""


def perplexity_of(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scores on fixed batches.

    Attributes:
        loss: cross-entropy only, in nats per predicted token; no auxiliary term is ever part of it.
        accuracy: share of predicted tokens whose most likely prediction is right.
        tokens: predicted tokens.
        window_losses: mean cross-entropy of each sequence, in order (those without a token to predict are left out):
            the units of paired intervals.
        by_position: mean cross-entropy by place in the sequence, in doubling ranges: the first prediction, the second,
            the third and fourth, …; sequences with padding are left out.
        routing: from hard decisions in inference mode, None for a model without routing.
        seconds: wall time.
    """

    loss: float
    accuracy: float
    tokens: int
    window_losses: list[float]
    by_position: list[dict[str, float]]
    routing: RoutingStatistics | None
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return perplexity_of(self.loss)


class _Places:
    """Sums of loss and numbers of tokens by place in the sequence."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(0, dtype=torch.float64, device=device)
        self.counts = torch.zeros(0, dtype=torch.int64, device=device)

    def add(self, by_token: Tensor, wanted: Tensor) -> None:
        """Losses (B, T) in float64, and where there is one."""
        more = by_token.shape[1] - len(self.sums)
        if more > 0:
            self.sums = torch.nn.functional.pad(self.sums, (0, more))
            self.counts = torch.nn.functional.pad(self.counts, (0, more))
        self.sums[: by_token.shape[1]] += by_token.sum(dim=0)
        self.counts[: by_token.shape[1]] += wanted.sum(dim=0)

    def result(self) -> list[dict[str, float]]:
        """Doubling ranges that hold a token: ``from`` and ``to`` count predictions from 1 on."""
        sums, counts = self.sums.tolist(), self.counts.tolist()
        found, low, high = [], 0, 1
        while low < len(sums):
            tokens = sum(counts[low:high])
            if tokens:
                loss = sum(sums[low:high]) / tokens
                found.append({"from": low + 1, "to": min(high, len(sums)), "loss": loss, "tokens": tokens})
            low, high = high, 2 * high
        return found


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Inference mode while this lasts, without gradients; the device of the model."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was_training)


def forward(model: nn.Module, batch: Mapping[str, Tensor], precision: Autocast = nullcontext) -> Any:
    """The model's output on a batch, whose ``labels`` are left out: in inference mode, without a cache."""
    with inference(model) as device, precision():
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        return model(**inputs, use_cache=False)


def evaluate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    precision: Autocast = nullcontext,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score `model` in inference mode: no noise, no sampling, dropout off; two calls give the same bits.

    Args:
        batches: mappings with ``input_ids`` (B T) and, where there is padding, ``attention_mask`` (B T, 1 = real
            token) and other inputs of the model. ``labels`` (B T, not shifted, -100 = not counted) default to the
            input ids. Padding is counted nowhere.
        precision: makes the autocast context of the forward pass.
        on_batch: called with the number of sequences of each finished batch.

    Raises:
        ValueError: if no token is predicted at all.
    """
    windows: list[Tensor] = []
    routing = RoutingAccumulator()
    started = time.perf_counter()
    with inference(model) as device:
        places = _Places(device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        count = torch.zeros((), dtype=torch.int64, device=device)
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items()}
            labels = inputs.pop("labels", inputs["input_ids"])
            mask = inputs.get("attention_mask")
            if mask is not None:
                labels = labels.masked_fill(mask == 0, IGNORE)
            targets = shift_labels(labels)
            if mask is not None:
                # With padding on the left, a pad must not be asked for the first real token either.
                targets = targets.masked_fill(mask == 0, IGNORE)
            with precision(), collect_decisions(model) as decisions:
                output = model(**inputs, use_cache=False)
            by_token = token_cross_entropy(output.logits, targets).double()
            total += by_token.sum()
            wanted = (targets != IGNORE).sum(dim=1)
            windows.append((by_token.sum(dim=1) / wanted)[wanted > 0])
            if mask is None:
                places.add(by_token, targets != IGNORE)
            correct += (output.logits.argmax(dim=-1) == targets).sum()  # no prediction equals IGNORE
            count += (targets != IGNORE).sum()
            for decision in decisions:
                routing.add(decision)
            if on_batch is not None:
                on_batch(len(labels))
    tokens = int(count)
    if tokens == 0:
        raise ValueError("nothing to evaluate: no batch holds a token to predict")
    return Evaluation(
        loss=float(total) / tokens,
        accuracy=int(correct) / tokens,
        tokens=tokens,
        window_losses=torch.cat(windows).tolist(),
        by_position=places.result(),
        routing=routing.result(),
        seconds=time.perf_counter() - started,
    )
