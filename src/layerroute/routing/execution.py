"""When routed layers are executed sparsely: only the chosen paths, where that is possible and pays."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch

from layerroute.errors import UserError, check_keys
from layerroute.routing.estimators import SPARSE_ESTIMATORS

EXECUTIONS = ("auto", "masked", "sparse")

P = TypeVar("P", bound="Profitability")


@dataclass(kw_only=True)
class Profitability:
    """From which share of a call's tokens on the cheap path ``auto`` executes sparsely there.

    Where all tokens take one path nothing else is computed, whatever these say. The defaults, which differ by what is
    routed, were measured on a small CPU (``layerroute bench calibrate`` measures others).

    Attributes:
        prefill: of a call with more than one new token a row.
        decode: of a call with one new token a row.
        train: of a training call (only with estimators whose gradient needs the chosen path alone).
    """

    key: ClassVar[str]

    prefill: float
    decode: float
    train: float

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"{self.key}.{item.name} is a share from 0 to 1, got {value}")

    @classmethod
    def of(cls: type[P], given: Mapping[str, Any] | None) -> P:
        """From a configuration's mapping.

        Raises:
            UserError: for unknown keys and impossible values.
        """
        check_keys(given or {}, (item.name for item in fields(cls)), cls.key)
        return cls(**(given or {}))


def sparse_from(
    execution: str,
    profitability: Profitability,
    *,
    estimator: str,
    gated: bool,
    obstacle: str | None,
    training: bool,
    time: int,
    whole_only: bool = False,
) -> float | None:
    """The share of tokens on the cheap path from which it is executed sparsely; None: not in this call.

    Args:
        execution: one of ``EXECUTIONS``.
        gated: whether gates carry a gradient, which some estimators need of both paths.
        obstacle: why the model can only be executed masked, or None.
        training: whether this is a training call.
        time: new tokens a row.
        whole_only: the call asked for what only whole layers give.

    Raises:
        UserError: if sparse execution is asked for and not possible.
    """
    if execution == "masked":
        return None
    if obstacle is None and gated and estimator not in SPARSE_ESTIMATORS:
        obstacle = (
            f"the gradient of routing.estimator {estimator!r} needs both paths of every token; only "
            f"{' and '.join(SPARSE_ESTIMATORS)} train sparsely"
        )
    if obstacle is not None and execution == "sparse":
        raise UserError(f"execution: sparse is not possible: {obstacle}; use auto or masked")
    if obstacle is not None or whole_only:
        return None
    if execution == "sparse":
        return 0.0
    if torch.compiler.is_compiling():
        return None  # what it does depends on data
    if training:
        return profitability.train
    return profitability.decode if time == 1 else profitability.prefill
