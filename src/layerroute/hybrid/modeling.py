"""The hybrid model as a transformers ``PreTrainedModel``."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import ModelOutput

from layerroute.errors import UserError
from layerroute.hybrid.cache_layers import count_tokens, fit_cache, note_call, records_past
from layerroute.hybrid.context import TokenContext
from layerroute.hybrid.execution import HybridProfitability, LayerRoute, plan_routes
from layerroute.hybrid.flops import path_costs
from layerroute.hybrid.hybrid_config import PATHS, HybridConfig
from layerroute.hybrid.layers import HybridLayer
from layerroute.hybrid.mixers import GatedDeltaMixer, RMSNorm
from layerroute.objectives.language_model import cross_entropy, shift_labels
from layerroute.ops.gated_delta.inputs import document_resets
from layerroute.ops.routed_attention import document_starts
from layerroute.routing.controls import oracle_choice
from layerroute.routing.decision import RouteDecision
from layerroute.routing.execution import sparse_from
from layerroute.routing.handle import RoutingHandle
from layerroute.routing.module import Routing
from layerroute.routing.routers import MLPRouter
from layerroute.routing.row_state import row_state
from layerroute.routing.serving import Served, held_within


@dataclass
class HybridOutput(ModelOutput):
    """What the models return.

    Attributes:
        loss: mean cross-entropy in nats over the labels (only if labels were given); no other term, ever.
        logits: (B, T, vocabulary).
        past_key_values: the cache, if one was used.
        hidden_states: input of every layer and the final state, if asked for.
        decision: choices at all sites, or None if the pattern has no routed layer.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    decision: RouteDecision | None = None
    last_hidden_state: Tensor | None = None


class HybridPreTrainedModel(PreTrainedModel):
    """Shared by the backbone and the language model: weights' start, and what transformers may do with them."""

    config_class = HybridConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _is_stateful = True  # a recurrent state cannot be rolled back
    _keys_to_ignore_on_load_missing = [r"thresholds\.spread$"]  # older checkpoints have none

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Only functions of `initialization` here: they leave alone what was loaded from a checkpoint.
        std = self.config.initializer_range
        if getattr(module, "started_by_parent", False):
            return  # what is drawn once cannot be drawn again
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=std * getattr(module, "init_scale", 1.0))
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, GatedDeltaMixer):
            for name, value in module.initial_values().items():
                init.copy_(getattr(module, name), value.to(getattr(module, name).device))
        elif isinstance(module, MLPRouter):
            for layer in module.linears():
                last = layer is module.linears()[-1]
                if last and module.zero_init:
                    init.zeros_(layer.weight)
                else:
                    init.normal_(layer.weight, std=0.02)
                bias = torch.zeros_like(layer.bias)
                if last:
                    bias.view(module.sites, -1)[:, -1] = module.initial_bias
                init.copy_(layer.bias, bias)
        elif isinstance(module, Routing):
            init.constant_(module.temperature, 1.0)
            init.constant_(module.rate, module.config.rate)
            init.copy_(module.costs, torch.tensor(module.initial_costs))
            init.zeros_(module.thresholds.value)
            init.zeros_(module.thresholds.updates)
            init.ones_(module.thresholds.spread)
        elif isinstance(module, LlamaRotaryEmbedding):
            super()._init_weights(module)


