"""One step of the engine: tokens of many requests, packed; what was decided about them, and where their past is.

N tokens a step, in the order of their requests. Each decides for itself, by the same call as in transformers
(``LayerRouter.decide``). Where the rate is held, a token depends on what earlier tokens of its request took; that is
kept by *cache slot*, beside the keys and values of the token. So it is there wherever they are: after chunked prefill,
for a prefix that another request computed, and after preemption.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from layerroute.routing.serving import Served, held_within
from layerroute.skipping.context import CallContext
from layerroute.skipping.router import LayerRouter

_RUN = 1
_FEW = 64

FREE_ROWS = 6
"""Rows of a product that take no longer than to read its weights: a tile of oneDNN's, in fp32 with AVX-512.

Measured on two cores with weights of SmolLM2-135M: 1 to 6 rows take the same time, 7 and 8 take 1.2 times as long, 12
take 1.35 times.
"""

GATHERED_FROM = 0.08
"""Least share of a step's rows to be spared before it pays to gather the others (``profitability`` may ask for more).

Measured there, too, in prompts of 2,048 tokens: 0.96x of not gathering at 4 %, 1.00x at 8 %, 1.05x at 15 %. In
transformers it pays earlier (``skip.profitability``): there skip paths are computed for all tokens otherwise.
"""


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
        self._runs: dict[str, tuple[Picked, int]] = {}
        self.positions = positions[: self.tokens].long()
        self.token_ids = None if token_ids is None else token_ids[: self.tokens].long()
        self._block_size = block_size

    @cached_property
    def _groups(self) -> list["_Group"]:
        """Tokens that decide together, where thresholds alone are not the whole word; in the order of their turns."""
        within = held_within(self.router.config.serve)
        if within is not None:
            return list(self._by_turn(self._block_size, within))
        return [_Group(self._context(slice(None), None))]

    @cached_property
    def _always(self) -> Tensor | None:
        """(N, 1) tokens that run whatever is decided; None where there are none."""
        config = self.router.config
        ids = config.sink_ids if self.token_ids is not None else None
        if self.tokens <= _FEW:  # plain numbers cost less than a tensor operation
            late = not config.sink_tokens or min(self.positions.tolist()) >= config.sink_tokens
            if late and not (ids and not set(ids).isdisjoint(self.token_ids.tolist())):  # type: ignore[union-attr]
                return None
        always = self.router.sinks(self._context(slice(None), None))[0]
        return always.unsqueeze(-1) if bool(always.any()) else None

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

    def _by_turn(self, block_size: int, within: float) -> Iterator["_Group"]:
        """Requests that decide together: equally many tokens, and none waits for what another of them decides.

        The engine shares a block from when it is scheduled. So a request may continue a prefix that another one
        computes in this very step. Its turn is after the other's, whose last token then has something to recall.
        """
        data = self.metadata
        starts, table = data.query_start_loc.tolist(), data.block_table
        spans = [(r, *span) for r, span in enumerate(itertools.pairwise(starts)) if span[0] < span[1]]
        requests, first = torch.tensor([span[:2] for span in spans]).T
        before = self.positions[first] - 1  # of the request's last token that is in the cache, or -1
        block = table[requests, (before.clamp_min(0) // block_size)].long()
        last = torch.where(before >= 0, block * block_size + before % block_size, -1)
        slots, lasts, turns = data.slot_mapping[: self.tokens].tolist(), last.tolist(), [0] * len(spans)
        owners = {slot: one for one, (_, *span) in enumerate(spans) for slot in slots[slice(*span)]}
        for one in before.argsort().tolist():  # who computes an earlier part comes first
            owner = owners.get(lasts[one])
            turns[one] = 0 if owner is None else turns[owner] + 1
        groups: dict[tuple[int, int], list[int]] = {}
        for one, (_, start, stop) in enumerate(spans):
            groups.setdefault((turns[one], stop - start), []).append(one)
        for (_, length), members in sorted(groups.items()):
            chosen = torch.tensor(members)
            rows = first[chosen, None] + torch.arange(length)
            context = self._context(rows, None)
            always = self.router.sinks(context) if self.router.has_sinks else None
            # To the module, a request has one token behind it: the last one, which recalls all before.
            context.served = Served(within=within, always=always, memory={}, past=1)
            yield _Group(context, rows, data.slot_mapping[rows].long(), last[chosen])

    def decide(self, layer: int, hidden: Tensor) -> None:
        """Let the router that reads the input of ``layer`` (N, D) decide for its sites."""
        # Not all_routings(), which walks through all modules: there may be a router a layer.
        routing: Any = self.router.routings[self.router.deciders[layer]]
        hidden = hidden[: self.tokens]
        if held_within(self.router.config.serve) is None and routing.seen is None:
            ids = None if self.token_ids is None else self.token_ids[None]
            run = routing.expensive(hidden[None], positions=self.positions[None], token_ids=ids)[0]
            if self._always is not None:
                run = run | self._always
        else:
            run = self._decided(layer, routing, hidden)
        counts = run.sum(dim=0).tolist() if self.tokens > 1 else list(map(int, run[0].tolist()))
        picked = Picked(run, counts)
        for column, (site, count) in enumerate(zip(routing.sites, counts, strict=True)):
            self.counts[site] = count
            if count < self.tokens:
                self._runs[site] = picked, column

    def _decided(self, layer: int, routing: Any, hidden: Tensor) -> Tensor:
        """(N, R) as the router decides in transformers, for all tokens alike or request by request."""
        run = torch.empty(self.tokens, len(routing.sites), dtype=torch.bool, device=hidden.device)
        name = f"served{routing.first}"
        for group in self._groups:
            context, rows = group.context, group.rows
            memory = None if context.served is None else context.served.memory
            if memory is not None:  # not sooner: an earlier turn of this step may have written it
                memory[name] = self.memory.read(name, group.last).unsqueeze(1)
            self.router.decide(layer, hidden.unsqueeze(0) if rows is None else hidden[rows], context, None)
            if memory is not None:
                self.memory.write(name, group.slots, memory[name][:, 1:])
            chosen = context.decisions[-1].choice == _RUN
            if rows is None:
                run = chosen[0]
            else:
                run[rows] = chosen
        return run

    def route(self, site: str) -> "SiteRun | None":
        """What a site does in this step; None where all tokens run."""
        if site not in self._runs:
            return None
        picked, column = self._runs[site]
        count = self.counts[site]
        execution = self.router.config.execution
        sparse = execution == "sparse" or (execution == "auto" and self._pays(count))
        context = None
        if self.decoding and execution != "sparse":
            context = self._context_tokens * (self.tokens - count) // self.tokens
        return SiteRun(picked, column, count, sparse, context)

    def _pays(self, count: int) -> bool:
        """Whether enough rows are spared. The first ones are free: a layer's weights are read for one as for all."""
        share = max(GATHERED_FROM, self.router.config.profitability.prefill)
        return self.tokens - max(count, FREE_ROWS) >= max(2, share * self.tokens)

    @cached_property
    def _context_tokens(self) -> int:
        """Tokens that all requests attend to."""
        return int(self.metadata.seq_lens.sum())


