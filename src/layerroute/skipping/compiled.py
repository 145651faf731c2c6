"""Decoding through ``torch.compile``: a layer that runs is one compiled call, a layer that is skipped a smaller one.

Where one token a row is read against a static cache, shapes never change. The functions here are compiled once for all
layers of a kind, whose weights are inputs: that takes seconds where a whole model takes minutes. Which of them is
called is decided in Python, after one read of the decisions (with ``per_layer`` one a layer). Keys and values of a
token that skips wait until another token runs there.

Which way pays is measured at start: this one, masked execution, which reads nothing, or no compilation at all.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer

from layerroute.errors import UserError, nearest
from layerroute.skipping.cache_layers import Deferring
from layerroute.skipping.context import CallContext
from layerroute.skipping.devices import is_hooked
from layerroute.skipping.execution import LayerCall
from layerroute.skipping.families import FAMILIES, Family, decoder_stack
from layerroute.skipping.fingerprint import base_of
from layerroute.skipping.graphs import Graphs
from layerroute.skipping.model import get_router, route_layer
from layerroute.skipping.router import LayerRouter
from layerroute.skipping.routes import DENSE, SKIPPED
from layerroute.skipping.skip_paths import LowRankSkip

_logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

CACHE_LENGTH = 512
"""Tokens that the cache of ``generate`` has room for at least, so that calls share it and what was compiled for it."""
WAYS = ("read", "masked", "eager")
"""How a branch is taken: by one read of the decisions, by computing both sides on the device, or uncompiled."""
_MOST_GRAPHS = 64  # kinds of layers x batches x lengths of caches; beyond that torch runs uncompiled


# What is compiled. Modules and caches come as arguments, so that all layers share a graph.


def _attend(
    family: Family,
    layer: nn.Module,
    hidden: Float[Tensor, "B T D"],
    held: StaticLayer,
    mask: Bool[Tensor, "b 1 1 S"],
    cos: Tensor,
    sin: Tensor,
) -> Float[Tensor, "B 1 D"]:
    """The attention block of the last token; those before it have waited, and leave keys and values alone.

    It is as ``Family`` describes it, but for heads that share keys, which are queries of one head. Transformers' own
    would copy the keys for each of them, more than all else that decoding does beside its weights.
    """
    attention, batch = family.attention_of(layer), hidden.shape[0]
    states = family.attention_input(layer, hidden)
    key, value, raw = family.keys_values(layer, states, cos, sin)
    raw = None if raw is None else raw[:, -1]
    query, gate = family.queries(layer, states[:, -1], cos[:, -1], sin[:, -1], raw)
    keys, values = held.update(key.transpose(1, 2), value.transpose(1, 2))
    grouped = query.view(batch, keys.shape[1], -1, query.shape[-1])
    cap = None if family.softcap is None else getattr(attention, family.softcap)
    # For a query or few of them torch's fused attention takes several times as long on a CPU when there is a mask.
    scores = grouped @ keys.transpose(2, 3) * attention.scaling
    if cap is not None:
        scores = (scores / cap).tanh() * cap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    out = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ values
    attended = family.attention_output(layer, out.reshape(batch, -1, value.shape[-1]), gate)
    return hidden[:, -1:] + family.attention_update(layer, attended.unsqueeze(1))


def _feed(family: Family, layer: nn.Module, hidden: Tensor) -> Tensor:
    return hidden + family.mlp_update(layer, hidden)


def _run(
    family: Family,
    layer: nn.Module,
    hidden: Float[Tensor, "B T D"],
    held: StaticLayer,
    mask: Bool[Tensor, "b 1 1 S"],
    cos: Tensor,
    sin: Tensor,
) -> Float[Tensor, "B 1 D"]:
    return _feed(family, layer, _attend(family, layer, hidden, held, mask, cos, sin))


def _skip(
    family: Family,
    layer: nn.Module,
    path: LowRankSkip | None,
    hidden: Tensor,
    held: StaticLayer | None,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    """What a layer gives those who skip it; with ``held``, it keeps their keys and values."""
    if held is not None:
        key, value, _ = family.keys_values(layer, family.attention_input(layer, hidden), cos, sin)
        held.update(key.transpose(1, 2), value.transpose(1, 2))
    return hidden if path is None else hidden + path(hidden)


class CompiledSteps:
    """Attached to a router by ``compile_decoding``: carries out layers in calls of one token a row.

    Attributes:
        way: one of ``WAYS``.
        seconds: that each way took when they were measured; empty where none were.
    """

    def __init__(self, backend: str, way: str, generation: Any, cache_length: int) -> None:
        self.graphs, self.way = Graphs(backend), way
        self.seconds: dict[str, float] = {}
        self._warned = False
        # By transformers nothing is to be compiled: decisions would break its one graph up.
        own = {"cache_implementation": "static", "max_cache_len": cache_length, "disable_compile": True}
        self._generation, self._own = generation, {} if generation is None else own
        self._before = {name: getattr(generation, name, None) for name in self._own}

    def set_generation(self) -> None:
        """Have ``generate`` use a static cache."""
        for name, value in self._own.items():
            setattr(self._generation, name, value)

    def restore_generation(self) -> None:
        """Have ``generate`` use the caches that it used before."""
        for name, value in self._before.items():
            setattr(self._generation, name, value)

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Within the context the settings of ``generate`` are those of the model, as it is saved."""
        now = {name: getattr(self._generation, name) for name in self._own}
        self.restore_generation()
        try:
            yield
        finally:
            for name, value in now.items():
                setattr(self._generation, name, value)

    @property
    def reads(self) -> bool:
        """Whether decisions are read, so that layers can be skipped."""
        return self.way != "masked"

    def applies(self, context: CallContext) -> bool:
        """Whether a call is one that was compiled for.

        Raises:
            UserError: if the static cache is full.
        """
        cache = context.cache
        if context.time != 1:
            self.graphs.begin()  # a prompt: the model may have changed since the last one
        if self.way == "eager":
            return False
        if context.time != 1 or cache is None or torch.is_grad_enabled() or context.full_layers_only:
            return False
        layers = [layer for layer in cache.layers if isinstance(layer, StaticLayer)]
        if not isinstance(cache, StaticCache) or len(layers) < len(cache.layers):
            if not self._warned:
                self._warned = True
                _logger.warning(
                    "this model decodes uncompiled: its cache is a %s, and compiled decoding needs a StaticCache of "
                    "keys and values alone",
                    type(cache).__name__,
                )
            return False
        lengths = [layer.max_cache_len for layer in layers if not layer.is_sliding]
        if context.keys > min(lengths, default=context.keys):
            raise UserError(
                f"the static cache is full: it has room for {min(lengths)} tokens and this call needs {context.keys}; "
                "make a longer StaticCache, or raise max_cache_len of generate"
            )
        if context.past == 0:
            self.graphs.begin()
        return all(layer.is_initialized for layer in layers)

    def __call__(
        self,
        call: LayerCall,
        layer: nn.Module,
        plain: Callable[..., Any],
        hidden: Tensor,
        options: Mapping[str, Any],
    ) -> Tensor:
        """See ``LayerCall.__call__``."""
        family, routes = call.family, call.routes
        assert family is not None
        cache = options["past_key_values"]
        held = cache.layers[family.attention_of(layer).layer_idx]
        self.graphs.begin(cache)
        turn = options["position_embeddings"]
        mask = options["attention_mask"]
        if mask.dtype != torch.bool:
            mask = mask > torch.finfo(mask.dtype).min / 2

        def unit(
            name: str, hidden: Tensor, run: Callable[[Tensor], Tensor], *, writes: bool = True
        ) -> Tensor:
            route = routes.get(name)
            if route is None or route.mode == DENSE:
                return run(hidden)
            alone, path, skipped = route.mode == SKIPPED, call.skip_path(name), hidden
            to = held if alone and writes and held.is_sliding else None
            if alone and writes and to is None:
                call.write_keys(layer, hidden, dict(options))
            if path is not None or to is not None:
                skipped = self.graphs(_skip, family, layer, held, path, hidden, to, *turn)
            return skipped if alone else route.combine(hidden, run(hidden), skipped)

        def attending(function: Callable[..., Tensor], hidden: Tensor) -> Tensor:
            """Those who have waited here come with the token that runs: the projections are read once for all."""
            waiting = held.take() if isinstance(held, Deferring) else []
            if not waiting:
                return self.graphs(function, family, layer, held, hidden, held, mask, *turn)
            rows = [torch.cat(parts, dim=1) for parts in zip(*waiting, (hidden, *turn), strict=True)]
            for part in rows:
                torch._dynamo.mark_dynamic(part, 1)
            hidden, *turns = rows
            return self.graphs(function, family, layer, held, hidden, held, mask, *turns, varying=True)

        if "block" in routes or all(route.mode == DENSE for route in routes.values()):
            return unit("block", hidden, partial(attending, _run))
        hidden = unit("attention", hidden, partial(attending, _attend))
        return unit("mlp", hidden, lambda x: self.graphs(_feed, family, layer, held, x), writes=False)


