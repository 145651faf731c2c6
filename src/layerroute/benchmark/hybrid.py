"""Case ``hybrid``: prefill of a model whose tokens take Gated DeltaNet or softmax attention."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from layerroute.benchmark.case import Check, Comparison, Prepared, Value, each_pair
from layerroute.benchmark.memory import peak_memory
from layerroute.benchmark.skipping import MASKED, SPARSE, size_of
from layerroute.benchmark.skipping_models import DTYPES, draw
from layerroute.errors import UserError
from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.hybrid.cache import OwnContextLayer
from layerroute.hybrid.configuration import CHOICES
from layerroute.ops.flops import flop_counter
from layerroute.precision import choose_device
from layerroute.routing import executed, forced, table

DESCRIPTION = """\
Time the reading of prompts (keys, values and states go to a cache, logits of the last token only) by the hybrid model
(hidden 768, 12 heads, layers gdn routed routed softmax; weights at random): both paths of every token computed (masked)
against chosen paths only (sparse), by forced random decisions. Before that, logits and cached tensors must agree."""

VOCABULARY = 1024
_TOLERANCE = {"fp32": 2e-4, "bf16": 3e-2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    parser.add_argument("--sizes", nargs="+", default=["1x16384"], metavar="BxT", help="default: %(default)s")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=[0.25],
        metavar="SHARE",
        help="of tokens on softmax (default: 0.25)",
    )
    parser.add_argument("--context", choices=CHOICES["context"], default="full_context")
    parser.add_argument("--hidden-size", type=int, default=768, help="a multiple of 64 (default: 768)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="default: fp32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of weights, tokens and decisions (default: 0)")


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row for each size and rate."""
    device = choose_device(arguments.device)
    for rate in arguments.rates:
        if not 0.0 <= rate <= 1.0:
            raise UserError(f"--rates: {rate} is not a share from 0 to 1.")
    if arguments.hidden_size < 64 or arguments.hidden_size % 64:
        raise UserError(f"--hidden-size: {arguments.hidden_size} is not a multiple of 64.")
    return [
        Comparison(
            title=f"{rows}x{tokens}, {rate:.1%} softmax",
            labels={
                "batch": rows,
                "time": tokens,
                "rate": rate,
                "context": arguments.context,
                "hidden_size": arguments.hidden_size,
                "dtype": arguments.dtype,
            },
            baseline=MASKED,
            tokens=rows * tokens,
            device=device,
            prepare=partial(_prepare, arguments, rows, tokens, rate, device),
        )
        for rows, tokens in map(size_of, arguments.sizes)
        for rate in arguments.rates
    ]


def model_of(
    arguments: argparse.Namespace, device: torch.device, routing: Mapping[str, Any] | None = None
) -> HybridForCausalLM:
    """A model in inference mode, weights at random; what is drawn after it is drawn from the same seed."""
    torch.manual_seed(arguments.seed)
    config = HybridConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden_size,
        num_attention_heads=arguments.hidden_size // 64,
        context=arguments.context,
        routing=dict(routing or {}),
    )
    model = HybridForCausalLM(config).eval()
    model.to(device=device, dtype=DTYPES[arguments.dtype])
    return model


def _prepare(
    arguments: argparse.Namespace, rows: int, tokens: int, rate: float, device: torch.device
) -> Prepared:
    model = model_of(arguments, device)
    config = model.config
    assert isinstance(config, HybridConfig)
    ids = torch.randint(VOCABULARY, (rows, tokens)).to(device)
    choice = draw(rows, tokens, len(config.sites), 1.0 - rate, arguments.seed)

    def run(execution: str) -> Mapping[str, Tensor]:
        cache = DynamicCache(config=config)
        chooser = table(choice, tuple(config.sites))
        with torch.inference_mode(), executed(model, execution), forced(model, chooser):
            output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        assert output.logits is not None
        held = [x for layer in cache.layers for x in _keys_and_values(layer)]
        return {"logits": output.logits, **{f"cached tensor {i}": x for i, x in enumerate(held)}}

    arms: dict[str, Callable[[], Mapping[str, Tensor]]] = {one: partial(run, one) for one in (MASKED, SPARSE)}
    counted: dict[str, dict[str, Value]] = {}

    def gate() -> list[Check]:
        results = {}
        for name, call in arms.items():  # counted and compared in one call: they are long
            with flop_counter() as counter:
                peak, results[name] = peak_memory(call, device)
            counted[name] = {
                "executed_flops_per_token": counter.get_total_flops() / (rows * tokens),
                "peak_bytes": peak,
                "kv_bytes": sum(
                    x.numel() * x.element_size() for key, x in results[name].items() if key != "logits"
                ),
            }
        pair = {
            name: {f"{key} of sparse and masked": x for key, x in one.items()}
            for name, one in results.items()
        }
        return list(each_pair(pair[SPARSE], pair[MASKED], _TOLERANCE[arguments.dtype]))

    return Prepared(gate=gate, arms=arms, count=lambda: counted)


def _keys_and_values(layer: Any) -> list[Tensor]:
    """What a cache layer holds; zeros in the slots that a row has not filled."""
    held = [getattr(layer, name, None) for name in ("keys", "values")]
    found = [x for x in held if isinstance(x, Tensor)]
    if isinstance(layer, OwnContextLayer):
        filled = layer.filled().transpose(1, 2).unsqueeze(-1)
        found = [x * filled for x in found]
    return found
