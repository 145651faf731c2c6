"""Streaming second moments, and the regressions that are solved from them in closed form."""

from copy import copy

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CHUNK = 4096
OUTLIER = 5.0
"""A token whose state is so many times longer than the median is an outlier (attention sinks are hundreds)."""


def regular(states: Float[Tensor, "N D"]) -> Bool[Tensor, "N"]:
    """True but for rows of outlier norm, which would rule a regression all alone."""
    norm = states.float().norm(dim=-1)
    return norm < OUTLIER * norm.median()


class Moments:
    """Weighted moments of rows x (D) and y (E): all that ridge regression needs, whatever the number of rows.

    Products are made in fp32 around a provisional centre, and summed in fp64.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._centre: tuple[Tensor, Tensor] | None = None

    def add(
        self,
        x: Float[Tensor, "N D"],
        y: Float[Tensor, "N E"],
        weight: Float[Tensor, "N"] | None = None,
    ) -> "Moments":
        """Take in rows; ``weight`` defaults to 1 each. Returns itself."""
        for first in range(0, x.shape[0], _CHUNK):
            part = slice(first, first + _CHUNK)
            self._add(x[part].float(), y[part].float(), None if weight is None else weight[part].float())
        return self

    def scaled(self, factor: float) -> "Moments":
        """The same rows, each of ``factor`` times its weight; adding to it leaves these as they are."""
        other = copy(self)
        other.weight = self.weight * factor
        for name in ("_x", "_y", "_xx", "_xy", "_yy"):
            setattr(other, name, getattr(self, name) * factor)
        return other

    def _add(self, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
        if self._centre is None:
            self._centre = x.mean(dim=0), y.mean(dim=0)
            size, out = x.shape[1], y.shape[1]
            self._x, self._y = x.new_zeros(size).double(), x.new_zeros(out).double()
            self._xx, self._xy = x.new_zeros(size, size).double(), x.new_zeros(size, out).double()
            self._yy = x.new_zeros(out).double()
        x, y = x - self._centre[0], y - self._centre[1]
        weighted = x if weight is None else x * weight.unsqueeze(1)
        y_weighted = y if weight is None else y * weight.unsqueeze(1)
        self.weight += float(x.shape[0] if weight is None else weight.sum())
        self._x += weighted.sum(dim=0)
        self._y += y_weighted.sum(dim=0)
        self._xx += weighted.T @ x
        self._xy += weighted.T @ y
        self._yy += (y_weighted * y).sum(dim=0)

    @property
    def x_mean(self) -> Float[Tensor, "D"]:
        """Mean of x, fp64."""
        assert self._centre is not None
        return self._centre[0].double() + self._x / self.weight

    @property
    def y_mean(self) -> Float[Tensor, "E"]:
        """Mean of y, fp64."""
        assert self._centre is not None
        return self._centre[1].double() + self._y / self.weight

    def covariance(self) -> tuple[Float[Tensor, "D D"], Float[Tensor, "D E"], Float[Tensor, "E"]]:
        """Covariances of x, of x with y, and the variances of y, fp64."""
        x, y = self._x / self.weight, self._y / self.weight
        return (
            self._xx / self.weight - torch.outer(x, x),
            self._xy / self.weight - torch.outer(x, y),
            (self._yy / self.weight - y.square()).clamp_min(0),
        )


def ridge(moments: Moments, strength: float) -> Float[Tensor, "D E"]:
    """Slopes W of the ridge regression y ~ (x - mean) W; ``strength`` is relative to the mean variance of x."""
    covariance, cross, _ = moments.covariance()
    return torch.linalg.solve(damped(covariance, strength), cross)


def reduced_rank(
    moments: Moments, strength: float, rank: int
) -> tuple[Float[Tensor, "D r"], Float[Tensor, "r E"]]:
    """Factors A, B of the best map of rank ``rank``: ridge regression, cut where it explains least of y.

    Reduced-rank regression (Izenman 1975): the cut is along the leading principal axes of the *fitted* y, which
    weighs the singular directions of the map by how much the data use them. A plain SVD of W does not.
    """
    covariance, cross, _ = moments.covariance()
    slopes = torch.linalg.solve(damped(covariance, strength), cross)
    fitted = cross.T @ slopes
    _, axes = torch.linalg.eigh((fitted + fitted.T) / 2)
    leading = axes[:, -rank:].flip(1)
    return slopes @ leading, leading.T


def damped(covariance: Float[Tensor, "D D"], strength: float) -> Float[Tensor, "D D"]:
    """A covariance with ``strength`` times its mean variance on the diagonal."""
    size = covariance.shape[0]
    scale = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return covariance + strength * scale * torch.eye(size, dtype=covariance.dtype, device=covariance.device)
