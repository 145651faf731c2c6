"""What `calibrate`, `headroom` and `transfer` share: arguments, the model that they open, and the head of a record."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from layerroute.argument_types import add_number, rate
from layerroute.cli.arguments import add_device, add_json, add_text_field, add_threads, use_threads
from layerroute.cli.output import command_line
from layerroute.data.kinds import DEFAULT_HELP, KINDS_HELP
from layerroute.data.texts import Texts
from layerroute.errors import UserError

if TYPE_CHECKING:
    import torch

    from layerroute.skipping.calibration import CalibrationConfig, Windows

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
        choices=("block", "attention", "mlp"),
        help="what may be skipped of a layer: its MLP, its attention, or all of it (default: mlp; block for models "
        "whose layers layerroute cannot take apart)",
    )
    parser.add_argument(
        "--layers",
        type=parse_layers,
        metavar="LIST",
        help="layers that may be skipped: 4-28 or 4,6,8 (default: 4 to the last but one)",
    )
    add_number(parser, "--router-layer", 4, "layers that always run", least=0)
    add_number(parser, "--rank", 128, "rank of the skip paths")
    add_number(parser, "--length", 256, "tokens of a window, one from each document", least=16, metavar="T")
    add_number(parser, "--tokens-statistics", None, f"tokens to fit on (default: {statistics})")
    add_number(parser, "--tokens-selection", 2048, "tokens to choose layers of static pruning on")
    parser.add_argument(
        "--seed", type=int, default=42, help="of the places of windows and of random decisions"
    )
    parser.add_argument(
        "--stream",
        choices=("auto", "always", "never"),
        default="auto",
        help="read the weights of one layer at a time from the model's files, so that a model larger than the memory "
        "can be calibrated; auto: where it does not fit (default: %(default)s)",
    )
    add_threads(parser)
    add_device(parser)
    add_json(parser, "the record as JSON instead of the table")


def add_router_arguments(parser: argparse.ArgumentParser, *, judged: str) -> None:
    """What is calibrated and how much text judges it, for `calibrate` and `transfer`."""
    add_number(parser, "--tokens-heldout", 16384, judged)
    add_number(parser, "--tokens-search", 1536, "tokens for changes of one layer at a time")
    parser.add_argument(
        "--own-text",
        type=rate,
        default=0.25,
        metavar="SHARE",
        help="share of what the fits see that the model writes itself, beside the text given: fits then know more than "
        "the kinds of text that are given (default: %(default)s; 0 for none)",
    )
    parser.add_argument(
        "--router",
        choices=("per_layer", "token"),
        default="per_layer",
        help="each layer's own input decides, or one decision a token for all layers (default: %(default)s)",
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


def open_base(
    arguments: argparse.Namespace,
    *,
    budget: float,
    checked: Sequence[float],
    tokens_statistics: int = 12288,
    allocation: str | None = None,
    **more: Any,
) -> tuple[Any, Any, "CalibrationConfig"]:
    """The model, on its device and in inference mode, its tokenizer, and the arguments as a configuration for it.

    Args:
        budget: of the configuration.
        checked: the budgets that are to be held, all of them.
        tokens_statistics: where none are asked for.
        allocation: None goes by the unit.
        more: further fields of the configuration.

    Raises:
        UserError: there is no such model; its tokenizer has ids for which it has no embedding; it is to skip layers
            that it does not have; a budget that no static subset of them can meet.
    """
    import torch
    from transformers.utils import logging

    from layerroute.precision import choose_device
    from layerroute.skipping.calibration import CalibrationConfig
    from layerroute.skipping.calibration.transfer import check_budget
    from layerroute.skipping.families import decoder_stack, family_of
    from layerroute.skipping.pretrained import load_pretrained, special_tokens

    use_threads(arguments)
    logging.disable_progress_bar()
    unit = arguments.unit or "mlp"
    config = CalibrationConfig(
        unit=unit,
        budget=budget,
        layers=arguments.layers,
        router_layer=arguments.router_layer,
        rank=arguments.rank,
        length=arguments.length,
        tokens_selection=arguments.tokens_selection,
        seed=arguments.seed,
        tokens_statistics=arguments.tokens_statistics or tokens_statistics,
        **_allocated(allocation or ("cost" if unit == "block" else "even")),
        **more,
    )
    device = choose_device(arguments.device)
    # On a CPU bf16 is no faster, and on many far slower.
    dtype = torch.float32 if device.type == "cpu" else "auto"
    placed = _placed(arguments.model, arguments.stream, config, device)
    model, tokenizer = load_pretrained(arguments.model, dtype=dtype, **placed)
    model.requires_grad_(False)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    rows = embeddings.num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"{arguments.model}: the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings: they do "
            "not fit"
        )
    if not placed:
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    stack = decoder_stack(model)[1]
    config = replace(config, sink_ids=special_tokens(tokenizer))
    if arguments.unit is None and family_of(model, stack) is None:
        print(
            "layerroute: the layers of this model cannot be taken apart; whole layers skip", file=sys.stderr
        )
        config = replace(config, unit="block", **_allocated("cost"))
    for share in checked:
        check_budget(share, len(config.skip_config(len(stack)).layers or []))
    return model, tokenizer, config


def _placed(name: str, stream: str, config: "CalibrationConfig", device: "torch.device") -> dict[str, Any]:
    """How a model is loaded: none for all of it on its device, else a ``device_map``. Tells what memory it takes.

    Raises:
        UserError: not even one layer at a time fits, and nobody asked for it.
    """
    import torch

    from layerroute.precision import choose_precision
    from layerroute.skipping.calibration.memory import GIB, memory_free, memory_needed
    from layerroute.skipping.pretrained import local_source, streamed_options
    from layerroute.skipping.weights import empty_model

    empty = empty_model(local_source(name))
    dtype = torch.float32 if device.type == "cpu" else (empty.config.dtype or torch.float32)
    precision = choose_precision(config.precision, device).name
    whole, streamed = (
        memory_needed(empty, config, dtype=dtype, precision=precision, streamed=layers)
        for layers in (False, True)
    )
    free = memory_free(device)
    room = "" if free is None else f"; {free / GIB:.1f} GiB are free"
    fits = free is None or whole.total <= free
    if stream == "never" or (stream == "auto" and fits):
        print(f"layerroute: calibration takes about {whole} of memory at most{room}", file=sys.stderr)
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
    return streamed_options(name, device)


def _allocated(allocation: str) -> dict[str, Any]:
    """The method, and what goes with it: rates by cost were chosen with two refits."""
    return {"allocation": allocation, "refits": 2 if allocation == "cost" else 1}


def draw(
    texts: Texts,
    tokenizer: Any,
    config: "CalibrationConfig",
    tokens: int,
    seed: int,
    *,
    least: int | None = None,
) -> "Windows":
    """The next windows of every kind, in their shares; where text runs short ``least`` tokens suffice."""
    from layerroute.skipping.calibration import draw_windows

    return draw_windows(
        texts.documents,
        tokenizer,
        tokens=tokens,
        length=config.length,
        seed=config.seed + seed,
        shares=texts.shares,
        least=least,
    )


def record_of(
    kind: str, arguments: argparse.Namespace, started: str, recipe: dict[str, Any], texts: Texts
) -> dict[str, Any]:
    """What all their records begin with; ``kind`` is the command, but for that of `calibrate`."""
    from layerroute.records import provenance, utc_now

    command = "calibrate" if kind == "calibration" else kind
    return {
        "schema": 1,
        "kind": kind,
        "model": arguments.model,
        "command": command_line(command),
        "started": started,
        "finished": utc_now(),
        "recipe": recipe,
        "data": {"source": texts.name, "fingerprint": texts.fingerprint, "kinds": texts.describe()},
        **provenance(),
    }
