"""Compiled decoding equals uncompiled: over families, units, routers, batches, padding and ways to generate."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import StaticCache

from layerroute.errors import UserError
from layerroute.skipping import compile_decoding, remove_router
from tests.parity.skipping_models import routed

# What is compiled is seen by dynamo and autograd alone (backend "aot_eager") but in one case: the code of inductor
# takes a minute.
PRELUDE = """
import torch
from transformers import StaticCache
from layerroute.errors import UserError
from layerroute.routing import RoutingConfig
from layerroute.skipping import *
from layerroute.skipping import compiled, graphs
from tests.parity.contracts import assert_close, tokens
from tests.parity.skipping_models import VOCABULARY, random_choice, routed

runs = []
def spy(call=graphs.Graphs.__call__):
    def called(self, function, *args, **options):
        runs.append(function.__name__)
        return call(self, function, *args, **options)
    graphs.Graphs.__call__ = called

def ahead():
    return sum(map(len, graphs._ahead.values()))

AHEAD = torch.__version__ >= "2.13"  # before, what comes of "aot_eager" is not compiled ahead of time

def make(family="llama", backend="aot_eager", way="read", **skip):
    return compile_decoding(routed(family, **skip), backend=backend, way=way)

@torch.no_grad()
def stepwise(model, ids, mask, first=8, room=16):
    cache = StaticCache(config=model.config, max_cache_len=room)
    parts = [model(ids[:, :first], attention_mask=mask[:, :first], past_key_values=cache)]
    for t in range(first, ids.shape[1]):
        parts.append(model(ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache))
    return torch.cat([part.logits for part in parts], dim=1), cache

def padded(rows=2, time=14, pad=3):
    ids, mask = tokens(rows, time, VOCABULARY), torch.ones(rows, time, dtype=torch.long)
    mask[-1, :pad] = 0
    return ids, mask

def check(model, what, rows=2):
    ids, mask = padded(rows)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, use_cache=False).logits
    with collect_decisions(model) as found:
        logits, cache = stepwise(model, ids, mask)
    with compilation_disabled(model), collect_decisions(model) as reference:
        same, plain_cache = stepwise(model, ids, mask)
    real = mask.bool()
    assert_close(logits[real], expected[real], what + ": cached and uncached")
    assert_close(logits[real], same[real], what + ": compiled and not")
    assert all(torch.equal(a.choice, b.choice) for a, b in zip(found, reference, strict=True)), what
    for mine, theirs in zip(cache.layers, plain_cache.layers, strict=True):
        assert_close(mine.keys, theirs.keys, what + ": keys")
        assert_close(mine.values, theirs.values, what + ": values")
    return found
"""
CASES = {
    "families": """
for family in ("phi3", "gemma2", "gemma3_text", "granite", "qwen3_moe"):
    before = ahead()
    check(make(family), family)
    assert not AHEAD or ahead() > before and not graphs._refused, family
""",
    "what is routed": """
spy()
for skip in ({"unit": "attention+mlp"}, {"granularity": "sequence", "prefix_tokens": 4},
             {"granularity": "per_layer", "serve": "rate", "history": 2, "skip_path": "non_linear"},
             {"unit": "mlp", "skip_path": "identity", "sink_tokens": 9}):
    found = check(make(**skip), str(skip))
    choice = torch.cat([one.choice for one in found[1:]], dim=1)
    assert 0 < choice.float().mean() < 1
assert "_skip" in runs and "_run" in runs
""",
    "one graph a kind of layer": """
# By position and layer: all skip, none does, rows differ. Forced, so that a layer is seen in every way.
model = make(skip_path="identity", sink_tokens=0)
for rate in (0.0, 0.5, 1.0):
    with forced(model, random_choice(2, 14, 4, rate)):
        check(model, f"forced at {rate}")
