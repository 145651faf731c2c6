"""The routing module that both capabilities put into their models: router, estimator, budget and controls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from layerroute.errors import UserError, expect, expect_limits, nearest
from layerroute.routing.budget import BUDGETS, Thresholds, margins, quantile_threshold
from layerroute.routing.controls import CONTROLS, control_choice
from layerroute.routing.decision import Chooser, RouteDecision
from layerroute.routing.estimators import (
    ESTIMATORS,
    STRAIGHT_THROUGH,
    Surrogate,
    centred_gradient,
    estimate,
    training_noise,
)
from layerroute.routing.routers import ROUTERS, build_router
from layerroute.routing.serving import Served

SURROGATES = ("cut", "asked")


@dataclass(kw_only=True)
class RoutingConfig:
    """How decisions are made, whatever model they are for.

    Attributes:
        router: ``linear`` (default, the original) or ``mlp``.
        widths: hidden widths of the MLP router; default (D/2, D/4).
        initial_bias: starting logit of the expensive path against the cheap one; 2.0 starts at 88 %.
        zero_init: start the router's last layer at zero weights.
        estimator: ``gumbel_st`` (default), ``sigmoid_st``, ``selected``, ``soft`` or ``reinforce``.
        exploration: ``selected`` chooses with Gumbel noise in training.
        centre_gradient: take the part that all tokens have in common out of the gradient of each site's logits. It
            raises or lowers them all together, and so outruns any threshold; the budget is not its business.
        surrogate: where the soft part of a straight-through estimator has its middle in training. ``cut`` (default):
            at the threshold of the choice. ``asked``, with ``budget: quantile``: where ``rate`` would cut the batch, in
            units of its margins' standard deviation, where that is above 1. While a schedule is on its way to
            ``rate``, nearly all tokens run, and at that cut no gradient tells which of them need it.
        control: None for a learned router, or ``random``, ``periodic``, ``static``, ``stochastic``: the decisions
            then come from the control at ``rate``, and the router has no parameters. ``oracle`` is no fair control but
            the ceiling of a recall task: keys that are asked for take the expensive path, and nothing else does.
        control_tokens: for ``oracle``: keys are the ids from the first of these two numbers up to the second.
        control_after: for ``oracle``: how often a key is told (``data.recall.writes``) before it is asked for.
        control_sites: for ``static``: the indices, among all of the model's sites, of those where all tokens take the
            expensive path.
        control_seed: of ``random`` at inference.
        budget: ``none`` (default), ``controller`` or ``quantile``: see ``budget.Thresholds``.
        rate: share of tokens asked to take the expensive path, in [0, 1]; used by controls and budgets.
        threshold_step: step of the controller in logit units.
    """

    router: str = "linear"
    widths: Sequence[int] | None = None
    initial_bias: float = 0.0
    zero_init: bool = False
    estimator: str = "gumbel_st"
    exploration: bool = True
    centre_gradient: bool = False
    surrogate: str = "cut"
    control: str | None = None
    control_sites: Sequence[int] | None = None
    control_seed: int = 0
    control_tokens: Sequence[int] | None = None
    control_after: int = 1
    budget: str = "none"
    rate: float = 0.5
    threshold_step: float = 0.01

    def __post_init__(self) -> None:
        for key, value, valid in (
            ("router", self.router, ROUTERS),
            ("estimator", self.estimator, ESTIMATORS),
            ("budget", self.budget, BUDGETS),
            ("surrogate", self.surrogate, SURROGATES),
            ("control", self.control, (None, *CONTROLS)),
        ):
            if value not in valid:
                names = [name for name in valid if name]
                raise UserError(f"routing.{key}: {value!r} is not known.{nearest(str(value), names)}")
        if self.widths is not None and (self.router == "linear" or any(width < 1 for width in self.widths)):
            raise UserError(
                f"routing.widths is {list(self.widths)}; sizes of an mlp router's hidden layers, 1 or more each"
            )
        if not 0.0 <= self.rate <= 1.0:
            raise UserError(f"routing.rate: {self.rate} is not a share; give a number from 0 to 1")
        if self.surrogate == "asked" and not (
            self.budget == "quantile" and self.estimator in STRAIGHT_THROUGH and self.control is None
        ):
            raise UserError(
                "routing.surrogate: asked needs routing.budget: quantile, and routing.estimator "
                f"{' or '.join(STRAIGHT_THROUGH)}"
            )
        if self.control is not None and self.budget != "none":
            raise UserError("routing.budget has no effect on a control; remove it, or remove routing.control")
        # A range or a tuple serves, and is written as a list.
        for key in ("widths", "control_sites", "control_tokens"):
            if getattr(self, key) is not None:
                setattr(self, key, [int(item) for item in getattr(self, key)])
        if self.control_sites is not None and self.control != "static":
            raise UserError("routing.control_sites needs routing.control: static")
        tokens = self.control_tokens
        told = tokens is not None and len(tokens) == 2 and tokens[0] < tokens[1]
        if told != (self.control == "oracle") or told != (tokens is not None):
            raise UserError(
                "routing.control_tokens goes with routing.control: oracle, and is two numbers: of the first key and of "
                "what comes after the last"
            )
        expect_limits(self, "routing", "must be at least 1", "control_after")
        expect_limits(self, "routing", "must be a positive number", "threshold_step")
        expect(
            math.isfinite(self.initial_bias),
            f"routing.initial_bias must be a number, got {self.initial_bias}",
        )
        expect(
            abs(self.control_seed) < 2**63,
            f"routing.control_seed must be a seed of 64 bits, got {self.control_seed}",
        )


class Routing(nn.Module):
    """Decides, token by token, which path to take at each of R sites.

    ``temperature`` and ``rate`` are runtime state set by the training schedule; thresholds are saved buffers.
    ``cutting`` makes inference cut each batch at its own quantile too; what is appended to ``seen`` (a list, or None)
    are the margins of valid tokens, (N, R): ``calibrate_thresholds`` sets both.

    Args:
        config: how decisions are made.
        hidden_size: D of the states that the router reads.
        sites: names of the sites.
        paths: names of the paths, cheapest first.
        costs: relative cost of each path at each site, nested (R, P); default 0 for the first path, 1 for the last.
        causal: recorded in the decisions.
        first, total: number of the first of these sites, among so many of the model's, where it has more routing
            modules than this one. Default: these are all.
    """

    temperature: Tensor
    rate: Tensor
    costs: Tensor

    def __init__(
        self,
        config: RoutingConfig,
        hidden_size: int,
        *,
        sites: Sequence[str],
        paths: Sequence[str],
        costs: Sequence[Sequence[float]] | None = None,
        causal: bool = True,
        first: int = 0,
        total: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.first, self.total = config, first, total
        self.cutting = False
        self.seen: list[Tensor] | None = None
        self.sites, self.paths, self.causal = tuple(sites), tuple(paths), causal
        self.chooser: Chooser | None = None  # set by `forced`
        everywhere = total or len(sites)
        if config.control_sites and not all(0 <= site < everywhere for site in config.control_sites):
            raise UserError(
                f"routing.control_sites {config.control_sites} must lie in 0..{everywhere - 1}: "
                f"the model has {everywhere} sites"
            )
        self.router = None
        if config.control is None:
            self.router = build_router(
                config.router,
                hidden_size,
                len(sites),
                len(paths),
                widths=config.widths,
                initial_bias=config.initial_bias,
                zero_init=config.zero_init,
            )
        self.thresholds = Thresholds(len(sites), budget=config.budget, step=config.threshold_step)
        # Plain numbers, since a model may be made without data (on the meta device) and filled in later.
        row = [index / (len(paths) - 1) for index in range(len(paths))]
        self.initial_costs = [list(map(float, cost)) for cost in (costs or [row] * len(sites))]
        # Not saved: costs follow from the model's configuration, temperature and rate from the schedule.
        self.register_buffer("costs", torch.tensor(self.initial_costs), persistent=False)
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self.register_buffer("rate", torch.full((len(sites),), float(config.rate)), persistent=False)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        valid: Bool[Tensor, "B T"],
        positions: Int[Tensor, "B T"],
        token_ids: Int[Tensor, "B T"] | None = None,
        served: Served | None = None,
        asked: Bool[Tensor, "B T"] | None = None,
    ) -> RouteDecision:
        """Decide for every token.

        Args:
            hidden: what the router reads.
            valid: False at padding.
            positions: position of each token in its sequence (controls need it).
            token_ids: make the ``random`` control differ between sequences; without them it sees positions only.
            served: hold the rate in this inference call. Default: thresholds alone decide. It has no part in training,
                in calibration, or where choices are forced.
            asked: what ``oracle`` knows of the tokens.

        Raises:
            UserError: ``oracle`` in a model that does not tell it.
        """
        paths = len(self.paths)
        forced = None if self.chooser is None else self.chooser(self.sites, positions, token_ids)
        if self.router is None:
            expensive = self._controlled(positions, token_ids, asked)
            choice = expensive.long() * (paths - 1) if forced is None else forced
            gate = F.one_hot(choice, paths).to(torch.float32)
            probabilities = gate
            if self.config.control == "random":
                probabilities = torch.zeros_like(gate)
                probabilities[..., -1] = self.rate
                probabilities[..., 0] = 1 - self.rate
        else:
            logits = self.router(hidden)
            if self.config.centre_gradient and logits.requires_grad:
                logits = centred_gradient(logits, valid)
            if self.seen is not None:
                self.seen.append(margins(logits.detach())[valid])
            elif served is not None and forced is None and not self.training and not self.cutting:
                forced = self._held(logits, valid, served)
            noise = None
            if self.training:
                noise = training_noise(self.config.estimator, logits, exploration=self.config.exploration)
            threshold = self.thresholds.for_batch(
                logits,
                valid,
                self.rate,
                cut=self.cutting or (self.training and self.config.budget == "quantile"),
                track=self.training,
                noise=noise,
            )
            probabilities, choice, gate = estimate(
                self.config.estimator,
                logits,
                training=self.training,
                temperature=self.temperature,
                threshold=threshold,
                noise=noise,
                forced=forced,
                surrogate=self._surrogate(logits, valid, noise),
            )
        return RouteDecision(
            probabilities=probabilities,
            choice=choice,
            valid=valid,
            sites=self.sites,
            paths=self.paths,
            costs=self.costs,
            gate=gate,
            causal=self.causal,
        )

    @torch.no_grad()
    def expensive(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        positions: Int[Tensor, "B T"],
        token_ids: Int[Tensor, "B T"] | None = None,
    ) -> Bool[Tensor, "B T R"]:
        """Which tokens take the last path at inference, where thresholds alone decide.

        ``forward`` chooses the same; its probabilities and gates cost more than the router where there is one token.
        """
        if self.router is None:
            return self._controlled(positions, token_ids, None)
        if len(self.paths) == 2:
            return self.router.outputs(hidden) > self.thresholds.value
        return margins(self.router(hidden)) > self.thresholds.value

    def _controlled(
        self, positions: Tensor, token_ids: Tensor | None, asked: Tensor | None
    ) -> Bool[Tensor, "B T R"]:
        assert self.config.control is not None
        if self.config.control == "oracle":
            if asked is None:
                raise UserError("routing.control: oracle needs token ids, and a hybrid model to route")
            return asked.unsqueeze(-1).expand(-1, -1, len(self.sites))
        return control_choice(
            self.config.control,
            positions=positions,
            keys=positions if token_ids is None else positions + token_ids.long() * 1_000_003,
            rate=self.rate,
            training=self.training,
            seed=self.config.control_seed,
            sites=None if self.config.control_sites is None else tuple(self.config.control_sites),
            first=self.first,
            total=self.total,
        )

    @torch.no_grad()
    def _surrogate(self, logits: Tensor, valid: Tensor, noise: Tensor | None) -> Surrogate | None:
        if not self.training or self.config.surrogate != "asked":
            return None
        margin = margins(logits if noise is None else logits + noise)
        return Surrogate(
            threshold=quantile_threshold(margin, valid, torch.full_like(self.rate, self.config.rate)),
            # Never below 1: while a router is new, its logits lie near each other, and their gradient is not to grow.
            unit=margin[valid].std(dim=0, correction=0).nan_to_num().clamp_min(1.0),
        )

    def _held(
        self, logits: Float[Tensor, "B T R P"], valid: Bool[Tensor, "B T"], served: Served
    ) -> Int[Tensor, "B T R"]:
        expensive = served.choose(
            f"served{self.first}",
            margins(logits),
            valid,
            threshold=self.thresholds.value,
            spread=self.thresholds.spread,
            rate=self.rate,
            cost=self.costs[:, -1] - self.costs[:, 0],
            sites=self.total or len(self.sites),
        )
        return torch.where(expensive, len(self.paths) - 1, logits[..., :-1].argmax(dim=-1))
