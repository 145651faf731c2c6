"""Carrying out a layer's routes: masked (the reference) and sparse.

With h the layer's input, F what running gives and S what skipping gives, a token gets h + g_run (F - h) + g_skip
(S - h), where the gates are 0 or 1 in forward and carry the estimator's gradient in backward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from layerroute.errors import UserError
from layerroute.ops.routed_attention import (
    BlockPlan,
    Intervals,
    Padding,
    Sight,
    attend_spans,
    intervals,
    sight_of,
)
from layerroute.skipping.cache_layers import deferring_layer, evicting_layer
from layerroute.skipping.context import CallContext
from layerroute.skipping.families import Family
from layerroute.skipping.routes import DENSE, MASKED, SKIPPED, SPARSE, SiteRoute
from layerroute.skipping.skip_paths import LowRankSkip


@dataclass(kw_only=True)
class LayerCall:
    """One routed layer in one call.

    Attributes:
        family: names of the layer's parts; None where only whole blocks can be masked.
        evict: whether skipping tokens leave no keys and values.
        routes: by unit.
        skip_path: of a unit; None is the identity.
        context: of the call.
    """

    family: Family | None
    evict: bool
    routes: Mapping[str, SiteRoute]
    skip_path: Callable[[str], LowRankSkip | None]
    context: CallContext

    # What it does depends on data; the modules that it calls are compiled one by one.
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def __call__(
        self, layer: nn.Module, plain: Callable[..., Any], hidden: Tensor, options: dict[str, Any]
    ) -> Any:
        """The layer's output.

        Args:
            layer: the decoder layer.
            plain: its own forward.
            hidden: (B, T, D) its input.
            options: the keyword arguments that the model gave it.
        """
        if self.context.steps is not None:
            return self.context.steps(self, layer, plain, hidden, options)
        if "block" in self.routes:
            return self._block(layer, plain, hidden, options)
        assert self.family is not None
        hidden = self._attention(layer, hidden, options)
        return self._mlp(layer, hidden)

    def _skip(self, unit: str, hidden: Tensor) -> Tensor:
        path = self.skip_path(unit)
        return hidden if path is None else hidden + path(hidden)

    # Whole blocks

    def _block(
        self, layer: nn.Module, plain: Callable[..., Any], hidden: Tensor, options: dict[str, Any]
    ) -> Any:
        route = self.routes["block"]
        if route.mode == MASKED:
            if self.evict:
                options = self._expect_eviction(layer, route, options)
            ran = plain(hidden, **options)
            rest: tuple[Any, ...] = ()
            if isinstance(ran, tuple):
                ran, *others = ran
                rest = tuple(others)
            out = route.combine(hidden, ran, self._skip("block", hidden))
            return (out, *rest) if rest else out
        assert self.family is not None
        if route.mode == SKIPPED:
            self.write_keys(layer, hidden, options)
            return route.gate_skipped(hidden, self._skip("block", hidden))
        gathered, update = self._gathered_attention(layer, route, hidden, options)
        ran = gathered + update
        ran = ran + self.family.mlp_update(layer, ran)
        return self._scatter("block", hidden, gathered, ran)

    # Attention and MLP apart

    def _attention(self, layer: nn.Module, hidden: Tensor, options: dict[str, Any]) -> Tensor:
        assert self.family is not None
        route = self.routes.get("attention")
        if route is not None and route.mode == SKIPPED:
            self.write_keys(layer, hidden, options)
            return route.gate_skipped(hidden, self._skip("attention", hidden))
        if route is not None and route.mode == SPARSE:
            gathered, update = self._gathered_attention(layer, route, hidden, options)
            return self._scatter("attention", hidden, gathered, gathered + update)
        if route is not None and self.evict:
            options = self._expect_eviction(layer, route, options)
        states = self.family.attention_input(layer, hidden)
        attended = self.family.attend(layer, states, options)
        ran = hidden + self.family.attention_update(layer, attended)
        if route is None or route.mode == DENSE:
            return ran
        return route.combine(hidden, ran, self._skip("attention", hidden))

    def _mlp(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        assert self.family is not None
        route = self.routes.get("mlp")
        if route is not None and route.mode == SKIPPED:
            return route.gate_skipped(hidden, self._skip("mlp", hidden))
        if route is not None and route.mode == SPARSE:
            assert route.index is not None
            gathered = hidden.flatten(0, 1).index_select(0, route.index.flat)
            return self._scatter("mlp", hidden, gathered, gathered + self.family.mlp_update(layer, gathered))
        ran = hidden + self.family.mlp_update(layer, hidden)
        if route is None or route.mode == DENSE:
            return ran
        return route.combine(hidden, ran, self._skip("mlp", hidden))

    def _scatter(
        self,
        unit: str,
        hidden: Float[Tensor, "B T D"],
        gathered: Float[Tensor, "N D"],
        ran: Float[Tensor, "N D"],
    ) -> Float[Tensor, "B T D"]:
        """The tokens that ran put back among those that skip, which alone take the skip path."""
        route, every = self.routes[unit], hidden.flatten(0, 1)
        assert route.index is not None
        ran = route.gate_ran(gathered, ran).to(every.dtype)
        out = every.index_copy(0, route.index.flat, ran)
        rest = route.index.rest
        if rest is not None:
            skipping = every.index_select(0, rest)
            out.index_copy_(0, rest, route.gate_skipped(skipping, self._skip(unit, skipping), rest))
        return out.view_as(hidden)

    # Attention of gathered tokens

    def _gathered_attention(
        self, layer: nn.Module, route: SiteRoute, hidden: Tensor, options: dict[str, Any]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
        """The tokens that run, and what attention adds to them."""
        index, family = route.index, self.family
        assert index is not None and family is not None
        gathered = hidden.flatten(0, 1).index_select(0, index.flat)
        if family.is_linear(layer):
            attended = family.attend(layer, family.attention_input(layer, hidden), options)
            of_those = attended.flatten(0, 1).index_select(0, index.flat)
            return gathered, family.attention_update(layer, of_those)
        cos, sin = options["position_embeddings"]
        # Rows share their rotary embedding where the model made it for one of them.
        at = index.time if cos.shape[0] == 1 else index.flat
        own = tuple(x.flatten(0, 1).index_select(0, at) for x in (cos, sin))
        if self.evict:
            states = family.attention_input(layer, gathered)
            key, value, raw = family.keys_values(
                layer, states.unsqueeze(0), own[0].unsqueeze(0), own[1].unsqueeze(0)
            )
            if raw is not None:
                raw = raw[0]
            keys, values, sight = self._evicted(layer, route, key[0], value[0], options)
        else:
            every = family.attention_input(layer, hidden)
            states = every.flatten(0, 1).index_select(0, index.flat)
            keys, values, raw, sight = self._projected(layer, route, every, cos, sin, options)
            if raw is not None:
                raw = raw.flatten(0, 1).index_select(0, index.flat)
        attention = family.attention_of(layer)
        queries, gate = family.queries(layer, states, own[0], own[1], raw)
        attended = attend_spans(
            queries,
            keys,
            values,
            sight.spans,
            visible=sight.visible,
            plan=sight.plan,
            scale=attention.scaling,
            softcap=None if family.softcap is None else getattr(attention, family.softcap),
            dropout=attention.attention_dropout if layer.training else 0.0,
        )
        update = family.attention_update(layer, family.attention_output(layer, attended, gate))
        return gathered, update

    def _projected(
        self,
        layer: nn.Module,
        route: SiteRoute,
        states: Tensor,
        cos: Tensor,
        sin: Tensor,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor | None, Sight]:
        """Keys and values of all tokens, cached ones first, and which of them the indexed tokens see."""
        assert self.family is not None and route.index is not None
        index, context = route.index, self.context
        cache: Cache | None = options.get("past_key_values")
        attention = self.family.attention_of(layer)
        key, value, raw = self.family.keys_values(layer, states, cos, sin)
        offset = 0
        if cache is not None:
            _, offset = cache.get_mask_sizes(context.time, attention.layer_idx)
            key, value = cache.update(key.transpose(1, 2), value.transpose(1, 2), attention.layer_idx)
            key, value = key.transpose(1, 2), value.transpose(1, 2)
        given = _as_visible(options.get("attention_mask")) if context.explicit_mask else None
        if given is not None:
            visible = given.expand(states.shape[0], -1, -1)[index.row, index.time, : key.shape[1]]
            everything = torch.full_like(index.row, key.shape[1])
            spans = Intervals(row=index.row, start=torch.zeros_like(index.row), stop=everything)
            return key, value, raw, Sight(spans, visible)
        # Among masks of the caller's own, a layer without one is plain causal.
        padding = Padding() if context.explicit_mask else context.padding
        sight = sight_of(
            index,
            padding,
            key.shape[1],
            past=context.past,
            offset=offset,
            window=self.family.window(attention),
            documents=context.documents(cache),
        )
        return key, value, raw, sight

    def write_keys(self, layer: nn.Module, hidden: Tensor, options: dict[str, Any]) -> None:
        """Keys and values (or the state) of a call in which nobody runs here: for later tokens, if there can be any."""
        assert self.family is not None
        cache: Cache | None = options.get("past_key_values")
        if cache is None:
            return
        if self.family.is_linear(layer):
            self.family.attend(layer, self.family.attention_input(layer, hidden), options)
            return
        index = self.family.attention_of(layer).layer_idx
        if self.evict:
            evicting_layer(cache, index).seen += self.context.time
            return
        project = partial(_keys_values, self.family, layer)
        cos, sin = options["position_embeddings"]
        if not torch.is_grad_enabled():
            deferring = deferring_layer(cache, index)
            if deferring is not None:
                deferring.defer(hidden, cos, sin, project, self.family.key_modules(layer))
                return
        cache.update(*project(hidden, cos, sin), index)

    # Eviction

    def _evicted(
        self,
        layer: nn.Module,
        route: SiteRoute,
        key: Float[Tensor, "N G K"],
        value: Float[Tensor, "N G V"],
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Sight]:
        """Keys and values of the tokens that ran here, in this call and before, and which of them each sees."""
        assert self.family is not None and route.index is not None
        index, context = route.index, self.context
        batch = context.valid.shape[0]
        cache: Cache | None = options.get("past_key_values")
        attention = self.family.attention_of(layer)
        assert index.host is not None
        rank_on_host, counts = index.host.ranks(batch)
        width, rank = int(counts.max()), rank_on_host.to(key.device, non_blocking=True)
        where = (index.row, rank)
        keys = key.new_zeros(batch, width, *key.shape[1:]).index_put(where, key)
        values = value.new_zeros(batch, width, *value.shape[1:]).index_put(where, value)
        slots = torch.full((batch, width), -1, device=key.device).index_put(where, index.time + context.past)
        before = 0
        if cache is not None:
            held = evicting_layer(cache, attention.layer_idx)
            before = held.slots_for(batch, key.device).shape[1]
            merged = held.append(keys.transpose(1, 2), values.transpose(1, 2), slots, context.time, counts)
            keys, values, slots = merged[0].transpose(1, 2), merged[1].transpose(1, 2), merged[2]
        documents = context.documents(cache)
        if documents is not None:
            documents = torch.where(slots >= 0, documents.gather(1, slots.clamp_min(0)), -1)
        spans = intervals(index.row, rank + before, documents=documents)
        plan = None
        if index.host is not index and documents is None:
            plan = BlockPlan(intervals(index.host.row, rank_on_host + before))
        window = self.family.window(attention)
        given = _as_visible(options.get("attention_mask")) if context.explicit_mask else None
        if batch == 1 and window is None and given is None:
            return keys, values, Sight(spans, None, plan)
        own = slots[index.row]
        visible = own >= 0
        if window is not None:
            visible = visible & (own > (index.time + context.past - window)[:, None])
        if given is not None:
            seen = given.expand(batch, -1, -1)[index.row, index.time]
            visible = visible & seen.gather(1, own.clamp_min(0))
        return keys, values, Sight(spans, visible, plan)

    def _expect_eviction(self, layer: nn.Module, route: SiteRoute, options: dict[str, Any]) -> dict[str, Any]:
        """The layer's options with a mask that hides evicted tokens, and its cache told whom to keep.

        Every token sees itself, run or not: what it would compute if it ran is what its gate's gradient is made of.
        """
        context = self.context
        assert self.family is not None
        attention = self.family.attention_of(layer)
        cache: Cache | None = options.get("past_key_values")
        keep = route.run & context.valid
        time, device = context.time, keep.device
        index = torch.arange(context.past, context.keys, device=device)
        slots = index.expand(keep.shape[0], -1)
        stored = keep
        if cache is not None:
            held = evicting_layer(cache, attention.layer_idx)
            before = held.slots_for(keep.shape[0], device)
            held.expect(keep)
            slots = torch.cat([before, slots], dim=1)
            stored = torch.cat([before >= 0, keep], dim=1)
        visible = _visible_slots(index, slots, stored, self.family.window(attention))
        documents = context.documents(cache)
        if documents is not None:
            visible = visible & (documents[:, :, None] == documents[:, None, :])
        if context.explicit_mask:
            given = _as_visible(options.get("attention_mask"))
            if given is not None:
                seen = given.expand(keep.shape[0], -1, -1)
                visible = visible & seen.gather(2, slots.clamp_min(0)[:, None, :].expand(-1, time, -1))
        own = slots[:, None, :] == index[None, :, None]
        return {**options, "attention_mask": _for_layer(visible | own, attention, options)}


def _keys_values(
    family: Family, layer: nn.Module, hidden: Float[Tensor, "B T D"], cos: Tensor, sin: Tensor
) -> tuple[Float[Tensor, "B G T K"], Float[Tensor, "B G T V"]]:
    """What a layer's cache holds of tokens, from the layer's input."""
    key, value, _ = family.keys_values(layer, family.attention_input(layer, hidden), cos, sin)
    return key.transpose(1, 2), value.transpose(1, 2)


def _visible_slots(
    index: Int[Tensor, "T"], slots: Int[Tensor, "B S"], stored: Bool[Tensor, "B S"], window: int | None
) -> Bool[Tensor, "B T S"]:
    """Stored tokens of the past, within the window."""
    slots = slots[:, None, :]
    visible = stored[:, None, :] & (slots <= index[:, None])
    return visible if window is None else visible & (slots > index[:, None] - window)


def _as_visible(mask: Any) -> Bool[Tensor, "B T S"] | None:
    """A layer's 4D mask, boolean or additive, as who sees whom."""
    if not isinstance(mask, Tensor):
        return None
    mask = mask[:, 0]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _for_layer(visible: Bool[Tensor, "B T S"], attention: Any, options: Mapping[str, Any]) -> Tensor:
    """A mask in the form that the model's attention implementation takes."""
    implementation = attention.config._attn_implementation
    mask = visible.unsqueeze(1)
    if implementation == "sdpa":
        return mask
    if implementation == "eager":
        dtype = options["position_embeddings"][0].dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(dtype).min
        )
    raise UserError(
        f"masked execution of kv: evict needs its own attention mask, which {implementation!r} does not take; load the "
        "model with attn_implementation='sdpa', or use execution: sparse"
    )
