"""Adding a router to a loaded transformers model, and taking it off."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import nn
from transformers import AutoModelForCausalLM

from layerroute.errors import UserError
from layerroute.routing.handle import find_handle
from layerroute.skipping.families import FAMILIES, Family, decoder_stack, family_of
from layerroute.skipping.fingerprint import BaseSeen, base_of
from layerroute.skipping.flops import path_costs
from layerroute.skipping.layer import (
    RoutedLayer,
    begin_call,
    end_call,
    enter_layer,
    plain_class,
    routed_class,
)
from layerroute.skipping.router import LayerRouter
from layerroute.skipping.skip_config import SkipConfig
from layerroute.skipping.whole import become_plain, save_whole

_logger = logging.getLogger(__name__)

ATTRIBUTE = "layerroute"
"""Name of the router in the model's module tree."""
_SAVE, _OPEN, _PAGED = "save_pretrained", "from_pretrained", "init_continuous_batching"

Model = TypeVar("Model", bound=nn.Module)


def add_router(model: Model, config: SkipConfig | None = None) -> Model:
    """Let each token of a pretrained causal LM run or skip each decoder layer.

    The model is changed in place and keeps its class, its parameters and their names. ``generate``, ``pipeline``,
    ``Trainer``, gradient checkpointing, quantised weights and PEFT adapters (added before or after) work on. The
    router is ``model.layerroute``: its parameters are new and in fp32. PEFT freezes it with the rest of the base
    (``set_router_trainable`` opens it again), and must not adapt it: name ``target_modules``, or exclude
    ``.*layerroute.*`` with ``target_modules="all-linear"``.

    ``model.save_pretrained`` writes base and router as one model, which ``AutoModelForCausalLM.from_pretrained`` opens
    after ``import layerroute``; ``layerroute.save`` writes the router alone. ``save_pretrained`` of a PEFT model writes
    its adapters and no router: there it is ``layerroute.save``, too.

    ``torch.compile`` works with graph breaks (not with ``fullgraph=True``): decisions are data. Reentrant gradient
    checkpointing does not carry the router's gradient; transformers' default is the other one.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> model = layerroute.add_router(model, layerroute.SkipConfig(unit="mlp"))
    >>> type(model).__name__, model.layerroute.sites[0]
    ('LlamaForCausalLM', 'layer4.mlp')

    Args:
        model: a transformers causal LM, or a PEFT model of one.
        config: what may be skipped, and who decides. Default: ``SkipConfig()``. A new router runs everything:
            ``layerroute.calibrate`` or training teaches it to skip.

    Returns:
        The model.

    Raises:
        UserError: if the model has a router already, its layers cannot be found, or the configuration asks for what
            its family does not support.
    """
    if find_router(model) is not None:
        raise UserError("the model has a router already; remove_router(model) takes it off")
    base = base_of(model)
    stack, layers = decoder_stack(base)
    text = base.config.get_text_config()
    config = (config or SkipConfig()).resolve(len(layers))
    family = family_of(base, layers)
    obstacle = None
    if family is None:
        obstacle = _unknown_family(base, config)
    elif _outliers_by_call(base):
        obstacle = (
            "its 8-bit layers (LLM.int8) choose outlier columns by all tokens of a call, so that a token's result "
            "depends on who else is there; load it with BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)"
        )
        _logger.warning("routed in masked execution only, which saves no time: %s", obstacle)
    if family is not None and config.kv == "evict":
        linear = [index for index in config.layers or [] if family.is_linear(layers[index])]
        if linear:
            raise UserError(
                f"skip.kv: evict: {'layer' if len(linear) == 1 else 'layers'} {', '.join(map(str, linear))} of this "
                "model have linear attention, whose state cannot leave a token out; use kv: project"
            )
    router = LayerRouter(
        config,
        text.hidden_size,
        costs=None if family is None else path_costs(text, config),
        sparse_obstacle=obstacle,
    )
    if router.execution == "sparse" and obstacle is not None:
        raise UserError(f"execution: sparse is not possible: {obstacle}; use auto or masked")
    router.place(layers)
    router.seen = BaseSeen.of(base)
    router.train(model.training)
    try:
        _install(router, family, stack, layers)
    except BaseException:  # where one layer cannot be routed, none is
        _uninstall(router, base)
        raise
    base.add_module(ATTRIBUTE, router)
    if hasattr(base, _SAVE):
        setattr(base, _SAVE, partial(save_whole, base))
        setattr(base, _OPEN, AutoModelForCausalLM.from_pretrained)  # its class would open the base alone
    if hasattr(base, _PAGED):
        setattr(base, _PAGED, partial(_begin_paged, base))
    return model


def _begin_paged(base: Any, *args: Any, **kwargs: Any) -> Any:
    """Requests of its thread fail one by one, and silently; so it does not begin where they would."""
    router = get_router(base)
    if router.enabled and router.paged_obstacle is not None:
        raise UserError(router.paged_obstacle)
    return getattr(type(base), _PAGED)(base, *args, **kwargs)


