"""Telling one base model from another, whatever dtype it is loaded in.

A fingerprint is made of three SHA-256 sums. ``config``: the numbers of the architecture. ``fixed`` and
``projections``: name, shape and 16 evenly spaced values of every parameter, rounded to bfloat16, so that fp32 and bf16
loads of one checkpoint agree. ``projections`` are the decoder's matrices, which quantisation replaces; ``fixed`` is
the rest (embeddings, norms, biases of the output layer), which stays. It is a sample: a base changed in other values
only would pass. Adapters and routers are no part of it; a *merged* adapter is. Where an adapter has changed weights of
the base itself (PiSSA, trained biases), those are left out, and rows that were added to the vocabulary.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layerroute.errors import UserError
from layerroute.skipping.devices import value_of
from layerroute.skipping.tuners import is_tuner, peft_class

VALUES = 16
_ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)


class BaseWeight(NamedTuple):
    """One parameter of the base, under the name that it has without adapters."""

    name: str
    module: nn.Module
    own_name: str
    value: Tensor

    def sample(self, rows: int | None = None) -> Tensor:
        """16 evenly spaced values of it (or of its first ``rows`` rows) on the CPU."""
        value = value_of(self.module, self.own_name, self.value).detach()[:rows]
        flat = value.flatten()
        index = torch.linspace(0, flat.numel() - 1, min(VALUES, flat.numel()), dtype=torch.float64).long()
        return flat[index.to(flat.device)].cpu()


def base_of(model: Any) -> Any:
    """The transformers model itself, where PEFT has one of its own around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def without_adapters(module: nn.Module) -> nn.Module:
    """The base's own module in the place of one that PEFT has wrapped."""
    inner: Any = module
    while True:
        if is_tuner(inner):
            inner = inner.get_base_layer()
        elif isinstance(inner, peft_class("AuxiliaryTrainingWrapper", "peft.utils.other")):
            inner = inner.original_module
        else:
            found: nn.Module = inner
            return found


def base_weights(model: nn.Module) -> list[BaseWeight]:
    """Parameters of the base alone: none of an adapter or router, each once."""
    seen: set[int] = set()

    def walk(module: nn.Module, prefix: str) -> Iterator[BaseWeight]:
        module = without_adapters(module)
        for name, value in module.named_parameters(recurse=False):
            if id(value) not in seen:
                seen.add(id(value))
                yield BaseWeight(prefix + name, module, name, value)
        for name, child in module.named_children():
            if name != "layerroute":
                yield from walk(child, f"{prefix}{name}.")

    return sorted(walk(base_of(model), ""), key=lambda weight: weight.name)


def vocabulary_weights(model: nn.Module) -> set[int]:
    """Identities of the parameters that have one row a token of the vocabulary."""
    base = base_of(model)
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    size = base.config.get_text_config().vocab_size
    return {
        id(value)
        for end in ends
        if end is not None
        for value in without_adapters(end).parameters(recurse=False)
        if value.shape[0] == size
    }


def fingerprint(
    model: nn.Module, *, left_out: Collection[str] = (), rows: int | None = None
) -> dict[str, str | None]:
    """``config``, ``fixed`` and ``projections`` of the model's base; ``projections`` is None if it is quantised.

    Args:
        model: the base, with or without adapters and router.
        left_out: names of parameters that are no part of it.
        rows: read so many tokens of the vocabulary, as if it had no more. Default: all.

    Raises:
        UserError: if weights are not loaded (meta device).
    """
    config: Any = model.config
    text = config.get_text_config()
    architecture = {name: getattr(text, name, None) for name in _ARCHITECTURE}
    vocabulary: set[int] = set()
    if rows is not None:
        architecture["vocab_size"], vocabulary = rows, vocabulary_weights(model)
    sums = {"fixed": hashlib.sha256(), "projections": hashlib.sha256()}
    quantised = False
    for weight in base_weights(model):
        if weight.name in left_out:
            continue
        value, read = weight.value, rows if id(weight.value) in vocabulary else None
        in_layer = any(part.isdigit() for part in weight.name.split("."))
        kind = "projections" if in_layer and value.ndim == 2 else "fixed"
        if not value.is_floating_point():
            quantised = True
            continue
        shape = tuple(value.shape) if read is None else (read, *value.shape[1:])
        bits = weight.sample(read).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
        sums[kind].update(f"{weight.name} {shape} ".encode() + bits)
    return {
        "config": hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest(),
        "fixed": sums["fixed"].hexdigest(),
        "projections": None if quantised else sums["projections"].hexdigest(),
    }


def check_base(
    model: nn.Module,
    expected: Mapping[str, str | None],
    name: str,
    *,
    left_out: Collection[str] = (),
    rows: int | None = None,
) -> None:
    """Refuse another base than the one of the fingerprint, which was made with ``left_out`` and ``rows``.

    Raises:
        UserError: naming what differs.
    """
    found = fingerprint(model, left_out=left_out, rows=rows)
    differing = [
        part
        for part in ("config", "fixed", "projections")
        if found[part] is not None and expected.get(part) is not None and found[part] != expected[part]
    ]
    if differing:
        what = {"config": "architecture", "fixed": "embeddings or norms", "projections": "projection weights"}
        raise UserError(
            f"this router was made for the base {name!r}, and the model's {what[differing[0]]} are not that base's; "
            "load it onto the base that it was made for (unmerged, and not in float16 if that is not its own dtype)"
        )


@dataclass(frozen=True)
class BaseSeen:
    """What a base was like when its router was added: rows of its vocabulary, and by parameter its dtype and sample."""

    rows: int
    samples: dict[str, tuple[torch.dtype, Tensor]]

    @classmethod
    def of(cls, model: nn.Module) -> "BaseSeen":
        """The samples of all parameters that are in memory."""
        config: Any = model.config
        samples = {
            weight.name: (weight.value.dtype, weight.sample())
            for weight in base_weights(model)
            if weight.value.is_floating_point() and not weight.value.is_meta
        }
        return cls(config.get_text_config().vocab_size, samples)

    def changed(self, model: nn.Module, *, left_out: Collection[str]) -> list[str]:
        """Names of parameters that are no longer what they were."""
        vocabulary, names = vocabulary_weights(model), []
        for weight in base_weights(model):
            if weight.name not in self.samples or weight.name in left_out:
                continue
            dtype, before = self.samples[weight.name]
            rows = self.rows if id(weight.value) in vocabulary else None
            comparable = dtype == weight.value.dtype or torch.float16 not in (dtype, weight.value.dtype)
            if not comparable or (rows is not None and weight.value.shape[0] < rows):
                continue
            if not torch.equal(weight.sample(rows).to(torch.bfloat16), before.to(torch.bfloat16)):
                names.append(weight.name)
        return names
