"""Show which path each token of a text takes: in the terminal, as a self-contained HTML page and as a PNG."""

import argparse
import sys
from pathlib import Path

from layerroute.cli.arguments import add_budget, add_device, add_serve, add_text_field
from layerroute.cli.output import folder, make_console, print_json
from layerroute.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint, text and where to write."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a run or of a saved model")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", help="the text itself")
    text.add_argument(
        "--file", type=Path, metavar="FILE", help="a text file, or the first document of records"
    )
    add_text_field(parser)
    parser.add_argument(
        "--out",
        type=folder,
        default=Path("inspection"),  # no word: one is checked here, also where --json writes nothing
        metavar="DIR",
        help="folder for the page and the picture (default: ./inspection)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="read at most so many tokens (default 1024)"
    )
    add_budget(parser)
    add_serve(parser)
    parser.add_argument(
        "--json", action="store_true", help="print tokens, choices and probabilities as JSON instead"
    )
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Inspect; returns the exit code."""
    if arguments.max_tokens < 1:
        raise UserError(f"--max-tokens is {arguments.max_tokens}; it must be at least 1")
    text = arguments.text if arguments.file is None else _read(arguments.file, arguments.text_field)
    if not arguments.json:
        try:
            folder(str(arguments.out))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"argument --out: {error}") from None
    if not text:
        raise UserError("the text is empty; give at least one character")
    import torch
    from rich.text import Text

    from layerroute.data.windows import DocumentEncoder, utf8
    from layerroute.evaluation.loading import load_model
    from layerroute.evaluation.token_routes import route_colour, routes_of, sentence_routes, token_texts

    loaded = load_model(
        arguments.checkpoint, device=arguments.device, budget=arguments.budget, serve=arguments.serve
    )
    every = DocumentEncoder.of(loaded.tokenizer).opening(utf8(text))
    most = min(arguments.max_tokens, loaded.context_length or arguments.max_tokens)
    ids = every[:most]
    routes = routes_of(loaded.model, torch.tensor([ids]), precision=loaded.in_precision)
    if routes is None:
        raise UserError(f"{loaded.path} is a model without routed layers: there are no routes to inspect")
    sites, paths, choice, probability = routes
    found = sentence_routes(token_texts(loaded.tokenizer, ids), choice[0], probability[0])
    rates = dict(zip(sites, (choice[0] == len(paths) - 1).double().mean(dim=0).tolist(), strict=True))
    if arguments.json:
        print_json({"sites": sites, "paths": paths, "rate": rates, "sentences": [found]})
        return 0
    # Matplotlib takes its second: only where something is drawn.
    from layerroute.lab.report.inspection import write_inspection
    from layerroute.lab.runs import TokenRoutes

    console = make_console(soft_wrap=True)
    line = Text()
    for token, row in zip(found["tokens"], found["choice"], strict=True):
        line.append(token, style=route_colour(sum(path == len(paths) - 1 for path in row) / len(row)))
    console.print(line)
    for site, rate in rates.items():
        console.print(f"{site}: {rate:.1%} {paths[-1]}")
    if len(ids) < len(every):
        more = "the model reads no more" if most < arguments.max_tokens else "--max-tokens reads more"
        console.print(f"The first {len(ids)} of {len(every)} tokens; {more}.")
    sentence = (
        tuple(found["tokens"]),
        tuple(map(tuple, found["choice"])),
        tuple(map(tuple, found["probability"])),
    )
    stored = TokenRoutes(sites=tuple(sites), paths=tuple(paths), sentences=(sentence,))
    name = str(loaded.record["run"]) if loaded.record else loaded.path.name
    for path in write_inspection(stored, rates, arguments.out, checkpoint=name):
        console.print(f"wrote {path}")
    return 0


def _read(file: Path, text_field: str) -> str:
    """The document of a text file, or the first of a file of records."""
    from layerroute.evaluation.texts import read_texts

    if file.is_dir():
        raise UserError(f"--file: {file} is a folder; give a file")
    documents = read_texts([str(file)], text_field)
    text = next(documents, "")
    if next(documents, None) is not None:
        print(f"layerroute: {file} holds several documents: this is the first", file=sys.stderr)
    return text
