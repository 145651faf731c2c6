"""How much memory a calibration takes at its most, told before it starts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerroute.precision import choose_precision
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.own_text import BATCH
from layerroute.skipping.calibration.stack import CHUNK_TOKENS
from layerroute.skipping.devices import execution_device, is_offloaded, memory_free
from layerroute.skipping.families import decoder_stack

PROCESS = 800 * 2**20
"""Python, torch and transformers themselves."""

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes at most: ``weights`` are there all the time, and the largest of the other parts at one time.

    Attributes:
        weights: in the dtype that the layers compute in; of a streamed model one layer's, and what lies outside.
        fits: states of one layer and what is regressed on them, with the windows of the searches.
        heldout: the table.
        own_text: keys and values of the model's own text.
    """

    weights: int
    fits: int
    heldout: int
    own_text: int

    @property
    def total(self) -> int:
        """All of it."""
        return PROCESS + self.weights + max(self.fits, self.heldout, self.own_text)

    def __str__(self) -> str:
        return f"{self.total / GIB:.1f} GiB (weights {self.weights / GIB:.1f})"


def memory_needed(
    model: nn.Module, config: CalibrationConfig, *, dtype: torch.dtype, precision: str, streamed: bool
) -> MemoryNeed:
    """The estimate, from sizes alone.

    Args:
        model: the base, on any device (``meta`` will do).
        dtype: of its weights and states.
        precision: ``bf16`` keeps a second copy of the weights where the model is not streamed.
        streamed: layers are read from their files when they are needed, and states lie in mapped files.
    """
    _, layers = decoder_stack(model)
    text: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    size, vocabulary, byte = text.hidden_size, text.vocab_size, dtype.itemsize
    sizes = [sum(value.numel() for value in layer.parameters()) for layer in layers]
    outside = sum(value.numel() for value in model.parameters()) - sum(sizes)
    # A layer is read while the one before it may not be gone.
    weights = byte * (outside + (2 * max(sizes) if streamed else sum(sizes)))
    if precision == "bf16" and byte > 2:
        weights += 2 * (outside + (max(sizes) if streamed else sum(sizes)))
    windows = config.tokens_statistics / (1 - config.own_text)
    units = len(config.unit.split("+"))
    # With two units also what a layer's router has read.
    held = len(config.layers or layers) * units * (1 + units)
    predictions = config.tokens_search * 4 * vocabulary
    search = predictions + config.tokens_search * held * size * byte + 12 * config.length * vocabulary
    if config.allocation == "search":
        search += predictions  # of the windows whose programs are searched
    # Of one layer: states mapped or not, two of the full model, and four copies of rows for the regressions.
    # With a history, what routers read is that many states wider, and is held and fitted.
    read = size * config.history
    states = windows * size * (16 + (0 if streamed else 7 * byte)) + 48 * size**2
    states += windows * read * (4 + 2 * byte) + 48 * read**2
    head = 16 * max(CHUNK_TOKENS, config.length) * vocabulary
    rows = min(BATCH, windows * config.own_text / config.length)
    width = getattr(text, "head_dim", None) or size // text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    keys = rows * config.length * 2 * len(layers) * groups * width * byte
    return MemoryNeed(
        weights=int(weights),
        fits=int(states + search + head / 2),
        heldout=int(config.tokens_heldout * size * byte + head),
        own_text=int(2 * keys + 12 * rows * vocabulary),
    )


def memory_told(model: Any, config: CalibrationConfig) -> str:
    """What calibrating a model as it is loaded takes, in a sentence."""
    device = execution_device(model.get_input_embeddings())
    need = memory_needed(
        model,
        config,
        dtype=model.dtype,
        precision=choose_precision(config.precision, device).name,
        streamed=is_offloaded(model),
    )
    free = memory_free(device)
    room = "" if free is None else f"; {free / GIB:.1f} GiB are free beside the model"
    return f"calibration takes about {need} of memory at most{room}"
