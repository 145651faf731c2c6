"""Trains one recipe in one process, in two, and sharded over two; run by ``test_distributed.py``.

    python several_processes.py RECIPE FOLDER CASE ...

Processes are forks of this one, which has imported everything, in the environment that `torchrun` makes. A case is an
engine and perhaps what happens to the run (``ddp-kill``), with ``mixed_`` before it for other settings of the recipe.
Prints one JSON object a case.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import layerroute.training.run
import layerroute.training.sharding  # noqa: F401
from layerroute.cli.main import main
from layerroute.training import trainer as trainer_module
from tests.integration.killed_runs import fork, wait

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
ENGINES: dict[str, tuple[int, dict[str, str]]] = {
    "one": (1, {}),
    "ddp": (2, {}),
    "fsdp": (2, {**FSDP, "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}),
    "shards": (2, {**FSDP, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}),
}


MIXED = (
    "--train.precision=bf16",
    "--train.gradient_checkpointing=true",
    "--train.gradient_accumulation=2",
)
# What happens in the middle of a step, and to which process.
EVENTS = {"term": (signal.SIGTERM, 1), "kill": (signal.SIGKILL, 1), "lost": (signal.SIGKILL, 0)}


def shard_on_cpus() -> None:
    """Let accelerate shard on CPUs, too: torch's FSDP2 can, but accelerate asks for GPUs and says nothing."""
    original = AcceleratorState.__init__

    def init(self: Any, *arguments: Any, fsdp_plugin: Any = None, **keywords: Any) -> None:
        original(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def signal_in_step(step: int, number: int) -> None:
    """Let this process send itself a signal in the middle of a step."""
    original = trainer_module.RoutedTrainer.compute_loss

    def compute_loss(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), number)
        return original(self, *arguments, **keywords)

    trainer_module.RoutedTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def start(
    recipe: str, out: Path, engine: str, *, struck: int | None = None, step: int = 0, number: int = 0
) -> list[int]:
    """Start all processes of a run; ``struck`` gets a signal in the middle of a step."""
    mixed, _, engine = engine.rpartition("_")
    world, environment = ENGINES[engine]
    port = free_port()

    def work(rank: int) -> Callable[[], int]:
        def train() -> int:
            if world > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                os.environ.update({name: str(value) for name, value in names.items()})
                os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment})
                shard_on_cpus()
            if rank == struck:
                signal_in_step(step, number)
            return main(["train", recipe, "--out", str(out), *(MIXED if mixed else ())])

        return train

    return [fork(work(rank), out.parent / f"{out.name}-{rank}.log") for rank in range(world)]


def case(recipe: str, work: Path, name: str) -> dict[str, Any]:
    engine, _, event = name.partition("-")
    out = work / name
    if not event:
        return {"codes": [wait(process) for process in start(recipe, out, engine)]}
    number, struck = EVENTS[event]
    processes = start(recipe, out, engine, struck=struck, step=12, number=number)
    codes = {struck: wait(processes[struck])}
    ended = time.monotonic()
    codes[1 - struck] = wait(processes[1 - struck])
    seconds = time.monotonic() - ended
    again = [wait(process) for process in start(recipe, out, engine)]
    return {"codes": [codes[0], codes[1]], "seconds": seconds, "again": again}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[3:]:
        print(json.dumps({"case": chosen, **case(sys.argv[1], Path(sys.argv[2]), chosen)}), flush=True)
