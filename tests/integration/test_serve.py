"""Real requests to a real server, answered as `generate()` answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from layerroute.evaluation.loading import LoadedModel, load_model

uvicorn = pytest.importorskip("uvicorn", reason="pip install 'layerroute[serving]'")
openai = pytest.importorskip("openai", reason="pip install 'layerroute[serving]'")

from layerroute.serving import build_app  # noqa: E402
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
        assert refused.value.status_code in (400, 404)
        with pytest.raises(openai.APIStatusError) as refused:
            client.post("/../load_model", body={"model": "somebody/else"}, cast_to=object)
        assert refused.value.status_code == 404
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="routed", messages=[{"role": "user", "content": "x"}])
        assert "no chat template; send its prompt to /v1/completions" in refused.value.response.text
        client.post("/../reset", cast_to=object)
        answer = client.completions.create(
            model="routed", prompt=PROMPTS[1], max_tokens=TOKENS, temperature=0.0
        )
        assert answer.choices[0].text == generated(hybrid, PROMPTS[1])


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
