"""A step's tokens that run, in pieces: each sees exactly what it would see among all."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from layerroute.skipping import SkipConfig
from layerroute.skipping.router import LayerRouter
from layerroute.skipping.skip_config import SkipProfitability
from layerroute.vllm.attention import pieces
from layerroute.vllm.step import Picked, SlotMemory, Step


@dataclass
class Metadata:
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    num_actual_tokens: int = 0
    max_query_len: int = 0
    max_seq_len: int = 0
    slot_mapping: torch.Tensor | None = None


# Three requests: a prompt of 9 whole, one token behind 20, and 5 tokens behind 3.
STEP = Metadata(
    query_start_loc=torch.tensor([0, 9, 10, 15], dtype=torch.int32),
    seq_lens=torch.tensor([9, 21, 8], dtype=torch.int32),
    block_table=torch.tensor([[7], [8], [9]]),
)
REQUEST = [0] * 9 + [1] + [2] * 5
POSITION = [*range(9), 20, *range(3, 8)]


@pytest.mark.parametrize("gap", [0, 1, 2, 100])
@pytest.mark.parametrize("seed", range(20))
def test_each_token_sees_its_own_past(seed, gap):
    generator = torch.Generator().manual_seed(seed)
    index = (torch.rand(15, generator=generator) < 0.5).nonzero().squeeze(1)
    if not len(index):
        index = torch.tensor([seed % 15])
    part, inside, total = pieces(STEP, index, gap)
    starts = part.query_start_loc.tolist()
    assert starts[-1] == total == part.num_actual_tokens
    assert part.max_query_len == max(b - a for a, b in itertools.pairwise(starts))
    for token, place in zip(index.tolist(), inside.tolist(), strict=True):
        piece = next(i for i in range(len(starts) - 1) if starts[i] <= place < starts[i + 1])
        # Bottom-right aligned: the last token of a piece sees all of it.
        sees = int(part.seq_lens[piece]) - (starts[piece + 1] - 1 - place)
        assert sees == POSITION[token] + 1
        assert part.block_table[piece].tolist() == STEP.block_table[REQUEST[token]].tolist()
    if gap == 0:
        assert total == len(index)


def test_slots_recall_what_was_written_and_nothing_before_the_first_token():
    memory = SlotMemory()
    assert memory.read("a", torch.tensor([-1, -1])).tolist() == [[0, 0], [0, 0]]
    memory.write("a", torch.tensor([[3, 900]]), torch.tensor([[[1, 2], [3, 4]]]))
    assert memory.read("a", torch.tensor([900, -1, 3, 4])).tolist() == [[3, 4], [0, 0], [1, 2], [0, 0]]


def test_where_tokens_run_and_skip_is_found_for_all_sites():
    run = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    run[:, 2] = False
    picked = Picked(run, run.sum(dim=0).tolist())
    for site in range(4):
        ran, skipped = picked.indices(site)
        assert ran.tolist() == run[:, site].nonzero().squeeze(1).tolist()
        assert skipped.tolist() == (~run[:, site]).nonzero().squeeze(1).tolist()


def step_of(positions, ids=None, **skip):
    """A step whose router lets everybody skip, one token a request."""
    router = LayerRouter(SkipConfig(**{"layers": [0], "router_layer": 0, "sink_tokens": 0} | skip), 4)
    for parameter in router.routings[0].router.parameters():
        torch.nn.init.zeros_(parameter)
    tokens = len(positions)
    metadata = Metadata(None, torch.full((tokens,), 10), None, num_actual_tokens=tokens, max_query_len=1)
    step = Step(router, positions, ids, metadata, SlotMemory(), 0)
    step.decide(0, torch.zeros(tokens, 4))
    return step


@pytest.mark.parametrize("others", [0, 100])
def test_sinks_run_beside_requests_that_are_far_along(others):
    late = torch.arange(40, 40 + others)
    positions = torch.cat([torch.tensor([40, 0, 1, 2, 41]), late])
    ids = torch.cat([torch.tensor([3, 3, 3, 7, 3]), torch.full_like(late, 3)])
    step = step_of(positions, ids, sink_tokens=2, sink_ids=[7])
    assert step.route("layer0.block").indices[0].tolist() == [1, 2, 3]
    step = step_of(positions, ids.clamp_max(6), sink_tokens=2, sink_ids=[7])
    assert step.route("layer0.block").indices[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("tokens", "count", "execution", "sparse"),
    [
        (6, 1, "auto", False),  # a layer's weights are read for one row as for six
        (7, 3, "auto", False),
        (8, 6, "auto", True),
        (8, 7, "auto", False),
        (32, 30, "auto", False),
        (32, 29, "auto", True),
        (2048, 1950, "auto", False),
        (2048, 1850, "auto", True),
        (32, 24, "masked", False),
        (8, 7, "sparse", True),
    ],
)
def test_only_rows_that_cost_something_are_spared(tokens, count, execution, sparse):
    step = step_of(torch.arange(tokens), execution=execution)
    assert step.counts == {"layer0.block": 0}
    step.counts["layer0.block"] = count
    route = step.route("layer0.block")
    assert route.sparse == sparse
    assert route.context == (None if execution == "sparse" else 10 * (tokens - count))


def test_a_router_may_ask_for_more_rows_before_it_gathers():
    for least, sparse in ((0.02, True), (0.3, False)):
        step = step_of(torch.arange(32), profitability=SkipProfitability(prefill=least))
        step.counts["layer0.block"] = 23
        assert step.route("layer0.block").sparse == sparse


BLOCK = 32


def held_decisions(router, requests):
    """(T, sites) by request; ``requests`` (first position, hidden states, blocks) are those of one step."""
    hidden = [states for _, states, _ in requests]
    positions = [torch.arange(first, first + len(states)) for first, states, _ in requests]
    blocks = [torch.tensor(held) for _, _, held in requests]
    slots = [held[at // BLOCK] * BLOCK + at % BLOCK for held, at in zip(blocks, positions, strict=True)]
    metadata = Metadata(
        torch.tensor([0, *itertools.accumulate(map(len, hidden))], dtype=torch.int32),
        torch.tensor([int(at[-1]) + 1 for at in positions]),
        torch.stack(blocks),
        num_actual_tokens=sum(map(len, hidden)),
        max_query_len=max(map(len, hidden)),
        slot_mapping=torch.cat(slots),
    )
    step = Step(router, torch.cat(positions), None, metadata, SlotMemory(), BLOCK)
    decided = []
    for layer, place in router.deciders.items():
        decided.append(step._decided(layer, router.routings[place], torch.cat(hidden) * (1 + layer)))
    return torch.cat(decided, dim=1).split([len(states) for states in hidden])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("granularity", ["token", "per_layer"])
def test_a_prefix_that_another_request_computes_in_the_same_step_is_recalled(granularity, order):
    """One computes blocks 1 and 2, the second goes on behind them and computes 3, the third goes on behind that."""
    torch.manual_seed(0)
    skip = {"layers": [0, 1, 2], "router_layer": 0, "sink_tokens": 0, "serve": "rate", "rank": 2}
    router = LayerRouter(SkipConfig(**skip, granularity=granularity), 16, costs=[(0.0, 1.0)] * 3).eval()
    for routing in router.routings:
        for parameter in routing.router.parameters():
            torch.nn.init.normal_(parameter)
        routing.thresholds.spread.fill_(1.0)
    shared, own, second, third = (torch.randn(count, 16) for count in (64, 5, 40, 7))
    last = torch.cat([second[:32], third])
    alone = [
        held_decisions(router, [(0, torch.cat([shared, rest]), [1, 2, 3, 4])])[0]
        for rest in (own, second, last)
    ]
    requests = [
        (0, torch.cat([shared, own]), [1, 2, 5, 0]),
        (64, second, [1, 2, 3, 6]),
        (96, third, [1, 2, 3, 7]),
    ]
    found = held_decisions(router, [requests[one] for one in order])
    for one, decisions in zip(order, found, strict=True):
        assert torch.equal(decisions, alone[one][requests[one][0] :])
    assert 0.2 < alone[1].float().mean() < 0.8
