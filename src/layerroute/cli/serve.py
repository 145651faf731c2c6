r"""Serve a model over HTTP, in the manner of OpenAI's API, with its routing active.

CHECKPOINT is the folder of a run, of a saved model, or of a router. The server is that of `transformers serve`:

    layerroute serve runs/dynamic-seed42
    curl localhost:8000/v1/completions -H 'Content-Type: application/json' \
      -d '{"prompt": "def main", "max_tokens": 32, "temperature": 0, "stream": true}'

It answers whoever reaches it, without a password: keep it on localhost, or behind a proxy that asks for one. Ctrl-C
ends it (exit code 130).
"""

import argparse

from layerroute.cli.arguments import add_budget, add_checkpoint, add_device, add_serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint, address and device."""
    parser.description = __doc__
    add_checkpoint(parser)
    parser.add_argument("--host", default="localhost", help="address to listen on (default: localhost)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--name", help="the model's name in requests (default: CHECKPOINT as it is given)")
    add_device(parser)
    add_budget(parser)
    add_serve(parser)
    parser.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), help="default: that of the training, else fp32"
    )


def run(arguments: argparse.Namespace) -> int:
    """Load, then serve until interrupted."""
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
