"""``layerroute.save``, ``push_to_hub`` and ``export``: routed models on disk and on the hub."""

import tempfile
from pathlib import Path
from typing import Any

from layerroute.errors import UserError
from layerroute.exporting.export import Exported, export_router, push
from layerroute.integrity import MANIFEST
from layerroute.skipping.model import find_router
from layerroute.skipping.storage import DESCRIPTION, WEIGHTS, read_router, save_router


def save(
    model: Any, folder: str | Path, *, tokenizer: Any = None, notes: dict[str, Any] | None = None
) -> Path:
    """Write what ``layerroute.load`` opens again.

    Of a model with a router that is the router alone, with adapters of PEFT if there are any: a few megabytes, and the
    name of the base. ``model.save_pretrained(folder)`` writes the base too. A hybrid or plain model is written whole.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> folder = layerroute.save(layerroute.add_router(model), "routers/mine")
    >>> sorted(path.name for path in folder.iterdir())
    ['router.json', 'router.safetensors']

    Args:
        model: routed, also inside PEFT, DDP or ``torch.compile``; or any other model.
        folder: made if needed; a router that is in it is replaced.
        tokenizer: written too. A router needs it only where tokens were added to the vocabulary.
        notes: anything that JSON can hold, kept in a router's folder.

    Returns:
        The folder.

    Raises:
        UserError: an adapter cannot be saved exactly, or the base's own weights have changed.
    """
    folder = Path(folder)
    if find_router(model) is not None:
        return save_router(model, folder, tokenizer=tokenizer, notes=notes)
    for stale in (DESCRIPTION, MANIFEST, WEIGHTS) if (folder / DESCRIPTION).is_file() else ():
        (folder / stale).unlink(missing_ok=True)  # else `load` would open the router that was here
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def push_to_hub(model: Any, name: str, *, tokenizer: Any = None, private: bool = True) -> str:
    """Upload what ``save`` writes to the Hugging Face hub; ``layerroute.load(name)`` opens it anywhere.

    Args:
        model: as for ``save``. The base of a router must be on the hub itself, or ``smollm2-135m``.
        name: ``user/name``; it is made if needed.
        tokenizer: uploaded too.
        private: default True.

    Returns:
        Its address.

    Raises:
        UserError: the base is a folder of this machine, the hub says no, or it cannot be reached.
    """
    with tempfile.TemporaryDirectory() as work:
        folder = save(model, Path(work) / "model", tokenizer=tokenizer)
        if find_router(model) is not None and read_router(folder).path is not None:
            raise UserError(
                f"the base of this router is a folder of this machine ({read_router(folder).base}), which others do "
                "not have; push the base first and load it by its name, or push the whole: model.push_to_hub(…)"
            )
        return push(folder, name, private=private)


def export(
    model: Any,
    out: str | Path,
    *,
    to: str = "hf",
    tokenizer: Any = None,
    dtype: str = "auto",
    budget: float | None = None,
    serve: str | None = None,
) -> Exported:
    """Write a folder that serves without base, adapters or router folder: adapters merged, router inside.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> made = layerroute.export(layerroute.add_router(model), "exported")
    >>> made.architecture, made.plain
    ('RoutedLlamaForCausalLM', False)

    Args:
        model: with a router; or the folder of one, or of a run that trained one.
        out: a new or empty folder.
        to: ``hf`` (default; transformers) or ``vllm``, which refuses what the plugin cannot serve.
        tokenizer: of a model to which tokens were added.
        dtype: of the weights, ``auto`` (default; the base's own), ``float32`` or ``bfloat16``.
        budget, serve: as in ``load``; they become the export's own.

    Returns:
        Where it is, and what.

    Raises:
        UserError: for another engine, an ``out`` that holds files, a model without a router, what the engine does not
            serve, a quantised base, or adapters that cannot be merged.
    """
    from layerroute.evaluation.loading import model_folder

    options: dict[str, Any] = {"to": to, "dtype": dtype, "budget": budget, "serve": serve}
    if isinstance(model, str | Path):
        return export_router(model_folder(Path(model)), out, **options)
    with tempfile.TemporaryDirectory() as work:
        return export_router(save_router(model, Path(work) / "router", tokenizer=tokenizer), out, **options)
