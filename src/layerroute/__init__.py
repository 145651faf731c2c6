"""layerroute: dynamic per-token layer routing for language models.

Importing this package is cheap: no torch, no transformers. The names below are imported when they are first used, and
transformers learns of our models as soon as it is imported itself (:mod:`layerroute.registration`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from layerroute.registration import register_models

if TYPE_CHECKING:
    from layerroute.data import DataConfig as DataConfig
    from layerroute.data import prepare_data as prepare_data
    from layerroute.errors import UserError as UserError
    from layerroute.hybrid import HybridConfig as HybridConfig
    from layerroute.hybrid import HybridForCausalLM as HybridForCausalLM
    from layerroute.hybrid import forward_flops as forward_flops
    from layerroute.recipe import Recipe as Recipe
    from layerroute.recipe import load_recipe as load_recipe
    from layerroute.records import read_record as read_record
    from layerroute.routing import RouteDecision as RouteDecision
    from layerroute.routing import RoutingConfig as RoutingConfig

__version__ = "0.1.0"

EXPORTS = {
    "DataConfig": "layerroute.data",
    "HybridConfig": "layerroute.hybrid",
    "HybridForCausalLM": "layerroute.hybrid",
    "Recipe": "layerroute.recipe",
    "RouteDecision": "layerroute.routing",
    "RoutingConfig": "layerroute.routing",
    "UserError": "layerroute.errors",
    "forward_flops": "layerroute.hybrid",
    "load_recipe": "layerroute.recipe",
    "prepare_data": "layerroute.data",
    "read_record": "layerroute.records",
}
"""Public names, and the module that has each."""

__all__ = ["EXPORTS", "__version__", *EXPORTS]  # noqa: PLE0604 - they are strings


def __getattr__(name: str) -> Any:
    module = EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})


register_models()
