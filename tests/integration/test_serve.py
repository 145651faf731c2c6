"""Real requests to a real server, answered as `generate()` answers."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from layerroute.evaluation.loading import LoadedModel, load_model

uvicorn = pytest.importorskip("uvicorn", reason="pip install 'layerroute[serve]'")
openai = pytest.importorskip("openai", reason="pip install 'layerroute[serve]'")

from layerroute.serving import build_app  # noqa: E402
from layerroute.serving.leaving import client_gone  # noqa: E402
from layerroute.skipping import router_disabled, save_router  # noqa: E402
from tests.parity.skipping_models import plain, routed  # noqa: E402

PROMPTS = [f"{'The router ' * (number % 5)}reads token {number}" for number in range(50)]
TOKENS = 12


@contextlib.contextmanager
def running(loaded: LoadedModel, name: str) -> Iterator[str]:
    """The server on a free port, in a thread; yields its address."""
    server = uvicorn.Server(uvicorn.Config(build_app(loaded, name=name), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


def generated(loaded: LoadedModel, prompt: str) -> str:
    """What `generate()` makes of a prompt, alone and greedily."""
    inputs = loaded.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad(), loaded.in_precision():
        out = loaded.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return str(loaded.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


async def stream(client: Any, name: str, prompt: str) -> tuple[str, int]:
    parts = []
    events = await client.completions.create(
        model=name, prompt=prompt, max_tokens=TOKENS, temperature=0.0, stream=True
    )
    async for event in events:
        parts += [choice.text for choice in event.choices if choice.text]
    return "".join(parts), len(parts)


async def ask_all(address: str, name: str) -> list[tuple[str, int]]:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        return await asyncio.gather(*(stream(client, name, prompt) for prompt in PROMPTS))


@pytest.fixture(scope="module")
def hybrid(finished_run: Path) -> LoadedModel:
    return load_model(finished_run, device="cpu")


@pytest.mark.slow
def test_fifty_streams_at_once_equal_generate(hybrid: LoadedModel) -> None:
    expected = [generated(hybrid, prompt) for prompt in PROMPTS]
    assert len(set(expected)) > 5, "the model must say different things"
    seen: list[float] = []
    forward = hybrid.model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        seen.append(float(output.decision.choice.float().mean()))
        return output

    hybrid.model.forward = watched  # type: ignore[method-assign]
    try:
        with running(hybrid, "routed") as address:
            answers = asyncio.run(ask_all(address, "routed"))
    finally:
        hybrid.model.forward = forward  # type: ignore[method-assign]
    assert [text for text, _ in answers] == expected
    assert max(parts for _, parts in answers) > 3, "answers come in parts"
    assert 0.0 < sum(seen) / len(seen) < 1.0, "tokens take both paths while it serves"


@pytest.fixture(scope="module")
def skipping(hybrid: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A pretrained model with a router, from their folders; its tokenizer is the hybrid's."""
    folder = tmp_path_factory.mktemp("skipping")
    model = routed("llama", model={"vocab_size": len(hybrid.tokenizer)}, rank=2)
    router = save_router(model, folder / "router")
    description = json.loads((router / "router.json").read_text())
    description["base"]["id"] = str(folder / "base")
    (router / "router.json").write_text(json.dumps(description))
    plain("llama", vocab_size=len(hybrid.tokenizer)).save_pretrained(folder / "base")
    hybrid.tokenizer.save_pretrained(folder / "base")
    return load_model(router, device="cpu")


@pytest.mark.slow
def test_a_pretrained_model_with_a_router_is_served_with_its_routing(skipping: LoadedModel) -> None:
    prompts = PROMPTS[:10]
    expected = [generated(skipping, prompt) for prompt in prompts]
    with router_disabled(skipping.model):
        assert [generated(skipping, prompt) for prompt in prompts] != expected, "routing must matter"
    with running(skipping, "router") as address:

        async def ask() -> list[tuple[str, int]]:
            async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
                return await asyncio.gather(*(stream(client, "router", prompt) for prompt in prompts))

        # A stream cannot end in the middle of a character; `decode` shows a replacement there.
        cut = [text.rstrip("\ufffd") for text in expected]
        assert [text.rstrip("\ufffd") for text, _ in asyncio.run(ask())] == cut


