"""Tensors that follow the rows of a transformers cache, so that beam search moves what routers recall as well."""

from typing import Any

import torch
from torch import Tensor

COUNTS = ("tokens", "real")
"""Of a row state: how many tokens passed, and how many of them are no padding; of caches that do not count."""

_WITH_ROW_STATE: dict[type[Any], type[Any]] = {}


def _with_row_state(cls: type[Any]) -> type[Any]:
    """The cache layer's class with tensors that belong to the rows of its batch and go where the rows go."""
    if cls in _WITH_ROW_STATE:
        return _WITH_ROW_STATE[cls]

    class WithRowState(cls):
        _layer_type = None  # transformers registers subclasses that have one
        plain_class = cls
        row_state: dict[str, Tensor]

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            self.row_state = {k: v.index_select(0, beam_idx.to(v.device)) for k, v in self.row_state.items()}

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            self.row_state = {k: v.repeat_interleave(repeats, dim=0) for k, v in self.row_state.items()}

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(indices)
            self.row_state = {
                k: v[indices.to(v.device) if isinstance(indices, torch.Tensor) else indices]
                for k, v in self.row_state.items()
            }

        def reset(self) -> None:
            super().reset()
            self.row_state = {}

        def crop(self, tokens_to_remove: int) -> None:
            super().crop(tokens_to_remove)
            for name in COUNTS if tokens_to_remove else ():
                if name in self.row_state:
                    self.row_state[name] = (self.row_state[name] - abs(tokens_to_remove)).clamp_min(0)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _new_with_row_state, (cls,), self.__getstate__()

    WithRowState.__name__ = cls.__name__
    _WITH_ROW_STATE[cls] = WithRowState
    return WithRowState


def _new_with_row_state(cls: type[Any]) -> Any:
    made: Any = _with_row_state(cls)
    return made.__new__(made)


def cache_layer(cache: Any, index: int) -> Any:
    """The cache's layer ``index``; caches that grow their list of layers lazily are grown."""
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    return cache.layers[index]


def row_state(cache: Any, index: int) -> dict[str, Tensor]:
    """A place for tensors (batch first) that follow the rows of layer ``index`` of the cache.

    Cropping reaches the ``COUNTS`` alone: whoever keeps something by token must know how many tokens still count.
    """
    layer = cache_layer(cache, index)
    if not hasattr(layer, "row_state"):
        layer.__class__ = _with_row_state(type(layer))
        layer.row_state = {}
    state: dict[str, Tensor] = layer.row_state
    return state


def plain_class(layer: Any) -> type[Any]:
    """The class of a cache's layer, whether or not it has a row state."""
    return getattr(type(layer), "plain_class", type(layer))


def replace_layer(cache: Any, index: int, new: Any) -> None:
    """Put ``new`` in the place of the cache's layer ``index``; the row state moves over, itself and not as a copy."""
    state = vars(cache.layers[index]).get("row_state")
    cache.layers[index] = new
    if state is not None:
        new.__class__ = _with_row_state(type(new))
        new.row_state = state
