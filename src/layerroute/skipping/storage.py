"""Saving what routing adds to a base model, and putting it back.

A router folder holds ``router.json`` (configuration, base id and fingerprint), ``router.safetensors`` (routers,
thresholds, skip paths); for a model with adapters ``adapter/`` in PEFT's own format; for one whose vocabulary was
resized the new rows, ``vocabulary.safetensors``; and ``tokenizer/`` if one was given. The base is not in it.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import layerroute
from layerroute.errors import UserError, nearest, one_line
from layerroute.integrity import MANIFEST, check_intact, replace_text
from layerroute.routing.execution import EXECUTIONS
from layerroute.skipping import vocabulary
from layerroute.skipping.adapters import (
    Adapters,
    adapter_files,
    check_adapters,
    describe,
    has_adapters,
    load_adapters,
    restore_adapters,
    save_adapters,
    strip_adapters,
)
from layerroute.skipping.devices import value_of
from layerroute.skipping.fingerprint import base_of, check_base, fingerprint
from layerroute.skipping.model import Model, add_router, find_router, get_router, remove_router
from layerroute.skipping.pretrained import SMOLLM2, load_pretrained, local_source
from layerroute.skipping.skip_config import SkipConfig
from layerroute.skipping.tuners import tuners

FORMATS = (1, 2)
"""1: at most one LoRA adapter, called ``default``, and the base's own vocabulary; 2: whatever is written here."""
DESCRIPTION, WEIGHTS, ADAPTER = "router.json", "router.safetensors", "adapter"
VOCABULARY, TOKENIZER = "vocabulary.safetensors", "tokenizer"


@dataclass(frozen=True, kw_only=True)
class RouterDescription:
    """What ``router.json`` says.

    Attributes:
        config: of the router.
        base: name of the base model, as it was loaded.
        path: where the base lay as seen from the router folder, if it was a local folder.
        fingerprint: of the base.
        adapters: that belong to it.
        rows: of the vocabulary, if it is not the base's own: how many the base has, and how many the model.
        notes: whatever the maker of the folder wrote there (calibration figures, training run).
    """

    config: SkipConfig
    base: str
    path: str | None
    fingerprint: dict[str, str | None]
    adapters: Adapters
    rows: tuple[int, int] | None
    notes: dict[str, Any]