def test_the_server_has_one_model_and_takes_no_other(hybrid: LoadedModel) -> None:
    with (
        running(hybrid, "routed") as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["routed"]
        # Another name is refused, not looked for on the hub.
        with pytest.raises(openai.APIStatusError) as refused:
            client.completions.create(model="somebody/else", prompt="x")
        assert refused.value.status_code == 404
        for other in ("somebody/else", 3, ["routed"], {"routed": 1}, True, None):
            with pytest.raises(openai.APIStatusError) as refused:
                client.post("/../load_model", body={"model": other}, cast_to=object)
            assert refused.value.status_code == 404 and "'routed' and no other" in refused.value.response.text
        assert "ready" in client.post("/../load_model", body={"model": "routed"}, cast_to=str)
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="routed", messages=[{"role": "user", "content": "x"}])
        assert "no chat template; send its prompt to /v1/completions" in refused.value.response.text
        client.post("/../reset", cast_to=object)
        answer = client.completions.create(
            model="routed", prompt=PROMPTS[1], max_tokens=TOKENS, temperature=0.0
        )
        assert answer.choices[0].text == generated(hybrid, PROMPTS[1])


@pytest.mark.parametrize("streams", [False, True])
def test_beams_of_the_models_own_configuration_are_not_used(hybrid: LoadedModel, streams: bool) -> None:
    own, expected = hybrid.model.generation_config, generated(hybrid, PROMPTS[3])
    own.num_beams, own.num_return_sequences = 3, 2
    try:
        with (
            running(hybrid, "routed") as address,
            openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        ):
            asked: dict[str, Any] = {"model": "routed", "prompt": PROMPTS[3], "max_tokens": TOKENS}
            answer: Any = client.completions.create(**asked, temperature=0.0, stream=streams)
            choices = [choice for event in (answer if streams else [answer]) for choice in event.choices]
    finally:
        own.num_beams, own.num_return_sequences = 1, 1
    assert "".join(choice.text for choice in choices) == expected


def test_a_model_with_a_chat_template_chats(hybrid: LoadedModel) -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    hybrid.tokenizer.chat_template = template
    try:
        with (
            running(hybrid, "routed") as address,
            openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        ):
            events = client.chat.completions.create(
                model="routed",
                messages=[{"role": "user", "content": PROMPTS[2]}],
                max_tokens=TOKENS,
                temperature=0.0,
                stream=True,
            )
            text = "".join(choice.delta.content or "" for event in events for choice in event.choices)
    finally:
        hybrid.tokenizer.chat_template = None
    assert text == generated(hybrid, PROMPTS[2])


class Answer(NamedTuple):
    """Status and decoded JSON."""

    code: int
    content: Any


