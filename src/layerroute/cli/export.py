"""Write a folder that stands alone: weights with adapters merged, router, skip paths, tokenizer.

ROUTER is the folder of a router, or of a run that trained one. `--to hf`: a static router that leaves out whole layers
becomes a plain smaller model; all others open with `import layerroute`. `--to vllm`: what the vLLM plugin can serve
(`layerroute serve --engine vllm OUT`), or a refusal that says why not.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from layerroute.cli.arguments import add_budget, add_json, add_serve
from layerroute.cli.output import folder, print_json
from layerroute.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Router, engine and folder."""
    parser.description = __doc__
    parser.add_argument("router", metavar="ROUTER", help="folder of a router, or of a run that trained one")
    parser.add_argument("--to", choices=("vllm", "hf"), required=True, help="the engine that is to serve it")
    parser.add_argument("out", metavar="OUT", type=folder, help="a new folder")
    add_budget(parser)
    add_serve(parser)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the weights (default: that of the base); routers stay in float32",
    )
    parser.add_argument("--push", metavar="USER/NAME", help="also upload the folder to the hub")
    parser.add_argument("--public", action="store_true", help="with --push: let everybody see it")
    add_json(parser, "what was written as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Export; returns the exit code."""
    if arguments.public and arguments.push is None:
        raise UserError("--public says who sees what --push uploads: give --push USER/NAME, or leave it out")
    from layerroute.evaluation.loading import model_folder
    from layerroute.exporting.export import export_router, push

    made = export_router(
        model_folder(Path(arguments.router)),
        arguments.out,
        to=arguments.to,
        dtype=arguments.dtype,
        budget=arguments.budget,
        serve=arguments.serve,
    )
    address = None
    if arguments.push is not None:
        address = push(made.folder, arguments.push, private=not arguments.public)
    if arguments.json:
        print_json({**asdict(made), "folder": str(made.folder), "address": address})
        return 0
    kind = "a plain model" if made.plain else "routed"
    print(
        f"{made.folder}: {made.architecture}, {kind}, {made.layers[1]} of {made.layers[0]} layers, "
        f"{made.bytes / 1e6:,.1f} MB"
    )
    if address is not None:
        print(address)
    return 0
