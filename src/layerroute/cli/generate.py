"""Continue a prompt with a trained model. The text comes as it is made.

With --show-routes every token is coloured by the share of routed sites at which it took the expensive path: orange is
all softmax attention (or all layers run), blue all Gated DeltaNet (or all skipped). Text goes to stdout, rates and
speed to stderr.

With --lossless a model that skips layers drafts tokens by its routed path and verifies them at full depth: the text is
that of greedy decoding at full depth, token for token; stderr tells how many drafted tokens were accepted. A penalty in
the model's own generation configuration (for repetition, say) has no part in it.
"""

import argparse
import sys
from collections.abc import Callable

from layerroute.argument_types import at_least, seed, temperature
from layerroute.cli.arguments import add_budget, add_checkpoint, add_device, add_serve
from layerroute.cli.generate_timing import describe, time_generation
from layerroute.cli.output import make_console, print_json, write_text
from layerroute.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint, prompt and sampling."""
    add_checkpoint(parser)
    parser.add_argument("prompt", help="text to continue; '-' reads it from stdin")
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), default=64, metavar="N", help="tokens to add (default 64)"
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=0.0,
        metavar="T",
        help="0 (default): take the most likely token; above 0: draw",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw only among the K most likely tokens")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draw (default 0)")
    parser.add_argument(
        "--show-routes", action="store_true", help="colour each token by the path that it took"
    )
    parser.add_argument(
        "--lossless",
        action="store_true",
        help="give exactly the greedy text of full depth: the routed path drafts, full depth verifies (layer "
        "skipping only)",
    )
    parser.add_argument(
        "--draft-tokens",
        type=at_least(1),
        metavar="N",
        help="with --lossless, tokens drafted at a time (default 4)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="decode through torch.compile, which takes some seconds at first (layer skipping only)",
    )
    parser.add_argument(
        "--time",
        type=at_least(1),
        metavar="ROUNDS",
        help="then time greedy decoding, routed and at full depth in turn, for so many rounds (layer skipping only)",
    )
    add_budget(parser)
    add_serve(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end instead of the text"
    )
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generate; returns the exit code."""
    if arguments.top_k is not None and (arguments.top_k < 1 or arguments.temperature == 0):
        raise UserError("--top-k must be at least 1, and has an effect only with a --temperature above 0")
    if arguments.lossless and (arguments.temperature > 0 or arguments.show_routes):
        raise UserError(
            "--lossless is greedy and its text is full depth's: leave --temperature and --show-routes out"
        )
    if arguments.lossless and arguments.compile:
        raise UserError(
            "--lossless verifies several tokens at a time, which is not compiled: leave --compile out"
        )
    if arguments.draft_tokens is not None and not arguments.lossless:
        raise UserError("--draft-tokens is for --lossless: give that, too, or leave it out")
    from rich.style import Style
    from rich.text import Text

    from layerroute.evaluation.generation import Piece, generate, generate_losslessly
    from layerroute.evaluation.loading import load_model
    from layerroute.evaluation.token_routes import route_colour

    loaded = load_model(
        arguments.checkpoint, device=arguments.device, budget=arguments.budget, serve=arguments.serve
    )
    if arguments.time is not None:
        from layerroute.skipping import get_router

        get_router(loaded.model)  # or there is nothing to time
    if arguments.compile:
        from layerroute.skipping import compile_decoding

        compile_decoding(loaded.model)
        print("[compiling: the first tokens take some seconds]", file=sys.stderr)
    console = make_console(soft_wrap=True)

    def show(piece: Piece) -> None:
        if not console.is_terminal:
            write_text(piece.text)
            return
        style = Style(bold=piece.prompt)
        if arguments.show_routes and piece.share is not None:
            style += Style(color=route_colour(piece.share))
        console.print(Text(piece.text, style=style), end="")
        console.file.flush()

    text = _stdin() if arguments.prompt == "-" else arguments.prompt
    shown: Callable[[Piece], None] = (lambda piece: None) if arguments.json else show
    if arguments.lossless:
        result = generate_losslessly(
            loaded,
            text,
            max_new_tokens=arguments.max_new_tokens,
            draft_tokens=arguments.draft_tokens or 4,
            show=shown,
        )
    else:
        result = generate(
            loaded,
            text,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            seed=arguments.seed,
            show=shown,
        )
    statistics = result.statistics
    timed = None
    if arguments.time is not None:
        timed = time_generation(loaded, text, new_tokens=arguments.max_new_tokens, rounds=arguments.time)
    if arguments.json:
        content = {
            "checkpoint": str(loaded.path),
            "prompt": result.prompt,
            "text": result.text,
            "tokens": result.tokens,
            "prompt_tokens": result.prompt_tokens,
            "tokens_per_second": result.tokens_per_second,
            "prompt_seconds": result.prompt_seconds,
            "seconds": result.seconds,
            "compiled": arguments.compile,
            "timed": timed,
            "lossless": None
            if result.lossless is None
            else {
                "acceptance": result.lossless.acceptance,
                "drafted": result.lossless.drafted,
                "accepted": result.lossless.accepted,
                "full_depth_passes": result.lossless.passes,
            },
            "routing": None
            if statistics is None
            else {
                "sites": statistics.sites,
                "paths": statistics.paths,
                "rate": statistics.rate,
                "choice": result.choice,
                "probability": result.probability,
            },
        }
        print_json(content)
        return 0
    print(flush=True)
    parts = [f"{result.new_tokens} new tokens"]
    if result.tokens_per_second is not None:
        parts.append(
            f"{result.tokens_per_second:.1f} tokens/s after a prompt of {result.prompt_seconds:.2f} s"
        )
    if result.lossless is not None:
        drafted = result.lossless
        share = (
            "nothing was drafted"
            if drafted.acceptance is None
            else f"{drafted.acceptance:.0%} of drafts accepted"
        )
        parts.append(f"{share}, {drafted.tokens_per_pass:.2f} tokens for each pass of full depth")
    if statistics is not None:
        rates = ", ".join(f"{site} {rate:.0%}" for site, rate in statistics.rate.items())
        parts.append(f"{statistics.paths[-1]}: {rates}")
    print(f"[{'; '.join(parts)}]", file=sys.stderr)
    if timed is not None:
        print(f"[{describe(timed)}]", file=sys.stderr)
    return 0


def _stdin() -> str:
    """All of stdin as UTF-8, whatever the locale says; newlines as they are."""
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        return sys.stdin.read()
    try:
        return str(buffer.read().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompt on stdin is not UTF-8 text (byte {error.start}); convert it first"
        ) from None
