"""What is fitted at a site: a skip path in closed form, and a predictor of how much a token would miss the layer."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from layerroute.skipping.calibration.descent import descended
from layerroute.skipping.calibration.journal import kept
from layerroute.skipping.calibration.moments import Moments, damped, reduced_rank

_FLOOR = 1e-8


@kept
@dataclass(frozen=True, kw_only=True)
class SkipMap:
    """h + f((h - mean) A) B + bias, for tokens that skip, where f is nothing, or SiLU with ``non_linear``. fp32."""

    mean: Float[Tensor, "D"]
    down: Float[Tensor, "D r"]
    up: Float[Tensor, "r D"]
    bias: Float[Tensor, "D"]
    non_linear: bool = False

    def __call__(self, states: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """The states after the skip path."""
        return states + self.update(states).to(states.dtype)

    def update(self, states: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """What it adds to them, fp32."""
        inside = (states.float() - self.mean) @ self.down
        return (F.silu(inside) if self.non_linear else inside) @ self.up + self.bias

    @staticmethod
    def identity(size: int, rank: int, device: torch.device) -> "SkipMap":
        """A map that changes nothing."""
        zeros = torch.zeros(size, device=device)
        return SkipMap(
            mean=zeros,
            down=torch.zeros(size, rank, device=device),
            up=torch.zeros(rank, size, device=device),
            bias=zeros,
        )


@kept
@dataclass(frozen=True, kw_only=True)
class Hidden:
    """GELU(weight h + bias): a hidden layer that several predictors share."""

    weight: Float[Tensor, "H D"]
    bias: Float[Tensor, "H"]

    def __call__(self, states: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens H"]:
        """What predictors read in place of the state."""
        return F.gelu(F.linear(states, self.weight, self.bias))


@kept
@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Prediction of a token's log-influence; the token runs where it is above ``threshold``.

    Attributes:
        weight, bias: of the state that the router reads, or of what ``hidden`` makes of it.
        hidden: None: the prediction is linear.
        threshold: in log-influence.
        r2: share of the variance of log-influence that it explains, on the tokens it was fitted to.
    """

    weight: Float[Tensor, "E"]
    bias: float
    threshold: float
    r2: float
    hidden: Hidden | None = None

    def __call__(self, states: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens"]:
        """Predicted log-influence."""
        read = states.float() if self.hidden is None else self.hidden(states.float())
        return read @ self.weight + self.bias


class SkipFit:
    """Maps of a rank from states to ``target`` - states, for one choice of tokens after another: the best linear ones.

    With ``non_linear`` those are where gradient descent begins.

    The sums over all tokens are made once; a choice adds only the rows that it chooses.

    Args:
        rank: of the maps.
        strength: of the ridge, relative to the mean variance of the states.
        non_linear: see `SkipMap`.
    """

    def __init__(
        self,
        states: Float[Tensor, "N D"],
        target: Float[Tensor, "N D"],
        *,
        rank: int,
        strength: float,
        non_linear: bool = False,
    ) -> None:
        self.states, self.update = states, target - states
        self.rank, self.strength, self.non_linear = rank, strength, non_linear
        self.sums = Moments().add(self.states, self.update)

    def __call__(self, chosen: Bool[Tensor, "N"] | None = None, *, background: float = 1.0) -> SkipMap:
        """The map for tokens that are ``chosen``; the others weigh ``background``. Default: all alike."""
        moments = self.sums
        if chosen is not None:
            more = self.states.new_full((int(chosen.sum()),), 1.0 - background, dtype=torch.float32)
            moments = moments.scaled(background).add(self.states[chosen], self.update[chosen], more)
        down, up = reduced_rank(moments, self.strength, self.rank)
        # The bias is y's mean: the map is of x around its own mean.
        linear = SkipMap(
            mean=moments.x_mean.float(), down=down.float(), up=up.float(), bias=moments.y_mean.float()
        )
        if not self.non_linear:
            return linear
        weight = self.states.new_ones(len(self.states), dtype=torch.float32)
        if chosen is not None:
            weight = torch.where(chosen, weight, background)
        down, up, bias = descended(
            self.states.float() - linear.mean,
            self.update.float(),
            weight,
            down=linear.down,
            up=linear.up,
            bias=linear.bias,
        )
        return replace(linear, down=down, up=up, bias=bias, non_linear=True)


def influence(
    states: Float[Tensor, "*tokens D"],
    target: Float[Tensor, "*tokens D"],
    skip: SkipMap,
    *,
    relative: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """What the skip path leaves unexplained of a layer's output, log of |target - skipped|² / |target|^(2 relative).

    With ``relative`` 1 and the identity for a skip path this is, up to scale and to the length of the update along the
    state, the log of the block influence 1 - cos(h_in, h_out).
    """
    missed = (target - skip(states)).float().square().sum(dim=-1)
    size = target.float().square().sum(dim=-1).clamp_min(_FLOOR)
    return (missed / size + _FLOOR).log() + (1 - relative) * size.log()


class PredictorFit:
    """Ridge regressions of one score after another on the same states, whose moments are made and factored once.

    Args:
        features: the states.
        strength: of the ridge, relative to the mean variance of the features.
    """

    def __init__(self, features: Float[Tensor, "N D"], strength: float) -> None:
        self.features = features
        moments = Moments().add(features, features[:, :0])
        self.mean, (self.covariance, _, _) = moments.x_mean, moments.covariance()
        self.factor = torch.linalg.cholesky(damped(self.covariance, strength))

    def __call__(self, score: Float[Tensor, "N"]) -> Predictor:
        """The prediction of a score; its threshold is to be set."""
        centred = score.double() - score.double().mean()
        cross = (self.features.float().T @ centred.float()).double() / len(score)
        weight = torch.cholesky_solve(cross.unsqueeze(1), self.factor)[:, 0]
        variance = centred.square().mean().clamp_min(torch.finfo(torch.float64).tiny)
        left = variance - 2 * cross @ weight + weight @ self.covariance @ weight
        bias = score.double().mean() - self.mean @ weight
        return Predictor(
            weight=weight.float(), bias=float(bias), threshold=0.0, r2=float(1 - left / variance)
        )


def lowest(
    score: Float[Tensor, "N"], may: Bool[Tensor, "N"], share: float
) -> tuple[Bool[Tensor, "N"], float]:
    """The tokens of lowest score that make up ``share`` of all N (of those that ``may``), and the cut above them."""
    count = min(round(share * score.shape[0]), int(may.sum()))
    ordered = score[may].sort().values
    if count == 0:
        return torch.zeros_like(may), float("-inf")
    if count == ordered.shape[0]:
        return may.clone(), float("inf")
    cut = float((ordered[count - 1] + ordered[count]) / 2)
    return may & (score <= cut), cut
