"""Saving what routing adds to a base model, and putting it back.

A router folder holds ``router.json`` (configuration, base id and fingerprint), ``router.safetensors`` (routers,
thresholds, skip paths) and, for a model with a LoRA adapter, ``adapter/`` in PEFT's own format. The base is not in it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import layerroute
from layerroute.errors import UserError
from layerroute.integrity import MANIFEST, check_intact
from layerroute.skipping.configuration import SkipConfig
from layerroute.skipping.fingerprint import check_base, fingerprint
from layerroute.skipping.model import Model, add_router, get_router, remove_router
from layerroute.skipping.pretrained import load_pretrained

FORMAT = 1
DESCRIPTION, WEIGHTS, ADAPTER = "router.json", "router.safetensors", "adapter"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, kw_only=True)
class RouterDescription:
    """What ``router.json`` says.

    Attributes:
        config: of the router.
        base: name of the base model, as it was loaded.
        fingerprint: of the base.
        adapter: whether a LoRA adapter belongs to it.
        notes: whatever the maker of the folder wrote there (calibration figures, training run).
    """

    config: SkipConfig
    base: str
    fingerprint: dict[str, str | None]
    adapter: bool
    notes: dict[str, Any]


def save_router(model: nn.Module, folder: str | Path, *, notes: dict[str, Any] | None = None) -> Path:
    """Write the model's router, and its LoRA adapter if it has one, to a folder.

    Args:
        model: routed, perhaps with an adapter of PEFT.
        folder: made if needed; files in it are replaced.
        notes: anything JSON can hold, kept for later readers.

    Raises:
        UserError: if the model has no router.
    """
    router = get_router(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # of what is replaced here
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    adapter = _save_adapter(model, folder / ADAPTER)
    weights = {name: value.detach().cpu().contiguous() for name, value in router.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    description = {
        "format": FORMAT,
        "layerroute": layerroute.__version__,
        "base": {"id": str(base.config._name_or_path), "fingerprint": fingerprint(base)},
        "adapter": adapter,
        "skip": router.config.to_dict(),
        "notes": notes or {},
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    return folder


def _save_adapter(model: Any, folder: Path) -> bool:
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return False
    if not (hasattr(model, "get_base_model") or getattr(model, "_hf_peft_config_loaded", False)):
        raise UserError("the model has LoRA layers that PEFT did not register; add them with get_peft_model")
    model.save_pretrained(folder)
    return True


def read_router(folder: str | Path) -> RouterDescription:
    """What a router folder says of itself.

    Raises:
        UserError: if there is none, if files are missing, or if it is damaged or of a later version.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} is not a router folder: it has no {DESCRIPTION}")
    check_intact(folder)
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} is of format {content['format']}; this version of layerroute reads {FORMAT}"
            )
        description = RouterDescription(
            config=SkipConfig.from_dict(content["skip"]),
            base=content["base"]["id"],
            fingerprint=dict(content["base"]["fingerprint"]),
            adapter=bool(content["adapter"]),
            notes=dict(content.get("notes", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is damaged: {type(error).__name__} {error}; make the router folder anew"
        ) from error
    needed = [WEIGHTS, *(f"{ADAPTER}/{name}" for name in _ADAPTER_FILES if description.adapter)]
    for name in needed:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is incomplete: {name} is missing; the base alone is not the routed model"
            )
    limit = (folder / WEIGHTS).stat().st_size
    for size in (description.config.rank, *(description.config.routing.widths or [])):
        if size > limit:  # checked before anything is allocated
            raise UserError(f"{path} asks for a width of {size}, but {WEIGHTS} has {limit} bytes in all")
    if description.adapter:
        _check_adapter(folder / ADAPTER)
    return description


def _check_adapter(folder: Path) -> None:
    """An adapter of the kind that is written here, no larger than its weights: PEFT makes whatever is asked for."""
    config_file, weights_file = (folder / name for name in _ADAPTER_FILES)
    try:
        content = json.loads(config_file.read_text(encoding="utf-8"))
        kind, layers = content["peft_type"], content.get("layer_replication")
        ranks = [content["r"], *(content.get("rank_pattern") or {}).values()]
        if not all(isinstance(rank, int) for rank in ranks):
            raise ValueError("a rank is no integer")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{config_file} is damaged: {type(error).__name__} {error}") from error
    limit = weights_file.stat().st_size
    if kind != "LORA" or layers is not None:
        raise UserError(f"{config_file} is no LoRA adapter of the base's own layers; no other is loaded")
    for rank in ranks:
        if rank > limit:
            raise UserError(
                f"{config_file} asks for a rank of {rank}, but {weights_file.name} has {limit} bytes in all"
            )


def load_router(
    model: Model,
    folder: str | Path,
    *,
    execution: str | None = None,
    kv: str | None = None,
    budget: float | None = None,
    serve: str | None = None,
    trainable: bool = False,
) -> Model:
    """Put a saved router, and the adapter that belongs to it, onto the base that it was made for.

    Args:
        model: the plain base; it is changed in place and keeps its class.
        folder: written by ``save_router``.
        execution: replaces the saved configuration's.
        kv: only to insist: a router serves with the keys that it was made with.
        budget: the share of routed compute to skip, for a router that serves several budgets (see
            ``LayerRouter.set_budget``); default the one that it was made for.
        serve: ``threshold`` or ``rate``, replaces the saved configuration's (see ``SkipConfig.serve``).
        trainable: leave router and adapter open for training; else they are frozen.

    Returns:
        The model.

    Raises:
        UserError: if the folder is no router folder or incomplete, the model another base or not plain, ``kv`` not
            the router's own, or ``budget`` or ``serve`` not one that it serves.
    """
    folder, description = Path(folder), read_router(folder)
    if kv is not None and kv != description.config.kv:
        raise UserError(
            f"{folder} was made with kv: {description.config.kv} and does not serve with kv: {kv}; a router must be "
            "calibrated or trained with the keys that it will see"
        )
    if any(hasattr(module, "lora_A") for module in model.modules()):
        raise UserError(f"the model has an adapter already; {folder} is to be loaded onto the plain base")
    check_base(model, description.fingerprint, description.base)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged: {error}; make the router folder anew") from error
    add_router(model, description.config)
    router = get_router(model)
    fresh = router.state_dict()
    for name in fresh.keys() - weights.keys():
        if name.endswith("thresholds.spread"):  # older folders have none
            weights[name] = torch.ones_like(fresh[name], device="cpu")
    expected = {name: tuple(value.shape) for name, value in fresh.items()}
    if expected != {name: tuple(value.shape) for name, value in weights.items()}:
        remove_router(model)
        raise UserError(
            f"{folder / WEIGHTS} does not fit {DESCRIPTION} beside it; make the router folder anew"
        )
    router.load_state_dict(weights)
    if router.budgets is not None:
        router.set_budget(router.budgets.current)
    try:
        if budget is not None:
            router.set_budget(budget)
        if serve is not None:
            router.set_serve(serve)
    except UserError:
        remove_router(model)
        raise
    if execution is not None:
        router.execution = execution
    if description.adapter:
        loader: Any = model
        loader.load_adapter(str(folder / ADAPTER), is_trainable=trainable)  # freezes all that is no adapter
    router.requires_grad_(trainable)
    return model


def restore_router(model: nn.Module, folder: str | Path) -> None:
    """Put saved weights back into a model that has the same router and adapter already (to go on training).

    Raises:
        UserError: if the folder is not complete, damaged, or of another router.
    """
    folder, description = Path(folder), read_router(folder)
    router = get_router(model)
    try:
        router.load_state_dict(load_file(folder / WEIGHTS))
        if description.adapter:
            found: Any = set_peft_model_state_dict(model, load_file(folder / ADAPTER / _ADAPTER_FILES[1]))
            if found.unexpected_keys or any("lora_" in key for key in found.missing_keys):
                raise UserError(f"{folder / ADAPTER} does not fit this model's adapter")
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder} does not fit this model's router: {' '.join(str(error).split())[:200]}"
        ) from error


def load_routed(
    folder: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    execution: str | None = None,
    budget: float | None = None,
    serve: str | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base that a router folder names, with the router (and adapter) on it, and the tokenizer.

    Args:
        folder: written by ``save_router``.
        dtype, options: for ``load_pretrained``.
        execution, budget, serve: for ``load_router``.

    Raises:
        UserError: as ``load_pretrained`` and ``load_router``.
    """
    description = read_router(folder)
    model, tokenizer = load_pretrained(description.base, dtype=dtype, **options)
    return load_router(model, folder, execution=execution, budget=budget, serve=serve), tokenizer
