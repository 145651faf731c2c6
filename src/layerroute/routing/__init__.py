"""Routing: deciding, token by token, which path to take at each site. It knows nothing of any model."""

from layerroute.routing.decision import RouteDecision
from layerroute.routing.estimators import ESTIMATORS, Estimate, estimate
from layerroute.routing.handle import (
    RoutingHandle,
    at_rate,
    collect_decisions,
    constant,
    executed,
    find_handle,
    forced,
    get_handle,
    last_decision,
    routings_of,
    set_serve,
    table,
)
from layerroute.routing.module import Routing, RoutingConfig
from layerroute.routing.routers import MLPRouter, build_router

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "MLPRouter",
    "RouteDecision",
    "Routing",
    "RoutingConfig",
    "RoutingHandle",
    "at_rate",
    "build_router",
    "collect_decisions",
    "constant",
    "estimate",
    "executed",
    "find_handle",
    "forced",
    "get_handle",
    "last_decision",
    "routings_of",
    "set_serve",
    "table",
]
