"""One step of the engine: tokens of many requests, packed; what was decided about them, and where their past is.

N tokens a step, in the order of their requests. Each decides for itself, by the same call as in transformers
(``LayerRouter.decide``). Where the rate is held, a token depends on what earlier tokens of its request took; that is
kept by *cache slot*, beside the keys and values of the token. So it is there wherever they are: after chunked prefill,
for a prefix that another request computed, and after preemption.
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context

from layerroute.routing.serving import Served
from layerroute.skipping.context import CallContext
from layerroute.skipping.router import LayerRouter

_RUN = 1


class SlotMemory:
    """What routing modules recall of a token, by the slot of its keys and values: (slots, 2) by module."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def read(self, name: str, slots: Tensor) -> Tensor:
        """(B, 2) of the tokens in ``slots``; zeros where the slot is negative: there is no earlier token."""
        held = self._room(name, slots)
        return held[slots.clamp_min(0)] * (slots >= 0).unsqueeze(-1)

    def write(self, name: str, slots: Tensor, values: Tensor) -> None:
        """Keep (B, T, 2) for the tokens in (B, T) ``slots``."""
        self._room(name, slots)[slots] = values

    def _room(self, name: str, slots: Tensor) -> Tensor:
        needed = max(0, int(slots.max())) + 1
        held = self._held.get(name)
        if held is None or len(held) < needed:
            grown = torch.zeros(max(needed, 2 * (0 if held is None else len(held))), 2, dtype=torch.long)
            if held is not None:
                grown[: len(held)] = held
            self._held[name] = held = grown
        return held


class Step:
    """The tokens of one step and the decisions about them.

    Args:
        router: of the model.
        positions: (N,) in their requests.
        token_ids: (N,), or None where the engine was given embeddings.
        metadata: the engine's attention metadata of one layer.
        memory: of the model, where the rate is held.
        block_size: tokens of a cache block, where the rate is held.

    Attributes:
        tokens: N real ones; whatever else is in the buffers decides nothing.
        decoding: whether each request has one token.
        counts: by site, tokens that run.
    """

    def __init__(
        self,
        router: LayerRouter,
        positions: Tensor,
        token_ids: Tensor | None,
        metadata: Any,
        memory: SlotMemory,
        block_size: int,
    ) -> None:
        self.router, self.memory = router, memory
        self.tokens = int(metadata.num_actual_tokens)
        self.decoding = int(metadata.max_query_len) == 1
        self.metadata = metadata
        self.counts: dict[str, int] = {}
        self._runs: dict[str, Tensor] = {}
        self.positions = positions[: self.tokens].long()
        self.token_ids = None if token_ids is None else token_ids[: self.tokens].long()
        self._groups: list[tuple[Tensor | None, Tensor | None, CallContext]] = []
        if router.config.serve == "rate":
            self._groups = list(self._by_length(block_size))
        else:
            self._groups = [(None, None, self._context(slice(None), None))]

    def _context(self, rows: Any, served: Served | None) -> CallContext:
        positions, ids = self.positions[rows], None if self.token_ids is None else self.token_ids[rows]
        if positions.ndim == 1:
            positions, ids = positions.unsqueeze(0), None if ids is None else ids.unsqueeze(0)
        return CallContext(
            valid=torch.ones_like(positions, dtype=torch.bool),
            positions=positions,
            token_ids=ids,
            before=0,
            padding_mask=None,
            position_ids=None,
            explicit_mask=True,
            full_layers_only=True,  # the router lays down no routes of its own
            paged=True,
            served=served,
        )

    def _by_length(self, block_size: int) -> Any:
        """Requests with equally many tokens in this step decide together: rows, slots, and what they recall."""
        data = self.metadata
        starts, table = data.query_start_loc.tolist(), data.block_table
        lengths: dict[int, list[int]] = {}
        for request, (start, stop) in enumerate(itertools.pairwise(starts)):
            lengths.setdefault(stop - start, []).append(request)
        for length, requests in lengths.items():
            if not length:
                continue
            first = torch.tensor([starts[request] for request in requests])
            rows = first[:, None] + torch.arange(length)
            before = self.positions[first] - 1  # of the request's last token that is in the cache, or -1
            block = table[torch.tensor(requests), (before.clamp_min(0) // block_size)].long()
            slots = torch.where(before >= 0, block * block_size + before % block_size, -1)
            memory = {}
            for routing in self.router.all_routings():
                name = f"served{routing.first}"
                memory[name] = self.memory.read(name, slots).unsqueeze(1)
            context = self._context(rows, None)
            router = self.router
            always = router._sinks(context) if router._has_sinks else None
            # To the module, a request has one token behind it: the last one, which recalls all before.
            context.served = Served(always=always, memory=memory, past=1)
            yield rows, data.slot_mapping[rows].long(), context

    def decide(self, layer: int, hidden: Tensor) -> None:
        """Let the router that reads the input of ``layer`` (N, D) decide for its sites."""
        hidden = hidden[: self.tokens]
        choices = []
        for rows, slots, context in self._groups:
            self.router.decide(layer, hidden.unsqueeze(0) if rows is None else hidden[rows], context, None)
            decision = context.decisions[-1]
            if slots is not None and context.served is not None and context.served.memory is not None:
                name = f"served{self.router.all_routings()[self.router.deciders[layer]].first}"
                if name in context.served.memory:
                    self.memory.write(name, slots, context.served.memory[name][:, 1:])
            choices.append((rows, decision.choice))
        sites = decision.sites
        if choices[0][0] is None:
            run = choices[0][1][0] == _RUN
        else:
            run = torch.empty(self.tokens, len(sites), dtype=torch.bool, device=hidden.device)
            for rows, choice in choices:
                run[rows] = choice == _RUN
        for site, column, count in zip(sites, run.T, run.sum(dim=0).tolist(), strict=True):
            self._runs[site], self.counts[site] = column, count

    def route(self, layer: int, unit: str) -> "SiteRun | None":
        """What a site does in this step; None where all tokens run."""
        site = f"layer{layer}.{unit}"
        if site not in self._runs or self.counts[site] == self.tokens:
            return None
        return SiteRun(self._runs[site], self.counts[site], self._sparse(self.counts[site]))

    def _sparse(self, count: int) -> bool:
        config = self.router.config
        if config.execution != "auto" or not count:
            return config.execution != "masked"
        limits = config.profitability
        share = limits.decode if self.decoding else limits.prefill
        return self.tokens - count >= share * self.tokens


class SiteRun:
    """Which tokens run at a site: ``count`` of those where ``run`` is true; ``sparse``: nobody else is computed."""

    def __init__(self, run: Tensor, count: int, sparse: bool) -> None:
        self.run, self.count, self.sparse = run, count, sparse
        self._indices: tuple[Tensor, Tensor] | None = None

    @property
    def indices(self) -> tuple[Tensor, Tensor]:
        """Tokens that run, and tokens that skip, in order."""
        if self._indices is None:
            self._indices = self.run.nonzero().squeeze(1), (~self.run).nonzero().squeeze(1)
        return self._indices


def metadata_of(layer_name: str) -> Any:
    """The engine's attention metadata of a layer; None while it measures its memory."""
    held = get_forward_context().attn_metadata
    return held.get(layer_name) if isinstance(held, dict) else None
