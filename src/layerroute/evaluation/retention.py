"""Scores of a base model and of routed models on it, document by document: what ``layerroute retention`` compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from layerroute.errors import UserError
from layerroute.evaluation.compute import skipped_share
from layerroute.evaluation.harness import (
    HFLM,
    LayerrouteLM,
    metrics_by_task,
    mixed_precision,
    require_end,
    score,
    task_manager,
)
from layerroute.evaluation.loading import LoadedModel, load_model, precision_of
from layerroute.evaluation.perplexity import evaluate
from layerroute.evaluation.task_list import make_tasks
from layerroute.evaluation.texts import TEXT_FIELD, read_texts, text_batches, text_source
from layerroute.integrity import content_sha256, file_sha256, replace_text
from layerroute.lab.retention import PERPLEXITY, Scores
from layerroute.ops.flops import flop_counter
from layerroute.precision import Device, Precision, choose_device
from layerroute.routing import get_handle, set_serve
from layerroute.routing.serving import check_serve
from layerroute.skipping import get_router, load_pretrained, router_disabled
from layerroute.skipping.storage import DESCRIPTION, RouterDescription, base_source, read_router

BASE = "base"
TEXT = "text"
_METRICS = ("acc", "acc_norm", "exact_match", PERPLEXITY)
_PROBED, _PROBES = 64, 6  # documents on which a rate is sought, and how often
_MOST = 0.99  # a rate of 0 or 1 is not held
_NEAR = 0.002  # shares of FLOPs: well within what counts as equal
_SCORED_BY = 5  # part of what kept scores are known by: raise it when the same question gets another answer
Values = dict[str, list[float]]
"""By ``"task metric"``, a number for each document; of a perplexity its loss in nats."""
Work = Callable[[int | None], tuple[Values, float]]
"""Scores so many documents (None: all that were asked for); their values, and the FLOPs that it took."""
Made = tuple[float | None, Values, dict[str, float]]
"""Share of routed compute that was skipped, values, and FLOPs by the keys of the values."""


@dataclass
class Scorer:
    """Scores models on the same tasks and the same text, and keeps what it has.

    Args:
        tasks: names that the harness knows, and JSON Lines files.
        text: files for perplexity; none: no perplexity.
        text_field: key or column of the text in records.
        limit: documents of each task; None: all.
        windows, length: of the text: how many, and of how many tokens.
        precision: of all routed models; None: each in that of its training.
        serve: ``threshold``, ``rate`` or ``rate:SHARE``, for those that can hold a rate; None: as each model's own
            configuration says.
        folder: scores are kept there, one file a model, and not made again for the same model and the same questions.
        tell: is told what is done next.
    """

    tasks: Sequence[str]
    _: KW_ONLY
    text: Sequence[str] = ()
    text_field: str = TEXT_FIELD
    limit: int | None = None
    windows: int = 64
    length: int = 256
    batch_size: int = 8
    shots: int | None = None
    device: Device = "auto"
    precision: Precision | None = None
    serve: str | None = None
    folder: Path | None = None
    tell: Callable[[str], None] = lambda words: None

    def __post_init__(self) -> None:
        if not self.tasks and not self.text:
            raise UserError("nothing to score: give --tasks, or text with --data")
        choose_device(self.device)
        self._skipped_of_text: float | None = None

    def base(self, name: str, precision: str) -> Scores:
        """The pretrained model itself: no router, no adapter; by the harness's own class."""

        def make() -> Made:
            _ = self._manager
            model, tokenizer = load_pretrained(name, dtype=torch.float32)
            model.to(choose_device(self.device))  # type: ignore[arg-type]
            loaded = LoadedModel(
                model=model, tokenizer=tokenizer, path=Path(name), record=None, precision=precision
            )
            harness = None
            if self.tasks:
                require_end(tokenizer, name)
                harness = HFLM(
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=self.batch_size,
                    mixed_precision_dtype=mixed_precision(precision),
                )
            values, executed = self._all(self._works(loaded, harness))
            return 0.0, values, executed

        return self._kept(BASE, name, make, precision)

    def precision_of(self, checkpoint: Path) -> Precision:
        """In which a run of layer skipping, or a router folder, is scored."""
        return self.precision or precision_of(self._described(checkpoint).notes.get("precision"))

    def check_rate(self, checkpoint: Path) -> None:
        """Refuse, before anything is scored, a router that cannot be served at the cost of others.

        Raises:
            UserError: it cannot hold a rate.
        """
        check_serve("rate", "--equal-flops", obstacle=self._described(checkpoint).config.serve_obstacle)

    @staticmethod
    def _described(checkpoint: Path) -> RouterDescription:
        return read_router(router_folder(checkpoint))

    def routed(self, label: str, checkpoint: Path) -> Scores:
        """A run of layer skipping, or a router folder."""

        def make() -> Made:
            loaded, harness = self._load(checkpoint, self.serve)
            values, executed = self._all(self._works(loaded, harness))
            return self._skipped(harness), values, executed

        return self._kept(label, str(checkpoint), make, self.precision, self.serve)

    def at_cost_of(self, other: str, rival: Path, label: str, checkpoint: Path) -> Scores:
        """A router where it executes as many FLOPs as another model, task by task.

        It holds its rate. What rate that is to be is found on the first documents of each task, which both read one by
        one: in a batch they would be padded more than among all documents.
        """

        def make() -> Made:
            loaded, harness = self._load(rival, self.serve)
            wanted = [saved(None) for saved in self._probes(loaded, harness)]
            loaded, harness = self._load(checkpoint, "rate", must=True)
            router = get_router(loaded.model)
            served = 1.0 - float(torch.cat([routing.rate for routing in router.all_routings()]).mean())
            works, probes = self._works(loaded, harness), self._probes(loaded, harness)

            def at_their_rates() -> Iterator[Work]:
                for work, saved, share in zip(works, probes, wanted, strict=True):
                    router.set_rate(1.0 - _search(saved, share, served))
                    yield work

            values, executed = self._all(at_their_rates())
            return self._skipped(harness), values, executed

        name = f"{label} at the FLOPs of {other}"
        return self._kept(
            name, str(checkpoint), make, self.precision, self.serve, self._asked(str(rival), ())
        )

    def _probes(
        self, loaded: LoadedModel, harness: LayerrouteLM | None
    ) -> list[Callable[[float | None], float]]:
        """By task, what share of the FLOPs of its first documents a skipped share saves; None: as it is served."""
        few, router = min(_PROBED, self.limit or _PROBED), get_router(loaded.model)

        def saved(work: Work, skip: float | None) -> float:
            if skip is not None:
                router.set_rate(1.0 - skip)
            if harness is None:
                return float(work(few)[1])
            batch, harness.batch_size_per_gpu = harness.batch_size_per_gpu, 1
            try:
                with harness.watch.holding():
                    return float(work(few)[1])
            finally:
                harness.batch_size_per_gpu = batch

        def probe(work: Work) -> Callable[[float | None], float]:
            with router_disabled(loaded.model):
                whole = saved(work, None)
            return lambda skip: 1.0 - saved(work, skip) / whole

        return [probe(work) for work in self._works(loaded, harness)]

    def _load(
        self, checkpoint: Path, serve: str | None, *, must: bool = False
    ) -> tuple[LoadedModel, LayerrouteLM | None]:
        """A routed model, and the harness around it if there are tasks."""
        _ = self._manager  # data that cannot be had is told before a model is loaded
        harness = None
        if self.tasks:
            harness = LayerrouteLM(
                checkpoint, precision=self.precision, device=self.device, batch_size=self.batch_size
            )
            loaded = harness.loaded
        else:
            loaded = load_model(checkpoint, device=self.device, precision=self.precision)
        # A static arm has no rate to hold: it serves what it serves.
        if serve is not None and (must or get_handle(loaded.model).config.serve_obstacle is None):
            set_serve(loaded.model, serve)
        return loaded, harness

    def _works(self, loaded: LoadedModel, harness: HFLM | None) -> list[Work]:
        """What scores so many windows of the text, and so many documents of each task."""

        def text(windows: int | None) -> tuple[Values, float]:
            loaded.check_windows(self.length)
            batches = text_batches(
                loaded.tokenizer,
                read_texts(list(self.text), self.text_field),
                length=self.length,
                batch_size=self.batch_size,
                limit=self.windows if windows is None else min(windows, self.windows),
            )
            if len(batches) > 1 and batches[-1]["input_ids"].shape[1] < self.length:
                batches.pop()  # the short rest of the text, which would count as much as a whole window
            with flop_counter() as counter:
                result = evaluate(loaded.model, batches, precision=loaded.in_precision)
            self._skipped_of_text = skipped_share(loaded.model, result.routing)
            return {f"{TEXT} {PERPLEXITY}": result.window_losses}, float(counter.get_total_flops())

        def task(one: Any, documents: int | None) -> tuple[Values, float]:
            limit = self.limit if documents is None else documents
            with flop_counter() as counter:
                result = score(
                    harness,
                    [one],
                    limit=limit,
                    shots=self.shots,
                    bootstrap_iterations=10,
                    manager=self._manager,
                )
            return by_document(result["samples"]), float(counter.get_total_flops())

        return [*([text] if self.text else []), *(partial(task, one) for one in self._made_tasks)]

    @staticmethod
    def _all(works: Iterable[Work]) -> tuple[Values, dict[str, float]]:
        values: Values = {}
        executed: dict[str, float] = {}
        for work in works:
            found, flops = work(None)
            values |= found
            executed |= dict.fromkeys(found, flops)
        return values, executed

    def _skipped(self, harness: HFLM | None) -> float | None:
        """Share of routed compute that was skipped: of the tasks, or else of the text."""
        if not isinstance(harness, LayerrouteLM):
            return self._skipped_of_text
        routing = harness.routing()
        return None if routing is None else 1.0 - routing.cost_weighted_rate

    @cached_property
    def _made_tasks(self) -> list[Any]:
        return make_tasks(self.tasks, taken=[TEXT] if self.text else [])

    @cached_property
    def _manager(self) -> Any:
        manager = task_manager(self._made_tasks)
        for name, metrics in metrics_by_task(self._made_tasks, manager).items():
            if not metrics & {*_METRICS}:
                raise UserError(
                    f"--tasks: {name} tells {', '.join(sorted(metrics))}; what is retained is told of "
                    f"{', '.join(_METRICS)}"
                )
        return manager

    def _kept(self, label: str, model: str, make: Callable[[], Made], *settings: str | None) -> Scores:
        file = None if self.folder is None else self.folder / f"{_file_name(label)}.json"
        asked = self._asked(model, settings)
        content: dict[str, Any] | None = None
        if file is not None and file.is_file():
            with suppress(ValueError):  # cut short: it is made anew
                content = json.loads(file.read_text(encoding="utf-8"))
        # Scores of earlier versions, without FLOPs, are made anew: nothing could be said by them.
        if content is None or content.get("asked") != asked or "executed" not in content:
            self.tell(f"scoring {label}")
            skipped, values, executed = make()
            content = {
                "label": label,
                "model": model,
                "asked": asked,
                "skipped": skipped,
                "values": values,
                "executed": executed,
            }
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                replace_text(file, json.dumps(content) + "\n")
        return Scores(
            label=label,
            skipped=content["skipped"],
            values={_measure(key): numbers for key, numbers in content["values"].items()},
            executed={_measure(key): flops for key, flops in content["executed"].items()},
        )

    def _asked(self, model: str, settings: Sequence[str | None]) -> str:
        """Digest of model, questions and how they are asked: texts, task files and routers by their content."""
        parts: list[Any] = [
            _SCORED_BY,
            model,
            self.limit,
            self.windows,
            self.length,
            self.shots,
            self.text_field,
            self.batch_size,
            None if self.device == "auto" else self.device,
            *settings,
        ]
        for name in self.tasks:
            parts.append([name, file_sha256(Path(name)) if Path(name).is_file() else None])
        if self.text:
            parts.append(text_source(list(self.text), self.text_field).fingerprint())
        folder = router_folder(Path(model))
        if (folder / DESCRIPTION).is_file():
            parts.append(content_sha256(folder, without="controls"))
            model = base_source(folder)
        if Path(model).is_dir():  # a base: its weights may be many gigabytes
            files = sorted(Path(model).glob("*.*"))
            parts += [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _search(saved: Callable[[float], float], wanted: float, first: float) -> float:
    """The share to skip that saves what is wanted, by secants from a first guess; the best of a few."""
    before, skip = (0.0, 0.0), first
    tried: list[tuple[float, float]] = []
    for _ in range(_PROBES):
        tried.append((skip, saved(skip)))
        gap, run = tried[-1][1] - before[1], skip - before[0]
        if abs(tried[-1][1] - wanted) < _NEAR or run == 0.0:
            break
        before = tried[-1]
        skip = _MOST if gap * run <= 0.0 else skip + (wanted - before[1]) * run / gap
        skip = min(_MOST, max(1.0 - _MOST, skip))
    return min(tried, key=lambda one: abs(one[1] - wanted))[0]


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

    The harness gives a perplexity's part of each document as a log-likelihood; here it is a loss. A task that reads
    answers in several ways (filters) has each document once for each: these are measures of their own.
    """
    found: Values = {}
    for task, unordered in samples.items():
        ways: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(unordered, key=lambda row: row["doc_id"]):
            way = row.get("filter", "none")
            ways.setdefault(task if way == "none" else f"{task} ({way})", []).append(row)
        for (name, rows), metric in product(ways.items(), _METRICS):
            if all(isinstance(row.get(metric), int | float) for row in rows):
                sign = -1.0 if metric == PERPLEXITY else 1.0
                found[f"{name} {metric}"] = [sign * float(row[metric]) for row in rows]
    return found


def _measure(key: str) -> tuple[str, str]:
    """``("arc_easy", "acc")`` from ``"arc_easy acc"``."""
    task, _, metric = key.rpartition(" ")
    return task, metric


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in label)
