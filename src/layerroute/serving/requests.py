"""What a request may ask for: what OpenAI's API promises is done, and what is not done is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from layerroute.argument_types import SEEDS
from layerroute.evaluation.generation import GREEDY, draw_settings

_STOPS = 4

# Parameters of OpenAI's API that are not done here, each with the values that ask for nothing.
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
# What a `generation_config` may hold.
_WRITTEN_BY_CLIENTS = {"transformers_version", "_from_model_config"}
_CONFIG_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "cache_implementation": ("dynamic",),
    "return_dict_in_generate": (False,),
}
_CONFIG_NUMBERS = {
    "temperature": (GREEDY, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}
_CONFIG_COUNTS = {"top_k", "min_new_tokens", "no_repeat_ngram_size"}
_CONFIG_IDS = {"bos_token_id", "eos_token_id", "pad_token_id"}
_CONFIG_FLAGS = {"do_sample", "use_cache"}
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
        # OpenAI's API has no top_k.
        return draw_settings(
            1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
        )


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
        try:
            _check_text(name, value)
        except RecursionError:
            raise Refused(f"{name}: nested too deep") from None
        if name in _NEUTRAL and not _is_one_of(value, (None, *_NEUTRAL[name])):
            raise Refused(f"{name}: {json.dumps(value)[:80]} is not supported; leave it out")
    for name in ("previous_response_id", "audio", "web_search_options", "conversation", "reasoning"):
        if body.get(name) is not None:
            raise Refused(f"{name}: not supported; leave it out")
    lengths = [_length(name, body[name]) for name in _LENGTHS if body.get(name) is not None]
    numbers = {name: _number(body, name, *limits) for name, limits in _NUMBERS.items()}
    seed = body.get("seed")
    if seed is not None and (not _whole(seed) or abs(seed) >= SEEDS):
        raise Refused(f"seed: {seed!r} must be a whole number of 64 bits")
    if not isinstance(body.get("stream"), bool | None):
        raise Refused(f"stream: {body['stream']!r} must be true or false")
    lengths += _lengths_of_generation_config(body.get("generation_config"), vocabulary)
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
        # Python reads no number of thousands of digits.
        if not str(key).isdecimal() or len(str(key)) > 20 or int(key) >= vocabulary:
            raise Refused(f"logit_bias: {key!r} is not a token id of this model (0 to {vocabulary - 1})")
        found[int(key)] = _number({"logit_bias": bias}, "logit_bias", -100.0, 100.0) or 0.0
    return found


def _length(name: str, value: Any) -> int:
    if not _whole(value) or value < 1:
        raise Refused(f"{name}: {value!r} must be a whole number of 1 or more")
    return int(value)


def _lengths_of_generation_config(value: Any, vocabulary: int) -> list[int]:
    """New tokens that it asks for, if it does. Transformers' own clients send one, as JSON in a string.

    They write more into it than was asked for. What does not change the answer is let through, the rest by name.
    """
    if value is None:
        return []
    try:
        content = json.loads(value)
    except (TypeError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise Refused("generation_config: give a JSON object as a string")
    lengths = []
    for key, given in content.items():
        name = f"generation_config: {key}"
        if given is None or key in _WRITTEN_BY_CLIENTS or _is_one_of(given, _CONFIG_NEUTRAL.get(key, ())):
            continue
        if key == "max_new_tokens":
            lengths.append(_length(name, given))
        elif key in _CONFIG_NUMBERS:
            _number({name: given}, name, *_CONFIG_NUMBERS[key])
        elif key in _CONFIG_COUNTS:
            if not _whole(given) or not 0 <= given < SEEDS:
                raise Refused(f"{name}: {given!r} must be a whole number of 0 or more")
        elif key in _CONFIG_IDS:
            ids = given if isinstance(given, list) and given else [given]
            if not all(_whole(one) and 0 <= one < vocabulary for one in ids):
                raise Refused(f"{name}: give token ids of this model (0 to {vocabulary - 1})")
        elif key not in _CONFIG_FLAGS or not isinstance(given, bool):
            raise Refused(f"{name} {json.dumps(given)[:80]} is not supported; leave it out")
    return lengths


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