def check_compiler(device: torch.device) -> None:
    """See that ``torch.compile`` finds what it needs for a device.

    Raises:
        UserError: if not.
    """
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise UserError(
                "torch.compile needs a C++ compiler and finds none: install g++ (or name one in CXX), or leave "
                "compilation out"
            ) from None
    elif device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError("torch.compile needs Triton on a GPU and finds none: pip install triton")


def obstacle(router: LayerRouter, base: Any) -> str | None:
    """Why a routed model cannot decode compiled, or None."""
    config = router.config
    if router.sparse_obstacle is not None:
        return router.sparse_obstacle
    if FAMILIES[base.config.get_text_config().model_type].linear is not None:
        return "some of its layers have linear attention, whose state is no static cache of keys and values"
    if config.kv == "evict":
        return "kv: evict keeps other keys in each layer, which a static cache cannot hold; use kv: project"
    attention = base.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"attention by {attention!r} makes no mask of a static cache; load it with attn_implementation='sdpa'"
    if is_hooked(base):
        return "some of its weights are moved by accelerate while it computes (device_map, offloading)"
    if not getattr(getattr(base, "hf_quantizer", None), "is_compileable", True):
        return "the library that quantised its weights does not compile"
    return None


def compile_decoding(
    model: Model, *, way: str = "auto", cache_length: int = CACHE_LENGTH, backend: str = "inductor"
) -> Model:
    """Have a routed model decode through ``torch.compile`` from now on; ``generate`` then uses a static cache.

    Prompts are read as before. Calls of one token a row against a ``StaticCache``, without gradients, take compiled
    layers; all others, and a router that is switched off, do not. ``remove_router`` ends it.

    Args:
        model: with a layer router.
        way: one of ``WAYS``. ``auto`` (default) decodes a few random tokens each way and takes the fastest; where that
            is ``eager``, ``generate`` keeps the cache that it has.
        cache_length: tokens that the cache of ``generate`` has room for at least; longer calls get a longer one, for
            which is compiled anew.
        backend: of ``torch.compile``.

    Returns:
        The model.

    Raises:
        UserError: without a router or a compiler, or if the router or the model cannot be compiled; it names why.
    """
    if way not in (*WAYS, "auto"):
        raise UserError(f"unknown way {way!r} to decode compiled.{nearest(way, WAYS)}")
    router, base = get_router(model), base_of(model)
    reason = obstacle(router, base)
    if reason is not None:
        raise UserError(f"this model cannot decode compiled: {reason}")
    if backend == "inductor":
        check_compiler(next(base.parameters()).device)
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_GRAPHS)
    for index, layer in enumerate(decoder_stack(base)[1]):
        route_layer(router, index, layer)
    if router.steps is not None:
        router.steps.restore_generation()
    generation = getattr(base, "generation_config", None)
    steps = router.steps = CompiledSteps(backend, WAYS[0] if way == "auto" else way, generation, cache_length)
    steps.set_generation()
    if way == "auto" and choose_way(model, partial(_decode_some, base, steps, cache_length)) == "eager":
        steps.restore_generation()
    return model