def save_router(
    model: nn.Module,
    folder: str | Path,
    *,
    notes: dict[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: str | None = None,
) -> Path:
    """Write the model's router, its adapters, and tokens that were added to its vocabulary, to a folder.

    What is written gives the same logits on loading; what would not is refused before anything is written.

    Args:
        model: routed, perhaps with adapters of PEFT.
        folder: made if needed; the files of a router in it are replaced, its tokenizer too.
        notes: anything JSON can hold, kept for later readers.
        tokenizer: kept too, and given by ``load_routed``. It is needed there where tokens were added.
        base: where the base is that the model has *now*. Default: where it was loaded from.

    Raises:
        UserError: if the model has no router, an adapter cannot be saved exactly, or the base has changed since it was
            loaded.
    """
    router = get_router(model)
    whole = base_of(model)
    adapters = describe(model)
    name = str(whole.config._name_or_path) if base is None else base
    rows = _rows(whole, router.seen, name, given=base is not None)
    if base is None and name and router.seen is not None:
        changed = router.seen.changed(whole, left_out=adapters.changed)
        if changed:
            raise UserError(
                f"the base's own weights have changed since the router was added ({', '.join(changed[:3])}), so that "
                f"{name!r} is no longer its base; model.save_pretrained(folder) writes base and router, within "
                "router_disabled(model) the base alone, to be named here: base='…'"
            )
    description: dict[str, Any] = {
        "format": 1 if rows is None and _is_plain_lora(model, adapters) else 2,
        "layerroute": layerroute.__version__,
        "base": {
            "id": name,
            "fingerprint": fingerprint(
                whole, left_out=adapters.changed, rows=None if rows is None else min(rows)
            ),
        },
        "adapter": bool(adapters.names),
        "skip": router.config.to_dict(),
        "notes": notes or {},
    }
    folder = Path(folder)
    replaces = (folder / DESCRIPTION).is_file()
    if name and Path(name).is_dir():
        description["base"]["path"] = Path(os.path.relpath(name, folder)).as_posix()
    if description["format"] == 2:
        description["adapters"] = {
            key: list(getattr(adapters, key)) for key in ("names", "active", "changed")
        }
        description["vocabulary"] = None if rows is None else list(rows)
    text = json.dumps(description, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    # Of what is replaced here. The new description comes last: a save that is cut off leaves no mixture of two routers.
    for stale in (DESCRIPTION, MANIFEST):
        (folder / stale).unlink(missing_ok=True)
    save_adapters(model, adapters, folder / ADAPTER)
    if rows is not None:
        vocabulary.save_rows(whole, min(rows), folder / VOCABULARY)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / TOKENIZER)
    elif replaces and rows is None:  # the base's own serves, and what is here is of the router before
        shutil.rmtree(folder / TOKENIZER, ignore_errors=True)
    save_file(_weights(router), folder / WEIGHTS, metadata={"format": "pt"})
    replace_text(folder / DESCRIPTION, text)
    return folder


def _rows(model: Any, seen: Any, name: str, *, given: bool) -> tuple[int, int] | None:
    """Rows of the vocabulary of the base and of the model, if they differ."""
    own = vocabulary.size_at(local_source(name))
    if own is None and seen is not None and not given:
        own = seen.rows
    now = vocabulary.size_of(model)
    return None if own is None or own == now else (own, now)


def _is_plain_lora(model: nn.Module, adapters: Adapters) -> bool:
    """Whether version 0.1 of this package would load the adapters rightly, too."""
    if not adapters.names:
        return True
    plain = all(hasattr(module, "lora_A") for module in tuners(model))
    return plain and adapters.names == adapters.active == ("default",) and not adapters.changed


def _weights(router: nn.Module) -> dict[str, torch.Tensor]:
    """The router's state, also where accelerate has offloaded it."""
    saved = router.state_dict()
    found = {}
    for path, module in router.named_modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, value in own:
            key = f"{path}.{name}".lstrip(".")
            if key in saved:
                found[key] = value_of(module, name, value).detach().cpu().contiguous()
    return found


def read_router(folder: str | Path) -> RouterDescription:
    """What a router folder says of itself.

    Raises:
        UserError: if there is none, if files are missing, or if it is damaged or of a later version.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        cut_off = (folder / WEIGHTS).is_file()
        why = ", though router weights: its save was cut off; make it again" if cut_off else ""
        raise UserError(f"{folder} is not a router folder: it has no {DESCRIPTION}{why}")
    check_intact(folder)
    try:
        content = json.loads(path.read_text())
        if content["format"] not in FORMATS:
            raise UserError(
                f"{path} is of format {content['format']}; this version of layerroute reads up to {FORMATS[-1]}"
            )
        rows = content.get("vocabulary")
        description = RouterDescription(
            config=SkipConfig.from_dict(content["skip"]),
            base=content["base"]["id"],
            path=content["base"].get("path"),
            fingerprint=dict(content["base"]["fingerprint"]),
            adapters=_adapters(content),
            rows=None if rows is None else (int(rows[0]), int(rows[1])),
            notes=dict(content.get("notes", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is damaged: {type(error).__name__} {error}; make the router folder again"
        ) from error
    needed = [
        folder / WEIGHTS,
        *([] if description.rows is None else [folder / VOCABULARY]),
        *adapter_files(description.adapters, folder / ADAPTER),
    ]
    for file in needed:
        if not file.is_file():
            raise UserError(
                f"{folder} is incomplete: {file.relative_to(folder).as_posix()} is missing; the base alone is not the "
                "routed model"
            )
    limit = (folder / WEIGHTS).stat().st_size
    for size in (description.config.rank, *(description.config.routing.widths or [])):
        if size > limit:  # checked before anything is allocated
            raise UserError(f"{path} asks for a width of {size}, but {WEIGHTS} has {limit} bytes in all")
    if description.rows is not None:
        base, size = description.rows
        limit = (folder / VOCABULARY).stat().st_size
        if min(base, size) < 1 or size - base > limit:
            raise UserError(
                f"{path} asks for {size - base} new tokens, but {VOCABULARY} has {limit} bytes in all"
            )
    check_adapters(description.adapters, folder / ADAPTER)
    return description


def _adapters(content: dict[str, Any]) -> Adapters:
    if "adapters" not in content:
        names = ("default",) if content["adapter"] else ()
        return Adapters(names=names, active=names)
    held = {key: tuple(map(str, content["adapters"][key])) for key in ("names", "active", "changed")}
    if not set(held["active"]) <= set(held["names"]):
        raise ValueError("an adapter is active that is not there")
    return Adapters(**held)


def base_source(folder: str | Path) -> str:
    """What ``load_pretrained`` is to load as the base of a router folder.

    A relative path is looked for from the router folder and from the working folder; what is in neither is left as it
    is, since it may be a name on a hub.
    """
    folder, description = Path(folder), read_router(folder)
    name = description.base
    if not name or Path(name).is_absolute():
        return name
    for path in (*([folder / description.path] if description.path else []), folder / name, Path(name)):
        if path.is_dir():
            return os.path.normpath(path)
    return name


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
        serve: ``threshold``, ``rate`` or ``rate:SHARE``, replaces the saved configuration's (see ``SkipConfig.serve``).
        trainable: leave router and adapter open for training; else they are frozen.

    Returns:
        The model.

    Raises:
        UserError: if the folder is no router folder or incomplete, the model another base or not plain, ``kv`` not
            the router's own, or ``budget`` or ``serve`` not one that it serves.
    """
    folder, description = Path(folder), read_router(folder)
    if execution is not None and execution not in EXECUTIONS:
        raise UserError(f"unknown execution {execution!r}.{nearest(execution, EXECUTIONS)}")
    if kv is not None and kv != description.config.kv:
        raise UserError(
            f"{folder} was made with kv: {description.config.kv} and does not serve with kv: {kv}; a router must be "
            "calibrated or trained with the keys that it will see"
        )
    if has_adapters(model):
        raise UserError(f"the model has an adapter already; {folder} is to be loaded onto the plain base")
    adapters, rows = description.adapters, description.rows
    if rows is not None and vocabulary.size_of(model) not in rows:
        raise UserError(
            f"this router was made for a base of {rows[0]} tokens that was resized to {rows[1]}, and the model has "
            f"{vocabulary.size_of(model)}; load it onto the base {description.base!r}"
        )
    check_base(
        model,
        description.fingerprint,
        description.base,
        left_out=adapters.changed,
        rows=None if rows is None else min(rows),
    )
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged: {error}; make the router folder again") from error
    size = vocabulary.size_of(model)
    add_router(model, description.config)
    try:
        _fill(model, folder, description, weights, budget=budget, serve=serve, trainable=trainable)
    except BaseException:  # it is the plain base again
        remove_router(model)
        strip_adapters(model)
        if vocabulary.size_of(model) != size:
            base_of(model).resize_token_embeddings(size, mean_resizing=False)
        raise
    if execution is not None:
        get_router(model).execution = execution
    return model


def _fill(
    model: nn.Module,
    folder: Path,
    description: RouterDescription,
    weights: dict[str, torch.Tensor],
    *,
    budget: float | None,
    serve: str | None,
    trainable: bool,
) -> None:
    """Give a model with a new router all that the folder holds."""
    adapters, rows, router = description.adapters, description.rows, get_router(model)
    fresh = router.state_dict()
    for name in fresh.keys() - weights.keys():
        if name.endswith("thresholds.spread"):  # older folders have none
            weights[name] = torch.ones_like(fresh[name], device="cpu")
    expected = {name: tuple(value.shape) for name, value in fresh.items()}
    if expected != {name: tuple(value.shape) for name, value in weights.items()}:
        raise UserError(
            f"{folder / WEIGHTS} does not fit {DESCRIPTION} beside it; make the router folder again"
        )
    router.load_state_dict(weights)
    if router.budgets is not None:
        router.set_budget(router.budgets.current)
    if budget is not None:
        router.set_budget(budget)
    if serve is not None:
        router.set_serve(serve)
    if rows is not None:
        vocabulary.resize(model, rows[1], folder / VOCABULARY)
    if adapters.names:
        load_adapters(
            model, adapters, folder / ADAPTER, trainable=trainable
        )  # freezes all that is no adapter
    router.requires_grad_(trainable)


def restore_router(model: nn.Module, folder: str | Path) -> None:
    """Put saved weights back into a model that has the same router and adapter already (to go on training).

    Raises:
        UserError: if the folder is not complete, damaged, or of another router.
    """
    folder, description = Path(folder), read_router(folder)
    router = get_router(model)
    try:
        router.load_state_dict(load_file(folder / WEIGHTS))
        restore_adapters(model, description.adapters, folder / ADAPTER)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder} does not fit this model's router: {one_line(error, 200)}") from error


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
    folder, description, source = Path(folder), read_router(folder), base_source(folder)
    own = folder / TOKENIZER
    if description.rows is not None and not own.is_dir():
        raise UserError(
            f"tokens were added to the base of {folder}, and no tokenizer was saved with it; load the base and your "
            "tokenizer, then load_router(base, folder), and save_router(…, tokenizer=tokenizer) next time"
        )
    try:
        model, tokenizer = load_pretrained(source, dtype=dtype, **options)
        # The base may have been saved with a router in it: another one, or an earlier state of this one.
        if find_router(model) is not None:
            remove_router(model)
    except UserError as error:
        if source != description.base or Path(source).is_absolute() or source == SMOLLM2:
            raise
        raise UserError(
            f"cannot load {source!r}, the base of {folder}: there is no folder {folder / source} and none "
            f"{Path.cwd() / source}; as a name on a hub: {error}"
        ) from error
    if own.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(own, trust_remote_code=False)
    return load_router(model, folder, execution=execution, budget=budget, serve=serve), tokenizer
