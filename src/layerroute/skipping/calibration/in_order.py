"""Calibration in order: each site is fitted on the states that routing below it really produces."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerroute.routing.controls import hashed_uniform
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.fits import (
    Predictor,
    PredictorFit,
    SkipFit,
    SkipMap,
    influence,
    lowest,
)
from layerroute.skipping.calibration.journal import kept
from layerroute.skipping.calibration.moments import regular
from layerroute.skipping.calibration.stack import FullDepth, LayerStack
from layerroute.skipping.history import with_history

Advance = Callable[[float], None]


@kept
@dataclass(kw_only=True)
class Site:
    """A layer's unit that may be skipped, as calibrated.

    Attributes:
        rate: share of tokens that skip.
        skip: its skip path, of the unit's input.
        predictor: reads what routers read, the layer's input (or that of ``Policy.router_layer``); None where rate is
            0 or 1 and nothing needs to be predicted.
        influence: mean of 1 - cos(h_in, h_out) around the unit over the statistics tokens; of blocks, the block
            influence.
    """

    rate: float
    skip: SkipMap
    predictor: Predictor | None = None
    influence: float = float("nan")


@dataclass(kw_only=True)
class Policy:
    """Who skips where: calibrated sites by place (see ``stack``).

    Attributes:
        chooser: ``predicted`` (by the sites' predictors), ``oracle`` (by the true influence, which needs the layer
            itself), ``random`` or ``periodic`` (which only a router carries out); rates of 0 and 1 are the same in
            all.
        router_layer: whose input predictors read; None: each its own layer's.
        prefix_tokens: a sequence decides as one, by the mean state of so many first tokens, which run; None: each
            token decides for itself.
        history: how many layers below predictors see the inputs of, beside their own layer's.
        unit: what is skipped: ``block``, ``attention``, ``mlp`` or ``attention+mlp``.
        sink_tokens: first tokens that always run.
        sink_ids: ids of tokens that always run.
        seed: of ``random``.
    """

    sites: dict[int, Site] = field(default_factory=dict)
    chooser: str = "predicted"
    router_layer: int | None = None
    prefix_tokens: int | None = None
    history: int = 0
    unit: str = "block"
    sink_tokens: int = 1
    sink_ids: tuple[int, ...] = ()
    seed: int = 0

    def rates(self) -> dict[int, float]:
        """Shares of skipping tokens by place."""
        return {place: site.rate for place, site in self.sites.items()}

    def with_rates(self, rates: Mapping[int, float]) -> "Policy":
        """Other rates for the same fits; predictors' thresholds are not moved."""
        sites = {place: replace(site, rate=rates.get(place, 0.0)) for place, site in self.sites.items()}
        return replace(self, sites=sites)

    def sinks(self, ids: Int[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
        """True at tokens that always run."""
        always = max(self.sink_tokens, self.prefix_tokens or 0)
        first = (torch.arange(ids.shape[1], device=ids.device) < always).expand_as(ids)
        return first | torch.isin(ids, torch.tensor(self.sink_ids, dtype=ids.dtype, device=ids.device))

    def read(
        self,
        stack: LayerStack,
        place: int,
        states: Float[Tensor, "N T D"],
        features: Float[Tensor, "N T E"] | None,
        sites: Container[int],
    ) -> Float[Tensor, "N T E"] | None:
        """What routers have read once a place is reached, given what they had read before it."""
        if not stack.reads_at(place, self.router_layer):
            return features
        if not self.history:
            return states
        if place not in sites:  # a layer that always runs has no router, and is no part of a history
            return features
        join = partial(with_history, history=self.history)
        if features is None:
            return stack.by_chunk(lambda now: join(now, None), states)
        return stack.by_chunk(join, states, features)

    def kept(
        self, stack: LayerStack, place: int, features: Float[Tensor, "N T E"] | None
    ) -> Float[Tensor, "N T E"] | None:
        """Of that, what the next place needs."""
        return features if self.history or not stack.reads_at(place + 1, self.router_layer) else None

    def scores(self, predictor: Predictor, features: Float[Tensor, "N T E"]) -> Float[Tensor, "N T"]:
        """What decides about each token."""
        if self.prefix_tokens is None:
            return predictor(features)
        mean = features[:, : self.prefix_tokens].float().mean(dim=1, keepdim=True)
        return predictor(mean).expand(features.shape[:2])

    def choose(
        self, scores: Float[Tensor, "N T"], may: Bool[Tensor, "N T"], share: float
    ) -> tuple[Bool[Tensor, "N T"], float]:
        """The tokens (or all of a sequence) of lowest score that make up a share, and the cut above them."""
        if self.prefix_tokens is None:
            found, cut = lowest(scores.flatten(), may.flatten(), share)
            return found.view_as(may), cut
        found, cut = lowest(scores[:, 0], may.any(dim=1), share)
        return found.unsqueeze(1) & may, cut

    def skips(
        self,
        place: int,
        features: Float[Tensor, "N T E"] | None,
        log_influence: Callable[[], Float[Tensor, "N T"]],
        ids: Int[Tensor, "N T"],
    ) -> Bool[Tensor, "N T"]:
        """Which tokens skip a place."""
        site, sinks = self.sites[place], self.sinks(ids)
        if site.rate <= 0.0:
            return torch.zeros_like(sinks)
        if site.rate >= 1.0:
            return ~sinks
        if self.chooser == "random":
            return random_skips(ids, place, site.rate, self.seed) & ~sinks
        if self.chooser == "oracle":
            return self.choose(log_influence(), ~sinks, site.rate)[0]
        assert site.predictor is not None and features is not None
        return (self.scores(site.predictor, features) <= site.predictor.threshold) & ~sinks


def random_skips(ids: Int[Tensor, "N T"], place: int, rate: float, seed: int) -> Bool[Tensor, "N T"]:
    """A draw by hashing token, position and place."""
    keys = torch.arange(ids.shape[1], device=ids.device) + ids.long() * 1_000_003
    return hashed_uniform(keys, place + 1, seed)[..., place] < rate


def calibrate_in_order(
    stack: LayerStack,
    ids: Int[Tensor, "N T"],
    rates: Mapping[int, float],
    config: CalibrationConfig,
    *,
    chooser: str = "predicted",
    sensitivity: Float[Tensor, "N T"] | None = None,
    weights: Mapping[int, tuple[float, float]] | None = None,
    predictors: Mapping[int, Predictor] | None = None,
    fit_all: bool = False,
    final: list[Float[Tensor, "N T D"]] | None = None,
    full: FullDepth | None = None,
    advance: Advance | None = None,
) -> Policy:
    """Fit skip paths and predictors place by place, on states that come out of the places fitted before.

    Args:
        ids: the statistics windows.
        rates: share of tokens that are to skip, by place (those that may be skipped).
        chooser: ``predicted`` or ``random``; at rates of 0 and 1 there is nothing to choose.
        sensitivity: of the tokens' predictions (see ``sensitivity.probe``); with ``weights``, by place, of
            log-influence and sensitivity in what predictors predict. Default: influence alone.
        predictors: by place, found already; only their thresholds are set here.
        fit_all: also fit sites of rate 0, to all tokens (their predictor's threshold then lets all run).
        final: the output of the last layer is appended to it.
        full: the full model on the same windows, which several fits may share: below its first layer that skips an
            arm is the full model.
        advance: told the share done.

    Returns:
        The policy, with a site for each place of ``rates``.
    """
    shared = None if config.granularity == "per_layer" else config.router_layer
    decided = chooser == "predicted" and any(0.0 < rate < 1.0 for rate in rates.values())
    policy = Policy(
        chooser=chooser,
        router_layer=shared,
        prefix_tokens=config.prefix_tokens if config.granularity == "sequence" and decided else None,
        history=config.history if decided else 0,
        unit=stack.unit,
        sink_tokens=config.sink_tokens,
        sink_ids=tuple(config.sink_ids),
        seed=config.seed,
    )
    sinks = policy.sinks(ids).flatten()
    fitted = [place for place, rate in rates.items() if rate > 0 or fit_all]
    last, predicts = max(fitted), fit_all or decided
    notes = stack.journal.step()
    # At place `next`: what comes in, what the full model has there, and what routers have read below.
    now = notes.recall()
    if now is None:
        units = len(stack.units)
        begin = min(rates if policy.history else fitted) // units
        if predicts and shared is not None:
            begin = min(begin, shared)
        states = (full or FullDepth(stack, ids)).into(begin)
        now = {"next": begin * units, "sites": {}, "states": states, "dense": None, "features": None}
    states, dense, features, policy.sites = now["states"], now["dense"], now["features"], now["sites"]
    if config.target == "dense" and dense is None:
        dense = states
    for place in range(now["next"], last + 1):
        features = policy.read(stack, place, states, features, rates)
        with stack.weights(place):
            given = stack.before(place, states)
            ran = reached = stack.through(place, given)
            if dense is not None and dense is not states:
                reached = stack.through(place, stack.before(place, dense))
            out, rate = ran, rates.get(place, 0.0)
            if place in rates and (rate > 0 or fit_all):
                given_one = None if predictors is None else predictors.get(place)
                wanted = _Wanted(relative=config.relative, predict=fit_all or rate < 1, given=given_one)
                if weights is not None and sensitivity is not None:
                    own, common = weights[place]
                    wanted = replace(wanted, relative=1.0, own=own, offset=common * sensitivity.flatten())
                site, skip = _fit_site(
                    given, reached, features, ids, sinks, rate, place, policy, config, wanted
                )
                policy.sites[place] = site
                if rate > 0:
                    out = skipped_by(stack, skip.view(ids.shape), site.skip, given, ran)
            states = stack.after(place, out)
            if dense is not None:
                dense = states if reached is out else stack.after(place, reached)
        now = {
            "next": place + 1,
            "sites": policy.sites,
            "states": states,
            "dense": dense,
            "features": policy.kept(stack, place, features),
        }
        if place < last:
            notes.note(now, states=True)
        if advance is not None:
            advance((place + 1) / (last + 1))
    if final is None:
        now = {"next": last + 1, "sites": policy.sites, "states": None, "dense": None, "features": None}
    notes.note(now, done=True)
    if final is not None:
        for place in range(last + 1, stack.depth):
            states = stack.run(place, states)
        final.append(states)
    for place in rates:
        if place not in policy.sites:
            empty = SkipMap.identity(stack.hidden_size, config.rank, ids.device)
            policy.sites[place] = Site(rate=0.0, skip=empty)
    policy.sites = dict(sorted(policy.sites.items()))
    return policy


def skipped_by(
    stack: LayerStack,
    skips: Bool[Tensor, "N T"],
    skip: SkipMap,
    given: Float[Tensor, "N T D"],
    ran: Float[Tensor, "N T D"],
) -> Float[Tensor, "N T D"]:
    """The output of a unit that some tokens skip."""
    return stack.by_chunk(
        lambda who, before, after: torch.where(who.unsqueeze(-1), skip(before), after), skips, given, ran
    )


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What a site's predictor is to predict: ``own`` times log-influence, plus ``offset`` by token, if at all.

    Or it is ``given``.
    """

    predict: bool
    relative: float
    own: float = 1.0
    offset: Tensor | None = None
    given: Predictor | None = None


def _fit_site(
    states: Tensor,
    target: Tensor,
    features: Tensor | None,
    ids: Tensor,
    sinks: Tensor,
    rate: float,
    place: int,
    policy: Policy,
    config: CalibrationConfig,
    wanted: "_Wanted",
) -> tuple[Site, Tensor]:
    """The site, and which of the (flattened) tokens skip there."""
    x, y = states.flatten(0, 1), target.flatten(0, 1)
    cosine = torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=-1)
    rows = regular(x) & regular(y) & ~sinks
    measured = float(1 - cosine[rows].mean())
    fit_skip = SkipFit(
        x[rows], y[rows], rank=config.rank, strength=config.ridge, non_linear=config.skip_path == "non_linear"
    )
    skip_map = fit_skip()
    if policy.chooser == "random" or not wanted.predict:
        chosen = ~sinks
        if 0.0 < rate < 1.0:
            chosen = random_skips(ids, place, rate, policy.seed).flatten() & ~sinks
        return Site(rate=rate, skip=skip_map, influence=measured), chosen
    assert features is not None
    may = ~sinks.view(ids.shape)
    if wanted.given is not None:
        chosen, cut = policy.choose(policy.scores(wanted.given, features), may, rate)
        skip_map = fit_skip(chosen.flatten()[rows], background=config.background)
        predictor = replace(wanted.given, threshold=cut)
        return Site(rate=rate, skip=skip_map, predictor=predictor, influence=measured), chosen.flatten()
    fit = PredictorFit(features.flatten(0, 1)[rows], config.predictor_ridge)
    predictor, chosen = _fit_predictor(x, y, features, rows, may, rate, skip_map, fit, policy, wanted)
    for _ in range(config.refits if 0.0 < rate < 1.0 else 0):
        skip_map = fit_skip(chosen[rows], background=config.background)
        predictor, chosen = _fit_predictor(x, y, features, rows, may, rate, skip_map, fit, policy, wanted)
    return Site(rate=rate, skip=skip_map, predictor=predictor, influence=measured), chosen


def _fit_predictor(
    x: Tensor,
    y: Tensor,
    features: Tensor,
    rows: Tensor,
    may: Tensor,
    rate: float,
    skip_map: SkipMap,
    fit: PredictorFit,
    policy: Policy,
    wanted: "_Wanted",
) -> tuple[Predictor, Tensor]:
    score = wanted.own * influence(x, y, skip_map, relative=wanted.relative)
    if wanted.offset is not None:
        score = score + wanted.offset
    predictor = fit(score[rows])
    chosen, cut = policy.choose(policy.scores(predictor, features), may, rate)
    return replace(predictor, threshold=cut), chosen.flatten()


@torch.inference_mode()
def replay(
    stack: LayerStack,
    policy: Policy,
    states: Float[Tensor, "N T D"],
    ids: Int[Tensor, "N T"],
    *,
    first: int = 0,
    keep: list[Float[Tensor, "N T D"]] | None = None,
    advance: Advance | None = None,
) -> Float[Tensor, "N T D"]:
    """Run the places from ``first`` on under a policy.

    Args:
        states: input of place ``first``. Routers that read below it cannot be asked.
        keep: every place's input is appended to it.
        advance: told the share done.

    Returns:
        The output of the last layer.
    """
    features = None
    for place in range(first, stack.depth):
        if keep is not None:
            keep.append(states)
        states, features, _ = step(stack, policy, place, states, features, ids)
        if advance is not None:
            advance((place + 1) / stack.depth)
    return states


@torch.inference_mode()
def step(
    stack: LayerStack,
    policy: Policy,
    place: int,
    states: Float[Tensor, "N T D"],
    features: Float[Tensor, "N T E"] | None,
    ids: Int[Tensor, "N T"],
    *,
    flip: bool = False,
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N T E"] | None, Bool[Tensor, "N T"]]:
    """One place under a policy, or with every token's choice reversed.

    Args:
        features: what routers have read below; None at the place where they read, and where there are none.

    Returns:
        The output, the features for the next place, and who skipped under the policy.
    """
    site = policy.sites.get(place)
    features = policy.read(stack, place, states, features, policy.sites)
    after = policy.kept(stack, place, features)
    everyone = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    if site is None or (site.rate <= 0.0 and not flip):
        return stack.run(place, states), after, everyone
    sinks = policy.sinks(ids)
    with stack.weights(place):
        given = stack.before(place, states)
        if site.rate >= 1.0 and not flip and not policy.sink_tokens and not policy.sink_ids:
            return stack.after(place, stack.by_chunk(site.skip, given)), after, ~everyone
        ran = stack.through(place, given)
        skips = policy.skips(place, features, lambda: influence(given, ran, site.skip), ids)
        taken = (~skips & ~sinks) if flip else skips
        return stack.after(place, skipped_by(stack, taken, site.skip, given, ran)), after, skips
