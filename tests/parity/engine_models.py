"""Tiny exports that vLLM can serve, its engine on them, and what transformers says of the same texts."""

import contextlib
import gc
import os
import random

# Before vLLM is imported: the engine runs in this process, on one thread, with a small cache.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # vLLM compiles a part of its sampler anew for each engine: 4 of a test's 15 s
}

import torch
from transformers import AutoModelForCausalLM

from layerroute.exporting.export import export_router
from layerroute.skipping import (
    SkipConfig,
    add_router,
    collect_decisions,
    get_router,
    router_disabled,
    save_router,
)
from tests.parity.skipping_models import DEFAULTS, VOCABULARY, plain, sharpen
from tests.tiny_pretrained import write_documents, write_tokenizer

# vLLM's CPU kernels begin at heads of 32.
SIZES = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 96, "initializer_range": 0.15}
OVER = {"qwen2": {"use_sliding_window": False, "sliding_window": None, "layer_types": None}}
NEW = 12


def export(folder, family="llama", threshold=None, seed=0, vocabulary=VOCABULARY, **skip):
    """A base, a router on it, and its export; returns the export's folder (base and router are beside it)."""
    base = folder / "base"
    model = plain(family, seed, vocab_size=vocabulary, **SIZES | OVER.get(family, {}))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(".bias"):  # zeros, unless trained
                value.normal_(std=0.5)
    model.save_pretrained(base)
    write_documents(folder, {"text": 3}, 40)
    write_tokenizer(base, folder / "text.jsonl")
    model = AutoModelForCausalLM.from_pretrained(base)
    add_router(model, SkipConfig(**DEFAULTS | skip))
    sharpen(model, seed)
    if threshold is not None:
        for routing in get_router(model).all_routings():
            routing.thresholds.value.fill_(threshold)
    save_router(model.eval(), folder / "router")
    return export_router(folder / "router", folder / "out", to="vllm").folder


def prompts(count=50, seed=3, longest=60, shared=0):
    """Token ids of mixed lengths; the first ``shared`` of each are the same."""
    draw = random.Random(seed)
    first = [draw.randrange(2, VOCABULARY) for _ in range(shared)]
    return [
        first + [draw.randrange(2, VOCABULARY) for _ in range(draw.randint(1, longest))] for _ in range(count)
    ]


@contextlib.contextmanager
def engine(folder, **options):
    """vLLM on a folder, gone afterwards (``cleanup_dist_env_and_memory`` collects it)."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.freeze()  # vLLM collects often while it starts, and would look through all modules each time: 3 of 15 s

    settings = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 256,
        "max_num_seqs": 16,
        "block_size": 32,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
    }
    llm = LLM(str(folder), **settings | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


def generate(llm, texts, new=NEW, scored=True):
    """Greedy token ids, and the log-probability of each token after the first, of prompt and answer."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0,
        max_tokens=new,
        ignore_eos=True,
        detokenize=False,
        logprobs=0,
        prompt_logprobs=0 if scored else None,
    )
    found = []
    for out in llm.generate([{"prompt_token_ids": text} for text in texts], sampling, use_tqdm=False):
        answer = out.outputs[0]
        own = [step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs, strict=True)]
        asked = []
        if scored:
            asked = [
                step[token].logprob
                for token, step in zip(out.prompt_token_ids, out.prompt_logprobs, strict=True)
                if step
            ]
        found.append((list(answer.token_ids), [*asked, *own]))
    return found


def rates(llm):
    """Tokens that the engine decided about, and those that ran, by site."""
    return llm.apply_model(lambda model: (model.rates.tokens, dict(model.rates.run)))[0]


@torch.no_grad()
def reference(folder, texts, answers):
    """What transformers makes of prompt and answer: its greedy answer, log-probabilities, and tokens run by site."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    told, run, count = [], {}, 0
    for text, answer in zip(texts, answers, strict=True):
        ids = torch.tensor([text + answer])
        with collect_decisions(model) as collected:
            # The last token of an answer is never read.
            logits = model(ids[:, :-1], use_cache=False).logits[0]
        scores = logits.log_softmax(dim=-1)
        own = scores.gather(1, ids[0, 1:, None]).squeeze(1)
        told.append((logits[len(text) - 1 :].argmax(dim=-1).tolist(), own))
        count += ids.shape[1] - 1
        for site, number in zip(
            collected[0].sites, collected[0].expensive.sum(dim=(0, 1)).tolist(), strict=True
        ):
            run[site] = run.get(site, 0) + number
    return told, (count, run)


@torch.no_grad()
def prompts_routed(folder, texts, answers):
    """As ``reference``, where tokens of prompts are routed and tokens of answers run every layer."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    told, run, count = [], dict.fromkeys(get_router(model).sites, 0), 0
    for text, answer in zip(texts, answers, strict=True):
        with collect_decisions(model) as collected:
            first = model(torch.tensor([text]), use_cache=True)
        with router_disabled(model):
            rest = model(torch.tensor([answer[:-1]]), past_key_values=first.past_key_values)
        logits = torch.cat([first.logits[0], rest.logits[0]])
        scores = logits.log_softmax(dim=-1)
        told.append(
            (
                logits[len(text) - 1 :].argmax(dim=-1).tolist(),
                scores.gather(1, torch.tensor(text + answer)[1:, None]).squeeze(1),
            )
        )
        count += len(text) + len(answer) - 1
        whole = len(answer) - 1
        for decision in collected:
            ran = decision.expensive.sum(dim=(0, 1)).tolist()
            for site, number in zip(decision.sites, ran, strict=True):
                run[site] += number + whole
    return told, (count, run)


def assert_same(found, expected, tolerance=1e-3):
    """Equal answers, and log-probabilities of all tokens."""
    for (answer, scores), (own, exact) in zip(found, expected, strict=True):
        assert answer == own
        torch.testing.assert_close(torch.tensor(scores), exact, atol=tolerance, rtol=0)