def choose_way(model: nn.Module, work: Callable[[], object], *, rounds: int = 3) -> str:
    """Have a model of ``compile_decoding`` decode in the way in which ``work`` is done fastest, measured in turn.

    Returns:
        The way; the median seconds of all are in ``get_router(model).steps.seconds``.
    """
    steps: CompiledSteps = get_router(model).steps
    device = next(model.parameters()).device
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):  # the first compiles
        for way, taken in times.items():
            steps.way = way
            begun = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                taken.append(time.perf_counter() - begun)
    steps.seconds = {way: statistics.median(taken) for way, taken in times.items()}
    steps.way = min(steps.seconds, key=lambda way: steps.seconds[way])
    return steps.way


@torch.no_grad()
def _decode_some(base: Any, steps: CompiledSteps, room: int, prompt: int = 8, new: int = 8) -> None:
    """Each way against the cache that ``generate`` uses there: uncompiled decoding is faster on one that grows."""
    text = base.config.get_text_config()
    ids = torch.arange(prompt + new).mul(7919).remainder(text.vocab_size)[None].to(base.device)
    static = partial(StaticCache, max_cache_len=max(room, prompt + new))
    cache = (DynamicCache if steps.way == "eager" else static)(config=text)
    training = base.training
    base.eval()
    base(ids[:, :prompt], past_key_values=cache)
    for step in range(prompt, prompt + new):
        base(ids[:, step : step + 1], past_key_values=cache)
    base.train(training)


@contextmanager
def compilation_disabled(model: nn.Module) -> Iterator[None]:
    """Within the context a model of ``compile_decoding`` decodes uncompiled, against the same static caches."""
    router = get_router(model)
    before, router.steps = router.steps, None
    try:
        yield
    finally:
        router.steps = before
