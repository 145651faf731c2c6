"""What a request may ask for: what OpenAI's API promises is done, and what is not done is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

LARGEST_SEED = 2**63
_STOPS = 4

# Parameters of OpenAI's API that change nothing here: they describe the caller, or allow what is not done anyway.
_HARMLESS = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prediction"),
    *("parallel_tool_calls", "max_tool_calls", "truncation"),
}
# Those that are not done, each with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "background": (False,),
    "include": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "reasoning_effort": ("none",),
    "stream_options": ({}, {"include_usage": True}, {"include_usage": False}),
}
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_GREEDY = 1e-5
"""A temperature below it divides logits beyond what fp32 holds; the largest one is drawn anyway."""
_NUMBERS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}


class Refused(ValueError):
    """A request that asks for what is not possible; the message names the parameter. Answered with 400."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a request wants its text drawn.

    Attributes:
        temperature, top_p: None: as the model's own generation configuration says. One alone: the other is 1.
        seed: of the draw; None: another text each time.
        stop: the text ends before the first of them.
        frequency_penalty, presence_penalty: taken from the logit of a token that was generated before: so much for
            each time, and so much once.
        logit_bias: added to the logits of token ids.
        length: new tokens at most; None: as many as the server allows, and as the model has room for.
    """

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    length: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """For transformers' generation configuration."""
        if self.temperature is None and self.top_p is None:
            return {}
        if self.temperature is not None and self.temperature < _GREEDY:
            return {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
        top_p = 1.0 if self.top_p is None else self.top_p
        temperature = 1.0 if self.temperature is None else self.temperature
        # OpenAI's API has no top_k: transformers' own default of 50 must not cut anything off.
        return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def check_request(body: Mapping[str, Any], known: Collection[str], vocabulary: int) -> Sampling:
    """How the text is to be drawn, once nothing in the request asks for more than is done.

    Args:
        known: parameters of the endpoint.
        vocabulary: token ids of the model.

    Raises:
        Refused: a parameter that does not exist, has no such value, or is not done here.
    """
    for name, value in body.items():
        if name not in known:
            raise Refused(f"{name}: there is no such parameter")
        _check_text(name, value)
        if name in _NEUTRAL and not _is_one_of(value, (None, *_NEUTRAL[name])):
            raise Refused(f"{name}: {json.dumps(value)[:80]} is not supported; leave it out")
    for name in ("previous_response_id", "audio", "web_search_options", "conversation", "reasoning"):
        if body.get(name) is not None:
            raise Refused(f"{name}: not supported; leave it out")
    lengths = [_length(name, body[name]) for name in _LENGTHS if body.get(name) is not None]
    numbers = {name: _number(body, name, *limits) for name, limits in _NUMBERS.items()}
    seed = body.get("seed")
    if seed is not None and (not _whole(seed) or abs(seed) >= LARGEST_SEED):
        raise Refused(f"seed: {seed!r} must be a whole number of 64 bits")
    if not isinstance(body.get("stream"), bool | None):
        raise Refused(f"stream: {body['stream']!r} must be true or false")
    lengths += _lengths_of_generation_config(body.get("generation_config"))
    _check_tools(body.get("tools"))
    if not isinstance(body.get("instructions"), str | None):
        raise Refused("instructions: give a text")
    return Sampling(
        temperature=numbers["temperature"],
        top_p=numbers["top_p"],
        seed=seed,
        stop=_stop(body.get("stop")),
        frequency_penalty=numbers["frequency_penalty"] or 0.0,
        presence_penalty=numbers["presence_penalty"] or 0.0,
        logit_bias=_bias(body.get("logit_bias"), vocabulary),
        length=lengths[0] if lengths else None,
    )


def check_messages(name: str, messages: Any) -> None:
    """Conversations hold text.

    Raises:
        Refused: something else.
    """
    if not isinstance(messages, list) or not messages:
        raise Refused(f"{name}: give a list of messages with role and content")
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        if not isinstance(message, Mapping):
            raise Refused(f"{where}: give an object with role and content")
        if not isinstance(message.get("role"), str):
            raise Refused(f"{where}.role: give a text such as user")
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        calls = message.get("tool_calls")
        if not isinstance(content, str | list | None) or (content is None and not calls):
            raise Refused(f"{where}.content: give a text")
        if not isinstance(calls, list | None):
            raise Refused(f"{where}.tool_calls: give a list")
        for number, call in enumerate(calls or ()):
            _check_call(f"{where}.tool_calls[{number}]", call)
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
                raise Refused(f"{where}.content: {kind!r} is not supported; this model reads text")


def said(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what says nothing: OpenAI's own client writes ``tool_calls: null`` into every answer.

    A handler that looks for the key alone would take the content for a tool's.
    """
    return {
        key: value
        for key, value in message.items()
        if (value is not None or key == "content") and (value or key != "tool_calls")
    }


def _check_call(where: str, call: Any) -> None:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Refused(f"{where}: give an object with a function that has a name")
    given = function.get("arguments")
    try:
        arguments = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise Refused(f"{where}.function.arguments: give a JSON object as a string")


def _check_tools(tools: Any) -> None:
    if not isinstance(tools, list | None) or not all(isinstance(tool, Mapping) for tool in tools or ()):
        raise Refused("tools: give a list of objects")


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in allowed)  # 0 is not false


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise Refused(f"{name}: {value!r} must be a number from {low:g} to {high:g}")
    return float(value)


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _STOPS or not all(isinstance(s, str) and s for s in stops):
        raise Refused(f"stop: give a text, or up to {_STOPS} of them")
    return tuple(stops)


def _bias(value: Any, vocabulary: int) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Refused("logit_bias: give an object of token ids and numbers")
    found = {}
    for key, bias in value.items():
        if not str(key).isdecimal() or int(key) >= vocabulary:
            raise Refused(f"logit_bias: {key!r} is not a token id of this model (0 to {vocabulary - 1})")
        found[int(key)] = _number({"logit_bias": bias}, "logit_bias", -100.0, 100.0) or 0.0
    return found


def _length(name: str, value: Any) -> int:
    if not _whole(value) or value < 1:
        raise Refused(f"{name}: {value!r} must be a whole number of 1 or more")
    return int(value)


def _lengths_of_generation_config(value: Any) -> list[int]:
    """New tokens that it asks for, if it does. Transformers' own clients send one, as JSON in a string."""
    if value is None:
        return []
    try:
        content = json.loads(value)
    except (TypeError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise Refused("generation_config: give a JSON object as a string")
    for name in ("num_beams", "num_return_sequences"):
        if content.get(name) not in (None, 1):
            raise Refused(f"generation_config: {name} {content[name]!r} is not supported")
    if content.get("cache_implementation") not in (None, "dynamic"):
        raise Refused("generation_config: cache_implementation is not supported")
    if content.get("max_length") is not None:
        raise Refused("generation_config: max_length is not supported; use max_new_tokens")
    given = content.get("max_new_tokens")
    return [] if given is None else [_length("generation_config: max_new_tokens", given)]


def _check_text(name: str, value: Any) -> None:
    """Halves of surrogate pairs are valid JSON and no text: no tokenizer takes them."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refused(f"{name}: it holds half of a surrogate pair, which is not text") from None
    elif isinstance(value, Mapping):
        for key, one in value.items():
            _check_text(name, key)
            _check_text(name, one)
    elif isinstance(value, list):
        for one in value:
            _check_text(name, one)
