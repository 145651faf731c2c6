"""What routed layers keep in transformers' caches beyond rectangular keys and values.

``project`` needs nothing: every token writes keys and values, if only when somebody reads them. ``evict`` keeps those
of tokens that ran only, and sequence-level routers keep what they decided from. Where a cache does not count its
tokens, that is done here. All live in the cache's own layers, so that beam search, batch selection, cropping and
resetting reach them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
)

from layerroute.errors import UserError
from layerroute.routing.row_state import COUNTS, cache_layer, plain_class, replace_layer, row_state
from layerroute.skipping.tuners import is_tuner


class EvictingLayer(DynamicLayer):
    """Keys and values of those tokens that ran at this layer.

    Slots are filled from the left, in the order of the tokens. Rows of a batch hold different numbers; an empty slot
    is marked, and nobody sees it. A single row has no empty slot.

    Attributes:
        slots: (B, S) index in the sequence (padding counted) of the token in each slot, or -1.
        seen: number of tokens that passed, stored or not.
        counts: (B,) number of filled slots, on the CPU; None where only the device knows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slots: Tensor | None = None
        self.counts: Tensor | None = None
        self.seen = 0
        self._keep: Tensor | None = None

    def slots_for(self, batch: int, device: torch.device) -> Int[Tensor, "B S"]:
        """``slots``, also before anything is stored."""
        return torch.zeros(batch, 0, dtype=torch.long, device=device) if self.slots is None else self.slots

    def expect(self, keep: Bool[Tensor, "B T"]) -> None:
        """Say which tokens of the coming ``update`` are to be stored."""
        self._keep = keep

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the expected ones of the new tokens; return the stored ones of before and *all* new ones."""
        if self._keep is None:  # the plain layer came here
            raise UserError(
                "this cache was filled by a router with kv: evict, which is off now: full depth cannot read what was "
                "never written; begin with an empty cache"
            )
        keep, self._keep = self._keep, None
        time = key_states.shape[2]
        index = torch.arange(self.seen, self.seen + time, device=keep.device)
        keys, values, _ = self.append(key_states, value_states, torch.where(keep, index, -1), time)
        return keys, values

    def append(
        self,
        keys: Float[Tensor, "B G M K"],
        values: Float[Tensor, "B G M V"],
        slots: Int[Tensor, "B M"],
        time: int,
        counts: Int[Tensor, "B"] | None = None,
    ) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S V"], Int[Tensor, "B S"]]:
        """Store tokens by their indices (-1: not), of a call with ``time`` new tokens; return all, old ones first.

        ``counts`` says how many of each row are stored, on the CPU; without it the device is asked.
        """
        if counts is not None and self.slots is not None:
            counts = None if self.counts is None else self.counts + counts
        slots = torch.cat([self.slots_for(slots.shape[0], slots.device), slots], dim=1)
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        else:
            self.lazy_initialization(keys, values)
        self.seen += time
        self._store(keys, values, slots, counts)
        return keys, values, slots

    def _store(self, keys: Tensor, values: Tensor, slots: Tensor, counts: Tensor | None = None) -> None:
        """Keep the filled slots, ``counts`` of each row, at the left."""
        filled = slots >= 0
        self.counts = filled.sum(dim=1).cpu() if counts is None else counts
        if int(self.counts.min()) < slots.shape[1]:
            order = torch.argsort((~filled).to(torch.uint8), dim=1, stable=True)
            order = order[:, : int(self.counts.max())]
            slots = slots.gather(1, order)
            spread = order[:, None, :, None]
            keys = keys.gather(2, spread.expand(-1, keys.shape[1], -1, keys.shape[3]))
            values = values.gather(2, spread.expand(-1, values.shape[1], -1, values.shape[3]))
        self.keys, self.values, self.slots = keys, values, slots

    def get_seq_length(self) -> int:
        """Tokens that passed."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if nothing were evicted: layers that evict make their own masks."""
        return self.seen + query_length, 0

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.slots, self.counts, self.seen, self._keep = None, None, 0, None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens, stored or not."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens to remove, got {tokens_to_remove}")
        self.seen = max(self.seen + tokens_to_remove, 0)
        if self.slots is not None:
            assert self.keys is not None and self.values is not None
            self._store(self.keys, self.values, torch.where(self.slots < self.seen, self.slots, -1))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow beam search."""
        if self.is_initialized:  # not before any token has run here
            super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        if self.slots is not None:
            self.slots, self.counts = self.slots.index_select(0, beam_idx.to(self.slots.device)), None

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.is_initialized:
            super().batch_repeat_interleave(repeats)
        if self.slots is not None:
            self.slots, self.counts = self.slots.repeat_interleave(repeats, dim=0), None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        if self.is_initialized:
            super().batch_select_indices(indices)
        if self.slots is not None:
            self.slots, self.counts = self.slots[indices], None


# Hidden states, cosine and sine of their rotary embedding -> keys and values
Projection = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Modules = Sequence[nn.Module]
MOST_DEFERRED = 256
"""Tokens whose keys may wait: as many hidden states are held in each layer."""


class Weights:
    """What the projection of waiting tokens is made of: which adapters are on, and that no weight changes meanwhile."""

    def __init__(self, modules: Modules) -> None:
        parts = [part for module in modules for part in module.modules()]
        self.tuners: list[Any] = [part for part in parts if is_tuner(part)]
        self.parameters = [value for part in parts for value in part.parameters(recurse=False)]
        self.adapters, self.versions = self._adapters(), self._versions()

    def _adapters(self) -> list[tuple[Any, bool]]:
        return [(tuner._active_adapter, tuner._disable_adapters) for tuner in self.tuners]

    def _versions(self) -> list[int]:
        return [0 if value.is_inference() else value._version for value in self.parameters]

    def moved(self) -> bool:
        """Whether anything is no longer as it was."""
        return self.adapters != self._adapters() or self.versions != self._versions()

    @contextmanager
    def as_they_were(self) -> Iterator[None]:
        """Within the context the adapters are on that were on when the tokens came.

        Raises:
            UserError: if weights have changed since.
        """
        if self.versions != self._versions():
            raise UserError(
                "weights of the model changed under a cache in which tokens wait for their keys; begin with an empty "
                "cache after merging adapters or a training step"
            )
        now = self._adapters()
        self._switch(self.adapters)
        try:
            yield
        finally:
            self._switch(now)

    def _switch(self, adapters: list[tuple[Any, bool]]) -> None:
        # PEFT's own switches also set requires_grad.
        for tuner, (active, disabled) in zip(self.tuners, adapters, strict=True):
            tuner._active_adapter, tuner._disable_adapters = active, disabled


class Deferring(CacheLayerMixin):
    """Keys and values that are projected when they are first read.

    While decoding, a token that skips a layer needs nothing of it but its keys and values, and those not before another
    token runs there. So its hidden state is kept, and the projection's weights are read once for all tokens that wait.
    Whoever reads ``keys`` or ``values`` finds them complete.
    """

    _keys: Tensor | None
    _values: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._project: Projection | None = None
        self._weights: Weights | None = None
        super().__init__(*args, **kwargs)

    @classmethod
    def taking_over(cls, layer: CacheLayerMixin) -> "Deferring":
        """A layer with what a plain one holds."""
        new = cls(*((layer.max_cache_len,) if isinstance(layer, StaticLayer) else ()))
        for name, value in vars(layer).items():
            setattr(new, name, value)
        return new

    def defer(
        self, hidden: Float[Tensor, "B T D"], cos: Tensor, sin: Tensor, project: Projection, modules: Modules
    ) -> None:
        """Have ``hidden``'s keys and values projected later, by ``project`` with what ``modules`` are now."""
        if self._weights is not None and self._weights.moved():
            self.settle()
            self._weights = None
        if self._weights is None:
            self._weights = Weights(modules)
        self._waiting.append((hidden, cos, sin))
        self._project = project
        if self._count() >= MOST_DEFERRED:
            self.settle()

    def _count(self) -> int:
        return sum(hidden.shape[1] for hidden, _, _ in self._waiting)

    @torch.no_grad()
    def _projected(self) -> tuple[Tensor, Tensor]:
        """Keys and values of what waits, which then waits no more."""
        assert self._project is not None
        waiting, self._waiting = self._waiting, []
        hidden, cos, sin = (
            parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in zip(*waiting, strict=True)
        )
        assert self._weights is not None
        with self._weights.as_they_were():
            return self._project(hidden, cos, sin)

    def take(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What waits (hidden states, cosine, sine), for a caller who writes it before the tokens that come next."""
        if self._weights is not None and self._weights.moved():
            self.settle()
        waiting, self._waiting = self._waiting, []
        return waiting

    def settle(self) -> None:
        """Project what waits."""
        if self._waiting:
            super().update(*self._projected())  # type: ignore[safe-super]

    @property
    def keys(self) -> Tensor | None:
        """All keys."""
        self.settle()
        return self._keys

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        self._keys = value

    @property
    def values(self) -> Tensor | None:
        """All values."""
        self.settle()
        return self._values

    @values.setter
    def values(self, value: Tensor | None) -> None:
        self._values = value

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As ever, behind what waits: all that was held is copied once for both."""
        if self._waiting:
            keys, values = self._projected()
            key_states = torch.cat([keys, key_states], dim=2)
            value_states = torch.cat([values, value_states], dim=2)
        return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[safe-super]

    def reset(self) -> None:
        """Forget everything."""
        self._waiting, self._project, self._weights = [], None, None
        super().reset()

    def __getstate__(self) -> dict[str, Any]:
        """For copies: complete, and without a way to the model."""
        self.settle()
        return {**vars(self), "_project": None, "_weights": None}


class DeferringLayer(Deferring, DynamicLayer):
    """See ``Deferring``."""

    def get_seq_length(self) -> int:
        """Tokens, those that wait among them."""
        held = (
            self._keys.shape[-2]
            if self.is_initialized and self._keys is not None and self._keys.numel()
            else 0
        )
        return held + self._count()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens; those that wait are never projected."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens to remove, got {tokens_to_remove}")
        remove = -tokens_to_remove
        while remove and self._waiting:
            hidden, cos, sin = self._waiting.pop()
            keep = hidden.shape[1] - remove
            remove -= min(remove, hidden.shape[1])
            if keep > 0:
                self._waiting.append((hidden[:, :keep], cos[:, :keep], sin[:, :keep]))
        if remove:
            super().crop(-remove)