def _outliers_by_call(base: Any) -> bool:
    """Whether a base in 8 bits is one whose tokens are not computed each for itself."""
    settings = getattr(getattr(base, "hf_quantizer", None), "quantization_config", None)
    return bool(getattr(settings, "load_in_8bit", False) and getattr(settings, "llm_int8_threshold", 0.0) > 0)


def _unknown_family(model: Any, config: SkipConfig) -> str:
    kind = model.config.get_text_config().model_type
    unknown = f"{kind!r} is not a family that layerroute knows ({', '.join(FAMILIES)})"
    if config.unit != "block" or config.kv != "project":
        raise UserError(
            f"{unknown}: only unit: block with kv: project can be routed there, not unit: {config.unit} with kv: "
            f"{config.kv}"
        )
    _logger.warning("%s: its layers are routed in masked execution only, which saves no time", unknown)
    return f"{unknown}, so its layers can only be masked"


def _install(router: LayerRouter, family: Family | None, stack: nn.Module, layers: nn.ModuleList) -> None:
    handles = [
        stack.register_forward_pre_hook(partial(begin_call, router, family, layers), with_kwargs=True),
        stack.register_forward_hook(end_call, with_kwargs=True, always_call=True),
    ]
    router.handles = handles
    for index in sorted({*router.deciders, *(router.config.layers or [])}):
        route_layer(router, index, layers[index])


def _uninstall(router: LayerRouter, base: nn.Module) -> None:
    for handle in router.handles:
        handle.remove()
    for layer in [module for module in base.modules() if isinstance(module, RoutedLayer)]:
        with _without_device_hook(layer):
            layer.__class__ = plain_class(type(layer))


def route_layer(router: LayerRouter, index: int, layer: nn.Module) -> None:
    """Have the router decide before a layer, and the layer carry out its route; once done, nothing more is."""
    if isinstance(layer, RoutedLayer):
        return
    router.handles.append(layer.register_forward_pre_hook(partial(enter_layer, index), with_kwargs=True))
    with _without_device_hook(layer):
        layer.__class__ = routed_class(type(layer))


@contextmanager
def _without_device_hook(layer: Any) -> Iterator[None]:
    """Take accelerate's hook (of a ``device_map``) off and put it back: it binds the forward that it finds.

    Raises:
        UserError: if somebody else has replaced the forward of this one layer.
    """
    hook = getattr(layer, "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module, remove_hook_from_module  # type: ignore[import-untyped]

        remove_hook_from_module(layer)
    own = vars(layer).pop("forward", None)
    try:
        if own is not None and getattr(own, "__func__", None) is not type(layer).forward:
            layer.forward = own
            raise UserError(
                f"the forward of a {type(layer).__name__} has been replaced on the object; add the router before "
                "whatever did that"
            )
        yield
    finally:
        if hook is not None:
            add_hook_to_module(layer, hook)


def get_router(model: nn.Module) -> LayerRouter:
    """The router of a routed model (also wrapped by PEFT, DDP or ``torch.compile``).

    Raises:
        UserError: if there is none.
    """
    router = find_router(model)
    if router is None:
        raise UserError(f"this {type(model).__name__} has no router; add_router or load_router gives it one")
    return router


def find_router(model: nn.Module) -> LayerRouter | None:
    """The router of a model, None if it has none."""
    handle = find_handle(model)
    return handle if isinstance(handle, LayerRouter) else None


def remove_router(model: Model) -> Model:
    """Take the router off; the model is what it was, or the plain base where it was opened with its router.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> model = layerroute.remove_router(layerroute.add_router(model))
    >>> hasattr(model, "layerroute")
    False

    Raises:
        UserError: if there is none.
    """
    router = get_router(model)
    base = base_of(model)
    if router.steps is not None:
        router.steps.restore_generation()
    delattr(base, ATTRIBUTE)
    for name in (_SAVE, _OPEN, _PAGED):
        vars(base).pop(name, None)
    _uninstall(router, base)
    become_plain(base)
    return model


@contextmanager
def router_disabled(model: nn.Module) -> Iterator[None]:
    """Within the context the model computes bit for bit what it did before the router was added.

    A state of the model (like PEFT's ``disable_adapter``), not of a thread.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> inputs = tokenizer("the router reads", return_tensors="pt")
    >>> before = model(**inputs).logits
    >>> model = layerroute.add_router(model)
    >>> with layerroute.router_disabled(model):
    ...     after = model(**inputs).logits
    >>> bool((before == after).all())
    True

    Raises:
        UserError: if the model has no router.
    """
    router = get_router(model)
    before, router.enabled = router.enabled, False
    try:
        yield
    finally:
        router.enabled = before


def set_router_trainable(model: nn.Module, trainable: bool = True) -> None:
    """Open or freeze the router's parameters (those of routers and skip paths); PEFT freezes them."""
    get_router(model).requires_grad_(trainable)
