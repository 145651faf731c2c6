"""From a plain pretrained model to one that is ready to be trained: its router, its adapter, and who learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerroute.data.sequence import TokenSequence, require_windows
from layerroute.errors import UserError, require
from layerroute.precision import Precision
from layerroute.skipping.calibration import CalibrationConfig, arm_folder, cached_calibration
from layerroute.skipping.calibration.configuration import FITTED, GRANULARITIES, UNITS
from layerroute.skipping.model import add_router, get_router
from layerroute.skipping.pretrained import base_options, load_pretrained
from layerroute.skipping.skip_config import SkipConfig
from layerroute.skipping.storage import load_router
from layerroute.training.optimization import ParameterGroup
from layerroute.training.skipping.configuration import AdaptConfig, PretrainedConfig, StartConfig

LEAVES_OUT = ("static_greedy", "static_influence")
"""Arms that may leave layers out with nothing in their place: a plain smaller model, which any engine opens."""

_ORDER_SEED, _ORDER_EPOCH = 0, 1_000_000  # an order of the windows that no run takes them in


def load_base(config: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    """The pretrained model on its device, frozen.

    Raises:
        UserError: as ``load_pretrained``; 4 bits without bitsandbytes.
    """
    options = base_options(
        device=device, dtype=config.dtype, quantization=config.quantization, attention=config.attention
    )
    if config.trust_remote_code:
        options["trust_remote_code"] = True
    model, _ = load_pretrained(config.name, **options)
    if config.quantization == "none":
        model.to(device)  # type: ignore[arg-type]
    model.requires_grad_(False)
    return model


def start_router(
    model: PreTrainedModel,
    skip: SkipConfig,
    start: StartConfig,
    train: TokenSequence,
    *,
    also: list[float],
    precision: Precision,
    stage: Callable[[str], Callable[[float], None]],
) -> None:
    """Put a router onto the model.

    Args:
        skip: of the recipe. A calibrated start takes from it what may be skipped and how much, and how routers train.

    Raises:
        UserError: where a calibration cannot make what the recipe's `skip` section asks for.
    """
    if start.method == "fresh":
        with torch.random.fork_rng():
            torch.manual_seed(start.seed)
            add_router(model, skip)
        return
    config = calibration_config(skip, start, train.sequence_length, also, precision)
    if start.folder is not None:
        folder = Path(start.folder)
    else:
        statistics, selection = calibration_windows(train, config)
        device = model.device
        folder = cached_calibration(
            model,
            config,
            statistics=statistics.to(device),
            selection=selection.to(device),
            stage=stage,
        )
    arm = calibrated_arm(folder, start.arm)
    serve = skip.serve if start.arm == "routed" else None  # others have no rate to hold
    load_router(model, arm, execution=skip.execution, serve=serve, trainable=True)
    router = get_router(model)
    if not abs(router.config.budget - skip.budget) < 1e-6:
        raise UserError(
            f"start.folder: {folder} was calibrated for a budget of {router.config.budget:g}, and the recipe asks for "
            f"{skip.budget:g} (1 - skip.routing.rate)"
        )
    asked_for = ["unit", "kv"] if skip.skip_path == "identity" else ["unit", "kv", "skip_path"]
    if router.config.routing.control is None:
        asked_for += ["granularity", "router_layer", "history", "rank", "sink_tokens"]
        asked_for += ["prefix_tokens"] if skip.granularity == "sequence" else []
        asked_for += ["layers"] if skip.layers is not None else []
    for key in asked_for:
        made, wanted = getattr(router.config, key), getattr(skip, key)
        if made != wanted:
            raise UserError(
                f"start.folder: {folder} was calibrated with {key} {made}, and the recipe asks for skip.{key} {wanted}"
            )
    router.config.profitability = skip.profitability
    if skip.skip_path == "identity":
        router.config.skip_path = "identity"
        router.skip_paths.clear()
    own, asked = router.config.routing, skip.routing
    if own.control is None:
        own.estimator, own.budget, own.exploration = asked.estimator, asked.budget, asked.exploration
        own.centre_gradient, own.threshold_step = asked.centre_gradient, asked.threshold_step
        own.surrogate = asked.surrogate
        for routing in router.all_routings():
            routing.thresholds.budget, routing.thresholds.step = asked.budget, asked.threshold_step


def calibrated_arm(folder: Path, arm: str) -> Path:
    """The folder of an arm of a calibration.

    Raises:
        UserError: the calibration has none such.
    """
    found = arm_folder(folder, arm)
    if not found.is_dir():
        raise UserError(
            f"start.folder: {folder} holds no calibrated {arm}; make it with layerroute calibrate --controls"
        )
    return found


def calibration_config(
    skip: SkipConfig, start: StartConfig, length: int, also: list[float], precision: Precision
) -> CalibrationConfig:
    """The calibration that a recipe asks for.

    Raises:
        UserError: for what calibration does not make.
    """
    for key, value, made in (
        ("unit", skip.unit, UNITS),
        ("granularity", skip.granularity, GRANULARITIES),
        ("skip_path", skip.skip_path, (*FITTED, "identity") if start.arm in LEAVES_OUT else FITTED),
        ("kv", skip.kv, ("project",)),
        ("routing.control", skip.routing.control, (None,)),
    ):
        if value not in made:
            raise UserError(
                f"skip.{key} {value!r} cannot be calibrated (only {' or '.join(map(str, made))}); set start.method: "
                "fresh"
            )
    names = ("tokens_statistics", "tokens_selection", "tokens_search")
    tokens = {name: max(getattr(start, name), length) for name in names}
    asked = {name: getattr(start, name) for name in ("own_text", "allocation", "min_share", "seed")}
    asked |= {
        name: getattr(skip, name)
        for name in ("unit", "granularity", "router_layer", "prefix_tokens", "history", "rank", "sink_tokens")
    }
    if skip.skip_path in FITTED:
        asked["skip_path"] = skip.skip_path
    return CalibrationConfig(
        budget=round(skip.budget, 6),
        also=sorted({round(b, 6) for b in also} - {round(skip.budget, 6)}),
        layers=None if skip.layers is None else list(skip.layers),
        sink_ids=list(skip.sink_ids or []),
        length=length,
        refits=2 if start.allocation == "cost" else 1,
        precision=precision,
        **tokens,
        **asked,
    )


def calibration_windows(train: TokenSequence, config: CalibrationConfig) -> tuple[Tensor, Tensor]:
    """Windows (N, T) and (M, T) of the training text for statistics and selection, no window in both."""
    first, second = (
        -(-tokens // config.length) for tokens in (config.tokens_statistics, config.tokens_selection)
    )
    require_windows(train, first + second)
    order = train.order(seed=_ORDER_SEED + config.seed, epoch=_ORDER_EPOCH)[: first + second]
    ids = torch.from_numpy(train.batch(order))
    return ids[second:], ids[:second]


def check_adapter(model: nn.Module, config: AdaptConfig) -> None:
    """Hold an adapter against the model that it is to be added to.

    Raises:
        UserError: the model has no module of a name in ``lora_targets``, or PEFT is not installed.
    """
    if not config.lora_rank:
        return
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [target for target in config.lora_targets if target not in names]
    if missing:
        raise UserError(f"adapt.lora_targets: the model has no module called {', '.join(missing)}")
    require("peft", extra="train")


def add_adapter(model: Any, config: AdaptConfig, *, seed: int) -> None:
    """Add the LoRA adapter, in fp32 whatever the base is in; ``check_adapter`` comes before."""
    if not config.lora_rank:
        return
    from peft import LoraConfig

    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def choose_trainable(model: nn.Module, config: AdaptConfig) -> list[ParameterGroup]:
    """Freeze all that a recipe does not train; the rest in groups: adapter, routers, skip paths."""
    parts = trained_parts(model)
    rates = {"adapter": 1.0, "router": config.router_rate, "skip paths": config.skip_rate}
    begins = (config.lora_begin, config.router_begin, config.skip_begin)
    model.requires_grad_(False)
    chosen = []
    for (name, rate), begin in zip(rates.items(), begins, strict=True):
        if rate and parts[name]:
            chosen.append(ParameterGroup(name=name, parameters=parts[name], factor=rate, begin=begin))
            for parameter in parts[name].values():
                parameter.requires_grad_(True)
    if not chosen:
        raise UserError(
            "nothing is trained: adapt.lora_rank, router_rate and skip_rate are 0, or the arm has no router and no "
            "skip paths; set one of them"
        )
    return chosen


def trained_parts(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that may be trained, by name in the model: adapter, routers, skip paths."""
    router = get_router(model)
    routers, skips = ({id(p) for p in part.parameters()} for part in (router.routings, router.skip_paths))
    named = dict(model.named_parameters())
    return {
        "adapter": {name: p for name, p in named.items() if "lora_" in name},
        "router": {name: p for name, p in named.items() if id(p) in routers},
        "skip paths": {name: p for name, p in named.items() if id(p) in skips},
    }
