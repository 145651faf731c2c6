"""Both kinds of model keep the contracts on this device, in fp32 and in bf16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from layerroute.routing import RoutingConfig, collect_decisions, executed, forced
from layerroute.routing.estimators import SPARSE_ESTIMATORS
from layerroute.skipping import router_disabled
from tests.gpu.devices import DEVICE, DTYPES, HEADS, TIME, TOLERANCE, WIDTH
from tests.parity import contracts, hybrid_models, skipping_models
from tests.parity.contracts import cached_logits, tokens
from tests.parity.hybrid_models import VOCABULARY

pytestmark = pytest.mark.gpu
HYBRID = {
    "hybrid": {},
    "hybrid_own_context": {"context": "own_context"},
    "hybrid_heads": {"granularity": "head"},
    "hybrid_blocks": {"routed_unit": "block"},
}
SKIPPING: dict[str, dict[str, Any]] = {
    "skipping": {},
    "skipping_evict": {"kv": "evict"},
    "skipping_mlp": {"unit": "mlp", "granularity": "per_layer"},
    "skipping_window": {"family": "mistral"},
    "skipping_mixed_windows": {"family": "qwen2"},
}
BUILT = [*HYBRID, *SKIPPING]


def build(name: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A small model with large weights, on the device."""
    if name in HYBRID:
        sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "initializer_range": WIDTH**-0.5}
        model: Any = hybrid_models.build(**sizes, **HYBRID[name], **more)
    else:
        sizes = {"hidden_size": WIDTH, "num_attention_heads": 2 * HEADS, "num_key_value_heads": HEADS}
        if "routing" in more:
            more["routing"] = RoutingConfig(**more["routing"])
        model = skipping_models.routed(
            **SKIPPING[name], model={**sizes, "initializer_range": WIDTH**-0.5}, **more
        )
    return model.to(device=DEVICE, dtype=dtype)


@contextmanager
def decided(model: Any, execution: str) -> Iterator[None]:
    """Decisions by position: round-off of one execution must not tip those of another."""
    with forced(model, 0.5), executed(model, execution):
        yield


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    contracts.assert_close(actual.float(), expected.float(), what, TOLERANCE[expected.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BUILT)
@torch.no_grad()
def test_sparse_is_masked_and_cached_is_uncached(name: str, dtype: torch.dtype) -> None:
    model, ids = build(name, dtype), tokens(2, TIME, VOCABULARY).to(DEVICE)
    with decided(model, "masked"), collect_decisions(model) as found:
        expected = model(ids, use_cache=False).logits
    assert 0.2 < float(found[0].choice.float().mean()) < 0.8, "both paths must be taken"
    for execution in ("masked", "sparse"):
        for cuts in ([], [5, 6, 12], [TIME - 3, TIME - 2, TIME - 1]):
            with decided(model, execution):
                actual = cached_logits(model, ids, cuts)
            assert_close(actual, expected, f"{execution}, cached at {cuts}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BUILT)
@torch.no_grad()
def test_a_padded_batch_is_its_rows(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    rows = [tokens(1, length, VOCABULARY, seed=length)[0].to(DEVICE) for length in (3, 11, TIME)]
    ids, mask = contracts.left_padded(rows)
    for execution in ("masked", "sparse"):
        with decided(model, execution):
            whole = model(ids, attention_mask=mask, use_cache=False).logits
            chunked = cached_logits(model, ids, [4, TIME - 5, TIME - 1], mask)
            for row, logits, pieces in zip(rows, whole, chunked, strict=True):
                alone = model(row[None], use_cache=False).logits[0]
                assert_close(logits[-len(row) :], alone, f"{execution}: a row of {len(row)} tokens")
                assert_close(pieces[-len(row) :], alone, f"{execution}: a row of {len(row)} tokens, cached")


@pytest.mark.parametrize("name", BUILT)
def test_decisions_of_its_own_survive_caches_batches_and_generation(name: str) -> None:
    """In fp32 alone: the routers' scores are far from ties there."""
    model = build(name)
    rows = [tokens(1, length, VOCABULARY, seed=length)[0].to(DEVICE) for length in (4, 11)]
    contracts.check_cached_equals_uncached(model, rows[1][None], [3, 4, 9], TOLERANCE[torch.float32])
    contracts.check_batched_equals_single(model, rows, [2, 10], TOLERANCE[torch.float32])
    contracts.check_generation(model, rows)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_router_that_is_switched_off_leaves_the_model_as_it_was(dtype: torch.dtype) -> None:
    model, ids = build("skipping", dtype), tokens(2, TIME, VOCABULARY).to(DEVICE)
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 2 * HEADS, "num_key_value_heads": HEADS}
    plain: Any = skipping_models.plain(**sizes, initializer_range=WIDTH**-0.5).to(device=DEVICE, dtype=dtype)
    with router_disabled(model):
        assert torch.equal(model(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)


@pytest.mark.parametrize("name", ["hybrid", "skipping"])
def test_gradients_of_sparse_training_are_those_of_masked(name: str) -> None:
    assert "selected" in SPARSE_ESTIMATORS
    model, ids = (
        build(name, routing={"estimator": "selected"}).train(),
        tokens(2, TIME, VOCABULARY).to(DEVICE),
    )
    found = []
    for execution in ("masked", "sparse"):
        model.zero_grad()
        with decided(model, execution):
            model(ids, labels=ids, use_cache=False).loss.backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    masked, sparse = found
    for name, gradient in masked.items():
        other = sparse.get(name, torch.zeros_like(gradient))
        assert_close(other, gradient, f"gradient of {name}")
