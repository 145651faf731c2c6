"""What differs between model families: one small description each; everything else is shared.

A decoder layer is a residual attention block followed by a residual MLP block. A description says what the modules of
both are called and the few twists that families have. Masked execution of whole blocks needs no description.

Some layers have linear attention in the place of attention. Its recurrent state is of *all* tokens before, those that
skip the layer among them, just as later tokens see the keys of those: so it is computed for all tokens in sparse
execution too, and what a skipping token saves there is the MLP. In the MLP itself there may be experts: which ones a
token takes does not depend on who else is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerroute.errors import UserError


def rotate(
    x: Float[Tensor, "*tokens heads K"], cos: Float[Tensor, "*any R"], sin: Float[Tensor, "*any R"]
) -> Float[Tensor, "*tokens heads K"]:
    """Rotary embedding of the first R of K dimensions, halves paired; ``cos`` and ``sin`` are by token."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    half = torch.cat([-turned[..., size // 2 :], turned[..., : size // 2]], dim=-1)
    turned = (turned * cos + half * sin).to(x.dtype)
    return turned if rest.shape[-1] == 0 else torch.cat([turned, rest], dim=-1)


def _own_window(attention: nn.Module) -> int | None:
    return getattr(attention, "sliding_window", None)


def _configured_window(attention: nn.Module) -> int | None:
    return getattr(attention.config, "sliding_window", None)


def _always(attention: nn.Module) -> bool:  # noqa: ARG001
    return True


def _by_layer(attention: nn.Module) -> bool:
    return bool(attention.use_rope)


_OF_ATTENTION = {"position_embeddings", "position_ids", "past_key_values"}
"""Options of a layer that linear attention has no use for, or has under another name."""