class DeferringStaticLayer(Deferring, StaticLayer):
    """See ``Deferring``; slots of tokens that wait are empty."""

    def get_seq_length(self) -> Any:
        """Tokens, those that wait among them."""
        return super().get_seq_length() + self._count()


def evicting_layer(cache: Cache, index: int) -> EvictingLayer:
    """Layer ``index`` of the cache, made an ``EvictingLayer`` before its first use.

    Raises:
        UserError: if the cache is not dynamic, or has been filled without eviction.
    """
    layer = cache_layer(cache, index)
    if isinstance(layer, EvictingLayer):
        return layer
    plain = plain_class(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
    if not plain or cache.offloading:
        raise UserError(
            f"kv: evict keeps a different number of keys in each layer, which a {type(cache).__name__} of "
            f"{type(layer).__name__} cannot hold; use a DynamicCache without offloading, or kv: project"
        )
    if layer.is_initialized:
        raise UserError(
            "this cache was filled without eviction and cannot be continued by a router with kv: evict; "
            "begin with an empty cache"
        )
    evicting = EvictingLayer()
    replace_layer(cache, index, evicting)
    return evicting


def deferring_layer(cache: Cache, index: int) -> Deferring | None:
    """Layer ``index`` of the cache, made one that is ``Deferring``; None if it is of a kind that cannot wait."""
    layer = cache_layer(cache, index)
    if isinstance(layer, Deferring):
        return layer
    kinds: dict[type[Any], type[Deferring]] = {
        DynamicLayer: DeferringLayer,
        StaticLayer: DeferringStaticLayer,
    }
    kind = kinds.get(plain_class(layer))
    if kind is None or cache.offloading or (kind is DeferringStaticLayer and not layer.is_initialized):
        return None
    deferring = kind.taking_over(layer)
    replace_layer(cache, index, deferring)
    return deferring


def counted(cache: Cache) -> int | Int[Tensor, ""]:
    """Tokens in the cache by its own count, a tensor that goes on counting where it is static: 0 where it keeps none.

    Those of Mamba and of MiniMax keep none.
    """
    try:
        return cache.get_seq_length()
    except ValueError:  # transformers' word for a cache without any layer of attention
        return 0


def held_count(cache: Cache) -> dict[str, Tensor]:
    """Our count for a cache that keeps none: by row ``tokens`` (on the CPU) and the ``real`` ones; empty before any."""
    layers = getattr(cache, "layers", None)
    state = getattr(layers[0], "row_state", {}) if layers else {}
    return {name: state[name] for name in COUNTS if name in state}


def count(cache: Cache, valid: Bool[Tensor, "B T"]) -> None:
    """Add the tokens of a call to a cache that does not count them."""
    batch, time = valid.shape
    state, real = row_state(cache, 0), valid.sum(dim=1)
    state["tokens"] = state.get("tokens", torch.zeros(batch, dtype=torch.long)) + time
    state["real"] = state["real"] + real if "real" in state else real
