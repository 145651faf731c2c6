"""From a router folder to one folder that stands alone: adapters merged, router and skip paths inside, tokenizer."""

import errno
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerroute.errors import UserError, nearest
from layerroute.exporting.card import card
from layerroute.exporting.configuration import ENGINES, vllm_obstacle
from layerroute.skipping import get_router, load_routed, read_router, remove_router
from layerroute.skipping.adapters import merge_adapters
from layerroute.skipping.model import decoder_stack
from layerroute.skipping.router import LayerRouter
from layerroute.skipping.whole import save_whole

_NUMBERS = ("mlp_only_layers", "eos_token_id", "bos_token_id", "pad_token_id")
"""Lists in a configuration that may be as long as the model has layers, and have no entry for each."""
_ASIDE = ".exporting-"
DTYPES: dict[str, Any] = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: where.
        plain: a plain smaller model, which needs no layerroute.
        architecture: the name in its config.json.
        layers: of the base, and of the export.
        bytes: of all files.
    """

    folder: Path
    plain: bool
    architecture: str
    layers: tuple[int, int]
    bytes: int


def export_router(
    router: str | Path,
    out: str | Path,
    *,
    to: str,
    dtype: str = "auto",
    budget: float | None = None,
    serve: str | None = None,
) -> Exported:
    """Write a folder that serves without the base, the adapters or the router folder.

    A static router that leaves out whole layers for all tokens (no skip path, no tokens that always run) becomes a
    plain smaller model. All else keeps its router, and opens with ``import layerroute`` or in vLLM with the plugin.

    Args:
        router: folder that ``save_router`` (or ``layerroute calibrate``, ``train``) wrote.
        out: a new or empty folder.
        to: ``hf`` or ``vllm``. The files are the same; ``vllm`` refuses what the plugin cannot serve.
        dtype: of the weights, ``auto`` (default; the base's own), ``float32`` or ``bfloat16``. Routers stay in fp32.
        budget, serve: as in ``load_router``; they become the export's own.

    Raises:
        UserError: for another engine, an ``out`` that holds files, a family, unit or router that the engine does not
            serve, a quantised base, a base that is not the router's, or adapters that cannot be merged.
    """
    out = Path(out)
    if to not in ENGINES:
        raise UserError(f"there is no engine {to!r} to export to.{nearest(to, ENGINES)}")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}.{nearest(dtype, DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already; name a new folder")
    description = read_router(router)
    form = description.notes.get("model")
    if isinstance(form, dict) and form.get("quantization", "none") != "none":
        raise UserError(
            f"{router} was trained on a base with {form['quantization']} weights; exporting quantised weights is not "
            "supported: its full-precision base is another model"
        )
    model, tokenizer = load_routed(router, dtype=DTYPES[dtype], budget=budget, serve=serve)
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(f"the base {description.base!r} has quantised weights, which cannot be exported")
    family = str(model.config.get_text_config().model_type)
    own = get_router(model)
    if own.sparse_obstacle is not None:
        raise UserError(f"{router} cannot be exported: {own.sparse_obstacle}")
    obstacle = vllm_obstacle(own.config, family, model.config.get_text_config()) if to == "vllm" else None
    if obstacle is not None:
        raise UserError(f"{router} cannot be exported to vLLM: {obstacle}")
    merge_adapters(model, description.adapters)
    before = int(model.config.num_hidden_layers)
    left_out = constant_layers(own)
    if left_out is not None:
        remove_router(model)
        drop_layers(model, left_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # In an empty folder itself: it may be a disk of its own, or the only place that may be written.
    with tempfile.TemporaryDirectory(dir=out if out.exists() else out.parent, prefix=_ASIDE) as work:
        built = Path(work) / "model"
        if left_out is None:
            save_whole(model, built, base=description.base)
        else:
            model.save_pretrained(built)
        tokenizer.save_pretrained(built)
        layers = (before, int(model.config.num_hidden_layers))
        size = sum(path.stat().st_size for path in built.glob("*.safetensors"))
        text = card(
            base=description.base,
            engine=to,
            plain=left_out is not None,
            skip=own.config,
            budget=own.config.budget if own.budgets is None else own.budgets.current,
            notes=description.notes,
            layers=layers,
            size=size,
        )
        (built / "README.md").write_text(text, encoding="utf-8")
        _place(built, out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    return Exported(
        folder=out,
        plain=left_out is not None,
        architecture=config["architectures"][0],
        layers=layers,
        bytes=sum(path.stat().st_size for path in out.iterdir()),
    )


def _place(built: Path, out: Path) -> None:
    """Move what was built to ``out``; into an empty folder, where a shell may stand, file by file, the config last.

    Raises:
        UserError: another process was faster.
    """
    try:
        if not out.exists():
            os.replace(built, out)
            return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if any(not path.name.startswith(_ASIDE) for path in out.iterdir()):
        raise UserError(f"{out} holds something by now, of another process; name a new folder")
    for path in sorted(built.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, out / path.name)


def constant_layers(router: LayerRouter) -> list[int] | None:
    """The layers that no token ever runs, where that is all that a router does; None where it does more."""
    config = router.config
    constant = config.routing.control == "static" and config.skip_path == "identity"
    if not constant or config.unit != "block" or config.sink_tokens or config.sink_ids:
        return None
    zeros = torch.zeros(1, 1, dtype=torch.long)
    runs: list[bool] = []
    for routing in router.all_routings():
        hidden = torch.zeros(1, 1, 1)
        decision = routing(hidden, valid=zeros == 0, positions=zeros, token_ids=zeros)
        runs += decision.expensive[0, 0].tolist()
    return [layer for layer, run in zip(config.layers or [], runs, strict=True) if not run]


def drop_layers(model: Any, layers: list[int]) -> None:
    """Take layers out of a plain model, and out of what its configuration says by layer; number the others anew.

    Raises:
        UserError: if none would be left.
    """
    stack, found = decoder_stack(model)
    kept = [index for index in range(len(found)) if index not in layers]
    if not kept:
        raise UserError("no layer would be left")
    config = model.config.get_text_config()
    if getattr(config, "mlp_only_layers", None) is not None:  # numbers of layers, and a period beside them
        every = getattr(config, "decoder_sparse_step", 1)
        dense = [index in config.mlp_only_layers or (index + 1) % every != 0 for index in kept]
        config.mlp_only_layers = [place for place, is_dense in enumerate(dense) if is_dense]
        config.decoder_sparse_step = 1
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == len(found) and name not in _NUMBERS:
            setattr(config, name, [value[index] for index in kept])
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = min(config.max_window_layers, len(kept))
    name = next(name for name, child in stack.named_children() if child is found)
    setattr(stack, name, nn.ModuleList(found[index] for index in kept))
    config.num_hidden_layers = len(kept)
    for place, index in enumerate(kept):
        for module in found[index].modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", place)  # noqa: B010


def push(folder: str | Path, repo: str, *, private: bool = True) -> str:
    """Upload an export to the hub, under the credentials that huggingface_hub has.

    Args:
        folder: that ``export_router`` wrote.
        repo: ``user/name``; it is made if needed.
        private: default True.

    Returns:
        Its address.

    Raises:
        UserError: if the hub says no or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(folder_path=str(folder), repo_id=repo))
    except Exception as error:  # of the hub's library, or of whatever HTTP client its version uses
        raise UserError(f"{folder} was written, but cannot be pushed to {repo}: {error}") from error
