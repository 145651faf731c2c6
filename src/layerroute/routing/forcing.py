"""Forcing decisions: for parity tests, and for benchmarks whose speed must not depend on a trained router."""

import torch
from jaxtyping import Int
from torch import Tensor

from layerroute.routing.controls import hashed_uniform
from layerroute.routing.decision import Chooser


def constant(path: int) -> Chooser:
    """Every token takes ``path`` at every site."""
    return lambda sites, positions, token_ids: positions.new_full((*positions.shape, len(sites)), path)


def table(choice: Int[Tensor, "B S R"], sites: tuple[str, ...]) -> Chooser:
    """Choices looked up by row, position in the sequence and site name.

    A lookup by position gives a token the same choice in a full pass, in any chunking of a cached one, and behind
    padding. Rows of the batch are those of the table (or all use row 0 of a table with one row).
    """

    def choose(asked: tuple[str, ...], positions: Tensor, _: Tensor | None) -> Tensor:
        columns = torch.tensor([sites.index(site) for site in asked], device=positions.device)
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None] % choice.shape[0]
        return choice.to(positions.device)[rows, positions][..., columns]

    return choose


def at_rate(rate: float, *, paths: int = 2, seed: int = 0) -> Chooser:
    """Each token takes the last path with probability ``rate``, else the first: a hash of position and site."""

    def choose(sites: tuple[str, ...], positions: Tensor, token_ids: Tensor | None) -> Tensor:
        keys = positions if token_ids is None else positions + token_ids.long() * 1_000_003
        return (hashed_uniform(keys, len(sites), seed) < rate).long() * (paths - 1)

    return choose
