"""The one handle on a routed model: its decisions and settings, whatever the model and whatever is around it.

The module in a model that makes the decisions (``HybridModel``, ``LayerRouter``) is a :class:`RoutingHandle`. It is
found inside PEFT, DDP, FSDP, ``torch.compile`` and Trainer alike, because all of them keep the module they wrap.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from layerroute.errors import UserError, nearest
from layerroute.routing.controls import hashed_uniform
from layerroute.routing.decision import Chooser, RouteDecision
from layerroute.routing.execution import EXECUTIONS
from layerroute.routing.module import Routing
from layerroute.routing.serving import check_serve


class RoutingHandle(nn.Module):
    """Mixin of the module that makes a model's decisions.

    Attributes:
        enabled: False while a layer router is switched off.
        execution: how routed layers are executed, as the configuration says unless overridden.
        sparse_obstacle: why they can only be executed masked, or None.
        last: the decision of the last routed call, with its graph if it had one.
        listeners: lists that every call's decision is appended to, and whether with its graph.
    """

    config: Any
    execution: str
    enabled = True
    sparse_obstacle: str | None = None
    last: RouteDecision | None = None
    listeners: tuple[tuple[list[RouteDecision], bool], ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the graph of the last decision, and without who listens here."""
        last = None if self.last is None else self.last.detach()
        return {**super().__getstate__(), "last": last, "listeners": ()}

    def all_routings(self) -> list[Routing]:
        """The routing modules, in the order of their sites."""
        return routings_of(self)

    def publish(self, decision: RouteDecision) -> None:
        """Hand out the decision of a call that has ended."""
        self.last = decision
        for collected, graph in self.listeners:
            collected.append(decision if graph else decision.detach())

    def set_temperature(self, temperature: float) -> None:
        """Temperature of the training-time softmax, from the run's schedule."""
        for routing in self.all_routings():
            routing.temperature.fill_(temperature)

    def set_rate(self, rate: float) -> None:
        """Share of tokens asked to take the expensive path (controls and budgets follow it at once)."""
        for routing in self.all_routings():
            routing.rate.fill_(rate)

    def set_serve(self, serve: str) -> None:
        """See the function of this name."""
        check_serve(serve, "serve", obstacle=self.config.serve_obstacle)
        self.config.serve = serve


def routings_of(model: nn.Module) -> list[Routing]:
    """All routing modules of a model, in the order of their sites."""
    return [module for module in model.modules() if isinstance(module, Routing)]


def find_handle(model: nn.Module) -> RoutingHandle | None:
    """The handle of a model that may route, also inside of whatever wraps it; None for any other model."""
    return next((module for module in model.modules() if isinstance(module, RoutingHandle)), None)


def get_handle(model: nn.Module) -> RoutingHandle:
    """The handle of a model that may route.

    Raises:
        UserError: for any other model.
    """
    handle = find_handle(model)
    if handle is None:
        raise UserError(
            f"this {type(model).__name__} routes nothing; a hybrid model does, or one with a router"
        )
    return handle


@contextmanager
def collect_decisions(model: nn.Module, *, graph: bool = False) -> Iterator[list[RouteDecision]]:
    """Within the context, the decision of each forward call is appended to the list given.

    ``generate`` makes one call a token. Nothing is appended by a model that routes nothing, or is switched off.

    Args:
        model: hybrid or with a layer router, also wrapped by PEFT, DDP, FSDP or ``torch.compile``.
        graph: keep the decisions' graphs, for a loss. Default: detached.
    """
    handle = find_handle(model)
    collected: list[RouteDecision] = []
    if handle is None:
        yield collected
        return
    handle.listeners = (*handle.listeners, (collected, graph))
    try:
        yield collected
    finally:
        # By identity: two lists of decisions may be equal while both are empty.
        handle.listeners = tuple(one for one in handle.listeners if one[0] is not collected)


def last_decision(model: nn.Module) -> RouteDecision:
    """The decision about the tokens of the last routed forward call, with its graph if it had one.

    Raises:
        UserError: if no call has been routed yet, or the model routes nothing.
    """
    decision = get_handle(model).last
    if decision is None:
        raise UserError("the model has not decided anything yet: call it with the router enabled first")
    return decision


def set_serve(model: nn.Module, serve: str) -> None:
    """Serve by ``threshold`` or hold the ``rate`` from now on; what is saved afterwards says so too.

    Args:
        model: hybrid, or with a layer router.
        serve: ``threshold``: saved thresholds alone. ``rate``: each sequence is held at the rate asked for, within 0.01
            at 512 tokens. ``rate:0.05``: within 0.05, or another share up to 0.5.

    Raises:
        UserError: for another word, a model that routes nothing, or a router that cannot hold a rate.
    """
    handle = find_handle(model)
    if handle is None:
        raise UserError("the model routes nothing, so that there is no rate to hold")
    handle.set_serve(serve)


@contextmanager
def executed(model: nn.Module, execution: str) -> Iterator[None]:
    """Within the context, execute routed layers ``masked``, ``sparse`` or ``auto``, whatever the configuration says.

    Raises:
        UserError: for another word, or a model that routes nothing.
    """
    if execution not in EXECUTIONS:
        raise UserError(f"unknown execution {execution!r}.{nearest(execution, EXECUTIONS)}")
    handle = get_handle(model)
    before, handle.execution = handle.execution, execution
    try:
        yield
    finally:
        handle.execution = before


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


@contextmanager
def forced(
    model: nn.Module, choice: Int[Tensor, "B S R"] | Chooser | float | int, *, seed: int = 0
) -> Iterator[None]:
    """Within the context, decisions are given and not made: for tests and benchmarks.

    Tokens that always run are not forced to. Estimators still gate the choices, so that gradients can be compared.

    Args:
        choice: (rows, positions, sites) table of paths, looked up by position in the sequence, so that a token has the
            same choice in any chunking; or a callable, as of ``table``; or an int, the path for all; or a float,
            the share of tokens that take the expensive path, drawn by hashing position and token.
        seed: of the draw.
    """
    routings = routings_of(model)
    sites = tuple(site for routing in routings for site in routing.sites)
    chooser: Chooser
    if isinstance(choice, Tensor):
        if choice.ndim != 3 or choice.shape[-1] != len(sites):
            raise UserError(
                f"forced choices have the shape (rows, positions, {len(sites)} sites), got {tuple(choice.shape)}"
            )
        chooser = table(choice.long(), sites)
    elif isinstance(choice, float):
        chooser = at_rate(choice, seed=seed)
    else:
        chooser = constant(choice) if isinstance(choice, int) else choice
    before = [routing.chooser for routing in routings]
    for routing in routings:
        routing.chooser = chooser
    try:
        yield
    finally:
        for routing, chosen in zip(routings, before, strict=True):
            routing.chooser = chosen
