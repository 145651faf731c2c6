"""Scores of a base model and of routed models on it, document by document: what ``layerroute retention`` compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from layerroute.errors import UserError
from layerroute.evaluation.compute import layers_run
from layerroute.evaluation.harness import HFLM, mixed_precision, require_end, run_tasks, score
from layerroute.evaluation.loading import LoadedModel, load_model
from layerroute.evaluation.perplexity import evaluate
from layerroute.evaluation.task_list import make_tasks
from layerroute.evaluation.texts import TEXT_FIELD, read_texts, text_batches
from layerroute.ops.flops import flop_counter
from layerroute.precision import Device, Precision
from layerroute.skipping import load_pretrained
from layerroute.skipping.storage import DESCRIPTION, base_source

BASE = "base"
TEXT = "text"
PERPLEXITY = "perplexity"
_METRICS = ("acc", "acc_norm", "exact_match", PERPLEXITY)
_SCORED_BY = 3  # part of what kept scores are known by: raise it when the same question gets another answer
Values = dict[str, list[float]]
"""By ``"task metric"``, a number for each document; of a perplexity its loss in nats."""
Made = tuple[float | None, Values, dict[str, float], str]
"""Share of routed compute that was skipped, values, FLOPs by the keys of the values, and the precision."""


class Scored(NamedTuple):
    """One model's scores.

    ``skipped``: share of routed compute that was skipped while it was scored, 0 for the base. ``executed``: by the keys
    of ``values``, the FLOPs of all forward passes that scored it, as ``ops.flops.flop_counter`` sees them.
    ``precision``: ``bf16`` or ``fp32``, in which it computed.
    """

    label: str
    skipped: float | None
    values: Values
    executed: dict[str, float]
    precision: str


class Scorer:
    """Scores models on the same tasks and the same text, and keeps what it has.

    Args:
        tasks: names that the harness knows, and JSON Lines files.
        text: files for perplexity; none: no perplexity.
        text_field: key or column of the text in records.
        limit: documents of each task; None: all.
        windows, length: of the text: how many, and of how many tokens.
        precision: of all routed models; None: each in that of its training.
        serve: see ``load_model``.
        folder: scores are kept there, one file a model, and not made again for the same model and the same questions.
        tell: is told what is done next.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        text: Sequence[str] = (),
        text_field: str = TEXT_FIELD,
        limit: int | None = None,
        windows: int = 64,
        length: int = 256,
        batch_size: int = 8,
        shots: int | None = None,
        device: str | None = None,
        precision: Precision | None = None,
        serve: str | None = None,
        folder: Path | None = None,
        tell: Callable[[str], None] = lambda words: None,
    ) -> None:
        if not tasks and not text:
            raise UserError("nothing to score: give --tasks, or text with --data")
        self.tasks, self.text, self.limit, self.text_field = list(tasks), list(text), limit, text_field
        self.windows, self.length, self.batch_size = windows, length, batch_size
        self.shots, self.device, self.folder, self.tell = shots, device, folder, tell
        self.precision, self.serve = precision, serve

    def base(self, name: str, precision: str) -> Scored:
        """The pretrained model itself: no router, no adapter; by the harness's own class."""

        def make() -> Made:
            model, tokenizer = load_pretrained(name, dtype=torch.float32)
            target = "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"
            model.to(target)  # type: ignore[arg-type]
            if self.tasks:
                require_end(tokenizer, name)
            found: Values = {}
            flops: dict[str, float] = {}
            if self.text:
                loaded = LoadedModel(
                    model=model, tokenizer=tokenizer, path=Path(name), record=None, precision=precision
                )
                _, losses, executed, _ = self._perplexity(loaded)
                found |= losses
                flops |= executed
            if self.tasks:
                wrapped = HFLM(
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=self.batch_size,
                    mixed_precision_dtype=mixed_precision(precision),
                )
                for task in self._tasks():
                    with flop_counter() as counter:
                        result = score(
                            wrapped, [task], limit=self.limit, shots=self.shots, bootstrap_iterations=10
                        )
                    scores = by_document(result["samples"])
                    found |= scores
                    flops |= dict.fromkeys(scores, float(counter.get_total_flops()))
            return 0.0, found, flops, precision

        return self._kept(BASE, name, make, precision)

    def routed(self, label: str, checkpoint: Path) -> Scored:
        """A run of layer skipping, or a router folder."""

        def make() -> Made:
            skipped: float | None = None
            found: Values = {}
            flops: dict[str, float] = {}
            computed = ""
            if self.text:
                device: Device = "cpu" if self.device == "cpu" else "auto"
                loaded = load_model(
                    checkpoint,
                    device=device,
                    precision=self.precision,
                    serve=self.serve,
                )
                skipped, losses, executed, computed = self._perplexity(loaded)
                found |= losses
                flops |= executed
            if self.tasks:
                result = run_tasks(
                    checkpoint,
                    self._tasks(),
                    batch_size=self.batch_size,
                    limit=self.limit,
                    shots=self.shots,
                    serve=self.serve,
                    precision=self.precision,
                    device=self.device,
                    bootstrap_iterations=10,
                    one_by_one=True,
                )
                computed = result["precision"]
                if result["routing"] is not None:
                    skipped = 1.0 - result["routing"]["cost_weighted_rate"]
                for task, samples in result["samples"].items():
                    scores = by_document({task: samples})
                    found |= scores
                    flops |= dict.fromkeys(scores, result["executed"][task])
            return skipped, found, flops, computed

        return self._kept(label, str(checkpoint), make, self.precision)

    def _tasks(self) -> list[Any]:
        return make_tasks(self.tasks)

    def _perplexity(self, loaded: LoadedModel) -> Made:
        batches = text_batches(
            loaded.tokenizer,
            read_texts(self.text, self.text_field),
            length=self.length,
            batch_size=self.batch_size,
            limit=self.windows,
        )
        with flop_counter() as counter:
            result = evaluate(loaded.model, batches, precision=loaded.in_precision)
        layers, key = layers_run(loaded.model, result.routing), f"{TEXT} {PERPLEXITY}"
        skipped = None if layers is None else layers.skipped
        flops = {key: float(counter.get_total_flops())}
        return skipped, {key: result.window_losses}, flops, loaded.precision

    def _kept(self, label: str, model: str, make: Callable[[], Made], precision: str | None) -> Scored:
        file = None if self.folder is None else self.folder / f"{_file_name(label)}.json"
        asked = self._asked(model, precision)
        content: dict[str, Any] | None = None
        if file is not None and file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
        # Scores of earlier versions, without FLOPs, are made anew: nothing could be said by them.
        if content is None or content.get("asked") != asked or "executed" not in content:
            self.tell(f"scoring {label}")
            skipped, values, executed, computed = make()
            content = {
                "label": label,
                "model": model,
                "asked": asked,
                "skipped": skipped,
                "values": values,
                "executed": executed,
                "precision": computed,
            }
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(content) + "\n", encoding="utf-8")
        return Scored(label, content["skipped"], content["values"], content["executed"], content["precision"])

    def _asked(self, model: str, precision: str | None) -> str:
        """Digest of model and questions: files by their content, a router by its manifest."""
        parts: list[Any] = [
            _SCORED_BY,
            model,
            self.limit,
            self.windows,
            self.length,
            self.shots,
            self.text_field,
            precision,
            self.serve,
        ]
        for name in [*self.tasks, *self.text]:
            path = Path(name)
            parts.append([name, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None])
        description = router_folder(Path(model)) / DESCRIPTION
        if description.is_file():
            parts.append(hashlib.sha256(description.read_bytes()).hexdigest())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def router_folder(checkpoint: Path) -> Path:
    """Where the router of a run, or of a router folder, lies."""
    for folder in (checkpoint, checkpoint / "best", checkpoint / "last"):
        if (folder / DESCRIPTION).is_file():
            return folder
    return checkpoint


def base_of(checkpoint: Path) -> str:
    """Name of the base model of a run of layer skipping, or of a router folder.

    Raises:
        UserError: it holds no router.
    """
    return base_source(router_folder(checkpoint))


def by_document(samples: dict[str, list[dict[str, Any]]]) -> Values:
    """``{"arc_easy acc": [1.0, 0.0, …]}`` from the harness's samples, in the order of the documents.

    The harness gives a perplexity's part of each document as a log-likelihood; here it is a loss.
    """
    found: Values = {}
    for task, unordered in samples.items():
        rows = sorted(unordered, key=lambda row: row["doc_id"])
        for metric in _METRICS:
            if rows and all(isinstance(row.get(metric), int | float) for row in rows):
                sign = -1.0 if metric == PERPLEXITY else 1.0
                found[f"{task} {metric}"] = [sign * float(row[metric]) for row in rows]
    return found


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in label)
