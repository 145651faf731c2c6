r"""Serve a model over HTTP, in the manner of OpenAI's API, with its routing active.

CHECKPOINT is the folder of a run, of a saved model, or of a router. The server is that of `transformers serve`:

    layerroute serve runs/dynamic-seed42
    curl localhost:8000/v1/completions -H 'Content-Type: application/json' \
      -d '{"prompt": "def main", "max_tokens": 32, "temperature": 0, "stream": true}'

`--engine vllm` starts vLLM's own server on a folder of `layerroute export --to vllm`; what follows `--vllm` goes to it:

    layerroute serve OUT --engine vllm --vllm --max-num-seqs 32

It answers whoever reaches it, without a password: keep it on localhost, or behind a proxy that asks for one. Ctrl-C
ends it (exit code 130).
"""

import argparse
import os
import sys

from layerroute.argument_types import at_least, port
from layerroute.cli.arguments import add_budget, add_checkpoint, add_device, add_serve
from layerroute.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint, address and device."""
    parser.description = __doc__
    add_checkpoint(parser)
    parser.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers", help="default: transformers"
    )
    parser.add_argument("--host", default="localhost", help="address to listen on (default: localhost)")
    parser.add_argument("--port", type=port, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--name", help="the model's name in requests (default: CHECKPOINT as it is given)")
    add_device(parser)
    add_budget(parser)
    add_serve(parser)
    parser.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), help="default: that of the training, else fp32"
    )
    parser.add_argument(
        "--full-depth-from",
        type=at_least(2),
        metavar="B",
        help="vLLM: steps in which B requests or more decode run every layer, as skipping pays little there; an answer "
        "then depends on how many others are being written (default: never)",
    )
    parser.add_argument(
        "--vllm",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="ARGUMENT",
        help="all that follows is vLLM's own",
    )


def run(arguments: argparse.Namespace) -> int:
    """Load, then serve until interrupted."""
    if arguments.engine == "vllm":
        return _run_vllm(arguments)
    if arguments.vllm:
        raise UserError("--vllm passes arguments to vLLM's server; it needs --engine vllm")
    if arguments.full_depth_from is not None:
        raise UserError("--full-depth-from is of batches, which only vLLM makes; it needs --engine vllm")
    from layerroute.evaluation.loading import load_model
    from layerroute.serving import serve

    loaded = load_model(
        arguments.checkpoint,
        device=arguments.device,
        precision=arguments.precision,
        budget=arguments.budget,
        serve=arguments.serve,
    )
    name = arguments.name or arguments.checkpoint.rstrip("/")
    print(
        f"{name} on {loaded.device} in {loaded.precision}: http://{arguments.host}:{arguments.port}/v1",
        flush=True,
    )
    serve(loaded, name=name, host=arguments.host, port=arguments.port)
    raise KeyboardInterrupt  # uvicorn returns from Ctrl-C as from a day's work


def _run_vllm(arguments: argparse.Namespace) -> int:
    """Become vLLM's server."""
    from layerroute.vllm.engine import check_folder, check_installed, server_command

    for name in ("budget", "serve"):
        if getattr(arguments, name) is not None:
            raise UserError(f"an export has its own; give --{name} to layerroute export")
    if arguments.device != "auto":
        raise UserError("vLLM serves on the device that it was built for; leave --device out")
    folder = check_folder(arguments.checkpoint)
    check_installed()
    command, environment = server_command(
        folder,
        name=arguments.name or arguments.checkpoint.rstrip("/"),
        host=arguments.host,
        port=arguments.port,
        dtype={None: "auto", "auto": "auto", "bf16": "bfloat16", "fp32": "float32"}[arguments.precision],
        full_depth_from=arguments.full_depth_from,
        more=arguments.vllm,
    )
    sys.stdout.flush()
    os.execve(command[0], command, environment)