# A token alone, and one behind others that have waited: however many, in a graph or two.
assert not AHEAD or 0 < ahead() <= 3 and not graphs._refused, graphs._ahead
spy()
model = make(skip_path="identity", sink_tokens=0)
ids, mask = padded(1, 9, 0)
with forced(model, torch.zeros(1, 9, 4, dtype=torch.long)):
    stepwise(model, ids, mask)
assert runs == ["_run"] * 3, "layers that all rows skip must not run"
""",
    "generate": """
model = make()
ids, mask = padded(2, 8, 2)
ids[1, :2] = 0
more = {"attention_mask": mask, "max_new_tokens": 6, "pad_token_id": 0}
for way in ({"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": True, "top_k": 5}):
    outputs = []
    for compiling in (True, False):
        torch.manual_seed(3)
        if compiling:
            outputs.append(model.generate(ids, **more, **way))
        else:
            with compilation_disabled(model):
                outputs.append(model.generate(ids, **more, **way, cache_implementation="dynamic"))
    assert torch.equal(*outputs), way
assert not AHEAD or ahead() > 0
before = model.generate(ids[:1, :3], max_new_tokens=4, do_sample=False, pad_token_id=0)
with router_disabled(model):
    off = model.generate(ids[:1, :3], max_new_tokens=4, do_sample=False, pad_token_id=0)
remove_router(model)
plain = model.generate(ids[:1, :3], max_new_tokens=4, do_sample=False, pad_token_id=0)
assert torch.equal(off, plain) and not torch.equal(off, before)
""",
    "ways": """
check(make(way="masked"), "masked")
model = make(way="auto")
steps = get_router(model).steps
assert set(steps.seconds) == set(compiled.WAYS) and steps.way == min(steps.seconds, key=steps.seconds.get)
slow = {"read": 0.3, "masked": 0.0, "eager": 0.2}
import time
assert compiled.choose_way(model, lambda: time.sleep(slow[steps.way]), rounds=1) == "masked"
check(model, "chosen")
""",
    "compiling does not pay": """
model, caches = routed("llama"), set()
before = model.generation_config.to_dict()
def choose(model, work):
    steps = get_router(model).steps
    for steps.way in ("read", "masked", "eager"):
        work()
        caches.add((steps.way, kinds[-1]))
    return steps.way
kinds = []
model.register_forward_pre_hook(lambda m, a, k: kinds.append(type(k["past_key_values"]).__name__), with_kwargs=True)
compiled.choose_way = choose
compile_decoding(model, backend="eager")
wanted = {("read", "StaticCache"), ("masked", "StaticCache"), ("eager", "DynamicCache")}
assert caches == wanted, caches  # each way against the cache that generate would give it
assert model.generation_config.to_dict() == before
""",
    "a full cache": """
model = make()
ids, mask = padded(1, 12, 0)
try:
    stepwise(model, ids, mask, room=10)
except UserError as error:
    assert "full: it has room for 10 tokens and this call needs 11" in str(error), error
else:
    raise AssertionError("nothing was said")
""",
    "what changes between prompts, and what may change between tokens": """
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
ids, mask = padded(1, 12, 0)
def step(t):
    given = {"attention_mask": mask[:, : t + 1]}
    mine = model(ids[:, t : t + 1], past_key_values=caches[0], **given).logits
    with compilation_disabled(model):
        theirs = model(ids[:, t : t + 1], past_key_values=caches[1], **given).logits
    assert_close(mine, theirs, f"token {t}")
    return mine
def read():
    for cache in caches:
        cache.reset()
        model(ids[:, :8], attention_mask=mask[:, :8], past_key_values=cache)
    return step(8)
