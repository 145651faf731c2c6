"""Generation for one request after the other, drawn as the request says: seed, penalties, biases and stops."""

from __future__ import annotations

import asyncio
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.cli.serving.utils import DirectStreamer, GenerateManager, _GenerationCancelled, _StreamError

from layerroute.evaluation.loading import too_many_tokens
from layerroute.serving.leaving import Left, client_gone
from layerroute.serving.requests import Refused, Sampling

SAMPLING = "layerroute_sampling"
"""Attribute of a request's generation configuration, taken off again before the model sees it."""


class Penalties(LogitsProcessor):
    """OpenAI's frequency and presence penalties, over the tokens generated so far, and biases.

    logit[v] −= count(v)·frequency + [count(v) > 0]·presence; logit[v] += bias[v].
    """

    def __init__(self, sampling: Sampling, prompt: int) -> None:
        self.sampling, self.prompt = sampling, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        new = input_ids[0, self.prompt :]
        counts = torch.bincount(new, minlength=scores.shape[-1]).to(scores)
        asked = self.sampling
        scores[0] -= counts * asked.frequency_penalty + (counts > 0) * asked.presence_penalty
        for token, bias in asked.logit_bias.items():
            scores[0, token] += bias
        return scores


class StopTexts(StoppingCriteria):
    """Stops once the generated text holds one of some texts."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...], prompt: int) -> None:
        self.tokenizer, self.stops, self.prompt = tokenizer, stops, prompt
        self.tail = max(len(stop.encode()) for stop in stops) + 8  # a token is a byte at least

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        new = input_ids[0, self.prompt :][-self.tail :]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return torch.tensor(
            [any(stop in text for stop in self.stops)] * len(input_ids), device=input_ids.device
        )


def before_stop(text: str, stops: tuple[str, ...]) -> str:
    """The text up to the first of ``stops``."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


class StoppedStreamer(DirectStreamer):
    """Hands text out as far as no stop can begin in it."""

    def __init__(self, *given: Any, stops: tuple[str, ...], **more: Any) -> None:
        self._stops, self._text, self._done = stops, "", False
        super().__init__(*given, **more)

    def _enqueue(self, item: Any) -> None:
        if not self._stops or (item is not None and type(item) is not str):
            super()._enqueue(item)
            return
        if item is None:
            ready, self._text = ("" if self._done else self._text), ""
        else:
            self._text += item
            ready = before_stop(self._text, self._stops)
            if self._done or len(ready) < len(self._text):
                ready, self._text, self._done = ("" if self._done else ready), "", True
            else:
                kept = max(_begun(ready, stop) for stop in self._stops)
                ready, self._text = ready[: len(ready) - kept], ready[len(ready) - kept :]
        if ready:
            super()._enqueue(ready)
        if item is None:
            super()._enqueue(None)


def _begun(text: str, stop: str) -> int:
    """How many of the last characters may be the beginning of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


class OneAtATime(GenerateManager):
    """transformers' own, with what a request says of the draw.

    Args:
        context_length: tokens that the model reads at most, prompt and answer together; None: any number.
    """

    def __init__(self, context_length: int | None = None) -> None:
        super().__init__()
        self.context_length = context_length

    def _begun(self, inputs: Any, gen_config: Any) -> Sampling:
        """What the request says of the draw; its length is made to fit."""
        sampling: Sampling = gen_config.__dict__.pop(SAMPLING, Sampling())
        prompt = inputs["input_ids"].shape[-1]
        if self.context_length is None:
            return sampling
        room = self.context_length - prompt
        if room < (sampling.length or 1):
            raise Refused(too_many_tokens(prompt, sampling.length, self.context_length))
        if gen_config.max_new_tokens is not None:
            gen_config.max_new_tokens = min(gen_config.max_new_tokens, room)
        return sampling

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue[Any], Any]:
        """See ``GenerateManager``."""
        del request_id
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Any] = asyncio.Queue()
        sampling, gone = self._begun(inputs, gen_config), client_gone()
        streamer = StoppedStreamer(
            processor._tokenizer, loop, queue, response_parser=response_parser, stops=sampling.stop
        )

        def run() -> None:
            try:
                _generate(model, processor, inputs, gen_config, sampling, gone, streamer=streamer)
            except _GenerationCancelled:
                loop.call_soon_threadsafe(queue.put_nowait, None)
            except Exception as error:  # told in the stream, as transformers does
                loop.call_soon_threadsafe(queue.put_nowait, _StreamError(str(error)))

        self.submit(run)
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, Any]:
        """See ``GenerateManager``."""
        del request_id
        sampling = self._begun(inputs, gen_config)
        given = model, processor, inputs, gen_config, sampling, client_gone()
        try:
            rows = await self.async_submit(_generate, *given)
        except _GenerationCancelled:
            rows = inputs["input_ids"]  # nobody reads it
        prompt = inputs["input_ids"].shape[-1]
        new = rows[0, prompt:]
        text = processor.decode(new, skip_special_tokens=True)
        return before_stop(text, sampling.stop), prompt, new


def _generate(
    model: Any,
    processor: Any,
    inputs: Any,
    gen_config: Any,
    sampling: Sampling,
    gone: Event | None,
    **more: Any,
) -> Tensor:
    prompt = inputs["input_ids"].shape[-1]
    ends: list[StoppingCriteria] = []
    if gone is not None:
        if gone.is_set():
            raise _GenerationCancelled
        ends.append(Left(gone))
    if sampling.stop:
        ends.append(StopTexts(processor, sampling.stop, prompt))
    if sampling.frequency_penalty or sampling.presence_penalty or sampling.logit_bias:
        more["logits_processor"] = [Penalties(sampling, prompt)]
    # Here, on the thread that draws: another request's draws may come between this one's arrival and its turn.
    if sampling.seed is None:
        torch.seed()
    else:
        torch.manual_seed(sampling.seed)
    rows: Tensor = model.generate(
        **inputs, generation_config=gen_config, tokenizer=processor, stopping_criteria=ends, **more
    )
    return rows
