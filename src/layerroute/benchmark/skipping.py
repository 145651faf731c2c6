"""Cases ``prefill``, ``decode`` and ``train-skipping``: a model whose tokens skip layers.

Four ways to run one model on the same tokens: ``dense`` (plain transformers), ``masked`` and ``sparse`` (routed, by
forced random decisions, so that speed does not depend on a trained router; the router's own work is done all the same)
and ``limit``, the plain model with that share of the routed layers physically removed.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import nn

from layerroute.argument_types import add_choice, add_number, share
from layerroute.benchmark.case import Case, Check, Comparison, Facts, Limit, Prepared, Value, agree
from layerroute.benchmark.compiled import PLAIN_COMPILED, conclude, prepare_compiled
from layerroute.benchmark.options import DTYPES, add_machine, add_shares, add_sizes, percent
from layerroute.benchmark.phases import (
    MASKED,
    SPARSE,
    Training,
    Way,
    Work,
    count_all,
    decoding,
    gradients,
    reading,
    scoring,
)
from layerroute.benchmark.runner import is_busy
from layerroute.benchmark.shapes import SHAPES, shape
from layerroute.benchmark.skipping_models import (
    Models,
    build_models,
    draw,
    spread_out,
    without_layers,
)
from layerroute.errors import UserError
from layerroute.precision import choose_device
from layerroute.skipping import SkipConfig, router_disabled
from layerroute.skipping.skip_config import KV_MODES, SKIP_PATHS, UNITS

DENSE, LIMIT = "dense", "limit"
SHAPE = "smollm2-135m"
"""The model that is timed where no other is named."""
_TOLERANCE = {False: {"fp32": 1e-4, "bf16": 3e-2}, True: {"fp32": 5e-4, "bf16": 5e-2}}
"""In inference, and of gradients."""


def add_arguments(
    parser: argparse.ArgumentParser,
    sizes: str = "1x512",
    skip: tuple[float, ...] = (0.25, 0.5, 0.75),
    shape_options: tuple[str, ...] = ("--shape", "--model"),
) -> None:
    """Declare the options that all these cases have."""
    add_sizes(parser, sizes)
    add_shares(parser, "--skip", skip, share, "shares of the routed layers' tokens that skip")
    parser.add_argument(
        *shape_options,
        type=shape,
        default=SHAPE,
        metavar="NAME",
        help=f"model, weights at random: {', '.join(SHAPES)} (default: %(default)s)",
    )
    add_choice(parser, "--unit", UNITS, "block", "what is skipped")
    add_choice(parser, "--kv", KV_MODES, "project", "keys and values of tokens that skip")
    add_choice(parser, "--skip-path", SKIP_PATHS, "identity", "what a token takes that skips")
    add_machine(parser, "weights, tokens and decisions")


def _prefill_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, "4x512 1x2048")
    parser.add_argument("--scoring", action="store_true", help="time logits of all tokens, without a cache")


def _decode_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, "1x256")
    add_number(parser, "--new-tokens", 16, "tokens decoded a call")
    add_choice(parser, "--cache", ("dynamic", "static"), "dynamic", "kind of cache")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="time plain and routed, each eager (dynamic cache) and through torch.compile (static cache)",
    )


def comparisons(phase: str, arguments: argparse.Namespace) -> list[Comparison]:
    """One row for each size and share."""
    skip = SkipConfig(
        unit=arguments.unit,
        kv=arguments.kv,
        skip_path=arguments.skip_path,
        router_layer=2 if arguments.shape == "tiny" else 4,
        sink_tokens=0,
    )
    own: dict[str, Value] = {}
    new = 0
    if phase == "prefill":
        own = {"scoring": arguments.scoring}
    elif phase == "train":
        skip.routing.estimator = "selected"
        own = {"estimator": "selected"}
    else:
        new = arguments.new_tokens
        own = {"new_tokens": new, "cache": arguments.cache}
        if (arguments.cache == "static" or arguments.compile) and skip.kv == "evict":
            raise UserError(
                "a static cache cannot hold a different number of keys a layer; use --kv project."
            )
        if arguments.compile:
            if getattr(arguments, "figure", None) is not None:
                raise UserError(
                    "--figure draws what skipping gains over a limit, which --compile does not time."
                )
            if arguments.cache == "static":
                raise UserError(
                    "--compile has each arm decode on the cache that suits it: leave --cache out."
                )
            own = {"new_tokens": new, "compiled": True, "busy": is_busy()}
    own |= {name: getattr(arguments, name) for name in ("shape", "unit", "kv", "skip_path", "dtype")}
    device = choose_device(arguments.device)
    return [
        Comparison(
            title=f"{rows}x{tokens}{f'+{new}' if new else ''}, {percent(skipped)} skipped",
            labels={"batch": rows, "time": tokens, "skip": skipped, **own},
            baseline=MASKED if phase == "train" else PLAIN_COMPILED if "compiled" in own else DENSE,
            tokens=rows * (new or tokens),
            prepare=partial(_prepare, phase, arguments, skip, device, rows, tokens, new, skipped),
            device=device,
        )
        for rows, tokens in arguments.sizes
        for skipped in arguments.skip
    ]


def _prepare(
    phase: str,
    arguments: argparse.Namespace,
    skip: SkipConfig,
    device: torch.device,
    rows: int,
    tokens: int,
    new: int,
    skipped: float,
) -> Prepared:
    models = _models(arguments.shape, skip, arguments.dtype, device, arguments.seed)
    routed, sites, layers = models.routed, models.sites, models.routed_layers
    generator = torch.Generator().manual_seed(arguments.seed)
    vocabulary = SHAPES[arguments.shape]["vocab_size"]
    ids = torch.randint(vocabulary, (rows, tokens + new), generator=generator).to(device)
    before = tokens if new else 0  # the tokens that fill a cache all run
    drawn = draw(rows, tokens + new - before, sites, skipped, arguments.seed)
    choice = torch.cat([torch.ones(rows, before, sites, dtype=torch.long), drawn], dim=1)
    if phase == "decode" and arguments.compile:
        return prepare_compiled(models, ids, new, choice, _TOLERANCE[False][arguments.dtype])
    removed = spread_out(layers, max(1, round(skipped * len(layers))))
    runs = torch.tensor([int(layer not in removed) for layer in layers])
    static = runs.repeat_interleave(sites // len(layers)).expand(1, tokens + new, -1).contiguous()

    ways = {
        DENSE: Way(models.plain),
        MASKED: Way.routed(routed, choice, MASKED),
        SPARSE: Way.routed(routed, choice, SPARSE),
        LIMIT: Way(without_layers(models.plain, removed)),
    }
    work: Work
    if phase == "train":
        work = Training(ids)
        # Through the router a gradient reaches the layers before it: for the limit, those behind are compared.
        kept = [i for i in range(layers[0], len(models.layers)) if i not in removed]
        some = ["layerroute", *_names([layers[0], layers[len(layers) // 2], layers[-1]])]
        compared = partial(gradients, ids, _parameters(routed, some))
        ends = partial(gradients, ids, _parameters(routed, _names(kept[:1] + kept[-1:])))
    else:
        work = partial(scoring, ids) if phase == "prefill" and arguments.scoring else partial(reading, ids)
        if phase == "decode":
            work = partial(decoding, ids, new, static=arguments.cache == "static")
        compared = ends = work
    arms = {name: way.at(work) for name, way in ways.items()}
    calls = arms if compared is work else {name: way.at(compared) for name, way in ways.items()}
    tolerance = _TOLERANCE[phase == "train"][arguments.dtype]
    who = "{}, " if phase == "train" else "{} of "

    def gate() -> Iterator[Check]:
        """Sparse equals masked, switched off equals plain, and skipped by all equals removed."""
        masked, sparse = calls[MASKED](), calls[SPARSE]()
        yield from agree(who + "sparse and masked", sparse, masked, tolerance)
        off = Way(routed, partial(router_disabled, routed)).at(compared)()
        for name, tensor in calls[DENSE]().items():  # forward, bit for bit
            exact = 0.0 if not name.startswith("gradients") else tolerance
            yield Check.compare(who.format(name) + "disabled and dense", off[name], tensor, exact)
        if skip.skip_path == "identity" and skip.unit in ("block", "attention+mlp"):
            skipping = Way.routed(routed, static, SPARSE).at(ends)()
            limit = ways[LIMIT].at(ends)()
            comparable = {name: x for name, x in limit.items() if not name.startswith("cached")}
            told = who + "sparse, these layers skipped by all, and limit"
            yield from agree(told, skipping, comparable, tolerance)

    def count() -> Facts:
        found = count_all(arms, rows * (new or tokens), device, warm=phase == "train")
        found[LIMIT] |= {"layers_removed": len(removed), "layers_routed": len(layers)}
        return found

    whole = DENSE if phase == "train" else None
    limit = Limit(arm=LIMIT, factor=skipped * len(layers) / len(removed), whole=whole)
    return Prepared(gate=gate, arms=arms, count=count, limit=limit)


def _names(layers: Sequence[int]) -> list[str]:
    return [f"layers.{layer}." for layer in layers]


def _parameters(model: nn.Module, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    """Those whose names begin with one of these parts of the model."""
    return {
        name: value
        for name, value in model.named_parameters()
        if name.removeprefix("model.").startswith(tuple(parts))
    }


_BUILT: dict[str, Models] = {}


def _models(shape: str, skip: SkipConfig, dtype: str, device: torch.device, seed: int) -> Models:
    """Built once: all rows of a command compare the same models."""
    key = repr((shape, skip, dtype, device, seed))
    if key not in _BUILT:
        _BUILT.clear()
        _BUILT[key] = build_models(shape, skip, DTYPES[dtype], device, seed)
    return _BUILT[key]


CASES = {
    "prefill": Case(
        description="""\
