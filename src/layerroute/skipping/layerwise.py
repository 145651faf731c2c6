"""Many calls of one model in step, so that a layer whose weights are elsewhere is fetched once for all of them."""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from layerroute.skipping.devices import held, is_offloaded
from layerroute.skipping.families import decoder_stack
from layerroute.skipping.fingerprint import base_of

Part = TypeVar("Part")
Result = TypeVar("Result")

AT_ONCE = 64
"""Calls that go in step. Each holds its own hidden states."""


def layer_by_layer(model: Any, call: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``[call(part) for part in parts]``, where each call is one forward pass of the model.

    Of a model with weights elsewhere (`is_offloaded`) the calls go through the layers together: each has a thread, one
    of them runs at a time, and it waits before every layer until all have come there. What they do, and in which order
    at each layer, is the same.
    """
    if not is_offloaded(model):
        return [call(part) for part in parts]
    layers = decoder_stack(base_of(model))[1]
    found: list[Result] = []
    for first in range(0, len(parts), AT_ONCE):
        found += _InStep(layers, call, parts[first : first + AT_ONCE]).run()
    return found


class _Stopped(BaseException):
    """Another call failed."""


class _InStep:
    """Calls that take turns: call i runs from one layer to the next and hands over to call i + 1."""

    def __init__(self, layers: nn.ModuleList, call: Callable[[Any], Any], parts: Sequence[Any]) -> None:
        self.layers, self.call, self.parts = layers, call, parts
        self.turns = [threading.Semaphore(0) for _ in parts]
        self.own = threading.local()
        self.results: list[Any] = [None] * len(parts)
        self.error: BaseException | None = None
        self.weights = ExitStack()

    def run(self) -> list[Any]:
        inference = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        threads = [
            threading.Thread(target=copy_context().run, args=(self._work, index, *inference), daemon=True)
            for index in range(len(self.parts))
        ]
        hooks = [
            layer.register_forward_pre_hook(partial(self._arrive, index), prepend=True)
            for index, layer in enumerate(self.layers)
        ]
        try:
            for thread in threads:
                thread.start()
            self.turns[0].release()
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C: the calls end at their next layer
            self._stop(error)
            for thread in threads:
                thread.join()
        finally:
            for hook in hooks:
                hook.remove()
            self.weights.close()
        if self.error is not None:
            raise self.error
        return self.results

    def _work(self, index: int, inference: bool, gradients: bool) -> None:
        self.own.index = index
        try:
            self._wait()
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                self.results[index] = self.call(self.parts[index])
        except _Stopped:
            return
        except BaseException as error:
            self._stop(error)
        if index + 1 < len(self.turns):
            self.turns[index + 1].release()

    def _arrive(self, layer: int, module: nn.Module, args: Any) -> None:
        """Before a layer: the others come here first."""
        self.turns[(self.own.index + 1) % len(self.turns)].release()
        self._wait()
        if self.own.index == 0:
            self.weights.close()
            self.weights.enter_context(held(self.layers[layer]))

    def _wait(self) -> None:
        self.turns[self.own.index].acquire()
        if self.error is not None:
            raise _Stopped

    def _stop(self, error: BaseException) -> None:
        self.error = self.error or error
        for turn in self.turns:
            turn.release()
