"""What `calibrate`, `headroom` and `transfer` share: arguments, the model that they open, and the head of a record."""

import argparse
import re
import sys
from dataclasses import fields
from typing import Any

from layerroute.argument_types import add_number, rate, seed
from layerroute.cli.arguments import add_device, add_json, add_text_field, add_threads, use_threads
from layerroute.cli.output import command_line
from layerroute.data.kinds import DEFAULT_HELP, KINDS_HELP
from layerroute.data.texts import Texts
from layerroute.errors import UserError
from layerroute.process import give_freed_memory_back

MODEL_HELP = "smollm2-135m, a local folder, or a name on the Hugging Face hub"


def add_input_arguments(
    parser: argparse.ArgumentParser, *, metavar: str = "MODEL", statistics: str = "12288"
) -> None:
    """Model, text and sizes. ``statistics`` tells the default of --tokens-statistics."""
    parser.add_argument("model", metavar=metavar, help=MODEL_HELP)
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        metavar="[NAME=]FILE",
        help=f"{KINDS_HELP} (default: {DEFAULT_HELP})",
    )
    add_text_field(parser)
    parser.add_argument(
        "--unit",
        choices=("block", "attention", "mlp", "attention+mlp"),
        help="the part of a layer that a token may skip: its MLP, its attention, all of it, or each half by itself "
        "(default: mlp; block for models whose layers layerroute cannot take apart)",
    )
    parser.add_argument(
        "--layers",
        type=parse_layers,
        metavar="LIST",
        help="layers that may be skipped: 4-28 or 4,6,8 (default: 4 to the last but one)",
    )
    add_number(parser, "--router-layer", 4, "layers at the bottom that always run", least=0)
    add_number(parser, "--rank", 128, "rank of the skip paths")
    add_number(
        parser, "--length", 256, "tokens of a window; each document gives one window", least=16, metavar="T"
    )
    add_number(parser, "--tokens-statistics", None, f"tokens to fit on (default: {statistics})")
    add_number(parser, "--tokens-selection", 2048, "tokens that choose the layers of static pruning")
    parser.add_argument("--seed", type=seed, default=42, help="seed of window positions and random decisions")
    parser.add_argument(
        "--stream",
        choices=("auto", "always", "never"),
        default="auto",
        help="read one layer's weights at a time from the model's files, so that it may be larger than the memory; "
        "auto: where it does not fit (default: %(default)s)",
    )
    add_threads(parser)
    add_device(parser)
    add_json(parser, "the record as JSON instead of the table")


def add_router_arguments(parser: argparse.ArgumentParser, *, judged: str) -> None:
    """What is calibrated and how much text judges it, for `calibrate` and `transfer`."""
    add_number(parser, "--tokens-heldout", 16384, judged)
    add_number(parser, "--tokens-search", 1536, "tokens that test changes of one layer at a time")
    parser.add_argument(
        "--own-text",
        type=rate,
        default=0.25,
        metavar="SHARE",
        help="share of the fitting text that the model writes itself, so that the fits know more kinds of text "
        "than you give (default: %(default)s; 0: none)",
    )
    parser.add_argument(
        "--router",
        choices=("per_layer", "token", "sequence"),
        default="per_layer",
        help="per_layer: each layer decides from its own input; token: one decision per token for all layers, "
        "which is faster; sequence: one choice of layers per prompt, from its first 16 tokens (default: %(default)s)",
    )
    add_number(
        parser,
        "--history",
        0,
        "with --router per_layer: layers below whose inputs a router sees, beside its own layer's",
        least=0,
    )
    parser.add_argument(
        "--skip-path",
        choices=("low_rank", "non_linear"),
        default="low_rank",
        help="what a token gets that skips: a low-rank map of its state, fitted in closed form, or a feed-forward "
        "network of as many FLOPs (%(choices)s; default: %(default)s)",
    )
    parser.add_argument(
        "--allocation",
        choices=("even", "cost", "search"),
        help="even: the same share of the tokens skips at every layer, which holds on other text; cost: each layer's "
        "share follows what skipping costs on this text; search, with --router sequence: each prompt skips as many "
        "layers, and a classifier learns which from a search (default: even for parts of layers, cost for whole "
        "layers)",
    )


