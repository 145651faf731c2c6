"""Routed models that transformers opens from one folder, as any other model, once ``layerroute`` is imported."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from layerroute.errors import UserError


class RoutedExport:
    """Mixin of a causal LM whose router is part of it: made by its configuration, filled from its weights."""

    _keep_in_fp32_modules_strict = ("layerroute",)

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        from layerroute.skipping import SkipConfig, add_router

        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        add_router(self, SkipConfig.from_dict(config.layerroute["skip"]))  # type: ignore[type-var]

    def __reduce__(self) -> Any:
        """For copies and pickles: its class is made here, and cannot be found under its name."""
        return _unfilled, (self.config,), vars(self).copy()  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """The model in inference mode; ``output_loading_info`` and all other arguments as in transformers.

        Raises:
            UserError: if the folder lacks weights, of which transformers would make random numbers.
        """
        wanted = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise UserError(f"the export lacks {', '.join(missing[:3])}; export the router again")
        settle(model)
        return (model, info) if wanted else model


@torch.no_grad()
def settle(model: Any) -> None:
    """Give the router what is not saved but follows from its configuration: it was made without memory."""
    from layerroute.skipping import get_router
    from layerroute.skipping.flops import path_costs
    from layerroute.skipping.router import LayerRouter

    router, text = get_router(model), model.config.get_text_config()
    costs = None if router.sparse_obstacle is not None else path_costs(text, router.config)
    fresh = LayerRouter(router.config, text.hidden_size, costs=costs)
    saved, targets = fresh.state_dict().keys(), dict(router.named_buffers())
    for name, value in fresh.named_buffers():
        if name not in saved:
            targets[name].copy_(value)
    if router.budgets is not None and router.budgets.holds(router.config.budget):
        router.set_budget(router.config.budget)
    router.requires_grad_(False)


def _unfilled(config: Any) -> Any:
    mapping: Any = AutoModelForCausalLM._model_mapping
    made = mapping[type(config)]
    return made.__new__(made)


def routed_model_class(config_class: Any, base_config_class: Any) -> Any:
    """The class of routed models of a family: that of transformers, with a router.

    Raises:
        UserError: if transformers has no causal LM of the family.
    """
    mapping: Any = AutoModelForCausalLM._model_mapping
    if base_config_class not in mapping:
        raise UserError(f"transformers has no causal LM for {base_config_class.__name__}")
    base = mapping[base_config_class]
    return type(
        f"Routed{base.__name__}",
        (RoutedExport, base),
        {"config_class": config_class, "__module__": __name__},
    )
