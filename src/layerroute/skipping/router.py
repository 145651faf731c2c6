"""The module that a routed model carries: routers, skip paths and how the model is to be run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from layerroute.errors import UserError
from layerroute.ops.tokens import TokenIndex, token_indices
from layerroute.routing.decision import RouteDecision
from layerroute.routing.execution import sparse_from
from layerroute.routing.handle import RoutingHandle
from layerroute.routing.module import Routing
from layerroute.routing.row_state import row_state
from layerroute.routing.serving import Served, held_within
from layerroute.skipping.budgets import Budgets
from layerroute.skipping.context import CallContext
from layerroute.skipping.devices import execution_device, is_hooked, unhook
from layerroute.skipping.fingerprint import BaseSeen
from layerroute.skipping.groups import codes_of, force_run, remember_prefix, spread
from layerroute.skipping.history import with_history
from layerroute.skipping.routes import DENSE, MASKED, SKIPPED, SPARSE, SiteRoute
from layerroute.skipping.skip_config import PATHS, SkipConfig, layer_and_unit
from layerroute.skipping.skip_paths import SKIP_PATH_MODULES, LowRankSkip


class LayerRouter(RoutingHandle):
    """Decides which tokens run at which sites. ``add_router`` puts it into the model as ``layerroute``.

    Args:
        config: with ``layers`` spelt out (``SkipConfig.resolve``).
        hidden_size: D.
        costs: relative cost of (skip, run) at each site.
        sparse_obstacle: why sparse execution is out of the question for this model, or None.

    Attributes:
        routings: one ``Routing``, or one a layer (``per_layer``). Thresholds live in them.
        skip_paths: skip paths by site name (dots replaced), empty for ``identity``.
        budgets: rates and thresholds by budget, for a configuration with ``budgets``; else None.
        handles: of the hooks that the router put into the model.
        seen: what the base was like when the router was added to it.
        steps: of ``compile_decoding``; None: layers are carried out as they are.
    """

    def __init__(
        self,
        config: SkipConfig,
        hidden_size: int,
        *,
        costs: Sequence[Sequence[float]] | None = None,
        sparse_obstacle: str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.sites, self.sparse_obstacle = config, config.sites(), sparse_obstacle
        layers, units = config.layers or [], config.units
        groups = [[layer] for layer in layers] if config.granularity == "per_layer" else [layers]
        self.routings = nn.ModuleList()
        for group in groups:
            sites = [f"layer{layer}.{unit}" for layer in group for unit in units]
            own = None if costs is None else [costs[self.sites.index(site)] for site in sites]
            self.routings.append(
                Routing(
                    config.routing,
                    hidden_size * (1 + config.history),
                    sites=sites,
                    paths=PATHS,
                    costs=own,
                    causal=config.causal,
                    first=self.sites.index(sites[0]),
                    total=len(self.sites),
                )
            )
        self.budgets = None if not config.budgets else Budgets(config.budgets)
        if self.budgets is not None:
            self.set_budget(config.budget if self.budgets.holds(config.budget) else self.budgets.known[0])
        self.deciders: dict[int, int] = (
            {layer: index for index, layer in enumerate(layers)}
            if config.reads_at is None
            else {config.reads_at: 0}
        )
        self.skip_paths = nn.ModuleDict()
        if config.skip_path != "identity":
            path = SKIP_PATH_MODULES[config.skip_path]
            self.skip_paths.update({_key(site): path(hidden_size, config.rank) for site in self.sites})
        self.execution = config.execution
        self.handles: list[RemovableHandle] = []
        self.seen: BaseSeen | None = None
        self.steps: Any = None

    @property
    def paged_obstacle(self) -> str | None:
        """Why continuous batching is out of the question for this router, or None."""
        if self.config.kv == "evict":
            reason = "kv: evict keeps other keys in each layer"
        elif self.config.granularity not in ("token", "per_layer"):
            reason = f"granularity: {self.config.granularity} decides about whole sequences, which it packs into one"
        elif held_within(self.config.serve) is not None:
            reason = f"serve: {self.config.serve} counts by sequence, and it packs them into one"
        else:
            return None
        return (
            f"continuous batching (generate_batch, cache_implementation='paged') cannot serve this router: {reason}; "
            "use generate()"
        )

    def place(self, layers: nn.ModuleList) -> None:
        """Put each part where the layer that uses it computes; nothing of the router is ever offloaded."""
        if is_hooked(self):
            unhook(self)
        for layer, routing in self.deciders.items():
            self.routings[routing].to(execution_device(layers[layer]))
        for site, path in self.skip_paths.items():
            path.to(execution_device(layers[int(site.removeprefix("layer").split("_")[0])]))

    def skip_path(self, layer: int, unit: str) -> LowRankSkip | None:
        """The skip path of a site; None is the identity."""
        if self.config.skip_path == "identity":
            return None
        found = self.skip_paths[_key(f"layer{layer}.{unit}")]
        assert isinstance(found, LowRankSkip)
        return found

    def all_routings(self) -> list[Routing]:
        """The routing modules, in the order of their sites; without a walk through the model, for every layer asks."""
        return list(self.routings)  # type: ignore[arg-type]

    def set_rate(self, rate: float) -> None:
        """The share of tokens asked to run (controls and budgets follow it at once).

        Where sites have rates of their own, those are moved in proportion towards running everywhere, or away from it.
        """
        if self.budgets is None:
            super().set_rate(rate)
        else:
            self._set_rates(self.budgets.scaled(rate))

    def set_budget(self, budget: float) -> None:
        """Serve another budget: the share of routed compute to skip.

        Raises:
            UserError: unless the router was calibrated for several budgets, and this one is not outside of them.
        """
        if self.budgets is None:
            raise UserError(
                "this router serves one budget; calibrate or train one with several to choose per call"
            )
        rates, thresholds = self.budgets.choose(budget)
        self._set_rates(rates)
        first = 0
        for routing in self.all_routings():
            part = slice(first, first + len(routing.sites))
            routing.thresholds.value.copy_(thresholds[part])
            first = part.stop

    def store_thresholds(self) -> None:
        """Keep the present thresholds as those of the present budget."""
        if self.budgets is not None:
            values = [routing.thresholds.value.cpu() for routing in self.all_routings()]
            self.budgets.store(torch.cat(values))

    def _set_rates(self, rates: Float[Tensor, "R"]) -> None:
        first = 0
        for routing in self.all_routings():
            part = slice(first, first + len(routing.sites))
            routing.rate.copy_(rates[part])
            first = part.stop

    def decide(
        self, layer: int, hidden: Float[Tensor, "B T D"], context: CallContext, cache: Cache | None
    ) -> None:
        """Run the router that reads the input of ``layer``, and lay down the routes of its sites.

        A learned router whose parameters are all frozen decides as at inference, also while the model trains: without
        noise, by its thresholds, and without gradient to the model. With ``routing.budget: quantile`` each training
        batch is cut at its own quantile all the same: adapters move the states that a frozen router reads.
        """
        routing = self.all_routings()[self.deciders[layer]]
        if self.config.history:
            hidden = context.read = with_history(hidden, context.read, self.config.history)
        if routing.training or torch.is_grad_enabled():
            frozen = routing.router is not None and not any(p.requires_grad for p in routing.parameters())
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen), _in_mode(routing, frozen):
                decision = self._decide(routing, layer, hidden, context, cache)
        else:
            decision = self._decide(routing, layer, hidden, context, cache)
        context.decisions.append(decision)
        for (site_layer, unit), route in self._routes(routing, decision, context).items():
            context.routes.setdefault(site_layer, {})[unit] = route

    def watch(
        self, layer: int, hidden: Float[Tensor, "B T D"], context: CallContext, cache: Cache | None
    ) -> None:
        """While disabled: keep what a later decision about the sequence in this cache will be made from."""
        if self.config.granularity == "sequence" and cache is not None:
            self._remember(layer, hidden, context, cache)

    def _remember(
        self, layer: int, hidden: Float[Tensor, "B T D"], context: CallContext, cache: Cache
    ) -> tuple[Float[Tensor, "B N D"], Int[Tensor, "B N"]]:
        """States and codes of the first tokens of each row, those of earlier calls among them."""
        length, state = self.config.prefix_tokens, row_state(cache, layer)
        held = min(int(state["held"].max()), context.past) if "held" in state else 0
        if held < context.past:
            raise UserError(
                "this cache was filled without the router, which decides from a sequence's first tokens "
                "(granularity: sequence); begin with an empty cache"
            )
        state["held"] = torch.full((len(hidden),), context.keys)  # on the CPU
        inside = context.valid & (context.positions < length)
        return remember_prefix(state, hidden.float(), codes_of(context), inside, context, length)

    def _decide(
        self, routing: Routing, layer: int, hidden: Tensor, context: CallContext, cache: Cache | None
    ) -> RouteDecision:
        if self.config.granularity in ("token", "per_layer") or routing.chooser is not None:
            decision = routing(
                hidden,
                valid=context.valid,
                positions=context.positions,
                token_ids=context.token_ids,
                served=self._served(context, cache),
            )
        elif self.config.granularity == "sequence":
            decision = self._decide_by_prefix(routing, layer, hidden, context, cache)
        else:
            decision = self._decide_by_mean(routing, layer, hidden, context, cache)
        if routing.chooser is None and self.has_sinks:
            decision = force_run(decision, self.sinks(context))
        return decision

    def _served(self, context: CallContext, cache: Cache | None) -> Served | None:
        """What holds the rate in this call, for all routers alike; None where thresholds alone decide."""
        within = held_within(self.config.serve)
        if within is None or self.training:
            return None
        if context.served is None:
            documents = context.documents(cache)
            context.served = Served(
                within=within,
                begins=None if documents is None else F.pad(documents.diff(dim=1) != 0, (1, 0)),
                always=self.sinks(context) if self.has_sinks else None,
                memory=None if cache is None else row_state(cache, min(self.deciders)),
                past=context.past,
            )
        return context.served

    @property
    def has_sinks(self) -> bool:
        """Whether any tokens run whatever is decided."""
        return bool(self.config.sink_tokens or self.config.sink_ids)

    def sinks(self, context: CallContext) -> Bool[Tensor, "B T"]:
        """Tokens that always run; found once a call, for a router at every layer asks."""
        if context.sinks is None:
            context.sinks = context.positions < self.config.sink_tokens
            for token in self.config.sink_ids or []:
                if context.token_ids is not None:
                    context.sinks = context.sinks | (context.token_ids == token)
        return context.sinks

    def finish(self, context: CallContext) -> None:
        """Publish the decision of a call that has ended."""
        if context.decisions:
            self.publish(RouteDecision.join(context.decisions))

    # Decisions about whole sequences

    def _decide_by_prefix(
        self, routing: Routing, layer: int, hidden: Tensor, context: CallContext, cache: Cache | None
    ) -> RouteDecision:
        """One choice a sequence or document, from the mean of its first tokens, which run."""
        length = self.config.prefix_tokens
        batch, time = context.valid.shape
        documents = context.documents(cache)
        document = context.positions.new_zeros(batch, time) if documents is None else documents
        inside = context.valid & (context.positions < length)
        if cache is None:
            # Sums by document as one product; documents are few.
            member = F.one_hot(document).transpose(1, 2) * inside.unsqueeze(1)
            pooled = (member.to(torch.float32) @ hidden.float()) / length
            key = (member * codes_of(context).unsqueeze(1)).sum(dim=-1)
        else:
            states, codes = self._remember(layer, hidden, context, cache)
            pooled, key = states.sum(dim=1, keepdim=True) / length, codes.sum(dim=1, keepdim=True)
        count = pooled.shape[1]
        decides = F.one_hot(document, count) * (context.valid & ~inside).unsqueeze(-1)
        decision = routing(
            pooled,
            valid=decides.any(dim=1),
            positions=torch.zeros(batch, count, dtype=torch.long, device=hidden.device),
            token_ids=key,
        )
        return force_run(spread(decision, document, context.valid), inside)

    def _decide_by_mean(
        self, routing: Routing, layer: int, hidden: Tensor, context: CallContext, cache: Cache | None
    ) -> RouteDecision:
        """One choice a sequence, or a batch, from the mean over all its tokens. It sees the future."""
        batch, time = context.valid.shape
        held = None if cache is None else row_state(cache, layer)
        zeros = context.positions.new_zeros(batch, time)
        if held and context.past:
            choice = held["choice"].unsqueeze(1)
            gate = F.one_hot(choice, len(PATHS)).to(torch.float32)
            decision = RouteDecision(
                probabilities=held["probabilities"].unsqueeze(1),
                choice=choice,
                valid=context.valid.any(dim=1, keepdim=True),
                sites=routing.sites,
                paths=routing.paths,
                costs=routing.costs,
                gate=gate,
                causal=routing.causal,
            )
            return spread(decision, zeros, context.valid)
        weight = context.valid.unsqueeze(-1).float()
        together = (0, 1) if self.config.granularity == "batch" else (1,)
        mean = (hidden.float() * weight).sum(dim=together, keepdim=True)
        mean = mean / weight.sum(dim=together, keepdim=True).clamp_min(1)
        rows = mean.shape[0]
        ids = zeros if context.token_ids is None else context.token_ids.long()
        decision = routing(
            mean,
            valid=torch.ones(rows, 1, dtype=torch.bool, device=hidden.device),
            positions=zeros[:rows, :1],
            token_ids=((ids + 1) * context.valid).sum(dim=together, keepdim=True).view(rows, 1),
        )
        whole = spread(decision, zeros, context.valid)
        if held is not None:
            held["choice"], held["probabilities"] = whole.choice[:, 0], whole.probabilities[:, 0].detach()
        return whole

    # From decisions to routes

    def _routes(
        self, routing: Routing, decision: RouteDecision, context: CallContext
    ) -> Mapping[tuple[int, str], SiteRoute]:
        """By layer and unit. What ``modes`` depend on comes from the device in one synchronisation."""
        gated = decision.gate.requires_grad or (self.training and routing.config.estimator == "soft")
        threshold = sparse_from(
            self.execution,
            self.config.profitability,
            estimator=routing.config.estimator,
            gated=gated,
            obstacle=self.sparse_obstacle,
            training=self.training and torch.is_grad_enabled(),
            time=context.time,
            whole_only=context.full_layers_only,
        )
        if context.steps is not None and not self.steps.reads:
            threshold = None
        sites = len(decision.sites)
        modes = [MASKED] * sites
        indices: list[TokenIndex | None] = [None] * sites
        if threshold is not None:
            chosen = (decision.choice == len(PATHS) - 1) & context.valid.unsqueeze(-1)
            here = torch.cat([chosen, context.valid.unsqueeze(-1)], dim=-1).flatten(0, 1).T
            on_host = context.to_host(here)  # the call's one synchronisation, for a router that decides once
            *counts, total = on_host.sum(dim=1).tolist()
            # Compiled steps know no gathering; a layer's weights are read for one row as for all.
            least = math.inf if context.steps is not None else threshold
            modes = [
                self._mode(name, count, total, least, gated)
                for name, count in zip(decision.sites, counts, strict=True)
            ]
            if SPARSE in modes:
                sparse = [mode == SPARSE for mode in modes]
                paths = self.config.skip_path != "identity"
                indices = token_indices(on_host[:-1], counts, sparse, context.time, here.device, rest=paths)
        return {
            layer_and_unit(name): SiteRoute(mode=mode, decision=decision, site=site, gated=gated, index=index)
            for site, (name, mode, index) in enumerate(zip(decision.sites, modes, indices, strict=True))
        }

    def _mode(self, site: str, count: int, total: int, threshold: float, gated: bool) -> str:
        if count == 0:
            return SKIPPED
        # A cache with evicted tokens is not one that the plain layer can read, even if all new tokens run.
        readable = self.config.kv == "project" or site.endswith(".mlp")
        if count == total and readable:
            return MASKED if gated else DENSE  # as dear, but the gate gets its gradient
        return SPARSE if total - count >= threshold * total else MASKED

    def extra_repr(self) -> str:
        """What is skipped, in the model's printout."""
        config = self.config
        return f"unit={config.unit}, granularity={config.granularity}, kv={config.kv}, layers={config.layers}"


@contextmanager
def _in_mode(routing: Routing, frozen: bool) -> Iterator[None]:
    before, cutting = routing.training, routing.cutting
    routing.training = before and not frozen
    routing.cutting = cutting or (before and frozen and routing.config.budget == "quantile")
    try:
        yield
    finally:
        routing.training, routing.cutting = before, cutting


def _key(site: str) -> str:
    return site.replace(".", "_")
