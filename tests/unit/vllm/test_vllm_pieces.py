"""A step's tokens that run, in pieces: each sees exactly what it would see among all."""

from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here; `make vllm` runs these")

import itertools

from layerroute.vllm.attention import pieces
from layerroute.vllm.step import SlotMemory


@dataclass
class Metadata:
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    num_actual_tokens: int = 0
    max_query_len: int = 0
    max_seq_len: int = 0


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
