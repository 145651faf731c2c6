"""What models are timed at, layer skipping and attention routing alike: reading, decoding and training.

A *work* is given a model, does what must be done once, and returns the call that is timed; a *way* is a model and the
context in which it computes, such as its execution.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from layerroute.benchmark.case import Value
from layerroute.benchmark.memory import peak_memory
from layerroute.hybrid.cache_layers import OwnContextLayer
from layerroute.objectives.language_model import cross_entropy, shift_labels
from layerroute.ops.flops import flop_counter
from layerroute.routing import executed, forced

PHASES = ("prefill", "decode", "train")
MASKED, SPARSE = "masked", "sparse"
_KV = "cached tensor"

Result = Mapping[str, Tensor]
Call = Callable[[], Result]
Work = Callable[[Any], Call]


@dataclass(frozen=True)
class Way:
    """A model, and the context in which it computes."""

    model: Any
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @classmethod
    def routed(
        cls,
        model: Any,
        choice: Tensor,
        execution: str,
        also: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> "Way":
        """A routed model whose decisions are given (rows, positions, sites), executed ``masked`` or ``sparse``."""

        @contextmanager
        def context() -> Iterator[None]:
            with forced(model, choice), executed(model, execution), also():
                yield

        return cls(model, context)

    def at(self, work: Work) -> Call:
        """The call that does this work in this way."""
        with self.context():
            call = work(self.model)

        def run() -> Result:
            with self.context():
                return call()

        return run


def reading(ids: Tensor, model: Any) -> Call:
    """Prefill: keys, values and states go to a cache; logits of the last token."""

    @torch.inference_mode()
    def call() -> Result:
        cache = DynamicCache(config=model.config)
        output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return {"logits": output.logits, **_held(cache)}

    return call


def scoring(ids: Tensor, model: Any) -> Call:
    """Logits of all tokens, without a cache."""
    return torch.inference_mode()(lambda: {"logits": model(ids, use_cache=False).logits})


def decoding(ids: Tensor, new: int, model: Any, *, static: bool = False, copied: bool = False) -> Call:
    """The last ``new`` tokens one by one, behind a cache that is filled here.

    What a call adds to the cache it takes back; or it works on a copy (``copied``), whose making is timed, too: a
    recurrent state cannot be taken back.
    """
    length = ids.shape[1]
    kept: Any = (
        StaticCache(config=model.config, max_cache_len=length)
        if static
        else DynamicCache(config=model.config)
    )

    @torch.inference_mode()
    def call() -> Result:
        cache = copy.deepcopy(kept) if copied else kept
        logits = [
            model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits
            for t in range(length - new, length)
        ]
        held = _held(cache)
        if static:
            for layer in cache.layers:
                layer.cumulative_length.fill_(length - new)
        elif not copied:
            cache.crop(-new)
        return {"logits": torch.cat(logits, dim=1), **held}

    with torch.inference_mode():
        model(ids[:, : length - new], past_key_values=kept, use_cache=True, logits_to_keep=1)
    return call


def _held(cache: Any) -> dict[str, Tensor]:
    """All keys, values and recurrent states of a cache; zeros in the slots that a row has not filled."""
    found: list[Tensor] = []
    states: list[Tensor] = []
    for layer in cache.layers:
        for held in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {})):
            states += [state for state in held.values() if isinstance(state, Tensor)]
        filled = None
        if isinstance(layer, OwnContextLayer):
            filled = layer.filled().transpose(1, 2).unsqueeze(-1)
        elif (slots := getattr(layer, "slots", None)) is not None:
            filled = (slots >= 0)[:, None, :, None]
        for held in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(held, Tensor):
                found.append(held if filled is None else held * filled)
    tensors = {f"{_KV} {i}": part for i, part in enumerate(found)}
    return tensors | {f"cached state {i}": state for i, state in enumerate(states)}


def gradients(ids: Tensor, named: Mapping[str, nn.Parameter], model: Any) -> Call:
    """Forward and backward: the loss, and the gradients of these parameters, zeros where there is none."""

    def call() -> Result:
        loss = _backward(ids, model)
        # What sparse execution did not touch has no gradient there, and one of zeros in masked execution.
        return {"loss": loss} | {
            f"gradients of {name}": torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in named.items()
        }

    return call


def _backward(ids: Tensor, model: Any) -> Tensor:
    model.zero_grad()
    logits = model(ids, use_cache=False).logits
    loss = cross_entropy(logits, shift_labels(ids))
    loss.backward()
    return loss.detach()


class Training:
    """Work: whole optimizer steps. A learning rate of 0 keeps what was compared as it was, and costs the same."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self._optimizers: dict[int, torch.optim.Optimizer] = {}  # one a model, whatever its execution

    def __call__(self, model: Any) -> Call:
        """The step of a model."""
        model.train()
        parameters = list(model.parameters())
        if id(model) not in self._optimizers:
            self._optimizers[id(model)] = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
        optimizer = self._optimizers[id(model)]

        def step() -> Result:
            loss = _backward(self.ids, model)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            return {"loss": loss}

        return step


def count_all(
    calls: Mapping[str, Call], tokens: int, device: torch.device, *, warm: bool = False
) -> dict[str, dict[str, Value]]:
    """By arm: executed FLOPs a token, peak memory of a call, and the bytes of keys and values where it holds any.

    ``warm`` calls once before, so that an optimizer has its state.
    """
    found: dict[str, dict[str, Value]] = {}
    for arm, call in calls.items():
        if warm:
            call()
        with flop_counter() as counter:
            peak, result = peak_memory(call, device)
        found[arm] = {"executed_flops_per_token": counter.get_total_flops() / tokens, "peak_bytes": peak}
        if "logits" in result:
            held = (part for name, part in result.items() if name.startswith(_KV))
            found[arm]["kv_bytes"] = sum(part.numel() * part.element_size() for part in held)
    return found
