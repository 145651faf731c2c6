"""The two token mixers: softmax attention and Gated DeltaNet.

Both take ``member``, the tokens that the mixer owns: None means all (``full_context``); else only members write
keys, values and state (``own_context``), while outputs are still given for every token (masked execution). ``read``
gives the outputs of some tokens only, and computes no more than they need (sparse execution).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.cache_utils import Cache, LinearAttentionLayer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from layerroute.hybrid.cache_layers import OwnContextLayer
from layerroute.hybrid.compaction import Compaction
from layerroute.hybrid.context import TokenContext
from layerroute.hybrid.hybrid_config import HybridConfig
from layerroute.ops.gated_delta import gated_delta_rule
from layerroute.ops.routed_attention import WINDOW_BLOCK, BlockPlan, Intervals, attend_spans, intervals
from layerroute.ops.tokens import TokenIndex


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), with mixed dtypes allowed.

    Under autocast some inputs are half precision while the weight is not; torch's own then falls back to a slow path
    and warns. The result has the input's dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


class SoftmaxMixer(nn.Module):
    """Causal softmax attention with rotary positions and optional grouped queries; ``window`` layers see a window."""

    def __init__(self, config: HybridConfig, layer: int) -> None:
        super().__init__()
        assert config.head_dim is not None and config.num_key_value_heads is not None
        self.layer, self.head_dim = layer, config.head_dim
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.window = config.window if (config.layer_pattern or [])[layer] == "window" else None
        inner, shared = self.heads * self.head_dim, self.key_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        context: TokenContext,
        *,
        member: Bool[Tensor, "B T M"] | None = None,
        head_gate: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend; ``head_gate`` scales each head's output before the output projection."""
        query = self._queries(hidden, context)
        if member is None:
            key, value = self._cached(hidden, context)
            mask = None if self.window else context.attention_mask(key.shape[2])
        else:
            key, value, mask = self._own_keys(hidden, context, member)
        if self.window:
            output = self._see_window(query, key, value, context, self.window)
        else:
            output = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None and query.shape[2] > 1,
                enable_gqa=self.key_heads != self.heads,
            ).transpose(1, 2)
        if head_gate is not None:
            output = output * head_gate.unsqueeze(-1).to(output.dtype)
        return self.o_proj(output.flatten(2))

    @staticmethod
    def _see_window(
        query: Float[Tensor, "B H T K"],
        key: Float[Tensor, "B G S K"],
        value: Float[Tensor, "B G S V"],
        context: TokenContext,
        window: int,
    ) -> Float[Tensor, "B T H V"]:
        """Block by block, so that no more keys than a window and a block are read: a mask would read them all."""
        keys, values = key.transpose(1, 2), value.transpose(1, 2)
        spans, visible, plan = context.sight(context.everyone, keys.shape[1], window=window)
        if not query.is_cuda:
            plan = BlockPlan(spans, block=WINDOW_BLOCK)
        queries = query.transpose(1, 2).flatten(0, 1)
        output = attend_spans(queries, keys, values, spans, visible=visible, plan=plan)
        return output.unflatten(0, (query.shape[0], -1))

    def read(
        self, hidden: Float[Tensor, "B T D"], context: TokenContext, index: TokenIndex, *, own: bool
    ) -> Float[Tensor, "N D"]:
        """Attention of the indexed tokens alone; ``own``: only they write keys and values, else all do."""
        gathered = hidden.flatten(0, 1).index_select(0, index.flat)
        if index.flat.shape[0] == 0 and context.cache is None:
            return gathered
        rotary = None
        if context.rotary is not None:
            cos, sin = context.rotary
            at = index.time if cos.shape[0] == 1 else index.flat
            rotary = cos.flatten(0, 1)[at], sin.flatten(0, 1)[at]
        if own:
            key, value = self._keys_values(gathered.unsqueeze(0), _as_row(rotary))
            keys, values, spans = self._write_own(key[0], value[0], context, index, hidden.shape[0])
            visible = plan = None
        else:
            key, value = self._cached(hidden, context)
            keys, values = key.transpose(1, 2), value.transpose(1, 2)
            spans, visible, plan = context.sight(index, keys.shape[1])
        if index.flat.shape[0] == 0:
            return gathered
        query = _rotated(self.q_proj(gathered).unflatten(-1, (self.heads, self.head_dim)), rotary)
        output = attend_spans(query, keys, values, spans, visible=visible, plan=plan)
        return self.o_proj(output.flatten(1))

    def read_heads(
        self,
        hidden: Float[Tensor, "B T D"],
        context: TokenContext,
        index: TokenIndex,
        *,
        head_gate: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attention of the indexed pairs of head and token (rows of the index are those of B·H); others give 0."""
        batch, time = hidden.shape[:2]
        query = self._queries(hidden, context)
        key, value = self._cached(hidden, context)
        repeats = self.heads // self.key_heads
        keys, values = (x.repeat_interleave(repeats, dim=1).flatten(0, 1).unsqueeze(2) for x in (key, value))
        spans, visible, plan = context.sight(index, keys.shape[1], self.heads)
        chosen = query.flatten(0, 2).index_select(0, index.flat).unsqueeze(1)
        read = attend_spans(chosen, keys, values, spans, visible=visible, plan=plan).squeeze(1)
        output = read.new_zeros(batch * self.heads * time, self.head_dim).index_copy(0, index.flat, read)
        output = output.view(batch, self.heads, time, -1).transpose(1, 2)
        if head_gate is not None:
            output = output * head_gate.unsqueeze(-1).to(output.dtype)
        return self.o_proj(output.flatten(2))

    def _queries(self, hidden: Float[Tensor, "B T D"], context: TokenContext) -> Float[Tensor, "B H T K"]:
        query = self.q_proj(hidden).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        return query if context.rotary is None else apply_rotary_pos_emb(query, query, *context.rotary)[0]

    def _cached(self, hidden: Float[Tensor, "B T D"], context: TokenContext) -> tuple[Tensor, Tensor]:
        """Keys and values of these tokens behind those of the cache, (B, G, S, K) each."""
        key, value = self._keys_values(hidden, context.rotary)
        return (key, value) if context.cache is None else context.cache.update(key, value, self.layer)

    def _keys_values(
        self, hidden: Float[Tensor, "B T D"], rotary: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "B G T K"], Float[Tensor, "B G T K"]]:
        key = self.k_proj(hidden).unflatten(-1, (self.key_heads, self.head_dim)).transpose(1, 2)
        value = self.v_proj(hidden).unflatten(-1, (self.key_heads, self.head_dim)).transpose(1, 2)
        if rotary is not None:
            key, _ = apply_rotary_pos_emb(key, key, *rotary)
        return key, value

    def _write_own(
        self,
        key: Float[Tensor, "G N K"],
        value: Float[Tensor, "G N K"],
        context: TokenContext,
        index: TokenIndex,
        batch: int,
    ) -> tuple[Tensor, Tensor, Intervals]:
        """Keys of this path's own tokens, earlier ones first, and which of them each indexed token sees."""
        rank, count = index.ranks(batch)
        width = int(count.max())
        where = (index.row, rank)
        shape = (batch, width, self.key_heads, self.head_dim)
        keys = key.new_zeros(shape).index_put(where, key.transpose(0, 1))
        values = value.new_zeros(shape).index_put(where, value.transpose(0, 1))
        before = torch.zeros_like(rank)
        layer = None if context.cache is None else context.cache.layers[self.layer]
        if layer is not None:
            assert isinstance(layer, OwnContextLayer)
            if layer.lengths is not None:
                before = layer.lengths[index.row, 0]
            member = torch.arange(width, device=key.device) < count.to(key.device)[:, None]
            layer.append(
                keys.transpose(1, 2),
                values.transpose(1, 2),
                member.unsqueeze(-1),
                tokens=context.positions.shape[1],
            )
            assert layer.keys is not None and layer.values is not None
            keys, values = layer.keys.transpose(1, 2), layer.values.transpose(1, 2)
        documents = context.document_ids
        if documents is not None:
            own = documents.flatten()[index.flat]
            documents = torch.full((batch, width), -1, dtype=own.dtype, device=own.device)
            documents = documents.index_put(where, own)
        return keys, values, intervals(index.row, rank + before, documents=documents)

    def _own_keys(
        self, hidden: Float[Tensor, "B T D"], context: TokenContext, member: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Stored keys of this path's earlier tokens before those of this call, and who sees what."""
        key, value = self._keys_values(hidden, context.rotary)
        mask = context.own_mask(member)
        layer = None if context.cache is None else context.cache.layers[self.layer]
        if layer is None:
            return key, value, mask
        assert isinstance(layer, OwnContextLayer)
        new_key, new_value = key, value
        if layer.lengths is not None:
            assert layer.keys is not None and layer.values is not None
            seen = layer.filled().transpose(1, 2)[:, :, None, :].expand(-1, -1, mask.shape[2], -1)
            mask = torch.cat([seen, mask], dim=-1)
            key = torch.cat([layer.keys, key], dim=2)
            value = torch.cat([layer.values, value], dim=2)
        layer.append(new_key, new_value, member)
        return key, value, mask


def _rotated(x: Float[Tensor, "N H K"], rotary: tuple[Tensor, Tensor] | None) -> Float[Tensor, "N H K"]:
    """Rotary embedding of gathered tokens."""
    if rotary is None:
        return x
    turned, _ = apply_rotary_pos_emb(x, x, *rotary)
    return turned


def _as_row(rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if rotary is None else (rotary[0].unsqueeze(0), rotary[1].unsqueeze(0))


class GatedDeltaMixer(nn.Module):
    """Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464).

    q, k and v pass a short causal convolution and SiLU; q and k are L2-normalised; beta = sigmoid;
    log decay = -exp(A_log) * softplus(a + dt_bias); a gated RMSNorm closes each head.
    """

    def __init__(self, config: HybridConfig, layer: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.layer, self.heads, self.taps = layer, config.num_attention_heads, config.gdn_conv_size
        self.key_dim, self.value_dim = config.head_dim, config.gdn_value_dim
        inner, wide = self.heads * self.key_dim, self.heads * self.value_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.a_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.b_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.g_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.heads, 2 * self.key_dim + self.value_dim, self.taps))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.norm = RMSNorm(self.value_dim, eps=config.rms_norm_eps)
        with torch.no_grad():
            for name, value in self.initial_values().items():
                getattr(self, name).copy_(value)

    def initial_values(self) -> dict[str, Tensor]:
        """Starting values of the parameters that no linear layer holds, as in the authors' code."""
        step = torch.exp(torch.rand(self.heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        bound = 1 / math.sqrt(self.taps)
        return {
            "A_log": torch.empty(self.heads).uniform_(1e-3, 16).log_(),
            "dt_bias": step + torch.log(-torch.expm1(-step)),  # the inverse of softplus
            "conv_weight": torch.empty(self.conv_weight.shape).uniform_(-bound, bound),
        }

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        context: TokenContext,
        *,
        member: Bool[Tensor, "B T M"] | None = None,
        head_gate: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Mix; ``head_gate`` scales each head's output before the output projection."""
        if member is None and context.valid is not None:
            member = context.valid.unsqueeze(-1)  # padding is nobody's: it writes nothing and is skipped
        packed = None if member is None else Compaction.of(member)
        output = self._mix(hidden, context, packed)
        if packed is not None:
            output = packed.restore(output)
        return self._close(output, hidden, head_gate)

    def read(
        self, hidden: Float[Tensor, "B T D"], context: TokenContext, index: TokenIndex, *, own: bool
    ) -> Float[Tensor, "N D"]:
        """Outputs of the indexed tokens alone; ``own``: only they update the state, else all do."""
        gathered = hidden.flatten(0, 1).index_select(0, index.flat)
        if index.flat.shape[0] == 0 and context.cache is None:
            return gathered
        if own:
            rank, count = index.ranks(hidden.shape[0])
            packed = Compaction.of_ranked(index.row, rank, index.time, count)
            states = hidden.gather(1, packed.order.expand(-1, -1, hidden.shape[-1]))
            output = self._mix(states, context, packed, gathered=True)[index.row, rank]
        else:
            real = None if context.valid is None else Compaction.of(context.valid.unsqueeze(-1))
            output = self._mix(hidden, context, real)
            if real is not None:
                output = real.restore(output)
            output = output.flatten(0, 1).index_select(0, index.flat)
        if index.flat.shape[0] == 0:
            return gathered
        return self._close(output, gathered, None)

    def _close(
        self,
        output: Float[Tensor, "*tokens H V"],
        hidden: Float[Tensor, "*tokens D"],
        head_gate: Tensor | None,
    ) -> Float[Tensor, "*tokens D"]:
        """Output gate, norm and projection: what only tokens that are read need."""
        gate = F.silu(self.g_proj(hidden).unflatten(-1, (self.heads, -1)))
        output = self.norm(output).to(gate.dtype) * gate
        if head_gate is not None:
            output = output * head_gate.unsqueeze(-1).to(output.dtype)
        return self.o_proj(output.flatten(-2))

    def _mix(
        self,
        hidden: Float[Tensor, "B L D"],
        context: TokenContext,
        packed: Compaction | None,
        *,
        gathered: bool = False,
    ) -> Float[Tensor, "B L H V"]:
        """Everything before the output gate, in compacted order; ``gathered``: ``hidden`` has that order already."""
        split = (self.heads, -1)
        x = torch.cat(
            [
                projection(hidden).unflatten(-1, split)
                for projection in (self.q_proj, self.k_proj, self.v_proj)
            ],
            dim=-1,
        )
        beta = torch.sigmoid(self.b_proj(hidden).float())
        decay = -torch.exp(self.A_log.float()) * F.softplus(
            self.a_proj(hidden).float() + self.dt_bias.float()
        )
        documents = context.document_ids
        if packed is not None:
            if not gathered:
                x = packed.gather(x)
                beta = packed.gather(beta.expand(-1, -1, self.heads))
                decay = packed.gather(decay)
            beta, decay = beta * packed.member, decay * packed.member
            if documents is not None:
                documents = (
                    documents.gather(1, packed.order[..., 0]) if packed.order.shape[-1] == 1 else documents
                )
        x = self._convolve(x, context, packed, documents)
        query, key, value = x.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        cache = context.cache
        state = None if cache is None else self._states(cache).recurrent_states[0]
        output, state = gated_delta_rule(
            query,
            key,
            value,
            decay,
            beta,
            initial_state=state,
            output_final_state=cache is not None,
            document_ids=documents,
            normalize_qk=True,
        )
        if cache is not None:
            assert state is not None
            cache.update_recurrent_state(state, self.layer)
        return output

    def _states(self, cache: Cache) -> LinearAttentionLayer:
        layer = cache.layers[self.layer]
        assert isinstance(layer, LinearAttentionLayer)
        return layer

    def _convolve(
        self,
        x: Float[Tensor, "B T H C"],
        context: TokenContext,
        packed: Compaction | None,
        documents: Tensor | None,
    ) -> Float[Tensor, "B T H C"]:
        """Depthwise causal convolution over this path's own tokens, then SiLU; the last taps go to the cache."""
        batch, time = x.shape[:2]
        cache, weight = context.cache, self.conv_weight.to(x.dtype)
        past = None if cache is None else self._states(cache).conv_states[0]
        if past is None:
            full = F.pad(x, (0, 0, 0, 0, self.taps, 0))
        else:
            full = torch.cat(
                [past.view(batch, self.heads, -1, self.taps).movedim(-1, 1).to(x.dtype), x], dim=1
            )
        if documents is None:
            channels = full[:, 1:].flatten(2).transpose(1, 2)
            result = F.conv1d(channels, weight.flatten(0, 1).unsqueeze(1), groups=channels.shape[1])
            result = result.transpose(1, 2).view_as(x)
        else:
            ids = F.pad(documents, (self.taps, 0), value=-1)
            result = torch.zeros_like(x)
            for tap in range(self.taps):
                start = tap + 1
                same = (ids[:, start : start + time] == documents)[..., None, None]
                result = result + full[:, start : start + time] * weight[..., tap] * same
        if cache is not None:
            cache.update_conv_state(self._last_taps(full, packed).flatten(1, 2), self.layer)
        return F.silu(result)

    def _last_taps(
        self, full: Float[Tensor, "B S H C"], packed: Compaction | None
    ) -> Float[Tensor, "B H C k"]:
        """The last inputs that the next call's convolution will see, of this path's own tokens."""
        if packed is None:
            return full[:, -self.taps :].movedim(1, -1)
        slots = packed.count[:, None, :] + torch.arange(self.taps, device=full.device)[None, :, None]
        index = slots.unsqueeze(-1).expand(-1, -1, self.heads, full.shape[-1])
        return full.gather(1, index).movedim(1, -1)
