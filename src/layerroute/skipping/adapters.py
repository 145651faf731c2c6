"""Adapters of PEFT in a router folder: PEFT writes and reads them, all of them, with their names and who is active.

What is written is what comes back with equal logits, or it is refused before anything is written. ``METHODS`` are those
for which a test has shown it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from layerroute.errors import UserError, one_line, require
from layerroute.integrity import inside
from layerroute.skipping.fingerprint import base_weights, without_adapters
from layerroute.skipping.tuners import is_tuner, peft_class, tuners

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# fmt: off
METHODS = frozenset({
    "LORA", "ADALORA", "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA",
    "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA",
    "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA",
    "WAVEFT",
})
# fmt: on
_SHARING = frozenset(["FROD", "LILY", "PVERA", "RANDLORA", "TINYLORA", "UNILORA", "VBLORA", "VERA"])
"""Methods with weights outside of the layers, which are lost where there is no PeftModel around the model."""
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "olora", "pissa")
"""How LoRA may start: what PEFT makes anew on loading in the same way. The last two change the base's weights."""
_LORA_OBSTACLES = (
    "megatron_config",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "velora_config",
    "monteclora_config",
    "kasa_config",
    "use_bdlora",
    "use_qalora",
)
_NO_SIZES = (
    "alpha",
    "scaling",
    "seed",
    "prng",
    "token_indices",
    "total_step",
    "tinit",
    "tfinal",
    "warmup",
    "interval",
)
_OWNER = "_layerroute_peft"


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """What a router folder says of its adapters.

    Attributes:
        names: in the order in which they were added.
        active: those that are switched on.
        changed: names of the base's parameters that they have changed.
    """

    names: tuple[str, ...] = ()
    active: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put anything into a model or around it."""
    around = (peft_class("PeftModel"), peft_class("PeftMixedModel"))
    return any(is_tuner(module) or isinstance(module, around) for module in model.modules())


def describe(model: Any) -> Adapters:
    """The model's adapters.

    Raises:
        UserError: naming an adapter that cannot be saved exactly, and why.
    """
    if not has_adapters(model):
        return Adapters()
    if isinstance(model, peft_class("PeftMixedModel")):
        raise UserError(
            "a PeftMixedModel cannot be saved with its router: PEFT does not save it; use get_peft_model"
        )
    owner = _owner(model)
    configs: Mapping[str, Any] = getattr(owner, "peft_config", {})
    layers = tuners(model)
    if not configs:
        raise UserError(
            "the model has adapter layers that PEFT did not register; add them with get_peft_model"
        )
    kinds = {str(getattr(config.peft_type, "value", config.peft_type)) for config in configs.values()}
    if len(kinds) > 1:
        raise UserError(
            f"adapters of several kinds in one model ({', '.join(sorted(kinds))}) cannot be saved"
        )
    for name, config in configs.items():
        if (reason := obstacle(config.to_dict())) is not None:
            raise UserError(f"the adapter {name!r} cannot be saved with its router: {reason}")
        if not isinstance(owner, peft_class("PeftModel")) and kinds & _SHARING:
            raise UserError(
                f"the adapter {name!r} cannot be saved with its router: {kinds.pop()} keeps weights outside of the "
                "layers; add it with get_peft_model, and give save_router the PEFT model"
            )
    for path, module in model.named_modules():
        if is_tuner(module) and "layerroute" in path.split("."):
            raise UserError(
                f"an adapter was put into the router itself ({path}); exclude it with "
                "exclude_modules='.*layerroute.*'"
            )
    if any(layer.merged for layer in layers):
        raise UserError("the model has merged adapters; unmerge them (unmerge_adapter) before it is saved")
    states = {(tuple(layer.active_adapters), layer.disable_adapters) for layer in layers}
    if len(states) > 1:
        raise UserError("different adapters are active in different layers; set_adapter sets them alike")
    active, disabled = next(iter(states))
    changed = {weight.name for weight in base_weights(model) if _changes(model, configs, weight)}
    return Adapters(names=tuple(configs), active=() if disabled else active, changed=tuple(sorted(changed)))


def obstacle(config: Mapping[str, Any]) -> str | None:
    """Why an adapter of this configuration would not come back as it is; None if it would."""
    kind = getattr(config.get("peft_type"), "value", config.get("peft_type"))
    if kind not in METHODS:
        return f"PEFT's {kind} is not one of {', '.join(sorted(METHODS))}"
    if kind != "LORA":
        return None
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        return f"init_lora_weights={start!r} changes the base in a way that loading does not repeat"
    for key in _LORA_OBSTACLES:
        if config.get(key):
            return f"LoRA's {key} does not work without its PeftModel, or not on loading"
    return None


def _changes(model: Any, configs: Mapping[str, Any], weight: Any) -> bool:
    """Whether an adapter has changed a parameter of the base itself."""
    own = weight.own_name
    if own == "bias" and any(getattr(config, "bias", "none") != "none" for config in configs.values()):
        return True
    return own == "weight" and id(weight.module) in _restarted(model, configs)


def _restarted(model: Any, configs: Mapping[str, Any]) -> set[int]:
    """Identities of base layers from whose weights LoRA took its start."""
    if not any(
        getattr(config, "init_lora_weights", None) in ("olora", "pissa") for config in configs.values()
    ):
        return set()
    return {id(without_adapters(module)) for module in tuners(model)}


def _owner(model: Any) -> Any:
    """The PeftModel of a model, or the model itself where adapters were added without one."""
    return model if isinstance(model, peft_class("PeftModel")) else vars(model).get(_OWNER, model)


def _place(folder: Path, name: str) -> Path:
    """PEFT's own layout."""
    return folder if name == "default" else inside(folder, name)


