"""Routing: deciding, token by token, which path to take at each site. It knows nothing of any model."""

from layerroute.routing.decision import RouteDecision
from layerroute.routing.estimators import ESTIMATORS, Estimate, estimate
from layerroute.routing.forcing import at_rate, constant, forced, table
from layerroute.routing.module import Routing, RoutingConfig
from layerroute.routing.routers import LinearRouter, MLPRouter, build_router
from layerroute.routing.schedules import Schedule
from layerroute.routing.serving import set_serve

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "LinearRouter",
    "MLPRouter",
    "RouteDecision",
    "Routing",
    "RoutingConfig",
    "Schedule",
    "at_rate",
    "build_router",
    "constant",
    "estimate",
    "forced",
    "set_serve",
    "table",
]