def adapters(enabled):
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(enabled)
torch.set_grad_enabled(False)
for refused in (False, True):  # without its caches torch does not compile ahead
    torch._inductor.config.force_disable_caches = refused
    graphs._ahead.clear()
    model = make()
    caches = [StaticCache(config=model.config, max_cache_len=16) for _ in range(2)]
    first = read()
    assert not AHEAD or bool(graphs._refused) == refused and bool(ahead()) != refused
    layer = model.model.layers[0]
    layer.mlp.act_fn, plain = torch.nn.Tanh(), layer.mlp.act_fn  # a class
    assert not torch.equal(read(), first)
    layer.mlp.act_fn = plain
    layer.input_layernorm.variance_epsilon = 1.0  # a number
    assert not torch.equal(read(), first)
    layer.input_layernorm.variance_epsilon = 1e-6
    assert torch.equal(read(), first)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False), model)
    on = read()
    adapters(False)
    off = read()
    adapters(True)
    assert torch.equal(read(), on) and not torch.equal(on, off)
    adapters(False)  # between two tokens
    off = step(9)
    adapters(True)
    read()
    assert not torch.equal(step(9), off)
""",
    "inductor": """
check(make(backend="inductor"), "inductor")
""",
}


COPIES = """
import json, os, sys, traceback
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        try:
            exec(json.loads(line), globals())
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Run = Callable[[str], tuple[str, str]]


@pytest.fixture(scope="module")
def run_case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run code in a copy of one process that has imported everything; gives its exit code and stderr.

    Not in this process: torch.compile cannot trace the run-time type checks of the tests.
    """
    environment = os.environ | {"LAYERROUTE_NO_TYPECHECK": "1", "OMP_NUM_THREADS": "1"}
    told = tmp_path_factory.mktemp("compiled") / "stderr"
    with (
        told.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", PRELUDE + COPIES],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        given, answers = process.stdin, process.stdout

        def run(code: str) -> tuple[str, str]:
            before = told.stat().st_size
            given.write(f"{json.dumps(code)}\n")
            given.flush()
            return answers.readline().strip(), told.read_text()[before:]

        yield run
        given.close()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_decoding(case: str, run_case: Run) -> None:
    code, errors = run_case(CASES[case])
    assert code == "0", errors


@pytest.mark.slow
def test_a_case_that_fails_is_told_and_the_next_one_runs(run_case: Run) -> None:
    code, errors = run_case("print(1)\nassert False, 'as it should'")
    assert code == "1" and "as it should" in errors
    assert run_case("pass") == ("0", "")


@pytest.mark.parametrize(
    ("skip", "family", "said"),
    [
        ({"kv": "evict"}, "llama", "kv: evict"),
        ({}, "gpt2", "not a family that layerroute knows"),
        ({}, "qwen3_next", "linear attention"),
        ({"model": {"attn_implementation": "flex_attention"}}, "llama", "attn_implementation='sdpa'"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(skip: dict, family: str, said: str) -> None:
    with pytest.raises(UserError, match=f"cannot decode compiled.*{said}"):
        compile_decoding(routed(family, **skip), backend="eager")


def test_settings_of_generate_are_given_back_and_not_saved(tmp_path: Path) -> None:
    model = routed("llama")
    before = model.generation_config.to_dict()
    compile_decoding(model, backend="eager", way="read")
    compile_decoding(model, backend="eager", way="read", cache_length=64)
    assert model.generation_config.cache_implementation == "static"
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert not {"cache_implementation", "max_cache_len", "disable_compile"} & saved.keys()
    assert model.generation_config.max_cache_len == 64, "it still decodes compiled"
    remove_router(model)
    assert model.generation_config.to_dict() == before


def test_no_compiler_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler and finds none: install g"):
        compile_decoding(routed("llama"))


def test_another_cache_is_decoded_uncompiled_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = compile_decoding(routed("llama"), backend="eager", way="read")
    ids = torch.arange(1, 9).view(1, 8)
    with torch.no_grad():
        past = model(ids[:, :6]).past_key_values
        for step in (6, 7):
            model(ids[:, step : step + 1], past_key_values=past)
        assert caplog.text.count("its cache is a DynamicCache") == 1
        cache = StaticCache(config=model.config, max_cache_len=8)
        model(ids[:, :1], past_key_values=cache)  # a first token fills the cache as any prompt does
    assert cache.get_seq_length() == 1
