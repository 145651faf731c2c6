"""What all routed layers need to know of one forward call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import Cache

from layerroute.errors import UserError
from layerroute.ops.routed_attention import Padding
from layerroute.routing.decision import RouteDecision
from layerroute.routing.serving import Served
from layerroute.skipping.cache_layers import counted, held_count
from layerroute.skipping.routes import SiteRoute


def _any_mask(mask: Any) -> Any:
    """One of the masks that hybrid models pass by kind of layer; a mask that is None stands for plain causal."""
    return next(iter(mask.values())) if isinstance(mask, Mapping) else mask


def _is_plain(mask: Any) -> bool:
    masks = mask.values() if isinstance(mask, Mapping) else [mask]
    return all(one is None or (isinstance(one, Tensor) and one.ndim == 4) for one in masks)


@dataclass(kw_only=True)
class CallContext:
    """The tokens of one call, and what has been decided about them so far.

    Attributes:
        valid: False at padding.
        positions: position in the sequence or packed document, 0 for the first real token (anything at padding).
        token_ids: None when the model was given embeddings.
        before: number of tokens in the cache, on the device where it is counted there: ``past`` asks it.
        padding_mask: over past and new tokens, or None if the caller gave none.
        position_ids: as the caller gave them, or None.
        explicit_mask: the caller made the attention masks; they are then the only word on who sees whom.
        full_layers_only: the caller asked for attention weights, or made masks that are no tensors: only whole layers
            can serve that.
        paged: continuous batching packs the tokens of many requests into one row, with a cache of its own.
        cache: that the stack was given, or None.
        decisions: one a router that has decided.
        routes: by layer index and unit.
        sinks: tokens that always run, once a router has asked.
        served: what holds the rate in this call, once a router has asked.
        read: what the last router read, for ``skip.history``.
        steps: carries out its layers compiled (``compiled.CompiledSteps``), or None.
    """

    valid: Bool[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    token_ids: Int[Tensor, "B T"] | None
    before: int | Int[Tensor, ""]
    padding_mask: Bool[Tensor, "B S"] | None
    position_ids: Int[Tensor, "b T"] | None
    explicit_mask: bool
    full_layers_only: bool
    paged: bool = False
    cache: Cache | None = None
    decisions: list[RouteDecision] = field(default_factory=list)
    routes: dict[int, dict[str, SiteRoute]] = field(default_factory=dict)
    sinks: Bool[Tensor, "B T"] | None = None
    served: Served | None = None
    read: Tensor | None = None
    steps: Callable[..., Tensor] | None = None
    _mask_on_host: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "CallContext":
        """From the arguments of the decoder stack's ``forward``."""
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        tokens: Any = embeds[..., 0] if embeds is not None else ids
        batch, time = tokens.shape
        device = tokens.device
        cache = _cache(inputs)
        held = {} if cache is None else held_count(cache)
        before = 0 if cache is None else int(held["tokens"].max()) if held else counted(cache)
        if isinstance(before, Tensor):
            before = before.clone()  # the cache goes on counting
        paged = any(cls.__name__ == "PagedAttentionCache" for cls in type(inputs.get("cache")).__mro__)
        given = inputs.get("attention_mask")
        explicit = isinstance(given, Mapping) or (given is not None and getattr(given, "ndim", 0) != 2)
        mask = None
        if paged:  # what is beyond the last request fills up the buffer
            real: Any = inputs.get("cu_seq_lens_q")
            valid = torch.arange(time, device=device).expand(batch, -1)
            valid = torch.ones_like(valid, dtype=torch.bool) if real is None else valid < real.max()
        elif explicit:
            valid = _sees_itself(_any_mask(given), before, time, batch, device)
        elif given is not None:
            mask = given.to(device=device, dtype=torch.bool)
            # Models without attention may be given the mask of the new tokens alone.
            past = int(before)
            valid = mask[:, past : past + time] if mask.shape[1] >= past + time else mask[:, -time:]
        else:
            valid = torch.ones(batch, time, dtype=torch.bool, device=device)
        position_ids = inputs.get("position_ids")
        if position_ids is not None:
            positions = position_ids.expand(batch, -1).clamp_min(0)
        elif held:
            positions = (held["real"].to(device)[:, None] + valid.cumsum(dim=1) - 1).clamp_min(0)
        elif mask is not None:
            positions = (mask.cumsum(dim=1) - 1)[:, int(before) : int(before) + time].clamp_min(0)
        else:
            positions = (torch.arange(time, device=device) + before).expand(batch, -1)
        return cls(
            valid=valid,
            positions=positions,
            token_ids=ids,
            before=before,
            padding_mask=mask,
            position_ids=position_ids,
            explicit_mask=explicit or paged,
            full_layers_only=paged
            or bool(inputs.get("output_attentions") or inputs.get("output_router_logits"))
            or (explicit and not _is_plain(given)),
            paged=paged,
            cache=cache,
        )

    @property
    def time(self) -> int:
        """New tokens a row."""
        return self.valid.shape[1]

    @cached_property
    def past(self) -> int:
        """Number of tokens in the cache when the call began; where only the device knows, it is asked, once."""
        return int(self.before)

    @property
    def keys(self) -> int:
        """Tokens a row, those in the cache among them."""
        return self.past + self.time

    def documents(self, cache: Cache | None) -> Int[Tensor, "B T"] | None:
        """Ids of packed documents, where transformers would see them.

        It does when position ids start anew within a row, no padding mask is given, and nothing is cached.
        """
        if (
            cache is not None
            or self.position_ids is None
            or self.padding_mask is not None
            or self.explicit_mask
        ):
            return None
        return self._documents

    @cached_property
    def _documents(self) -> Int[Tensor, "B T"] | None:
        begins = self.positions.diff(dim=1) != 1
        if not bool(begins.any()):
            return None
        return torch.nn.functional.pad(begins.cumsum(dim=1), (1, 0))

    @cached_property
    def padding(self) -> "Padding":
        """Who is padding, of past and new tokens. Needs the mask on the CPU, where ``to_host`` has brought it."""
        if self.padding_mask is None:
            return Padding()
        held = self._mask_on_host
        return Padding.of(self.padding_mask[:, : self.keys], None if held is None else held[:, : self.keys])

    def to_host(self, decided: Bool[Tensor, "R N"]) -> Bool[Tensor, "R N"]:
        """Copy what was decided to the CPU, and the padding mask with it the first time: one synchronisation."""
        mask = self.padding_mask
        if mask is None or self._mask_on_host is not None:
            return decided.cpu()
        both = torch.cat([decided.flatten(), mask.flatten().to(decided.device)]).cpu()
        self._mask_on_host = both[decided.numel() :].view(mask.shape)
        return both[: decided.numel()].view(decided.shape)


def _cache(inputs: Mapping[str, Any]) -> Cache | None:
    """The cache that a stack was given, whatever the model calls it.

    Raises:
        UserError: if it keeps its past in something that says nothing of how many tokens it holds.
    """
    for name in ("past_key_values", "cache_params", "state"):
        value = inputs.get(name)
        if isinstance(value, Cache):
            return value
        if value is not None and not isinstance(value, Tensor | bool):
            raise UserError(
                f"this model keeps its past in a {type(value).__name__} ({name}) that does not count tokens, so that "
                "their positions are not known; use_cache=False works, or router_disabled"
            )
    return None


def _sees_itself(
    mask: Any, before: int | Tensor, time: int, batch: int, device: torch.device
) -> Bool[Tensor, "B T"]:
    """Real tokens see themselves in a 4D mask, padding does not."""
    everybody = torch.ones(batch, time, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.ndim != 4 or time == 1:
        return everybody
    past = int(before)
    if mask.shape[-1] < past + time:
        return everybody
    own = mask[:, 0, :, past : past + time].diagonal(dim1=1, dim2=2)
    seen = own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2
    return seen.expand(batch, -1)
