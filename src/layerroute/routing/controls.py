"""Controls: routers that cannot be clever. Any claim for a learned router must beat them at the same rate.

``oracle`` is none: it is told where recall is asked for, and shows what a router could reach at best.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerroute.errors import UserError, nearest

CONTROLS = ("random", "periodic", "static", "stochastic", "oracle")


def _mix(x: Tensor) -> Tensor:
    """A 64-bit integer hash (the finaliser of MurmurHash3); int64 arithmetic wraps in torch."""
    for multiplier in (-49064778989728563, -4265267296055464877):
        x = x ^ ((x >> 33) & 0x7FFFFFFF)
        x = x * multiplier
    return x ^ ((x >> 33) & 0x7FFFFFFF)


def hashed_uniform(
    keys: Int[Tensor, "B T"], sites: int, seed: int, *, first: int = 0
) -> Float[Tensor, "B T R"]:
    """Numbers in [0, 1) that depend on (key, site, seed) alone: the same in any batch, chunk or order.

    Args:
        sites: R, counted from site ``first`` of the model.
    """
    site = torch.arange(first + 1, first + sites + 1, device=keys.device) * 0x14057B7EF767814F
    # Sums and products of int64 tensors wrap.
    stream = (torch.tensor(seed, device=keys.device) + 1) * 0x5851F42D4C957F2D
    mixed = _mix(_mix(keys.long().unsqueeze(-1) + stream) + site)
    return ((mixed >> 20) & 0xFFFFFF).to(torch.float32) / float(1 << 24)


def random_choice(
    keys: Int[Tensor, "B T"], rate: Float[Tensor, "R"], *, training: bool, seed: int, first: int = 0
) -> Bool[Tensor, "B T R"]:
    """True with probability ``rate``, independently for every token and site.

    In training the draw is fresh. At inference it is a hash of ``keys`` (token id and position), so that the
    control is deterministic, and cached equals uncached.

    Args:
        first: number of the first of these sites among all of the model's, so that no two sites draw alike.
    """
    if training:
        return torch.rand(*keys.shape, rate.numel(), device=keys.device) < rate
    return hashed_uniform(keys, rate.numel(), seed, first=first) < rate


def periodic_choice(
    positions: Int[Tensor, "B T"], rate: Float[Tensor, "R"], *, first: int = 0, total: int | None = None
) -> Bool[Tensor, "B T R"]:
    """True at evenly spaced positions, a share ``rate`` of them; sites are shifted against each other.

    Args:
        first, total: number of the first of these sites, among so many of the model's. Default: these are all.

    With rate 1/4 site 0 takes positions 3, 7, 11, …; the shift makes the next site take others, so that a token
    that is cheap at one site is not cheap at all.
    """
    sites = rate.numel()
    shift = torch.arange(first, first + sites, device=positions.device, dtype=torch.float64)
    shift = shift / max(total or sites, 1)
    phase = positions.unsqueeze(-1).double() * rate.double() + shift
    return torch.floor(phase + rate.double()) > torch.floor(phase)


def oracle_choice(
    history: Int[Tensor, "B S"],
    *,
    tokens: tuple[int, int],
    after: int,
    groups: Int[Tensor, "B S"] | None = None,
) -> Bool[Tensor, "B S"]:
    """True at a key that is asked for: one of the ids from ``tokens[0]`` up to ``tokens[1]`` that stood before.

    Args:
        history: all tokens of the sequence so far.
        after: how often it must have stood before (as often as keys are told).
        groups: packed documents; each is a sequence of its own. Runs of equal numbers.
    """
    first, end = tokens
    own = history if groups is None else history + groups * (1 + history.max())
    order = own.argsort(dim=1, stable=True)
    ranked = own.gather(1, order)
    index = torch.arange(own.shape[1], device=own.device).expand_as(own)
    begins = torch.ones_like(own, dtype=torch.bool)
    begins[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    before = index - torch.where(begins, index, 0).cummax(dim=1).values
    times = torch.empty_like(before).scatter(1, order, before)
    return (history >= first) & (history < end) & (times >= after)


def static_sites(sites: int, rate: float) -> tuple[int, ...]:
    """``round(rate * sites)`` site indices, evenly spaced and nearest the end: those that a static model keeps."""
    keep = math.floor(rate * sites + 0.5)
    return (
        tuple(sites - 1 - math.floor((k + 0.5) * sites / keep) for k in reversed(range(keep))) if keep else ()
    )


def control_choice(
    name: str,
    *,
    positions: Int[Tensor, "B T"],
    keys: Int[Tensor, "B T"],
    rate: Float[Tensor, "R"],
    training: bool,
    seed: int = 0,
    sites: tuple[int, ...] | None = None,
    first: int = 0,
    total: int | None = None,
) -> Bool[Tensor, "B T R"]:
    """Which tokens take the expensive path under the control ``name``.

    Args:
        name: ``random``, ``periodic``, ``static``, or ``stochastic``: random in training, everything expensive at
            inference (stochastic depth, Huang et al. 2016, where a unit is dropped in training only).
        positions: position of each token in its sequence, 0 for the first real token.
        keys: what identifies a token for ``random`` (see ``random_choice``).
        rate: by site.
        training: whether ``random`` draws afresh.
        seed: of ``random`` at inference.
        sites: for ``static``: indices of the sites where every token takes the expensive path. Default
            ``static_sites`` at the mean rate; what that gives is a multiple of 1/R.
        first, total: number of the first of these sites, among so many of the model's (a model may have a routing
            module for each site). Default: these are all.

    Raises:
        UserError: for an unknown name.
    """
    if name == "random":
        return random_choice(keys, rate, training=training, seed=seed, first=first)
    if name == "stochastic":
        if not training:
            return torch.ones(*keys.shape, rate.numel(), dtype=torch.bool, device=keys.device)
        return random_choice(keys, rate, training=True, seed=seed, first=first)
    if name == "periodic":
        return periodic_choice(positions, rate, first=first, total=total)
    if name == "static":
        everywhere = total or rate.numel()
        chosen = static_sites(everywhere, float(rate.mean())) if sites is None else sites
        row = torch.zeros(everywhere, dtype=torch.bool, device=positions.device)
        row[list(chosen)] = True
        return row[first : first + rate.numel()].expand(*positions.shape, -1)
    raise UserError(f"unknown control {name!r}.{nearest(name, CONTROLS)}")