def parse_layers(text: str) -> list[int]:
    """``4-28`` or ``4,6,8-10`` as a list in rising order."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"{text}: give layers like 4-28 or 4,6,8")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)


def open_base(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model, on its device and in inference mode, and its tokenizer; says so where it does not fit.

    Raises:
        UserError: there is no such model, or not even one layer at a time fits.
    """
    from transformers.utils import logging

    from layerroute.api.loading import load

    use_threads(arguments)
    logging.disable_progress_bar()
    placed = _placed(arguments)
    model, tokenizer = load(arguments.model, device=arguments.device, **placed)
    return model.requires_grad_(False), tokenizer


def _placed(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the model is loaded: nothing for all of it on its device, else a ``device_map``."""
    import torch

    from layerroute.precision import choose_device, choose_precision
    from layerroute.skipping.calibration.configuration import CalibrationConfig
    from layerroute.skipping.calibration.configure import MOST
    from layerroute.skipping.calibration.memory import GIB, memory_needed
    from layerroute.skipping.devices import memory_free
    from layerroute.skipping.pretrained import local_source, streamed_options
    from layerroute.skipping.weights import empty_model

    name, stream, device = arguments.model, arguments.stream, choose_device(arguments.device)
    known = {one.name: getattr(arguments, one.name, None) for one in fields(CalibrationConfig)}
    known["granularity"] = getattr(arguments, "router", None)
    given = {"tokens_statistics": MOST, **{key: value for key, value in known.items() if value is not None}}
    config = CalibrationConfig(**{**given, "budget": 0.5, "also": [], "rounds": 1})
    try:
        empty = empty_model(local_source(name))
    except UserError:  # loading it says what is wrong, or that it is a router
        return {}
    dtype = torch.float32 if device.type == "cpu" else (empty.config.dtype or torch.float32)
    precision = choose_precision(config.precision, device).name
    whole, streamed = (
        memory_needed(empty, config, dtype=dtype, precision=precision, streamed=layers)
        for layers in (False, True)
    )
    free = memory_free(device)
    room = "" if free is None else f"; {free / GIB:.1f} GiB are free"
    if stream == "never" or (stream == "auto" and (free is None or whole.total <= free)):
        return {}
    told = f"about {whole} of memory; layer by layer, about {streamed}{room}"
    if stream == "auto" and device.type == "cuda" and torch.cuda.device_count() > 1:
        print(f"layerroute: {name} takes {told}; it is spread over the cards", file=sys.stderr)
        return {"device_map": "auto"}
    if stream == "auto" and free is not None and streamed.total > free:
        raise UserError(
            f"{name} takes {told}; fewer --tokens-statistics, --tokens-search and --tokens-heldout take less "
            "(--stream always tries all the same)"
        )
    print(f"layerroute: {name} takes {told}; its layers are read from its files", file=sys.stderr)
    give_freed_memory_back()
    return streamed_options(name, device)


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of the calibration's configuration that all three commands take; None goes by the model."""
    names = ("unit", "layers", "router_layer", "rank", "length", "tokens_selection", "seed")
    return {name: getattr(arguments, name) for name in names}


def router_settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Further ones of `add_router_arguments`."""
    return {
        "granularity": arguments.router,
        "history": arguments.history,
        "skip_path": arguments.skip_path,
        "allocation": arguments.allocation,
        "own_text": arguments.own_text,
        "tokens_search": min(arguments.tokens_search, arguments.tokens_selection),
        "tokens_heldout": arguments.tokens_heldout,
    }


def record_of(
    kind: str, arguments: argparse.Namespace, started: str, recipe: dict[str, Any], texts: Texts
) -> dict[str, Any]:
    """What the records of `headroom` and `transfer` begin with."""
    from layerroute.api.calibration import head

    command = command_line(kind)
    return head(kind, model=arguments.model, command=command, started=started, recipe=recipe, texts=texts)