def _tensors(owner: Any, name: str) -> dict[str, Tensor]:
    """An adapter's weights under the names that a PeftModel has for them."""
    prefix = "" if isinstance(owner, peft_class("PeftModel")) else "base_model.model."
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(owner, adapter_name=name, save_embedding_layers=False)
    return {prefix + key: value for key, value in state.items() if "layerroute" not in key.split(".")}


def save_adapters(model: Any, adapters: Adapters, folder: Path) -> None:
    """Write all adapters in PEFT's format."""
    owner = _owner(model)
    for name in adapters.names:
        path = _place(folder, name)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {
            key: value.detach().cpu().contiguous().clone() for key, value in _tensors(owner, name).items()
        }
        save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
        config = owner.peft_config[name]
        mode, config.inference_mode = config.inference_mode, True
        config.save_pretrained(path)
        config.inference_mode = mode


def adapter_files(adapters: Adapters, folder: Path) -> list[Path]:
    """The files of all adapters."""
    return [_place(folder, name) / file for name in adapters.names for file in (CONFIG, WEIGHTS)]


def check_adapters(adapters: Adapters, folder: Path) -> None:
    """Adapters of kinds that are written here, none larger than its weights: PEFT makes whatever is asked for.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    for name in adapters.names:
        path, weights = (_place(folder, name) / file for file in (CONFIG, WEIGHTS))
        limit = weights.stat().st_size
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            reason = obstacle(content)
            if reason is None and not isinstance(content.get("r", 0), int | type(None)):
                raise ValueError("the rank is no integer")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {type(error).__name__} {error}") from error
        if reason is not None:
            raise UserError(f"{path} cannot be loaded: {reason}")
        for key, size in _sizes(content):
            if size > limit:
                raise UserError(f"{path} asks for {key} {size}, but {WEIGHTS} has {limit} bytes in all")


def _sizes(content: Any, key: str = "") -> list[tuple[str, int]]:
    """All whole numbers of a configuration that may be sizes, with the key that they are under."""
    if any(part in key for part in _NO_SIZES):
        return []
    if isinstance(content, dict):
        return [found for name, value in content.items() for found in _sizes(value, str(name))]
    if isinstance(content, list):
        return [found for value in content for found in _sizes(value, key)]
    return [(key, content)] if isinstance(content, int) and not isinstance(content, bool) else []


def load_adapters(model: Any, adapters: Adapters, folder: Path, *, trainable: bool) -> None:
    """Have PEFT put saved adapters into the plain base, which keeps its class.

    Raises:
        UserError: if PEFT cannot.
    """
    require("peft", extra="train")
    from peft import PeftModel

    owner: Any = None
    try:
        for name in adapters.names:
            path = _place(folder, name)
            with safe_open(path / WEIGHTS, framework="pt") as content:
                kinds = {content.get_slice(key).get_dtype() for key in content.keys()}  # noqa: SIM118
            # PEFT makes fp32 of adapters in half precision unless it is told not to.
            options: dict[str, Any] = {
                "adapter_name": name,
                "is_trainable": trainable,
                "autocast_adapter_dtype": "F32" in kinds,
            }
            if owner is None:
                owner = PeftModel.from_pretrained(model, str(path), **options)
            else:
                owner.load_adapter(str(path), **options)
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = one_line(error)
        raise UserError(
            f"PEFT cannot load the adapter in {path}: {type(error).__name__}: {reason}"
        ) from error
    if adapters.active:
        owner.base_model.set_adapter(list(adapters.active))
    else:
        owner.base_model.disable_adapter_layers()
    if not trainable:
        owner.requires_grad_(False)
    model._hf_peft_config_loaded = True  # for transformers' own methods
    # Not a submodule: what some methods share between layers is there, and PEFT's way to save it.
    vars(model)[_OWNER] = owner


def strip_adapters(model: Any) -> None:
    """Take off what PEFT has put into the plain base before it failed."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (own := without_adapters(child)) is not child:
                setattr(parent, name, own)
    for name in ("peft_config", _OWNER):
        vars(model).pop(name, None)


def restore_adapters(model: Any, adapters: Adapters, folder: Path) -> None:
    """Put saved weights back into a model that has the same adapters already.

    Raises:
        UserError: if they are not the same.
    """
    from peft import set_peft_model_state_dict

    owner = _owner(model)
    for name in adapters.names:
        path = _place(folder, name)
        stored = load_file(path / WEIGHTS)
        if name not in getattr(owner, "peft_config", {}) or _tensors(owner, name).keys() != stored.keys():
            raise UserError(f"{path} does not fit this model's adapter")
        prefix = "" if isinstance(owner, peft_class("PeftModel")) else "base_model.model."
        set_peft_model_state_dict(
            owner, {key.removeprefix(prefix): value for key, value in stored.items()}, adapter_name=name
        )


def merge_adapters(model: Any, adapters: Adapters) -> None:
    """Make what the active adapters do part of the base's own weights, and take all adapters off.

    Raises:
        UserError: if a method cannot be merged, or its weights are not finite.
    """
    if not adapters.names:
        return
    tuner: Any = _owner(model).base_model
    try:
        if adapters.active:
            tuner.merge_and_unload(safe_merge=True, adapter_names=list(adapters.active))
        else:
            tuner.unload()
    except (ValueError, NotImplementedError, AttributeError, RuntimeError, TypeError) as error:
        raise UserError(f"the adapter cannot be merged into its base: {one_line(error)}") from error
    vars(model).pop(_OWNER, None)
    model._hf_peft_config_loaded = False