Time the reading of prompts, as `generate` does it (keys and values go to a cache, logits of the last token only; with
--scoring no cache, logits of all tokens): plain transformers, the routed model in masked and in sparse execution by
forced random decisions, and the structural limit, the same model with that share of the routed layers removed. Before
that, sparse must equal masked, a switched-off router the plain model, and layers that all tokens skip layers that are
not there.""",
        add_arguments=_prefill_arguments,
        comparisons=partial(comparisons, "prefill"),
    ),
    "decode": Case(
        description="""\
Time decoding: one call of the model for each new token of a row, behind a cache that holds T tokens. Plain
transformers, the routed model in masked and in sparse execution by forced random decisions, and the structural limit,
the same model with that share of the routed layers removed. Keys and values that waited are projected within the time
measured. Before that, sparse must equal masked at every new token, a switched-off router the plain model, and layers
that all tokens skip layers that are not there.

With --compile: plain transformers and the routed model, each eager on a dynamic cache and compiled on a static one.
Before that, compiled must equal uncompiled and masked: logits, tokens and the cache.""",
        add_arguments=_decode_arguments,
        comparisons=partial(comparisons, "decode"),
        conclude=conclude,
    ),
    "train-skipping": Case(
        description="""\
Time training steps (forward, backward, clipping, AdamW over all parameters) of a model whose tokens skip layers, with
the estimator `selected`: plain transformers, everything computed (masked) and chosen paths only (sparse), by forced
random decisions, and the structural limit, the plain model with that share of the routed layers removed. Before that,
masked and sparse must give the same gradients, a switched-off router those of the plain model, and layers that all
tokens skip those of layers that are not there.""",
        add_arguments=add_arguments,
        comparisons=partial(comparisons, "train"),
    ),
}
