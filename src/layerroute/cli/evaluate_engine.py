"""``layerroute evaluate --engine vllm``: loss on text, scores of tasks, and rates, as the engine serves them."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerroute.cli.output import make_console, print_json
from layerroute.data.kinds import UNNAMED, parse_kinds
from layerroute.data.texts import Texts
from layerroute.errors import UserError

_READS = 2048
_OTHERS = ("full_depth", "budget", "serve", "execution")


def check_engine(arguments: argparse.Namespace) -> Path:
    """The export that the engine is to open.

    Raises:
        UserError: an option that it has not; vLLM is not installed; the folder is none.
    """
    from layerroute.vllm.engine import check_folder, check_installed

    for name in _OTHERS:
        if getattr(arguments, name):
            raise UserError(f"--{name.replace('_', '-')} is not for --engine vllm")
    if arguments.device != "auto":
        raise UserError("--device is not for --engine vllm: vLLM runs on what it was built for")
    folder = check_folder(arguments.checkpoint)
    check_installed()
    return folder


def opened_tokenizer(folder: Path) -> Any:
    """An export's.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    import layerroute  # noqa: F401 (opens exports)

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no tokenizer that transformers opens: {error}") from error


def opener(arguments: argparse.Namespace, batch_size: int) -> Callable[[], Any]:
    """Opens the engine for tasks of the harness.

    Raises:
        UserError: see ``check_engine``.
    """
    folder = check_engine(arguments)

    def opened() -> Any:
        from transformers import AutoConfig

        from layerroute.evaluation.engine_harness import EngineLM
        from layerroute.vllm.engine import Session

        tokenizer, config = opened_tokenizer(folder), AutoConfig.from_pretrained(folder)
        known = getattr(config.get_text_config(), "max_position_embeddings", None)
        reads = arguments.sequence_length or known or _READS
        session = Session(
            folder, dtype="float32", length=reads + 1, requests=batch_size, skip_tokenizer_init=False
        )
        return EngineLM(session, config=config, tokenizer=tokenizer, length=reads - 1, batch_size=batch_size)

    return opened


def evaluate_engine(arguments: argparse.Namespace) -> int:
    """Score text through vLLM's log-probabilities of prompts; returns the exit code."""
    from layerroute.evaluation.texts import text_batches
    from layerroute.vllm.engine import opened

    if arguments.out is not None:
        raise UserError("--out is not for text with --engine vllm; --json prints the result")
    if not arguments.data:
        raise UserError("--engine vllm needs the text to score (--data), or --tasks")
    folder = check_engine(arguments)
    texts = Texts(parse_kinds(arguments.data, text_field=arguments.text_field))
    tokenizer = opened_tokenizer(folder)
    length = arguments.sequence_length or 256
    batch = arguments.batch_size or 8
    measured: dict[str, Any] = {}
    read = {
        kind: text_batches(tokenizer, documents, length=length, batch_size=batch, limit=arguments.sequences)
        for kind, documents in texts.documents.items()
    }
    with opened(folder, dtype="float32", length=length + 1, requests=batch) as session:
        for kind, batches in read.items():
            windows = [row.tolist() for one in batches for row in one["input_ids"]]
            session.clear()
            started = time.perf_counter()
            scored = session.score(windows)
            measured[kind] = _measured(scored, session.rates(), time.perf_counter() - started)
    content: dict[str, Any] = {"checkpoint": str(folder), "engine": "vllm", "precision": "fp32"}
    content |= measured[UNNAMED] if list(measured) == [UNNAMED] else {"kinds": measured}
    if arguments.json:
        print_json(content)
        return 0
    console = make_console()
    for kind, one in measured.items():
        name = "" if kind == UNNAMED else f"{kind}: "
        console.print(
            f"{name}cross-entropy {one['loss']:.4f} nats per token, accuracy {one['accuracy']:.2%}, "
            f"{one['tokens']:,} tokens, {one['seconds']:.1f} s"
        )
        for site, rate in one["routing"]["rate"].items() if one["routing"] else ():
            console.print(f"{site:<14} run {rate:.2%}")
    return 0


def _measured(scored: list[Any], rates: dict[str, Any], seconds: float) -> dict[str, Any]:
    import math

    losses = [-score for one in scored for score in one.scores]
    hits = [hit for one in scored for hit in one.hits]
    loss = math.fsum(losses) / len(losses)
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "accuracy": sum(hits) / len(hits),
        "tokens": len(losses),
        "seconds": seconds,
        "routing": {"rate": rates, "mean_rate": sum(rates.values()) / len(rates)} if rates else None,
    }
