"""A causal LM opened at its layers: states of many windows go through one layer at a time.

All of calibration works layer by layer, so that memory holds the states of one layer and not those of all, and a
change at a layer costs only the layers above it. Of a model that is larger than the memory the weights of one layer at
a time are fetched; of one spread over several cards each layer computes on its own card.

Calibration walks over places: the units that may be skipped, numbered in order of depth. Where a layer has one unit a
place is a layer; with ``attention+mlp`` each layer is two. A place is three parts one after the other: what comes
``before`` the unit, the unit, and what comes ``after``. Where the units are all of a layer the outer two are empty.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from operator import methodcaller
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from layerroute.errors import UserError
from layerroute.precision import autocast
from layerroute.skipping.calibration.journal import Journal
from layerroute.skipping.devices import execution_device, held
from layerroute.skipping.families import FAMILIES, decoder_stack, family_of
from layerroute.skipping.model import find_router

CHUNK_TOKENS = 1024
"""Tokens that go through a layer at once."""


class _Reached(Exception):
    """A layer was reached whose input is all that is wanted: what comes after it need not be computed."""


class _Recorder(nn.Module):
    """Stands in for a layer: keeps what the model calls it with, and computes nothing."""

    def __init__(self, layer: nn.Module, replacement: Tensor | None = None, *, stop: bool = False) -> None:
        super().__init__()
        self.stop = stop
        self.options: dict[str, Any] = {}
        self.hidden: Tensor | None = None
        self.replacement = replacement
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        if args:
            raise UserError("layers that are called with positional options cannot be calibrated")
        self.hidden, self.options = hidden_states, options
        if self.stop:
            raise _Reached
        return hidden_states if self.replacement is None else self.replacement


class LayerStack:
    """Runs embedding, single layers and head of a model on windows of equal length.

    Args:
        model: a transformers causal LM without a router. It is put into inference mode and otherwise left alone.
        length: tokens of a window.
        precision: ``bf16`` (layers and head under autocast; states stay in the model's dtype) or ``fp32``.
        unit: what may be skipped: ``block``, ``attention``, ``mlp`` or ``attention+mlp``.
        journal: keeps what long steps have found, and may have a folder for states, in files that are mapped into
            memory. Default: they are in memory.

    Attributes:
        layers: the decoder layers.
        depth: places of the walk.
        home: device of all states between layers.
        hidden_size: D.

    Raises:
        UserError: if the model's layers cannot be found, it has a router already, or parts of its layers are to be
            skipped and its family has no description that names them.
    """

    def __init__(
        self,
        model: Any,
        length: int,
        precision: str = "fp32",
        unit: str = "block",
        *,
        journal: Journal | None = None,
    ) -> None:
        if find_router(model) is not None:
            raise UserError(
                "the model has a router already; calibrate the plain model (remove_router takes it off)"
            )
        self.model, self.length, self.precision = model.eval(), length, precision
        self.stack, layers = decoder_stack(model)
        self.layers = list(layers)
        self.home = execution_device(model.get_input_embeddings())
        self.journal = journal or Journal()
        self.scratch = self.journal.scratch if self.home.type == "cpu" else None
        self.unit, self.units, self.family = unit, unit.split("+"), family_of(model, layers)
        self.depth = len(self.layers) * len(self.units)
        if unit != "block" and self.family is None:
            kind = model.config.get_text_config().model_type
            raise UserError(
                f"unit {unit}: {kind!r} is not a family whose layers layerroute can take apart "
                f"({', '.join(FAMILIES)}); only unit block can be calibrated there"
            )
        self._name = next(name for name, child in self.stack.named_children() if child is layers)
        self.hidden_size: int = model.config.get_text_config().hidden_size
        with torch.inference_mode(), self._recording() as recorders:
            model(input_ids=torch.zeros(1, length, dtype=torch.long, device=self.home), use_cache=False)
        self.devices = [execution_device(layer) for layer in self.layers]
        self._options: list[dict[str, Any]] = [
            tree_map_only(Tensor, methodcaller("to", device), recorder.options)
            for recorder, device in zip(recorders, self.devices, strict=True)
        ]

    def of_unit(self, unit: str) -> "LayerStack":
        """The same model opened at another unit."""
        return LayerStack(self.model, self.length, self.precision, unit, journal=self.journal)

    def weights(self, place: int) -> AbstractContextManager[None]:
        """Keep a layer's weights where it computes for the length of a context, in which it is called several times."""
        return held(self.layers[place // len(self.units)])

    def reads_at(self, place: int, router_layer: int | None) -> bool:
        """Whether routers read what comes in at a place: the input of ``router_layer``, or by default of each layer."""
        layer, half = divmod(place, len(self.units))
        return half == 0 and router_layer in (None, layer)

    @contextmanager
    def _recording(
        self, replacement: Tensor | None = None, *, stop: bool = False
    ) -> Iterator[list[_Recorder]]:
        """The layers replaced by recorders; the last may put states in, the first may end the call."""
        kept = getattr(self.stack, self._name)
        last = len(self.layers) - 1
        recorders = [
            _Recorder(layer, replacement if index == last else None, stop=stop and index == 0)
            for index, layer in enumerate(self.layers)
        ]
        setattr(self.stack, self._name, nn.ModuleList(recorders))
        try:
            yield recorders
        finally:
            setattr(self.stack, self._name, kept)

    def chunks(self, windows: int) -> Iterator[slice]:
        """Slices of windows that go through the model at once."""
        step = max(1, CHUNK_TOKENS // self.length)
        for first in range(0, windows, step):
            yield slice(first, min(first + step, windows))

    @torch.inference_mode()
    def embed(self, ids: Int[Tensor, "N T"]) -> Float[Tensor, "N T D"]:
        """The input of the first layer."""

        def read(chunk: Tensor) -> Tensor:
            # The head would cost a third of a small model.
            with self._recording(stop=True) as recorders, suppress(_Reached):
                self.model(input_ids=chunk, use_cache=False)
            assert recorders[0].hidden is not None
            return recorders[0].hidden

        return self.by_chunk(read, ids)

    @torch.inference_mode()
    def run(self, place: int, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        """What a place makes of the states; every token runs."""
        if len(self.units) > 1:
            return self.through(place, states)
        return self._in_chunks(self._layer, place, states)

    def before(self, place: int, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        """The input of a place's unit, from what comes in."""
        return self._in_chunks(self._attention, place, states) if self.unit == "mlp" else states

    def through(self, place: int, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        """What a place's unit makes of its input; every token runs."""
        layer, half = divmod(place, len(self.units))
        part = {"block": self._layer, "attention": self._attention, "mlp": self._mlp}[self.units[half]]
        return self._in_chunks(part, layer, states)

    def after(self, place: int, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        """What goes out of a place, from the output of its unit."""
        return self._in_chunks(self._mlp, place, states) if self.unit == "attention" else states

    def whole(self, place: int, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        """The three parts of a place, one after the other; every token runs."""
        return self.after(place, self.through(place, self.before(place, states)))

    @torch.inference_mode()
    def _in_chunks(self, part: Callable[[int, Tensor], Tensor], layer: int, states: Tensor) -> Tensor:
        def compute(chunk: Tensor) -> Tensor:
            with autocast(self.precision, self.devices[layer]):
                return part(layer, chunk.to(self.devices[layer]))

        with held(self.layers[layer]):
            return self.by_chunk(compute, states)

    def by_chunk(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """A function of windows, of a few windows at a time."""
        out: Tensor | None = None
        for chunk in self.chunks(len(tensors[0])):
            part = function(*(tensor[chunk] for tensor in tensors))
            if out is None:
                out = self._room((len(tensors[0]), *part.shape[1:]), part.dtype)
            out[chunk] = part
        assert out is not None
        return out

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.scratch is None:
            return torch.empty(shape, dtype=dtype, device=self.home)
        # The same calibration may run twice at once, and one that ends takes the folder with it.
        self.scratch.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=self.scratch) as file:  # the name goes at once, the file with the tensor
            return torch.from_file(file.name, shared=True, size=torch.Size(shape).numel(), dtype=dtype).view(
                shape
            )

    def _layer(self, layer: int, states: Tensor) -> Tensor:
        out = self.layers[layer](states, **self._options[layer])
        return out[0] if isinstance(out, tuple) else out

    def _attention(self, layer: int, states: Tensor) -> Tensor:
        module, family = self.layers[layer], self.family
        assert family is not None
        read = family.attention_input(module, states)
        attended = family.attend(module, read, self._options[layer])
        return states + family.attention_update(module, attended)

    def _mlp(self, layer: int, states: Tensor) -> Tensor:
        assert self.family is not None
        return states + self.family.mlp_update(self.layers[layer], states)

    @torch.inference_mode()
    def logits(self, states: Float[Tensor, "n T D"], ids: Int[Tensor, "n T"]) -> Float[Tensor, "n T V"]:
        """Logits from the output of the last layer."""
        with self._recording(replacement=states), autocast(self.precision, states.device):
            return self.model(input_ids=ids, use_cache=False).logits

    @torch.inference_mode()
    def probabilities(
        self, states: Float[Tensor, "N T D"], ids: Int[Tensor, "N T"]
    ) -> Float[Tensor, "N T V"]:
        """Probabilities of the next token, fp32, from the output of the last layer."""
        return torch.cat(
            [self.logits(states[i], ids[i]).float().softmax(dim=-1) for i in self.chunks(len(states))]
        )

    @torch.inference_mode()
    def losses(self, states: Float[Tensor, "N T D"], ids: Int[Tensor, "N T"]) -> Float[Tensor, "N t"]:
        """Cross-entropy in nats of tokens 1 to T - 1, from the output of the last layer."""
        parts = []
        for chunk in self.chunks(len(states)):
            logits = self.logits(states[chunk], ids[chunk])[:, :-1].float()
            target = ids[chunk][:, 1:]
            parts.append(
                F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
            )
        return torch.cat(parts)

    @torch.inference_mode()
    def cross_entropies(
        self, states: Float[Tensor, "N T D"], ids: Int[Tensor, "N T"], reference: Float[Tensor, "N T V"]
    ) -> Float[Tensor, "N T"]:
        """Cross-entropy in nats of each token's next-token distribution against the reference's probabilities.

        Less the reference's entropy it is KL(reference || it). This form passes over the vocabulary twice, not five
        times: on a CPU that is half of the cost of a search.
        """
        parts = []
        # The head's rows are many times longer than a layer's: fewer at once stay in the processor's cache.
        for window in range(len(states)):
            part = slice(window, window + 1)
            logits = self.logits(states[part], ids[part]).float()
            inner = torch.linalg.vecdot(reference[part], logits, dim=-1)
            parts.append(logits.logsumexp(dim=-1) - inner)
        return torch.cat(parts)


class FullDepth:
    """What the full model makes of some windows, for fits that begin there: whatever they skip, it is above.

    The lowest states that were asked for are kept, and the deepest, so that each is computed once.

    Args:
        stack: the model.
        ids: (N, T) windows.
    """

    def __init__(self, stack: LayerStack, ids: Int[Tensor, "N T"]) -> None:
        self.stack, self.ids = stack, ids
        self._kept: dict[int, Tensor] = {}

    def into(self, layer: int) -> Float[Tensor, "N T D"]:
        """The input of a layer."""
        near = max((known for known in self._kept if known <= layer), default=0)
        states = self._kept[near] if near in self._kept else self.stack.embed(self.ids)
        units = len(self.stack.units)
        for place in range(near * units, layer * units):
            with self.stack.weights(place):
                states = self.stack.whole(place, states)
        lowest, deepest = min((layer, *self._kept)), max((layer, *self._kept))
        self._kept = {**self._kept, layer: states}
        self._kept = {known: self._kept[known] for known in {lowest, deepest}}
        return states