# Functions of the module, not lambdas: a routed model is pickled with its family.
@dataclass(frozen=True, kw_only=True)
class Family:
    """Names and twists of one family's decoder layer.

    Attributes:
        attention, mlp: submodules of the layer.
        attention_norm, mlp_norm: norms before them, or None.
        attention_post_norm, mlp_post_norm: norms of what they add, or None.
        attention_dropout, mlp_dropout: dropouts of what they add, or None.
        qk_norm: None, ``head`` (norms of each head's query and key) or ``flat`` (before they are cut into heads).
        fused_qkv: one projection, ``qkv_proj``, gives queries, keys and values.
        window: the attention's sliding window.
        softcap: the attention's attribute that caps scores, or None.
        residual_scale: the layer's attribute that scales what attention and MLP add, or None.
        rotary: False for a layer without rotary embedding.
        linear: the mixer of layers with linear attention, which have no ``attention``; None if there are none.
        gated: the query projection also gives a gate of each head's output.
    """

    attention: str = "self_attn"
    mlp: str = "mlp"
    attention_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    attention_dropout: str | None = None
    mlp_dropout: str | None = None
    qk_norm: str | None = None
    fused_qkv: bool = False
    window: Callable[[nn.Module], int | None] = _own_window
    softcap: str | None = None
    residual_scale: str | None = None
    rotary: Callable[[nn.Module], bool] = _always
    linear: str | None = None
    gated: bool = False

    def is_linear(self, layer: nn.Module) -> bool:
        """Whether a layer has linear attention."""
        return self.linear is not None and hasattr(layer, self.linear)

    def modules(self, layer: nn.Module) -> tuple[str, ...]:
        """Dotted names that a layer of this family must have."""
        projections = ("qkv_proj",) if self.fused_qkv else ("q_proj", "k_proj", "v_proj")
        inner = (*projections, "o_proj", *(("q_norm", "k_norm") if self.qk_norm else ()))
        own = (
            self.mlp,
            self.attention_norm,
            self.mlp_norm,
            self.attention_post_norm,
            self.mlp_post_norm,
            self.attention_dropout,
            self.mlp_dropout,
        )
        mixer = () if self.is_linear(layer) else tuple(f"{self.attention}.{name}" for name in inner)
        return (*mixer, *(name for name in own if name))

    def attention_of(self, layer: nn.Module) -> Any:
        """The layer's attention module."""
        return getattr(layer, self.attention)

    def attend(self, layer: nn.Module, states: Float[Tensor, "B T D"], options: dict[str, Any]) -> Tensor:
        """The output of the attention module, or of what stands in its place, for all tokens; it fills the cache.

        Args:
            states: see ``attention_input``.
            options: the keyword arguments that the model gave the layer.
        """
        if not self.is_linear(layer):
            attended, *_ = self.attention_of(layer)(hidden_states=states, **options)
            return attended
        assert self.linear is not None
        given = {name: value for name, value in options.items() if name not in _OF_ATTENTION}
        out: Tensor = getattr(layer, self.linear)(
            states, cache_params=options.get("past_key_values"), **given
        )
        return out

    def key_modules(self, layer: nn.Module) -> list[nn.Module]:
        """What keys and values are made with, from the layer's input."""
        attention = self.attention_of(layer)
        names = (
            *(("qkv_proj",) if self.fused_qkv else ("k_proj", "v_proj")),
            *(("k_norm",) if self.qk_norm else ()),
        )
        norm = [] if self.attention_norm is None else [getattr(layer, self.attention_norm)]
        return [*norm, *(getattr(attention, name) for name in names)]

    def attention_input(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """What the attention's projections read, from the layer's input."""
        return hidden if self.attention_norm is None else getattr(layer, self.attention_norm)(hidden)

    def keys_values(
        self, layer: nn.Module, states: Float[Tensor, "B T D"], cos: Tensor, sin: Tensor
    ) -> tuple[Float[Tensor, "B T G K"], Float[Tensor, "B T G V"], Tensor | None]:
        """Keys (rotated) and values of tokens; and their raw queries, where they come from the same projection."""
        attention = self.attention_of(layer)
        query = None
        if self.fused_qkv:
            size = attention.config.num_attention_heads * attention.head_dim
            query, key, value = attention.qkv_proj(states).split(
                [size, *[attention.config.num_key_value_heads * attention.head_dim] * 2], dim=-1
            )
        else:
            key, value = attention.k_proj(states), attention.v_proj(states)
        if self.qk_norm == "flat":
            key = attention.k_norm(key)
        key, value = (x.unflatten(-1, (-1, attention.head_dim)) for x in (key, value))
        if self.qk_norm == "head":
            key = attention.k_norm(key)
        return (rotate(key, cos, sin) if self.rotary(attention) else key), value, query

    def queries(
        self,
        layer: nn.Module,
        states: Float[Tensor, "N D"],
        cos: Tensor,
        sin: Tensor,
        raw: Tensor | None = None,
    ) -> tuple[Float[Tensor, "N H K"], Float[Tensor, "N I"] | None]:
        """Queries (rotated) of gathered tokens, and the gates of a ``gated`` output.

        ``raw`` is what the projection gives, if ``keys_values`` gave it.
        """
        attention, gate = self.attention_of(layer), None
        query = attention.q_proj(states) if raw is None else raw
        if self.gated:
            query, gate = (
                half.flatten(-2)
                for half in query.unflatten(-1, (-1, 2 * attention.head_dim)).chunk(2, dim=-1)
            )
        if self.qk_norm == "flat":
            query = attention.q_norm(query)
        query = query.unflatten(-1, (-1, attention.head_dim))
        if self.qk_norm == "head":
            query = attention.q_norm(query)
        return (rotate(query, cos, sin) if self.rotary(attention) else query), gate

    def attention_output(
        self, layer: nn.Module, attended: Float[Tensor, "N H V"], gate: Tensor | None
    ) -> Float[Tensor, "N D"]:
        """The output of the attention module, from what its heads read."""
        heads = attended.flatten(1)
        out: Tensor = self.attention_of(layer).o_proj(heads if gate is None else heads * gate.sigmoid())
        return out

    def attention_update(self, layer: nn.Module, attended: Tensor) -> Tensor:
        """What the attention block adds to the residual stream, from the output of the attention module."""
        return self._update(layer, attended, self.attention_post_norm, self.attention_dropout)

    def mlp_update(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """What the MLP block adds to the residual stream."""
        states = hidden if self.mlp_norm is None else getattr(layer, self.mlp_norm)(hidden)
        # Experts take a batch of sequences, also where tokens have been gathered from several.
        update = getattr(layer, self.mlp)(states if states.ndim == 3 else states.unsqueeze(0)).view_as(states)
        return self._update(layer, update, self.mlp_post_norm, self.mlp_dropout)

    def _update(self, layer: nn.Module, update: Tensor, norm: str | None, dropout: str | None) -> Tensor:
        if norm is not None:
            update = getattr(layer, norm)(update)
        if dropout is not None:
            update = getattr(layer, dropout)(update)
        if self.residual_scale is not None:
            update = update * getattr(layer, self.residual_scale)
        return update


_LLAMA = Family()
_GEMMA2 = Family(
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    softcap="attn_logit_softcapping",
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,  # also SmolLM2, TinyLlama, OpenLLaMA, Llama 3.x
    "mistral": Family(window=_configured_window),
    "qwen2": _LLAMA,
    "qwen3": Family(qk_norm="head"),
    "qwen3_moe": Family(qk_norm="head"),
    "qwen3_next": Family(qk_norm="head", linear="linear_attn", gated=True),
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": Family(
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        qk_norm="head",
    ),
    "phi3": Family(
        fused_qkv=True,
        window=_configured_window,
        attention_dropout="resid_attn_dropout",
        mlp_dropout="resid_mlp_dropout",
    ),
    "olmo2": Family(
        attention_norm=None,
        mlp_norm=None,
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        qk_norm="flat",
    ),
    "smollm3": Family(rotary=_by_layer),
    "granite": Family(residual_scale="residual_multiplier"),
}
"""By ``config.model_type``."""


def decoder_stack(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the decoder layers, and its list of layers.

    Raises:
        UserError: if the model has no list of as many layers as its configuration says.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    count = getattr(text, "num_hidden_layers", None)
    found = [
        (parent, child)
        for parent in model.modules()
        for child in parent.children()
        # By name: a layer that is routed has a class of its own under that of the others.
        if isinstance(child, nn.ModuleList)
        and len(child) == count
        and len({(type(x).__module__, type(x).__name__) for x in child}) == 1
    ]
    if count is None or len(found) != 1:
        raise UserError(
            f"{type(model).__name__}: found {len(found)} lists of {count} like decoder layers, need exactly one; a "
            f"router can be added to decoder-only models of transformers (best: {', '.join(FAMILIES)})"
        )
    return found[0]


def family_of(model: Any, layers: nn.ModuleList) -> Family | None:
    """The description of the model's family; None if there is none, or if its layers are not as described."""
    family = FAMILIES.get(str(model.config.get_text_config().model_type))
    if family is None:
        return None
    config = model.config.get_text_config()
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        return None
    for layer in layers:
        for name in family.modules(layer):
            try:
                layer.get_submodule(name)
            except AttributeError:
                return None
    return family
