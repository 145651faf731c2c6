"""A program of layers a prompt: which places it skips is found by search, and learnt by a small classifier.

The search and the classifier of Dr.LLM (arXiv 2510.12773) for skipping alone, with every program of one cost, so that
the search is among equals: it swaps places that are skipped for some that run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from layerroute.skipping.calibration.configuration import PROGRAM_WIDTH, CalibrationConfig
from layerroute.skipping.calibration.controls import Clock, Ranking
from layerroute.skipping.calibration.costs import Search, measure_costs
from layerroute.skipping.calibration.fits import Hidden, Predictor
from layerroute.skipping.calibration.in_order import Policy, replay
from layerroute.skipping.calibration.stack import FullDepth, LayerStack

SIMULATIONS = 50
"""Programs that are tried for each window, as many as published."""

LENGTH = 128
"""So many first tokens of a window are searched on; all of its 256 would take twice as long."""

TEMPERATURE = 2.0
"""Of swaps, in standard deviations of what places cost a window: what looks dear alone may be cheap among others."""

STEPS = 200
RATE = 1e-3
DECAY = 0.1
LEFT_OUT = 5
"""The classifier stops after as many of its steps as suit a fifth of the windows, left out of a first training."""


def find_programs(
    ranking: Ranking,
    windows: Int[Tensor, "N T"],
    config: CalibrationConfig,
    count: int,
    clock: Clock,
) -> Bool[Tensor, "N P"]:
    """By window, the ``count`` places of ``ranking.layers`` whose skipping moves its predictions least.

    Each begins with the better of two programs, static greedy pruning and the places that cost this window least when
    each is skipped alone. Then one or two places are swapped at a time, dear ones for cheap ones by chance.
    """
    stack, start = ranking.stack, ranking.start
    removed = set(ranking.greedy(count, clock))
    if count >= len(ranking.layers):  # there is one program
        return torch.ones(len(windows), len(ranking.layers), dtype=torch.bool, device=windows.device)
    greedy = torch.tensor([place in removed for place in ranking.layers])
    advance = clock("search for a program of each window")
    length = min(config.length, max(LENGTH, 2 * config.prefix_tokens))
    # It has no journal: programs are noted once they are found, and not the steps on the way there.
    short = LayerStack(stack.model, length, stack.precision, stack.unit)
    parts = windows[:, :length].split(max(1, config.tokens_search // length))  # they hold whole predictions

    def searched(index: int) -> Bool[Tensor, "n P"]:
        one = _Searched(short, start, parts[index], config.prefix_tokens)
        told = partial(_told, advance, index, len(parts))
        return one.best(greedy, seed=config.seed + index, advance=told)

    found = [stack.journal.once(partial(searched, index)) for index in range(len(parts))]
    return torch.cat(found)


def _told(advance: Callable[[float], None], index: int, of: int, share: float) -> None:
    advance((index + share) / of)


class _Searched:
    """Programs of some windows, side by side: in one pass each window has its own.

    Args:
        start: the skip paths of all places, fitted to all tokens.
        prefix: so many first tokens run in every program.
    """

    def __init__(self, stack: LayerStack, start: Policy, ids: Int[Tensor, "n T"], prefix: int) -> None:
        self.stack, self.start, self.ids = stack, start, ids
        self.places = list(start.sites)
        first = torch.arange(ids.shape[1], device=ids.device) < prefix
        self.runs = start.sinks(ids) | first

    def best(
        self, greedy: Bool[Tensor, "P"], *, seed: int, advance: Callable[[float], None]
    ) -> Bool[Tensor, "n P"]:
        """The program of each window."""
        search = Search.of(self.stack, self.ids)
        costs, _ = measure_costs(self.stack, search, self.start)
        counted = ~self.start.sinks(self.ids)
        alone = torch.stack(
            [_by_window(costs[place].cost, counted) for place in self.places], dim=1
        )  # what skipping a place costs a window by itself
        inputs: list[Tensor] = []
        replay(self.stack, Policy(), search.embedded, self.ids, keep=inputs)
        below = inputs[self.places[0]]
        del inputs

        def measured(program: Bool[Tensor, "n P"]) -> Float[Tensor, "n"]:
            final = self.through(program, below)
            return _by_window(search.divergence(self.stack, final)[~self.runs], ~self.runs)

        count = int(greedy.sum())
        kept = greedy.to(self.ids.device).expand_as(alone).clone()
        loss = measured(kept)
        cheapest = torch.zeros_like(kept).scatter_(1, alone.argsort(dim=1)[:, :count], True)
        other = measured(cheapest)
        kept, loss = torch.where((other < loss).unsqueeze(1), cheapest, kept), torch.minimum(loss, other)
        odds = alone / (TEMPERATURE * alone.std(dim=1, keepdim=True)).clamp_min(1e-12)
        draws = torch.Generator(device=self.ids.device).manual_seed(seed)
        for turn in range(2, SIMULATIONS):
            swaps = min(1 + turn % 2, count, len(self.places) - count)
            out, into = _draw(odds, kept, swaps, draws), _draw(-odds, ~kept, swaps, draws)
            tried = kept.scatter(1, out, False).scatter(1, into, True)
            other = measured(tried)
            kept, loss = torch.where((other < loss).unsqueeze(1), tried, kept), torch.minimum(loss, other)
            advance((turn + 1) / SIMULATIONS)
        return kept

    def through(self, program: Bool[Tensor, "n P"], states: Float[Tensor, "n T D"]) -> Float[Tensor, "n T D"]:
        """The output of the last layer, from the input of the first place."""
        chosen = {place: program[:, column, None] & ~self.runs for column, place in enumerate(self.places)}
        some = self.start.with_rates(dict.fromkeys(self.places, 0.5))
        policy = _Programs(**vars(some), chosen=chosen)
        return replay(self.stack, policy, states, self.ids, first=self.places[0])


@dataclass(kw_only=True)
class _Programs(Policy):
    """Each window has its own tokens that skip, by place."""

    chosen: dict[int, Bool[Tensor, "n T"]]

    def skips(self, place: int, *_: object) -> Bool[Tensor, "n T"]:
        return self.chosen[place]


def _by_window(values: Float[Tensor, "k"], counted: Bool[Tensor, "n T"]) -> Float[Tensor, "n"]:
    """Mean over the tokens of each window that are counted, in whose order the values are."""
    spread = torch.zeros(counted.shape, dtype=values.dtype, device=values.device)
    spread[counted] = values
    return spread.sum(dim=1) / counted.sum(dim=1).clamp_min(1)


def _draw(
    odds: Float[Tensor, "n P"], among: Bool[Tensor, "n P"], count: int, draws: torch.Generator
) -> Int[Tensor, "n k"]:
    """So many places for each window among some, those of high odds sooner."""
    chances = odds.masked_fill(~among, float("-inf")).softmax(dim=1)
    return torch.multinomial(chances, count, generator=draws)


def learn_programs(
    full: FullDepth, programs: Bool[Tensor, "N P"], config: CalibrationConfig, places: list[int]
) -> dict[int, Predictor]:
    """Predictors by place, of one hidden layer, that tell a window's program from the mean state of its first tokens.

    What they predict is the logit of running. A place whose choice is the same in all programs has none.

    Args:
        full: the full model on windows that begin with those of ``programs``.
        places: what the columns of ``programs`` are.
    """
    states = full.into(config.router_layer)[: len(programs), : config.prefix_tokens]
    x, runs = states.float().mean(dim=1), (~programs).float()
    with torch.inference_mode(False), torch.enable_grad():  # inference tensors have no gradients
        x, runs = x.clone(), runs.clone()
        mean, spread = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        x = (x - mean) / spread
        turn = torch.arange(len(x)) % LEFT_OUT
        steps = STEPS
        if len(x) >= 2 * LEFT_OUT:
            seen, left_out = turn > 0, turn == 0
            losses: list[float] = []
            _trained(x[seen], runs[seen], STEPS, config.seed, (x[left_out], runs[left_out], losses))
            steps = 1 + min(range(len(losses)), key=losses.__getitem__)
        first, last = _trained(x, runs, steps, config.seed)
        weight = first.weight.detach() / spread
        hidden = Hidden(weight=weight, bias=first.bias.detach() - weight @ mean)
        guessed = last(F.gelu(first(x))).detach().sigmoid()
    left = (guessed - runs).square().mean(dim=0)
    variance = runs.var(dim=0, unbiased=False)
    return {
        place: Predictor(
            hidden=hidden,
            weight=last.weight.detach()[column],
            bias=float(last.bias.detach()[column]),
            threshold=0.0,
            r2=float(1 - left[column] / variance[column]),
        )
        for column, place in enumerate(places)
        if variance[column] > 0
    }


def _trained(
    x: Float[Tensor, "N D"],
    runs: Float[Tensor, "N P"],
    steps: int,
    seed: int,
    judged: tuple[Tensor, Tensor, list[float]] | None = None,
) -> tuple[nn.Linear, nn.Linear]:
    """Linear, GELU, linear, by so many steps on all rows; ``judged`` collects the loss on other rows, by step."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = nn.Linear(x.shape[1], PROGRAM_WIDTH, device=x.device)
        last = nn.Linear(PROGRAM_WIDTH, runs.shape[1], device=x.device)
    with torch.no_grad():  # it begins with how often each place runs
        last.weight.zero_()
        last.bias.copy_(runs.mean(dim=0).clamp(1e-3, 1 - 1e-3).logit())
    optimiser = torch.optim.AdamW([*first.parameters(), *last.parameters()], lr=RATE, weight_decay=DECAY)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(last(F.gelu(first(x))), runs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if judged is not None:
            with torch.no_grad():
                found = last(F.gelu(first(judged[0])))
                judged[2].append(float(F.binary_cross_entropy_with_logits(found, judged[1])))
    return first, last
