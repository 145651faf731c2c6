"""layerroute: dynamic per-token layer routing for language models.

    import layerroute

    model, tokenizer = layerroute.load("smollm2-135m")
    calibration = layerroute.calibrate(model, tokenizer, budget=0.25)
    print(layerroute.generate(model, tokenizer, "The first steam engines").coloured)

Importing this package is cheap: no torch, no transformers. The names below are imported when they are first used, and
transformers learns of our models as soon as it is imported itself (:mod:`layerroute.registration`).
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from layerroute.registration import register_models

if TYPE_CHECKING:
    from layerroute.api.calibration import Calibration as Calibration
    from layerroute.api.calibration import calibrate as calibrate
    from layerroute.api.loading import load as load
    from layerroute.api.saving import export as export
    from layerroute.api.saving import push_to_hub as push_to_hub
    from layerroute.api.saving import save as save
    from layerroute.api.using import compare as compare
    from layerroute.api.using import decisions as decisions
    from layerroute.api.using import evaluate as evaluate
    from layerroute.api.using import generate as generate
    from layerroute.errors import UserError as UserError
    from layerroute.hybrid import HybridConfig as HybridConfig
    from layerroute.hybrid import HybridForCausalLM as HybridForCausalLM
    from layerroute.routing import RouteDecision as RouteDecision
    from layerroute.skipping import SkipConfig as SkipConfig
    from layerroute.skipping import add_router as add_router
    from layerroute.skipping import remove_router as remove_router
    from layerroute.skipping import router_disabled as router_disabled

__version__ = "0.2.0"

_PUBLIC = {
    "layerroute.api.calibration": "Calibration calibrate",
    "layerroute.api.loading": "load",
    "layerroute.api.saving": "export push_to_hub save",
    "layerroute.api.using": "compare decisions evaluate generate",
    "layerroute.errors": "UserError",
    "layerroute.hybrid": "HybridConfig HybridForCausalLM",
    "layerroute.routing": "RouteDecision",
    "layerroute.skipping": "SkipConfig add_router remove_router router_disabled",
}
EXPORTS = dict(sorted((name, module) for module, names in _PUBLIC.items() for name in names.split()))
"""Public names, and the module that has each."""

MOVED = {
    "DataConfig": "layerroute.data",
    "Recipe": "layerroute.recipe",
    "RoutingConfig": "layerroute.routing",
    "forward_flops": "layerroute.hybrid",
    "load_recipe": "layerroute.recipe",
    "prepare_data": "layerroute.data",
    "read_record": "layerroute.records",
}
"""Names of 0.1 that are found in their modules alone from 0.3 on."""

__all__ = ["EXPORTS", "__version__", *EXPORTS]  # noqa: PLE0604 - they are strings


if not TYPE_CHECKING:  # or type checkers would take any name

    def __getattr__(name: str) -> Any:
        module = EXPORTS.get(name) or MOVED.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module), name)
        if name in MOVED:
            old, new = f"layerroute.{name}", f"from {module} import {name}"
            warnings.warn(f"{old} goes with version 0.3; write: {new}", DeprecationWarning, stacklevel=2)
        else:
            globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})


register_models()
