"""A pass whose decisions stay on the device can be captured: nothing in it waits, and a replay is the eager pass."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

from layerroute.routing import executed
from tests.gpu.devices import CUDA, DEVICE, DTYPES, TIME
from tests.gpu.test_contracts import VOCABULARY, assert_close, build
from tests.parity.contracts import tokens
from tests.parity.far_device import Far, counted_waits

pytestmark = pytest.mark.gpu


def captured(model: Any, ids: Tensor) -> Tensor:
    """Logits of a replay of a captured graph; on a CPU, of a pass in which a device would not have been waited for."""
    cache = StaticCache(config=model.config, max_cache_len=TIME + 3)
    positions = torch.arange(ids.shape[1], device=DEVICE)[None]
    if not CUDA:
        with counted_waits() as waits:
            logits = model(
                ids.as_subclass(Far), past_key_values=cache, position_ids=positions.as_subclass(Far)
            ).logits
        assert waits == []
        return logits.as_subclass(Tensor)
    held = torch.ones_like(ids)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            cache.reset()
            model(held, past_key_values=cache, position_ids=positions)
    torch.cuda.current_stream().wait_stream(stream)
    cache.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(held, past_key_values=cache, position_ids=positions).logits
    cache.reset()
    held.copy_(ids)
    graph.replay()
    return logits.clone()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["skipping", "skipping_mlp"])
@torch.no_grad()
def test_a_captured_pass_is_the_eager_one(name: str, dtype: torch.dtype) -> None:
    model, ids = build(name, dtype), tokens(1, TIME, VOCABULARY).to(DEVICE)
    with executed(model, "masked"):
        assert_close(captured(model, ids), model(ids, use_cache=False).logits, "captured and eager")
