"""What a model computed on some text: layers run per token, and FLOPs that were executed."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import nn

from layerroute.data.windows import evenly
from layerroute.evaluation.executed import executed_flops_per_token
from layerroute.evaluation.perplexity import Autocast
from layerroute.evaluation.routing_statistics import RoutingStatistics
from layerroute.evaluation.texts import Batch
from layerroute.skipping import FAMILIES, LayerRouter, find_router, skip_flops

_COUNTED = 4  # batches on which FLOPs are counted


def _serving_router(model: nn.Module) -> LayerRouter | None:
    """The layer router of a model, None where there is none, or it is switched off."""
    router = find_router(model)
    return router if router is not None and router.enabled else None


def _layers(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def skipped_share(model: nn.Module, routing: RoutingStatistics | None) -> float | None:
    """Share of the routed compute that was skipped, each site weighted by what skipping it saves.

    None for a model without a layer router, or with one that is switched off.
    """
    if routing is None or _serving_router(model) is None:
        return None
    return 1.0 - routing.cost_weighted_rate


def layers_run(model: nn.Module, routing: RoutingStatistics | None) -> dict[str, Any] | None:
    """What a token runs of the model's layers, from the routing that was served; None as in ``skipped_share``.

    ``total`` layers; ``by_layer``, by unit (``block``, ``attention``, ``mlp``), the share of tokens that ran it in each
    (layers that may not be skipped are run by all); ``run_per_token``, by unit, in how many a token ran it on average.
    """
    router = _serving_router(model)
    if router is None or routing is None:
        return None
    total = _layers(model)
    by_layer = {
        unit: [routing.rate.get(f"layer{layer}.{unit}", 1.0) for layer in range(total)]
        for unit in router.config.units
    }
    run = {unit: sum(shares) for unit, shares in by_layer.items()}
    return {"total": total, "run_per_token": run, "by_layer": by_layer}


def layers_by_token(model: nn.Module, choice: Sequence[Sequence[int]]) -> tuple[int | None, list[float]]:
    """Layers of a model with a layer router, and how many of them each token ran.

    Where attention and MLP of a layer are decided apart, each counts for half a layer. None and nothing where there is
    no router, or it is switched off.

    Args:
        choice: of each token, 1 for each routed site that it ran and 0 for each that it skipped.
    """
    router = _serving_router(model)
    if router is None:
        return None, []
    total = _layers(model)
    units = len(router.config.units)
    run = [total - list(row).count(0) / units for row in choice]
    return total, [round(layers) if units == 1 else layers for layers in run]


def count_executed(
    model: nn.Module, batches: Sequence[Batch], *, precision: Autocast = nullcontext
) -> dict[str, float | None]:
    """FLOPs of forward passes as PyTorch counts them, on at most 4 batches: that costs another forward pass.

    ``executed_per_token`` of the model as it is served, ``full_depth_per_token``, the analytic FLOPs of a token that
    runs all layers (None where they are not known), and ``windows``, on which they were counted, evenly spaced.
    """
    chosen = [batches[index] for index in evenly(len(batches), _COUNTED)]
    sizes = [batch["input_ids"].numel() for batch in chosen]
    flops = [
        executed_flops_per_token(model, batch, precision=precision) * size
        for batch, size in zip(chosen, sizes, strict=True)
    ]
    router, config = find_router(model), getattr(model, "config", None)
    full = None
    if router is not None and config is not None and config.get_text_config().model_type in FAMILIES:
        lengths = [batch["input_ids"].shape[1] for batch in chosen]
        base = [skip_flops(config, router.config, length).base_per_token for length in lengths]
        full = sum(one * size for one, size in zip(base, sizes, strict=True)) / sum(sizes)
    return {
        "executed_per_token": sum(flops) / sum(sizes),
        "full_depth_per_token": full,
        "windows": sum(len(batch["input_ids"]) for batch in chosen),
    }
