"""Text that appears as it is generated, each token with the path that it took."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from layerroute.evaluation.decisions import decision_of
from layerroute.evaluation.loading import LoadedModel
from layerroute.evaluation.routing_statistics import RoutingAccumulator, RoutingStatistics


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of text that is complete (no half of a character).

    Attributes:
        share: of the routed sites at which its tokens took the expensive path, 0 to 1; None if they were not routed:
            a model without routing, or the very last token, which no forward pass has read.
        prompt: part of the prompt.
    """

    text: str
    share: float | None
    prompt: bool


@dataclass(kw_only=True)
class Generation:
    """All that came out of one call.

    Attributes:
        text: the continuation, without the prompt.
        routes: ``sentence_routes``-like lists over all tokens that were read (prompt and continuation but its last).
        statistics: of the same tokens, None without routing.
        prompt_seconds: until the first new token.
        seconds: of the tokens after it.
    """

    prompt: str
    text: str = ""
    tokens: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    choice: list[list[int]] = field(default_factory=list)
    probability: list[list[float]] = field(default_factory=list)
    statistics: RoutingStatistics | None = None
    prompt_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def new_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding, the prompt not counted; None with fewer than two new tokens."""
        return (self.new_tokens - 1) / self.seconds if self.new_tokens > 1 and self.seconds > 0 else None


class IncrementalDecoder:
    """Turns token ids into text one by one; holds back what may be half of a character."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = self._read = (
            0  # decode from `_shown` on: tokens before `_read` are context, already given out
        )

    def add(self, token: int, *, last: bool = False) -> str:
        """The text that this token completes, possibly none."""
        self._ids.append(token)
        known = self._decode(self._ids[self._shown : self._read])
        text = self._decode(self._ids[self._shown :])
        if text.endswith("�") and not last:
            return ""
        self._shown, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


class _RouteStreamer(BaseStreamer):
    """Receives tokens from ``generate`` and decisions from a forward hook, and puts them together.

    A token's route is known when the token has been read, which is one step after it was generated: so text comes out
    one token late.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[Piece], None]) -> None:
        self.decoder, self.show = IncrementalDecoder(tokenizer), show
        self.ids: list[int] = []
        self.prompt_tokens = 0
        self.choice: list[list[int]] = []
        self.probability: list[list[float]] = []
        self.routing = RoutingAccumulator()
        self.started = time.perf_counter()
        self.first: float | None = None
        self.ended = self.started
        self._given = 0
        self._waiting: list[float] = []  # shares of tokens whose text is held back

    def put(self, value: Tensor) -> None:
        ids = value.flatten().tolist()
        if not self.ids:
            self.ids, self.prompt_tokens = ids, len(ids)
            return
        self.ended = time.perf_counter()
        if self.first is None:
            self.first = self.ended
        self._give(len(self.ids))
        self.ids += ids

    def end(self) -> None:
        self._give(len(self.ids), last=True)

    @torch.no_grad()
    def observe(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The forward hook."""
        decision = decision_of(module, output)
        if decision is not None:
            self.routing.add(decision)
            self.choice += decision.choice[0].tolist()
            self.probability += decision.probabilities[0, :, :, -1].float().tolist()

    def _give(self, stop: int, *, last: bool = False) -> None:
        for index in range(self._given, stop):
            if index < len(self.choice):
                row = self.choice[index]
                self._waiting.append(sum(path == len(self.routing.paths) - 1 for path in row) / len(row))
            text = self.decoder.add(self.ids[index], last=last and index == stop - 1)
            if text:
                share = sum(self._waiting) / len(self._waiting) if self._waiting else None
                self.show(Piece(text=text, share=share, prompt=index < self.prompt_tokens))
                self._waiting = []
        self._given = stop


def generate(
    loaded: LoadedModel,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    show: Callable[[Piece], None] = lambda piece: None,
) -> Generation:
    """Continue a prompt with the model's own ``generate`` and cache.

    Args:
        temperature: 0 (default) takes the most likely token each time.
        top_k: draw among the k most likely tokens only.
        seed: of the draw.
        show: called with every piece of text, prompt included, as soon as its route is known.
    """
    tokenizer, model = loaded.tokenizer, cast(Any, loaded.model)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].long()
    if ids.shape[1] == 0:  # nothing to read: begin a document
        ids = torch.tensor([[tokenizer.eos_token_id]])
    streamer = _RouteStreamer(tokenizer, show)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": 1.0}
    handle = model.register_forward_hook(streamer.observe)
    torch.manual_seed(seed)
    try:
        with torch.no_grad(), loaded.in_precision():
            ids = ids.to(loaded.device)
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
    finally:
        handle.remove()
    new = streamer.ids[streamer.prompt_tokens :]
    first = streamer.first or streamer.started
    return Generation(
        prompt=prompt,
        text=str(tokenizer.decode(new, clean_up_tokenization_spaces=False)),
        tokens=[str(tokenizer.decode([token])) for token in streamer.ids],
        prompt_tokens=streamer.prompt_tokens,
        choice=streamer.choice,
        probability=streamer.probability,
        statistics=streamer.routing.result(),
        prompt_seconds=first - streamer.started,
        seconds=streamer.ended - first,
    )