def post(address: str, body: Any) -> Answer:
    """A request as anybody may send it, past what a client would refuse to send."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return Answer(answer.status, json.load(answer))
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return Answer(error.code, json.loads(text) if text.startswith("{") else text)


@pytest.fixture(scope="module")
def address(hybrid: LoadedModel) -> Iterator[str]:
    with running(hybrid, "routed") as where:
        yield where


def complete(address: str, **asked: Any) -> Any:
    """The first choice of a completion, streamed or not."""
    body = {"prompt": PROMPTS[1], "max_tokens": TOKENS, **asked}
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        if not asked.get("stream"):
            return client.completions.create(model="routed", **body).choices[0]
        choices = [event.choices[0] for event in client.completions.create(model="routed", **body)]
    choices[-1].text = "".join(choice.text for choice in choices)
    return choices[-1]


def drawn(loaded: LoadedModel, seed: int, **settings: Any) -> str:
    """What `generate()` draws after a seed."""
    inputs = loaded.tokenizer(PROMPTS[1], return_tensors="pt", return_token_type_ids=False)
    torch.manual_seed(seed)
    with torch.no_grad(), loaded.in_precision():
        out = loaded.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=True, top_k=0, **settings)
    return str(loaded.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def without_half(text: str) -> str:
    """A stream cannot end in the middle of a character; `decode` shows a replacement there."""
    return text.rstrip("\ufffd")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({"temperature": 1.5}, {"temperature": 1.5, "top_p": 1.0}),
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6}),
        ({"top_p": 0.8}, {"temperature": 1.0, "top_p": 0.8}),
    ],
)
def test_text_is_drawn_as_it_is_asked_for(
    address: str, hybrid: LoadedModel, asked: dict[str, Any], settings: dict[str, Any], stream: bool
) -> None:
    texts = [complete(address, seed=seed, stream=stream, **asked).text for seed in (1, 2, 3, 1)]
    expected = [drawn(hybrid, seed, **settings) for seed in (1, 2, 3, 1)]
    assert list(map(without_half, texts)) == list(map(without_half, expected))
    assert len(set(texts)) > 1, "seeds must matter"
    assert set(texts) != {generated(hybrid, PROMPTS[1])}


def test_without_a_seed_no_two_draws_are_alike(address: str) -> None:
    assert len({complete(address, temperature=2.0).text for _ in range(4)}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_text_ends_before_a_stop(address: str, hybrid: LoadedModel, stream: bool) -> None:
    whole = generated(hybrid, PROMPTS[1])
    for stop in (whole[4:6], [whole[7:9], "never said"], whole[-2:]):
        first = min(whole.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one in whole)
        choice = complete(address, temperature=0.0, stop=stop, stream=stream)
        assert choice.text == whole[:first]
        assert first == len(whole) - 2 or choice.finish_reason == "stop"
    assert complete(address, temperature=0.0, stop="never said", stream=stream).text == whole


@pytest.mark.parametrize(
    "asked", [{"frequency_penalty": 1.5}, {"presence_penalty": 2.0}, {"logit_bias": {"70": 4, "71": -100}}]
)
def test_penalties_and_biases_are_those_of_the_definition(
    address: str, hybrid: LoadedModel, asked: dict[str, Any]
) -> None:
    """Token by token, without a cache: logit − count·frequency − (count > 0)·presence + bias."""
    ids = hybrid.tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
    new: list[int] = []
    for _ in range(TOKENS):
        with torch.no_grad(), hybrid.in_precision():
            logits = (
                hybrid.model(torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1)).logits[0, -1].float()
            )
        for token in set(new):
            logits[token] -= new.count(token) * asked.get("frequency_penalty", 0) + asked.get(
                "presence_penalty", 0
            )
        for token, bias in asked.get("logit_bias", {}).items():
            logits[int(token)] += bias
        new.append(int(logits.argmax()))
        if new[-1] == hybrid.tokenizer.eos_token_id:
            break
    expected = hybrid.tokenizer.decode(new, skip_special_tokens=True)
    assert complete(address, temperature=0.0, **asked).text == expected
    assert expected != generated(hybrid, PROMPTS[1])


REFUSED: dict[str, list[object]] = {
    "temperature": [-1, 2.5, "hot", True],
    "top_p": [-0.1, 1.5],
    "n": [2, 0],
    "best_of": [3],
    "echo": [True],
    "suffix": ["end"],
    "logprobs": [0, 5],
    "stop": ["", ["a", ""], ["a", "b", "c", "d", "e"], 5],
    "seed": ["x", 1.5],
    "max_tokens": [0, -1, "many"],
    "frequency_penalty": [3],
    "presence_penalty": [-2.5],
    "logit_bias": [{"999999": 1}, {"9" * 5000: 1}, {"x": 1}, {"5": 200}, [1]],
    "stream": ["yes"],
    "stream_options": [{"include_obfuscation": True}],
    "prompt": [[1, 2], ["a", "b"], 7],
    "top_k": [5],
    "generation_config": [
        "{",
        '{"num_beams": 4}',
        '{"cache_implementation": "paged"}',
        '{"max_new_tokens": -1}',
        '{"max_length": 5}',
        '{"num_beams": "x"}',
        '{"early_stopping": 7}',
        '{"return_dict_in_generate": true}',
        '{"bad_words_ids": "x"}',
        '{"eos_token_id": "x"}',
        '{"pad_token_id": [1, 999999]}',
        '{"max_time": "x"}',
        '{"penalty_alpha": 0.6, "top_k": 4}',
        '{"no_such_thing": 3}',
        '{"temperature": "hot"}',
        '{"temperature": 1e-40, "do_sample": true}',
        '{"repetition_penalty": NaN}',
        '{"top_k": true}',
    ],
}


@pytest.mark.parametrize("parameter", REFUSED)
def test_what_is_not_done_is_refused_by_its_name(address: str, parameter: str) -> None:
    for value in REFUSED[parameter]:
        body = {"prompt": "x", "max_tokens": 2, parameter: value}
        answer = post(f"{address}/v1/completions", body)
        assert answer.code == 400, (value, answer.content)
        assert parameter in answer.content["detail"]


def test_values_that_ask_for_nothing_are_taken(address: str) -> None:
    body = {
        "prompt": ["x"],
        "max_tokens": 2,
        "n": 1,
        "echo": False,
        "user": "me",
        "stop": None,
        "logprobs": None,
    }
    assert post(f"{address}/v1/completions", body).code == 200


def test_what_transformers_own_clients_write_is_taken(address: str) -> None:
    config = (
        '{"max_new_tokens": 2, "do_sample": true, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": null, '
        '"num_beams": 1, "eos_token_id": [1, 2], "pad_token_id": 0, "repetition_penalty": 1.2, '
        '"transformers_version": "5.0.0", "_from_model_config": true}'
    )
    assert post(f"{address}/v1/completions", {"prompt": "x", "generation_config": config}).code == 200


@pytest.mark.parametrize("endpoint", ["completions", "chat/completions", "responses"])
def test_odd_requests_are_told_and_never_fail(address: str, endpoint: str, hybrid: LoadedModel) -> None:
    def ask(**body: Any) -> Answer:
        return post(f"{address}/v1/{endpoint}", body)

    text = {"completions": "prompt", "responses": "input"}.get(endpoint, "messages")
    given: Any = "x" if text != "messages" else [{"role": "user", "content": "x"}]
    assert ask(model="somebody/else", **{text: given}).code == 404
    half = post(f"{address}/v1/{endpoint}", {text: "\ud800"})
    assert half.code == 400
    assert text in half.content["detail"]
    if endpoint == "completions":
        return
    told = ask(**{text: given})
    assert told.code == 400
    assert "no chat template; send its prompt to /v1/completions" in told.content["detail"]
    hybrid.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    try:
        length = "max_output_tokens" if endpoint == "responses" else "max_tokens"
        assert ask(**{text: given, length: 2}).code == 200
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
        for wrong in ([], [{"role": "user"}], ["x"], image, None):
            answer = ask(**{text: wrong, length: 2})
            assert answer.code == 400, wrong
            assert text in answer.content["detail"]
        assert length in ask(**{text: given, length: 0}).content["detail"]
        for parameter, values in (
            ("tools", ["x", [3]]),
            ("chat_template_kwargs", [{"tokenize": False}, {"messages": 1}, "x"]),
            *([("instructions", [5])] if endpoint == "responses" else []),
        ):
            for value in values:
                answer = ask(**{text: given, length: 2, parameter: value})
                assert answer.code == 400, (parameter, value)
                assert parameter in str(answer.content["detail"])
    finally:
        hybrid.tokenizer.chat_template = None


def test_an_answer_that_is_given_back_stays_in_the_conversation(address: str, hybrid: LoadedModel) -> None:
    """OpenAI's client writes ``tool_calls: null`` into it; the key alone made the server drop the content."""

    def ask(**more: Any) -> Answer:
        turn = {"role": "assistant", "content": "an answer of some words", **more}
        messages = [{"role": "user", "content": "x"}, turn, {"role": "user", "content": "y"}]
        return post(f"{address}/v1/chat/completions", {"messages": messages, "max_tokens": 2})

    hybrid.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    try:
        expected = ask().content["usage"]["prompt_tokens"]
        for calls in (None, []):
            answer = ask(tool_calls=calls, refusal=None, function_call=None)
            assert answer.code == 200
            assert answer.content["usage"]["prompt_tokens"] == expected
        call = {"id": "1", "type": "function"}
        function: dict[str, Any] = {"name": "f", "arguments": "{}"}
        assert ask(tool_calls=[{**call, "function": function}]).code == 200
        for wrong in ({"name": "f"}, {**function, "arguments": "{"}, {"arguments": "{}"}, None):
            answer = ask(tool_calls=[{**call, "function": wrong}])
            assert (answer.code, "messages[1].tool_calls[0]" in str(answer.content)) == (400, True), wrong
    finally:
        hybrid.tokenizer.chat_template = None


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_longer_than_the_model_reads_is_refused(skipping: LoadedModel, stream: bool) -> None:
    limit = skipping.model.config.max_position_embeddings
    with running(skipping, "router") as where:

        def ask(words: int, **asked: Any) -> Answer:
            return post(f"{where}/v1/completions", {"prompt": "router " * words, "stream": stream, **asked})

        tokens = len(skipping.tokenizer("router " * 9)["input_ids"])
        for answer in (ask(limit), ask(9, max_tokens=limit - tokens + 1)):
            assert answer.code == 400
            assert f"this model reads {limit} in all" in answer.content["detail"]
        if not stream:
            usage = ask(9).content["usage"]
            assert usage["prompt_tokens"] + usage["completion_tokens"] <= limit