@dataclass(slots=True)
class _Group:
    """Tokens of a step that decide together.

    Attributes:
        context: of the call of the router.
        rows: (B, T) where they are among the step's tokens; None: these are all of them.
        slots: (B, T) where the rate is held: of their keys and values.
        last: (B,) there too: the slot of each request's last token before these; negative where there is none.
    """

    context: CallContext
    rows: Tensor | None = None
    slots: Any = None
    last: Any = None


class Picked:
    """Which of N tokens run at each of R sites, (N, R), and where they are; found for all sites in one go."""

    def __init__(self, run: Tensor, counts: list[int]) -> None:
        self._run, self._counts = run, counts
        self._found: list[tuple[Tensor, ...]] = []

    def indices(self, column: int) -> tuple[Tensor, Tensor]:
        """Tokens that run at a site, and tokens that skip, in order."""
        if not self._found:
            run = self._run.T
            others = [len(self._run) - count for count in self._counts]
            for which, counts in ((run, self._counts), (~run, others)):
                self._found.append(which.nonzero()[:, 1].split(counts))
        return self._found[0][column], self._found[1][column]


@dataclass(slots=True)
class SiteRun:
    """What a site does in a step.

    Attributes:
        count: tokens that run.
        sparse: nobody else is computed, but for what costs less than to leave it out.
        context: about how many tokens those that skip would attend to, where each is a request of its own; else None.
    """

    picked: Picked
    column: int
    count: int
    sparse: bool
    context: int | None

    @property
    def indices(self) -> tuple[Tensor, Tensor]:
        """Tokens that run, and tokens that skip, in order."""
        return self.picked.indices(self.column)


def metadata_of(layer_name: str) -> Any:
    """The engine's attention metadata of a layer; None while it measures its memory."""
    from vllm.forward_context import get_forward_context  # here: decisions can be tested without vLLM

    held = get_forward_context().attn_metadata
    return held.get(layer_name) if isinstance(held, dict) else None


def slots_of(layer_name: str) -> Tensor:
    """Where a layer's cache keeps keys and values of the step's tokens."""
    from vllm.forward_context import get_forward_context

    slots: Tensor = get_forward_context().slot_mapping[layer_name]
    return slots
