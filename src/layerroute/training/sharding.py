"""Checkpoints of models that FSDP2 has spread over several processes.

*Consolidated* (``FSDP_STATE_DICT_TYPE=FULL_STATE_DICT``): one ``model.safetensors`` and one ``optimizer.pt``, gathered
on the first process. Any number of processes can go on from them.

*Sharded* (``SHARDED_STATE_DICT``, accelerate's default): every process writes its part into ``shards/``, in the format
of ``torch.distributed.checkpoint``; nothing is gathered. Any number of processes can go on from them, too. That format
keeps its table of contents as a pickle, which is read only if it names nothing but the classes of that table and no
file outside of ``shards/``, and each plain value (a learning rate) as a pickle of its own, which torch would load
whatever it does; here it is read with ``weights_only=True``.
"""

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from layerroute.errors import UserError
from layerroute.integrity import inside
from layerroute.training.checkpoint import OPTIMIZER, SHARDS, WEIGHTS
from layerroute.training.parallel import is_main

_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
_TABLE_OF_CONTENTS = ".metadata"
# What the table of contents of torch.distributed.checkpoint is made of.
_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_KNOWN = {
    (_METADATA, "BytesStorageMetadata"), (_METADATA, "ChunkStorageMetadata"), (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"), (_METADATA, "StorageMeta"), (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"), (_METADATA, "_MEM_FORMAT_ENCODING"), (_FILES, "_StorageInfo"),
    ("builtins", "dict"), ("builtins", "list"), ("builtins", "set"), ("builtins", "tuple"),
    ("collections", "OrderedDict"), ("pathlib", "PosixPath"), ("torch", "Size"), ("torch", "device"),
    ("torch.serialization", "_get_layout"), ("torch._utils", "_get_dtype"),
}  # fmt: skip


def full_weights(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU of the first process, empty on the others. All processes must call it."""
    return get_model_state_dict(model, options=_GATHERED)


def save_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, *, sharded: bool
) -> None:
    """Write the optimizer's state, and for ``sharded`` the weights too. All processes must call it."""
    folder.mkdir(parents=True, exist_ok=True)
    if sharded:
        state = {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer),
        }
        with _own_errors():
            dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / SHARDS))
        return
    gathered = get_optimizer_state_dict(model, optimizer, options=_GATHERED)
    if is_main():
        torch.save(gathered, folder / OPTIMIZER)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read the weights of a checkpoint into the spread model. All processes must call it."""
    if (folder / SHARDS).is_dir():
        state = {"model": get_model_state_dict(model)}
        _load_shards(state, folder)
        set_model_state_dict(model, state["model"])
        return
    weights: dict[str, Any] = {}
    if is_main():
        weights = load_file(folder / WEIGHTS)
        tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
        for name, source in tied.items():  # safetensors keeps one of them
            if source in weights:
                weights.setdefault(name, weights[source])
    spread_weights(model, weights)


def spread_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Give each process its part of the weights that the first one has. All processes must call it."""
    set_model_state_dict(model, weights, options=_SPREAD)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read the optimizer's state of a checkpoint. All processes must call it."""
    if (folder / SHARDS).is_dir():
        state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
        _load_shards(state, folder)
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        return
    gathered = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True) if is_main() else {}
    set_optimizer_state_dict(model, optimizer, gathered, options=_SPREAD)


def _load_shards(state: dict[str, Any], folder: Path) -> None:
    check_table(folder / SHARDS / _TABLE_OF_CONTENTS)
    with _own_errors():
        dcp.load(state, storage_reader=dcp.FileSystemReader(folder / SHARDS), planner=_PlainValues())


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise what went wrong on a process instead of torch's sum of it, which is no Exception but a stack in words."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


class _PlainValues(DefaultLoadPlanner):
    """Loads tensors as torch's own planner does, and what is no tensor without running any pickle."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = torch.load(value, weights_only=True)  # raises where it is anything else
        again = io.BytesIO()
        torch.save(plain, again)
        again.seek(0)
        super().load_bytes(read_item, again)


class _TableReader(pickle.Unpickler):
    """Makes nothing but what a table of contents holds; a module that is not one of its own is not even imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return super().find_class(module, name)
        if module == "torch" and "." not in name and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise UserError(f"it wants to call {module}.{name}, which no table of contents needs")


def check_table(path: Path) -> None:
    """Read a pickled table of contents as far as it is one.

    Raises:
        UserError: it holds something else, names a file that does not lie beside it, or is damaged; nothing of that
            was run or read.
    """
    try:
        with path.open("rb") as file:
            table = _TableReader(file).load()
        if not isinstance(table, Metadata):
            raise UserError("it is not a table of contents")
        for stored in (table.storage_data or {}).values():
            inside(path.parent, stored.relative_path)
    except Exception as error:
        raise UserError(f"{path} was not loaded: {error}") from error