class HybridModel(RoutingHandle, HybridPreTrainedModel):
    """Embedding, layers and final norm."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(HybridLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config) if config.use_rope else None  # type: ignore[arg-type]
        self.routing = nn.ModuleDict()
        routed = config.routed_layers
        if routed and config.router_mode == "parallel":
            self.routing["parallel"] = self._make_routing(config, 0, len(config.sites))
        first = 0
        for layer in routed if config.router_mode == "sequential" else ():
            count = len(config.sites_of(layer))
            self.routing[f"layer{layer}"] = self._make_routing(config, first, count)
            first += count
        self.router_layer = (
            config.router_layer if config.router_layer is not None else (routed[0] - 1 if routed else -1)
        )
        if config.residual_init_scale:
            for name, module in self.named_modules():
                if name.endswith(("o_proj", "down_proj")):
                    module.init_scale = (2 * config.num_hidden_layers) ** -0.5
        self.gradient_checkpointing = False
        self.execution, self.sparse_obstacle = config.execution, config.sparse_obstacle
        self.post_init()

    @staticmethod
    def _make_routing(config: HybridConfig, first: int, count: int) -> Routing:
        part = slice(first, first + count)
        return Routing(
            config.routing_config,
            config.hidden_size,
            sites=config.sites[part],
            paths=PATHS,
            costs=path_costs(config)[part],
            first=first,
            total=len(config.sites),
        )

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        use_cache: bool | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> HybridOutput:
        """Run all layers, deciding before each routed one; see ``HybridForCausalLM.forward``."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and document_ids is None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "document_ids": document_ids,
        }
        if past_key_values is not None and hidden.shape[1] > 1 and records_past(past_key_values):
            output = self._in_two(hidden, past_key_values, output_hidden_states, **given)
        else:
            output = self._run(hidden, past_key_values, output_hidden_states, **given)
        if output.decision is not None:
            self.publish(output.decision)
        return output

    def _run(
        self,
        hidden: Float[Tensor, "B T D"],
        cache: Cache | None,
        output_hidden_states: bool | None,
        *,
        input_ids: Tensor | None,
        **given: Tensor | None,
    ) -> HybridOutput:
        context = self._context(hidden, cache, **given)
        valid = context.valid
        if valid is None:
            valid = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        # Decided outside of the layers, so that gradient checkpointing does not draw noise or move thresholds twice.
        known: dict[str, Any] = {
            "valid": valid,
            "positions": context.positions,
            "token_ids": input_ids,
            "served": self._served(context),
            "asked": self._asked(input_ids, context),
        }
        states: list[Tensor] = []
        decisions: list[RouteDecision] = []
        routes: list[LayerRoute | None] = []
        offset = 0
        for index, layer in enumerate(self.layers):
            if output_hidden_states:
                states.append(hidden)
            gate = choice = route = None
            if layer.kind == "routed":
                if self.config.router_mode == "sequential":
                    decisions.append(self.routing[f"layer{index}"](hidden, **known))
                    routes = self._routes(decisions[-1], valid)
                    offset = 0
                count = len(self.config.sites_of(index))
                gate = decisions[-1].gate[:, :, offset : offset + count]
                choice = decisions[-1].choice[:, :, offset : offset + count]
                offset += count
                route = routes.pop(0)
            hidden = layer(hidden, context, gate, choice, route)
            if index == self.router_layer and "parallel" in self.routing:
                decisions.append(self.routing["parallel"](hidden, **known))
                routes = self._routes(decisions[-1], valid)
        hidden = self.norm(hidden)
        if cache is not None:
            count_tokens(cache, hidden.shape[1])
        return HybridOutput(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=(*states, hidden) if output_hidden_states else None,
            decision=RouteDecision.join(decisions) if decisions else None,
        )

    def _in_two(
        self,
        hidden: Float[Tensor, "B T D"],
        cache: Cache,
        output_hidden_states: bool | None,
        *,
        attention_mask: Tensor | None,
        **given: Tensor | None,
    ) -> HybridOutput:
        """All tokens but the last, then the last: who drafts takes back up to one token of what it was given."""
        past, time = int(cache.get_seq_length()), hidden.shape[1]
        parts: list[HybridOutput] = []
        for start, stop in ((0, time - 1), (time - 1, time)):
            mask = None if attention_mask is None else attention_mask[:, : past + stop]
            part = {name: None if x is None else x[:, start:stop] for name, x in given.items()}
            parts.append(
                self._run(hidden[:, start:stop], cache, output_hidden_states, attention_mask=mask, **part)
            )
        first, last = parts
        states = zip(first.hidden_states or (), last.hidden_states or (), strict=True)
        decisions = [part.decision for part in parts if part.decision is not None]
        return HybridOutput(
            last_hidden_state=torch.cat(
                [part.last_hidden_state for part in parts if part.last_hidden_state is not None], dim=1
            ),
            past_key_values=cache,
            hidden_states=tuple(torch.cat(pair, dim=1) for pair in states) if output_hidden_states else None,
            decision=RouteDecision.one_after_the_other(decisions) if decisions else None,
        )

    def _asked(self, token_ids: Tensor | None, context: TokenContext) -> Bool[Tensor, "B T"] | None:
        """For ``oracle``: which of the new tokens are keys that are asked for; the cache keeps what it has read."""
        routing = self.config.routing_config
        if routing.control != "oracle" or token_ids is None or not self.config.routed_layers:
            return None
        assert routing.control_tokens is not None
        history = token_ids
        if context.cache is not None:
            memory = row_state(context.cache, self.config.routed_layers[0])
            if context.past:
                history = torch.cat([memory["oracle"][:, : context.past], token_ids], dim=1)
            memory["oracle"] = history
        first, end = routing.control_tokens
        choice = oracle_choice(
            history, tokens=(first, end), after=routing.control_after, groups=context.document_ids
        )
        return choice[:, -token_ids.shape[1] :]

    def _served(self, context: TokenContext) -> Served | None:
        """What holds the rate in this call; None where thresholds alone decide."""
        within = held_within(self.config.serve)
        if within is None or self.training:
            return None
        ids, cache = context.document_ids, context.cache
        return Served(
            within=within,
            begins=None if ids is None else document_resets(ids),
            memory=None if cache is None else row_state(cache, self.config.routed_layers[0]),
            past=context.past,
        )

    def _routes(self, decision: RouteDecision, valid: Tensor) -> list[LayerRoute | None]:
        """How the layers of a decision are executed; None is masked."""
        config = self.config
        heads = config.num_attention_heads if config.granularity == "head" else None
        estimator = config.routing_config.estimator
        gated = decision.gate.requires_grad or (self.training and estimator == "soft")
        threshold = sparse_from(
            self.execution,
            HybridProfitability.of(config.profitability),
            estimator=estimator,
            gated=gated,
            obstacle=self.sparse_obstacle,
            training=self.training and torch.is_grad_enabled(),
            time=valid.shape[1],
        )
        if threshold is None:
            return [None] * (len(decision.sites) // (heads or 1))
        return plan_routes(decision, valid, threshold, heads=heads, gated=gated)

    def _context(
        self,
        hidden: Tensor,
        cache: Cache | None,
        *,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        document_ids: Tensor | None,
    ) -> TokenContext:
        batch, time = hidden.shape[:2]
        past = 0
        if cache is not None:
            fit_cache(cache, self.config.layer_pattern, own_context=self.config.context == "own_context")
            past = int(cache.get_seq_length())
            note_call(cache, time)
        if document_ids is not None:
            if cache is not None:
                raise ValueError("document_ids are for packed training and scoring; use no cache with them")
            if self.config.context == "own_context" and self.config.granularity == "head":
                raise UserError(
                    "document_ids with own_context need granularity: token; heads own different tokens"
                )
        key_valid: Bool[Tensor, "B S"] | None = None
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[1] < past + time:
                raise ValueError(
                    f"attention_mask must be (batch, {past + time}): cached and new tokens; "
                    f"got {tuple(attention_mask.shape)}"
                )
            key_valid = attention_mask[:, : past + time].bool()
            if not torch.compiler.is_compiling() and bool(key_valid.all()):
                key_valid = None
        if position_ids is not None:
            positions = position_ids.expand(batch, -1)
        elif document_ids is None and key_valid is not None:
            positions = (key_valid.long().cumsum(dim=1) - 1).clamp_min(0)[:, past:]
        else:
            positions = torch.arange(past, past + time, device=hidden.device).expand(batch, -1)
            if document_ids is not None:
                positions = positions - document_starts(document_ids)
        return TokenContext(
            valid=None if key_valid is None else key_valid[:, past:],
            key_valid=key_valid,
            positions=positions,
            document_ids=document_ids,
            rotary=None if self.rotary_emb is None else self.rotary_emb(hidden, positions),
            cache=cache,
            past=past,
        )


class HybridForCausalLM(HybridPreTrainedModel, GenerationMixin):
    """The hybrid model with an output matrix: trains, scores and generates."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.model = HybridModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> HybridOutput | tuple[Any, ...]:
        """Score tokens and say which path each took.

        Args:
            input_ids: tokens.
            attention_mask: (B, cached + T), 0 at padding (left padding for generation).
            position_ids: positions for the rotary embedding; by default counted over real tokens, and from 0 in
                each packed document.
            past_key_values: a cache from an earlier call.
            inputs_embeds: embeddings in place of tokens.
            labels: the tokens themselves, -100 where nothing is to be predicted; shifted here.
            use_cache: default: the configuration's, and never in training.
            document_ids: which packed document each token belongs to; attention, GDN state and convolution do not
                cross documents.
            logits_to_keep: compute logits of the last n tokens only (0: all), of these indices, or (with ``labels``)
                where a mask (B, T) says so: logits are then (1, N, V), and the loss is that of these N positions.
            output_hidden_states: return the input of each layer and the final state.
            num_items_in_batch: divide the loss by this count instead of the tokens of this call.
            return_dict: False returns a tuple.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            document_ids=document_ids,
            output_hidden_states=output_hidden_states,
        )
        hidden = output.last_hidden_state
        targets = None if labels is None else shift_labels(labels)
        if isinstance(logits_to_keep, Tensor) and logits_to_keep.ndim == 2:
            hidden = hidden[logits_to_keep].unsqueeze(0)
            targets = None if targets is None else targets[logits_to_keep].unsqueeze(0)
        elif isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_head(hidden)
        loss = None
        if targets is not None:
            loss = cross_entropy(logits, targets, count=num_items_in_batch)
        result = HybridOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            decision=output.decision,
        )
        return result.to_tuple() if return_dict is False else result

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        """For generation with a static cache: GDN layers need to know of the padding itself, so no mask is made."""
        return attention_mask

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Not possible: it packs the tokens of many requests into one row."""
        raise UserError(
            "continuous batching (generate_batch, cache_implementation='paged') packs requests into one row, whose GDN "
            "states would mix; use generate()"
        )