def test_the_least_temperature_draws_the_likeliest(address: str, hybrid: LoadedModel) -> None:
    assert complete(address, temperature=1e-40).text == generated(hybrid, PROMPTS[1])


def test_an_empty_prompt_begins_a_document(address: str, hybrid: LoadedModel) -> None:
    from layerroute.evaluation.generation import generate

    expected = generate(hybrid, "", max_new_tokens=6).text
    for body in ({"prompt": ""}, {}):
        answer = post(f"{address}/v1/completions", {"max_tokens": 6, "temperature": 0, **body})
        assert answer.code == 200
        assert answer.content["usage"]["prompt_tokens"] == 1
        assert without_half(answer.content["choices"][0]["text"]) == without_half(expected)


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_generated_for_a_client_that_has_left(
    address: str, hybrid: LoadedModel, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for one that leaves while it is answered, nor for one that leaves while it waits behind that."""
    forward, steps, told = hybrid.model.forward, [], []
    left = threading.Event()

    def held(*args: Any, **kwargs: Any) -> Any:
        steps.append(kwargs["input_ids"].shape)
        if len(steps) == 3:
            assert left.wait(60)
        return forward(*args, **kwargs)

    def noted() -> threading.Event | None:
        told.append(client_gone())
        return told[-1]

    monkeypatch.setattr(hybrid.model, "forward", held)
    monkeypatch.setattr("layerroute.serving.generating.client_gone", noted)
    where = urllib.parse.urlparse(address)
    body = json.dumps({"prompt": "x", "max_tokens": 60, "temperature": 0.0, "stream": stream})
    clients = [http.client.HTTPConnection(where.hostname or "", where.port, timeout=60) for _ in range(3)]
    for client in clients:
        client.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 60
    while len(told) < 3 or len(steps) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for client in clients:
        client.close()
    assert all(gone.wait(60) for gone in told)
    left.set()
    assert complete(address, max_tokens=1, temperature=0.0).finish_reason == "length"
    assert len(steps) == 4, "three of the first, none of the two behind it, and one of the one that stayed"


def test_what_the_model_cannot_do_is_not_there(address: str) -> None:
    assert post(f"{address}/v1/systemone", {"model": "routed"}).code == 404
