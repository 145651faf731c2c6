"""Measure a trained model: cross-entropy, perplexity, next-token accuracy, rates by site, compute really done.

Without --data it is scored on the validation windows of its own training run; with --data on any text files (txt,
jsonl, json, csv, tsv, parquet, compressed or not), folders or globs.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerroute.cli.budget_argument import add_budget_argument
from layerroute.cli.output import folder, print_json
from layerroute.cli.text_argument import add_text_field
from layerroute.errors import UserError

if TYPE_CHECKING:
    from layerroute.evaluation.loading import LoadedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint and data."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a run or of a saved model")
    parser.add_argument(
        "--data", nargs="+", metavar="FILE", help="text files to score instead of the run's own data"
    )
    add_text_field(parser)
    parser.add_argument(
        "--sequence-length", type=int, metavar="T", help="tokens of a window (default: as in training)"
    )
    parser.add_argument(
        "--sequences", type=int, metavar="N", help="windows to score (default: as in training, or all)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="windows at once (default: as in training)"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="score tasks of lm-evaluation-harness: names that it knows, JSON Lines files (context, target; "
        "question, choices, gold; prompt, answer), a list of tasks with their shots (evaluation/original), or recall "
        "in plain text (recall:needle,pairs=4,filler=40; also mqar, copying, induction)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="documents of each task (default: all)")
    parser.add_argument(
        "--shots", type=int, metavar="N", help="examples before each question (default: the task's)"
    )
    parser.add_argument(
        "--full-depth",
        action="store_true",
        help="switch a layer router off: what the model scores when every token runs every layer",
    )
    add_budget_argument(parser)
    parser.add_argument(
        "--execution",
        choices=("auto", "sparse", "masked"),
        help="how routed layers are computed: sparse computes the chosen path alone, masked all of them, auto what "
        "pays (default: as the model's configuration says)",
    )
    parser.add_argument(
        "--out",
        type=folder,
        metavar="DIR",
        help="write results.json, and as CSV the samples of each task, or the loss of each window",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; returns the exit code."""
    for name in ("sequence_length", "sequences", "batch_size", "limit"):
        value = getattr(arguments, name)
        least = 2 if name == "sequence_length" else 1
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if arguments.tasks:
        from layerroute.cli.evaluate_tasks import evaluate_tasks

        return evaluate_tasks(arguments)
    from layerroute.data.progress import stages
    from layerroute.evaluation.compute import count_executed, layers_run
    from layerroute.evaluation.loading import load_model
    from layerroute.evaluation.perplexity import evaluate

    loaded = load_model(arguments.checkpoint, device=arguments.device, budget=arguments.budget)
    if arguments.full_depth:
        loaded.switch_router_off()
    if arguments.execution is not None:
        loaded.execute(arguments.execution)
    batches, source = _batches(arguments, loaded)
    total, done = sum(len(batch["input_ids"]) for batch in batches), 0
    with stages(True) as stage:
        advance = stage("scoring")

        def count(sequences: int) -> None:
            nonlocal done
            done += sequences
            advance(done / total)

        result = evaluate(loaded.model, batches, precision=loaded.in_precision, on_batch=count)
    executed = count_executed(loaded.model, batches, precision=loaded.in_precision)
    routing, layers = result.routing, layers_run(loaded.model, result.routing)
    content: dict[str, Any] = {
        "checkpoint": str(loaded.path),
        "data": source,
        "precision": loaded.precision,
        "execution": loaded.execution,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "accuracy": result.accuracy,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "by_position": result.by_position,
        "routing": None
        if routing is None
        else {
            "sites": routing.sites,
            "paths": routing.paths,
            "rate": routing.rate,
            "mean_rate": routing.mean_rate,
            "skipped": None if layers is None else layers.skipped,
            "entropy": routing.entropy,
            "token_entropy": routing.token_entropy,
            "causal": routing.causal,
            "tokens": routing.tokens,
        },
        "layers": None if layers is None else layers.to_dict(),
        "flops": executed.to_dict(),
    }
    if arguments.out is not None:
        _write(arguments.out, content, result.window_losses)
    if arguments.json:
        print_json(content)
        return 0
    print(
        f"{loaded.path} on {source} ({result.tokens:,} predicted tokens, {loaded.precision}, {result.seconds:.1f} s)"
    )
    print(f"cross-entropy  {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.3f}")
    print(f"accuracy       {result.accuracy:.2%}")
    if result.by_position:
        places = ", ".join(
            f"{one['from']:.0f}–{one['to']:.0f}: {one['loss']:.3f}" for one in result.by_position
        )
        print(f"by position    {places}")
    if layers is not None:
        for unit, number in layers.per_token.items():
            print(f"layers run     {number:.2f} of {layers.total} by each token on average ({unit})")
        print(f"skipped        {layers.skipped:.2%} of routed compute")
    counted = f"{executed.per_token / 1e6:,.2f} MFLOPs per token"
    if executed.full_depth is not None:
        counted += f", {executed.per_token / executed.full_depth:.1%} of full depth's"
    how = "" if loaded.execution is None else f", {loaded.execution} execution"
    print(f"executed       {counted} (counted on {executed.windows} windows{how})")
    for site in routing.sites if routing else ():
        assert routing is not None
        print(f"{site:<14} {routing.paths[-1]} {routing.rate[site]:.2%}  entropy {routing.entropy[site]:.3f}")
    if routing is not None and not routing.causal:
        print("The router is not causal: a decision may depend on later tokens.")
    return 0


def _write(folder: Path, content: dict[str, Any], window_losses: list[float]) -> None:
    """``results.json``, and ``windows.csv`` with the mean loss of each window in nats."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with (folder / "windows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["window", "loss"])
        writer.writerows(enumerate(window_losses))


def _batches(arguments: argparse.Namespace, loaded: "LoadedModel") -> tuple[list[Any], str]:
    from layerroute.data.configuration import DataConfig
    from layerroute.data.prepare import open_data
    from layerroute.evaluation.texts import text_batches
    from layerroute.skipping.pretrained import local_source
    from layerroute.training.samples import validation_batches

    recipe = (loaded.record or {}).get("recipe") or {}
    length = arguments.sequence_length or recipe.get("data", {}).get("sequence_length") or 256
    batch_size = arguments.batch_size or recipe.get("train", {}).get("evaluation_batch_size") or 8
    if arguments.data:
        found = text_batches(
            loaded.tokenizer,
            arguments.data,
            length=length,
            batch_size=batch_size,
            limit=arguments.sequences,
            text_field=arguments.text_field,
        )
        return found, ", ".join(arguments.data)
    if not recipe:
        raise UserError(
            f"{loaded.path} is not part of a run, so its validation data are not known; give text with --data"
        )
    data = {**recipe["data"], "sequence_length": length}
    if recipe["capability"] == "layer_skipping":  # the data are in the ids of the pretrained model
        data["tokenizer"] = local_source(recipe["model"]["name"])
    prepared = open_data(DataConfig(**data))
    stored = (loaded.record or {}).get("data", {}).get("fingerprint")
    if stored is not None and stored != prepared.fingerprint:
        raise UserError(
            f"the data of this run have changed since (fingerprint {stored[:12]}, now {prepared.fingerprint[:12]}); "
            "give text with --data"
        )
    train = recipe["train"]
    found = validation_batches(
        prepared,
        sequences=arguments.sequences or train["evaluation_sequences"],
        batch_size=batch_size,
        separate_documents=train["separate_documents"],
        told_by="position_ids" if recipe["capability"] == "layer_skipping" else "document_ids",
    )
    return found, f"the validation split of {prepared.describe()['source']}"
