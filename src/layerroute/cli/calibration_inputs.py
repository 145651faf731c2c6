"""What `calibrate` and `headroom` share: their arguments, the model that they open and the text that they read."""

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from layerroute.cli.arguments import add_text_field
from layerroute.data.kinds import DEFAULT_HELP, KINDS_HELP
from layerroute.data.texts import Texts
from layerroute.errors import UserError

if TYPE_CHECKING:
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
        metavar="LIST",
        help="layers that may be skipped: 4-28 or 4,6,8 (default: 4 to the last but one)",
    )
    parser.add_argument(
        "--router-layer",
        type=int,
        default=4,
        metavar="N",
        help="layers that always run (default: %(default)s)",
    )
    parser.add_argument("--rank", type=int, default=128, help="rank of the skip paths (default: %(default)s)")
    parser.add_argument(
        "--length",
        type=int,
        default=256,
        metavar="T",
        help="tokens of a window, one from each document (default: %(default)s)",
    )
    parser.add_argument(
        "--tokens-statistics",
        type=int,
        metavar="N",
        help=f"tokens to fit on (default: {statistics})",
    )
    parser.add_argument(
        "--tokens-selection",
        type=int,
        default=2048,
        metavar="N",
        help="tokens to choose layers of static pruning on (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="of the places of windows and of random decisions"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of the table")


def parse_layers(text: str | None) -> list[int] | None:
    """``4-28`` or ``4,6,8-10`` as a list in rising order.

    Raises:
        UserError: if it is neither.
    """
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--layers {text}: give layers like 4-28 or 4,6,8")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)


def settings(
    arguments: argparse.Namespace,
    *,
    tokens_statistics: int = 12288,
    allocation: str | None = None,
    **more: Any,
) -> "CalibrationConfig":
    """The arguments as a configuration, checked.

    ``tokens_statistics`` where none are asked for; ``allocation`` by the unit, where it is None.
    """
    from layerroute.skipping.calibration import CalibrationConfig

    if arguments.threads is not None:
        if arguments.threads < 1:
            raise UserError(f"--threads is {arguments.threads}; give at least 1")
        import torch

        torch.set_num_threads(arguments.threads)
    unit = arguments.unit or "mlp"
    return CalibrationConfig(
        unit=unit,
        **_allocated(allocation or ("cost" if unit == "block" else "even")),
        layers=parse_layers(arguments.layers),
        router_layer=arguments.router_layer,
        rank=arguments.rank,
        length=arguments.length,
        tokens_statistics=arguments.tokens_statistics or tokens_statistics,
        tokens_selection=arguments.tokens_selection,
        seed=arguments.seed,
        **more,
    )


def _allocated(allocation: str) -> dict[str, Any]:
    """The method, and what goes with it: rates by cost were chosen with two refits."""
    return {"allocation": allocation, "refits": 2 if allocation == "cost" else 1}


def suited(
    arguments: argparse.Namespace, config: "CalibrationConfig", model: Any, tokenizer: Any
) -> "CalibrationConfig":
    """The configuration for this model: what always runs, and whole layers where they cannot be taken apart."""
    from layerroute.skipping.families import decoder_stack, family_of
    from layerroute.skipping.pretrained import special_tokens

    config = replace(config, sink_ids=special_tokens(tokenizer))
    if arguments.unit is None and family_of(model, decoder_stack(model)[1]) is None:
        print(
            "layerroute: the layers of this model cannot be taken apart; whole layers skip", file=sys.stderr
        )
        config = replace(config, unit="block", **_allocated("cost"))
    return config


def draw(
    texts: Texts, tokenizer: Any, tokens: int, length: int, seed: int, *, least: int | None = None
) -> "Windows":
    """The next windows of every kind, in their shares; where text runs short ``least`` tokens suffice."""
    from layerroute.skipping.calibration import draw_windows

    return draw_windows(
        texts.documents,
        tokenizer,
        tokens=tokens,
        length=length,
        seed=seed,
        shares=texts.shares,
        least=least,
    )


def check_budgets(model: Any, config: "CalibrationConfig", budgets: Iterable[float]) -> None:
    """Raise :class:`UserError` for a budget that no static subset of the model's routed layers can meet."""
    from layerroute.skipping.calibration.transfer import check_budget
    from layerroute.skipping.families import decoder_stack

    layers = config.skip_config(len(decoder_stack(model)[1])).layers or []
    for budget in budgets:
        check_budget(budget, len(layers))


def open_model(name: str, device: str) -> tuple[Any, Any]:
    """The model, on its device and in inference mode, and its tokenizer.

    Raises:
        UserError: if there is no such model, or the tokenizer has ids for which the model has no embedding.
    """
    import torch
    from transformers.utils import logging

    from layerroute.skipping.pretrained import load_pretrained

    logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: torch sees no CUDA device here; use cpu")
    target = "cuda" if device != "cpu" and cuda else "cpu"
    # On a CPU bf16 is no faster, and on many far slower.
    model, tokenizer = load_pretrained(name, dtype=torch.float32 if target == "cpu" else "auto")
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    rows = embeddings.num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings: they do not fit"
        )
    model.to(torch.device(target))  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    return model, tokenizer
