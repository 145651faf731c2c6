"""Measure a trained model: cross-entropy, perplexity, next-token accuracy, rates by site, compute really done.

Without --data it is scored on the validation windows of its own training run; with --data on any text files (txt,
jsonl, json, csv, tsv, parquet, compressed or not), folders or globs.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerroute.argument_types import at_least
from layerroute.cli.arguments import (
    add_budget,
    add_checkpoint,
    add_device,
    add_json,
    add_serve,
    add_tasks,
    add_text_field,
    add_window_sizes,
)
from layerroute.cli.output import folder, print_json, write_csv, write_json
from layerroute.data.kinds import KINDS_HELP, UNNAMED, parse_kinds
from layerroute.data.texts import Texts
from layerroute.errors import UserError

if TYPE_CHECKING:
    from layerroute.data.copies import CopiesConfig
    from layerroute.evaluation.loading import LoadedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint and data."""
    add_checkpoint(parser)
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        metavar="[NAME=]FILE",
        help=f"{KINDS_HELP}. Several kinds are scored apart (default: the validation text of the run)",
    )
    add_text_field(parser)
    add_window_sizes(parser, length=None, rows=None)
    parser.add_argument(
        "--sequences",
        type=at_least(1),
        metavar="N",
        help="windows of each kind to score (default: as in training, or all)",
    )
    add_tasks(
        parser,
        "score tasks of lm-evaluation-harness: names of its tasks, JSON Lines files (context, target; question, "
        "choices, gold; prompt, answer), a list of tasks with their shots (evaluation/original), or recall in plain "
        "text (recall:needle,pairs=4,filler=40; also mqar, copying, induction)",
    )
    parser.add_argument(
        "--full-depth",
        action="store_true",
        help="switch the layer router off, so that every token runs every layer",
    )
    add_budget(parser)
    add_serve(parser)
    parser.add_argument(
        "--execution",
        choices=("auto", "sparse", "masked"),
        help="sparse computes only the chosen path, masked computes all paths, auto takes what pays "
        "(default: as the model's configuration says)",
    )
    parser.add_argument(
        "--out",
        type=folder,
        metavar="DIR",
        help="write results.json, and a CSV of the samples of each task or of the loss of each window",
    )
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="vllm scores a folder of `layerroute export --to vllm`, in fp32 (default: transformers)",
    )
    add_device(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; returns the exit code."""
    of_text = ["data", "sequences", *(["sequence_length"] if arguments.engine == "transformers" else [])]
    for name in of_text if arguments.tasks else ("limit", "shots"):
        if getattr(arguments, name):
            option, wanted = name.replace("_", "-"), "text, not for --tasks" if arguments.tasks else "--tasks"
            raise UserError(f"--{option} is for {wanted}; leave it out, or score the two one after the other")
    if arguments.tasks:
        from layerroute.cli.evaluate_tasks import evaluate_tasks

        return evaluate_tasks(arguments)
    if arguments.engine == "vllm":
        from layerroute.cli.evaluate_engine import evaluate_engine

        return evaluate_engine(arguments)
    from layerroute.evaluation.loading import load_model
    from layerroute.evaluation.measure import measure

    kinds = parse_kinds(arguments.data, text_field=arguments.text_field) if arguments.data else None
    texts = None if kinds is None else Texts(kinds)
    loaded = load_model(
        arguments.checkpoint, device=arguments.device, budget=arguments.budget, serve=arguments.serve
    )
    if arguments.full_depth:
        loaded.switch_router_off()
    if arguments.execution is not None:
        loaded.execute(arguments.execution)
    result = measure(loaded, _batches(arguments, loaded, texts), copies=_copies(loaded))
    measured = result.kinds
    head = {
        "checkpoint": str(loaded.path),
        "precision": loaded.precision,
        "execution": loaded.execution,
        "serve": loaded.serve,
    }
    content = {**head, **result.to_dict()}
    if arguments.out is not None:
        _write(arguments.out, content, result.window_losses)
    if arguments.json:
        print_json(content)
        return 0
    for kind, one in measured.items():
        if kind != UNNAMED:
            print(f"{kind}:")
        _show(head, one)
    if "mean" in content:
        _show_kinds(measured, result.mean)
    return 0


def _copies(loaded: "LoadedModel") -> "CopiesConfig | None":
    """The rule by which the model's run tells copied tokens apart, if it does."""
    from layerroute.data.copies import CopiesConfig

    rule = ((loaded.record or {}).get("recipe") or {}).get("data", {}).get("copies")
    return None if rule is None else CopiesConfig(**rule)


def _show(head: dict[str, Any], one: dict[str, Any]) -> None:
    print(
        f"{head['checkpoint']} on {one['data']} ({one['tokens']:,} predicted tokens, {head['precision']}, "
        f"{one['seconds']:.1f} s)"
    )
    print(f"cross-entropy  {one['loss']:.4f} nats per token")
    print(f"perplexity     {one['perplexity']:.3f}")
    print(f"accuracy       {one['accuracy']:.2%}")
    if one["by_position"]:
        places = ", ".join(
            f"{part['from']:.0f}–{part['to']:.0f}: {part['loss']:.3f}" for part in one["by_position"]
        )
        print(f"by position    {places}")
    if copies := one.get("copies"):
        losses = [
            f"{part['loss']:.4f}" if part["tokens"] else "none" for part in (copies["copied"], copies["rest"])
        ]
        print(
            f"copied tokens  {losses[0]} nats on {copies['copied']['tokens']:,} tokens that end a stretch of "
            f"{copies['length']} from more than {copies['beyond']} tokens back; {losses[1]} on the rest"
        )
    routing, layers, flops = one["routing"], one["layers"], one["flops"]
    if layers is not None:
        for unit, number in layers["run_per_token"].items():
            print(f"layers run     {number:.2f} of {layers['total']} by each token on average ({unit})")
        print(f"skipped        {routing['skipped']:.2%} of routed compute")
    counted = f"{flops['executed_per_token'] / 1e6:,.2f} MFLOPs per token"
    if flops["full_depth_per_token"] is not None:
        counted += f", {flops['executed_per_token'] / flops['full_depth_per_token']:.1%} of full depth's"
    how = "" if head["execution"] is None else f", {head['execution']} execution"
    print(f"executed       {counted} (counted on {flops['windows']} windows{how})")
    for site in routing["sites"] if routing else ():
        print(
            f"{site:<14} {routing['paths'][-1]} {routing['rate'][site]:.2%}  entropy {routing['entropy'][site]:.3f}"
        )
    if routing is not None and not routing["causal"]:
        print("The router is not causal: a decision may depend on later tokens.")


def _show_kinds(kinds: dict[str, dict[str, Any]], mean: dict[str, Any]) -> None:
    from layerroute.cli.output import print_rows

    rows = []
    for name, one in [*kinds.items(), ("mean of the kinds", {**mean, "routing": mean, "tokens": None})]:
        routing = one["routing"] or {}
        cells = [one["loss"], one["accuracy"], routing.get("mean_rate"), routing.get("skipped")]
        texts = [f"{cells[0]:.4f}", *("" if cell is None else f"{cell:.2%}" for cell in cells[1:])]
        rows.append([name, "" if one["tokens"] is None else f"{one['tokens']:,}", *texts])
    headings = ["kind", "tokens", "cross-entropy", "accuracy", "rate", "skipped"]
    print_rows(headings, rows)


def _write(folder: Path, content: dict[str, Any], losses: dict[str, list[float]]) -> None:
    """``results.json``, and ``windows.csv`` with the mean loss of each window in nats."""
    write_json(folder / "results.json", content)
    rows: list[tuple[Any, ...]] = [("kind", "window", "loss")]
    rows += [(kind, *row) for kind, values in losses.items() for row in enumerate(values)]
    write_csv(folder / "windows.csv", rows if list(losses) != [UNNAMED] else [row[1:] for row in rows])


def _batches(
    arguments: argparse.Namespace, loaded: "LoadedModel", texts: Texts | None
) -> dict[str, tuple[list[Any], str]]:
    """By kind of text: the windows to score, and where they come from."""
    from layerroute.data.configuration import DataConfig
    from layerroute.data.prepare import open_data
    from layerroute.data.spool import held_out
    from layerroute.evaluation.texts import text_batches
    from layerroute.skipping.pretrained import local_source
    from layerroute.training.samples import validation_batches

    recipe = (loaded.record or {}).get("recipe") or {}
    length = arguments.sequence_length or recipe.get("data", {}).get("sequence_length") or 256
    loaded.check_windows(length)
    batch_size = arguments.batch_size or recipe.get("train", {}).get("evaluation_batch_size") or 8

    def windows(documents: Iterable[str], limit: int | None) -> list[Any]:
        return text_batches(loaded.tokenizer, documents, length=length, batch_size=batch_size, limit=limit)

    if texts is not None:
        return {
            kind: (windows(documents, arguments.sequences), texts.kinds[kind].where)
            for kind, documents in texts.documents.items()
        }
    if not recipe:
        raise UserError(
            f"{loaded.path} is not part of a run, so its validation data are not known; give text with --data"
        )
    skips = recipe["capability"] == "layer_skipping"  # the data are in the ids of the pretrained model
    tokenizer = {"tokenizer": local_source(recipe["model"]["name"])} if skips else {}
    config = DataConfig(**{**recipe["data"], "sequence_length": length, **tokenizer})
    prepared = open_data(config)
    stored = (loaded.record or {}).get("data", {}).get("fingerprint")
    if stored is not None and stored != prepared.fingerprint:
        raise UserError(
            f"the data of this run have changed since (fingerprint {stored[:12]}, now {prepared.fingerprint[:12]}); "
            "give text with --data"
        )
    train = recipe["train"]
    boundaries: Any = "position_ids" if skips else "document_ids"
    sequences = arguments.sequences or train["evaluation_sequences"]
    if config.source == "kinds" and not config.validation_paths:
        own = Texts(config.kinds or None)
        share, seed = config.validation_share, config.split_seed
        return {
            kind: (
                windows(held_out(documents, share=share, seed=seed), sequences),
                f"text of {own.sources[kind].describe()} that the run did not train on",
            )
            for kind, documents in own.documents.items()
        }
    found = validation_batches(
        prepared,
        sequences=sequences,
        batch_size=batch_size,
        boundaries=boundaries if train["separate_documents"] else None,
    )
    return {UNNAMED: (found, f"the validation split of {prepared.describe()['source']}")}
