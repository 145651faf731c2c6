"""Caches. GDN, softmax and full-context routed layers use transformers' own; ``own_context`` needs one more.

A model that drafts for another (assisted decoding) takes tokens back. A GDN state cannot be turned back by itself, so
that such a cache keeps what it was before each call.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from layerroute.hybrid.compaction import Compaction


class OwnContextLayer(LinearAttentionAndFullAttentionLayer):
    """K/V of the tokens that took softmax, GDN state of those that took GDN.

    K and V are compacted: each row (and head, if heads choose apart) holds only its own tokens, so the memory is
    proportional to the softmax rate. ``lengths`` (B, M) says how many slots are filled; M is 1 or the heads.
    """

    def __init__(self, **kwargs: object) -> None:
        super().__init__()
        self.lengths: Tensor | None = None
        self.seen = 0

    def append(
        self,
        keys: Float[Tensor, "B H T D"],
        values: Float[Tensor, "B H T V"],
        member: Bool[Tensor, "B T M"],
        *,
        tokens: int | None = None,
    ) -> None:
        """Add the tokens of a call; those that are not ``member`` are not stored.

        ``tokens`` is the number that have passed, where not all of them are given.
        """
        self.seen += keys.shape[2] if tokens is None else tokens
        if self.lengths is None:
            self.lazy_initialization(keys, values)
            stored_keys, stored_values, filled = keys, values, member
        else:
            assert self.keys is not None and self.values is not None
            stored_keys = torch.cat([self.keys, keys], dim=2)
            stored_values = torch.cat([self.values, values], dim=2)
            filled = torch.cat([self.filled(), member], dim=1)
        packed = Compaction.of(filled)
        longest = int(packed.count.max())
        self.keys = packed.gather(stored_keys.transpose(1, 2))[:, :longest].transpose(1, 2)
        self.values = packed.gather(stored_values.transpose(1, 2))[:, :longest].transpose(1, 2)
        self.lengths = packed.count

    def filled(self) -> Bool[Tensor, "B S M"]:
        """Which slots hold a token."""
        assert self.lengths is not None and self.keys is not None
        slots = torch.arange(self.keys.shape[2], device=self.keys.device)
        return slots[None, :, None] < self.lengths[:, None, :]

    def get_seq_length(self) -> int:
        """Tokens that have passed, stored or not."""
        return self.seen

    def reset(self) -> None:
        """Forget everything, so that the object can serve another sequence."""
        super().reset()
        self.lengths, self.seen, self.is_initialized = None, 0, False

    def reorder_cache(self, beam_idx: Int[Tensor, "B"]) -> None:
        """Reorder rows for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        if self.lengths is not None:
            self.lengths = self.lengths.index_select(0, beam_idx.to(self.lengths.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row (beam search, several samples)."""
        super().batch_repeat_interleave(repeats)
        if self.lengths is not None:
            self.lengths = self.lengths.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        if self.lengths is not None:
            self.lengths = self.lengths[indices]

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible: the GDN state cannot be taken back."""
        raise RuntimeError("an own-context cache cannot be cropped: the GDN state cannot be taken back")


class CountingGdnLayer(LinearAttentionAndFullAttentionLayer):
    """The first layer of an all-GDN model: no K/V, but transformers asks the cache how many tokens it has seen."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__()
        self.seen = 0

    def get_seq_length(self) -> int:
        """Tokens that have passed."""
        return self.seen

    def reset(self) -> None:
        """Forget everything."""
        LinearAttentionLayer.reset(self)
        self.seen = 0

    def reorder_cache(self, beam_idx: Int[Tensor, "B"]) -> None:
        """Reorder rows for beam search."""
        LinearAttentionLayer.reorder_cache(self, beam_idx)  # type: ignore[arg-type]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """There are no keys to repeat; states are repeated with the other layers' (see transformers)."""

    def batch_select_indices(self, indices: Tensor) -> None:
        """There are no keys to select."""


_STATES = (
    "conv_states",
    "recurrent_states",
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
)
_OWN = ("keys", "values", "lengths", "seen", "is_initialized")
_REWINDING: dict[type[Any], type[Any]] = {}


def _rewinding(cls: type[Any]) -> type[Any]:
    """A class of cache layers that keeps what it held before each call since the last ``crop``."""
    if cls in _REWINDING:
        return _REWINDING[cls]
    own_context = issubclass(cls, OwnContextLayer)

    class Rewinding(cls):
        _layer_type = None
        history: list[tuple[int, dict[str, Any]]]

        def note(self, tokens: int) -> None:
            """A call with so many new tokens begins."""
            held = {
                name: getattr(self, name)
                for name in (_OWN if own_context else ("seen",))
                if hasattr(self, name)
            }
            for name in _STATES:  # written in place later
                states = getattr(self, name)
                held[name] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in states.items()}
            self.history.append((tokens, held))

        def update_conv_state(self, *args: Any, **kwargs: Any) -> Tensor:
            # The mixer gives the last taps alone; there is no past to be kept in them.
            self.record_past = False
            try:
                return super().update_conv_state(*args, **kwargs)
            finally:
                self.record_past = True

        def crop(self, tokens_to_remove: int) -> None:
            left = abs(tokens_to_remove)
            while left:
                if not self.history or self.history[-1][0] > left:
                    raise RuntimeError(
                        "a GDN state can only be taken back to the beginning of a call since the last crop"
                    )
                tokens, held = self.history.pop()
                left -= tokens
                for name, value in held.items():
                    setattr(self, name, value)
            self.history = self.history[-1:]
            if tokens_to_remove and isinstance(self, DynamicLayer) and not own_context:
                DynamicLayer.crop(self, -abs(tokens_to_remove))

        def reset(self) -> None:
            super().reset()
            self.history = []

    Rewinding.__name__ = cls.__name__
    _REWINDING[cls] = Rewinding
    return Rewinding


def records_past(cache: Cache) -> bool:
    """Whether tokens may be taken back from a layer with a GDN state."""
    return any(isinstance(layer, LinearAttentionLayer) and layer.record_past for layer in cache.layers)


def note_call(cache: Cache, tokens: int) -> None:
    """Tell layers that may have to take tokens back (``activate_past_recording``) that a call begins."""
    for layer in cache.layers:
        if not isinstance(layer, LinearAttentionLayer) or not layer.record_past:
            continue
        if not hasattr(layer, "history"):
            layer.__class__ = _rewinding(type(layer))
            layer.history = []  # type: ignore[attr-defined]
        layer.note(tokens)  # type: ignore[attr-defined]


def fit_cache(cache: Cache, pattern: list[str], *, own_context: bool) -> None:
    """Put our own layers into a fresh cache where transformers' do not serve; one in use is left as it is."""
    wanted: dict[int, type[OwnContextLayer] | type[CountingGdnLayer]] = {}
    if own_context:
        wanted = {index: OwnContextLayer for index, kind in enumerate(pattern) if kind == "routed"}
    if all(kind == "gdn" for kind in pattern):
        wanted = {0: CountingGdnLayer}
    for index, kind in wanted.items():
        layer = cache.layers[index]
        if not isinstance(layer, kind):
            cache.layers[index] = kind()
            if layer.record_past:  # type: ignore[union-attr]
                cache.layers[index].activate_past_recording()  # type: ignore[union-attr]


def count_tokens(cache: Cache, tokens: int) -> None:
    """Tell a counting layer that ``tokens`` more have passed (the others count their keys)."""
    if isinstance(cache.layers[0], CountingGdnLayer):
        cache.layers[0].seen += tokens
