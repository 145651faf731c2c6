"""vLLM on a routed export: against vLLM on the same weights without a router, and on fewer layers.

Each arm is a process of its own, which waits asleep while another one is timed. One arm is plain vLLM once more: how
far these two are apart is how far any two arms may be apart by chance. The gate holds the routed engine in float32
against transformers with the same router: the same greedy answers, and log-probabilities to round-off.
"""

import argparse
import atexit
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerroute.argument_types import add_choice, add_number, at_least, share
from layerroute.benchmark.case import Case, Check, Comparison, Limit, Prepared, against_the_best
from layerroute.benchmark.options import add_numbers, percent
from layerroute.benchmark.runner import BUSY
from layerroute.errors import UserError

_TOLERANCE = 1e-4
COMPILED = "plain compiled"
ADAPTIVE = "full depth in batches"
AGAIN = "plain again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The case's own options."""
    parser.add_argument(
        "--export", type=Path, required=True, metavar="DIR", help="folder of `layerroute export --to vllm`"
    )
    parser.add_argument("--static", type=Path, metavar="DIR", help="also time this static export")
    parser.add_argument(
        "--skip",
        type=share,
        nargs="+",
        metavar="SHARE",
        help="serve the router so that this share of the text skips at each site (default: its own thresholds)",
    )
    add_numbers(parser, "--batches", [1, 8, 32], "B", "requests at once in decoding")
    add_number(parser, "--new", 64, "tokens to decode for each request")
    add_number(parser, "--prompt", 16, "tokens of a prompt in decoding", metavar="T")
    add_numbers(parser, "--prefill", [2048], "T", "tokens of the prompts to read")
    add_number(parser, "--stream", 0, "also time a stream of N requests that arrive one by one", least=0)
    add_choice(parser, "--dtype", ("float32", "bfloat16"), "float32")
    best = "also time the plain model compiled, which is often its best setting; the limit and --static compiled alone"
    parser.add_argument("--compile", action="store_true", help=best)
    parser.add_argument(
        "--full-depth-from",
        type=at_least(2),
        metavar="B",
        help="also time the export where steps in which B requests or more decode run every layer",
    )
    busy = "on a machine that others use: refuse to measure, or measure and mark the record"
    add_choice(parser, "--busy", ("refuse", "mark"), "refuse", busy)


def comparisons(options: argparse.Namespace) -> Sequence[Comparison]:
    """A row for each share and kind of work.

    Raises:
        UserError: the machine is busy, vLLM is missing, the export is none, nothing is asked for, or not by wall time.
    """
    from layerroute.vllm.engine import check_folder, check_installed

    # The clock is an option that all cases share.
    if getattr(options, "clock", "wall") != "wall":
        raise UserError(
            "--clock cpu counts the seconds of this process, and each engine is another: leave it out."
        )
    if not (options.batches or options.prefill or options.stream):
        raise UserError("there is nothing to measure: give --batches, --prefill or --stream a number.")
    load = os.getloadavg()[0]
    if load > BUSY and options.busy == "refuse":
        raise UserError(
            f"the machine is busy (load {load:.2f}, more than {BUSY}), and vLLM's threads take turns badly: wait, or "
            "measure all the same with --busy mark"
        )
    check_installed()
    for folder in (options.export, options.static):
        if folder is not None:
            check_folder(folder)
    engines = Engines(options)
    work = [
        *(
            (f"decode, batch {batch}", "decode", batch, options.prompt, options.new)
            for batch in options.batches
        ),
        *((f"prefill {length}", "prefill", 1, length, 1) for length in options.prefill),
        *([("stream", "stream", options.stream, 4 * options.prompt, options.new)] if options.stream else []),
    ]
    return [
        Comparison(
            title=title if skip is None else f"{title}, {percent(skip)} asked",
            labels={"work": kind, "batch": batch, "skip": skip, "busy": load > BUSY, "dtype": options.dtype},
            baseline="plain",
            tokens=batch * (length if kind == "prefill" else new),
            prepare=partial(engines.prepare, kind, batch, length, new, skip),
            device=torch.device("cpu"),
        )
        for skip in (options.skip or [None])
        for title, kind, batch, length, new in work
    ]


class Engines:
    """The processes of all arms, started when they are first needed, and ended with this one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._work = tempfile.TemporaryDirectory(prefix="layerroute-engine-")
        self.folder = Path(self._work.name)
        self._running: dict[str, Any] = {}
        self._text: Tensor | None = None
        self._cut: dict[str, float] = {}
        self.thresholds: list[float] | None = None
        atexit.register(self._stop)

    def _stop(self) -> None:
        for engine in self._running.values():
            engine.stop()
        self._work.cleanup()

    def _end_others(self, limit: str) -> None:
        """End the engines of other rows' limits: each holds weights and a cache, and together they fill the memory."""
        for name in [name for name in self._running if name.startswith("limit ") and name != limit]:
            self._running.pop(name).stop()

    def texts(self, count: int, length: int) -> list[list[int]]:
        """Different pieces of Python's own documentation and source."""
        if self._text is None:
            from transformers import AutoTokenizer

            from layerroute.data.configuration import DataConfig
            from layerroute.data.sources import make_source
            from layerroute.data.windows import DocumentEncoder

            encoder = DocumentEncoder.of(AutoTokenizer.from_pretrained(self.options.export))
            documents = make_source(DataConfig(source="python-docs")).documents()
            some = (document.text for _, document in zip(range(40), documents, strict=False))
            self._text = torch.as_tensor(encoder.stream(some)).long()
        text = self._text
        while len(text) < count * length:
            text = torch.cat([text, text.flip(0)])
        return text[: count * length].view(count, length).tolist()

    def engine(self, name: str, folder: Path, *, dtype: str, eager: bool = True, **more: Any) -> Any:
        """The process of an arm."""
        if name not in self._running:
            from layerroute.vllm.engine import Remote

            options = self.options
            longest = max([*options.prefill, 4 * options.prompt + options.new, 256]) + 8
            self._running[name] = Remote(
                folder,
                dtype=dtype,
                eager=eager,
                length=longest,
                requests=max([*options.batches, options.stream, 1]),
                **more,
            )
        return self._running[name]

    def routed(self, skip: float | None, name: str = "routed", **more: Any) -> Any:
        """A routed arm, cut at a share."""
        engine = self.engine(name, self.options.export, dtype=self.options.dtype, **more)
        if skip is not None and skip != self._cut.get(name):
            self._cut[name], self.thresholds = skip, engine.cut(self.texts(8, 128), skip)
        return engine

    def prepare(self, kind: str, batch: int, length: int, new: int, skip: float | None) -> Prepared:
        """Start what a row needs."""
        options, texts = self.options, self.texts(batch, length)
        plain, unit, layers = self._plain
        engines = {"plain": self.engine("plain", plain, dtype=options.dtype), "routed": self.routed(skip)}
        engines[AGAIN] = self.engine(AGAIN, plain, dtype=options.dtype)
        if options.full_depth_from is not None:
            least = options.full_depth_from
            engines[ADAPTIVE] = self.routed(skip, ADAPTIVE, full_depth_from=least)
        if options.compile:
            engines[COMPILED] = self.engine(COMPILED, plain, dtype=options.dtype, eager=False)
        if options.static is not None:
            engines["static"] = self.engine(
                "static", options.static, dtype=options.dtype, eager=not options.compile
            )

        def arm(engine: Any) -> Any:
            if kind == "stream":
                return lambda: engine.stream(texts, new, 4)
            return lambda: engine.generate(texts, new)

        skipped = {
            name: self._served(engines[name], arm(engines[name]))
            for name in ("routed", ADAPTIVE)
            if name in engines
        }
        served = skipped["routed"]
        limit = None
        if unit == "block" and (removed := layers_out(served, len(layers))):
            fewer, name = self._fewer(plain, layers, removed), f"limit {removed}"
            self._end_others(name)
            engines["limit"] = self.engine(name, fewer, dtype=options.dtype, eager=not options.compile)
            limit = Limit(arm="limit", factor=served * len(layers) / removed)
        return Prepared(
            gate=partial(self._gate, texts[: min(batch, 4)], skip),
            arms={name: arm(engine) for name, engine in engines.items()},
            count=lambda: {name: {"skipped": share} for name, share in skipped.items()},
            limit=limit,
        )

    @staticmethod
    def _served(engine: Any, arm: Any) -> float:
        """The share of the routed sites that skips in this very work."""
        engine.clear()
        arm()
        rates = engine.rates()
        return 1.0 - sum(rates.values()) / len(rates)

    @cached_property
    def _plain(self) -> tuple[Path, str, list[int]]:
        """The export's weights as a plain model, its unit, and the layers that may be skipped."""
        from transformers import AutoModelForCausalLM

        import layerroute  # noqa: F401 (opens exports)
        from layerroute.skipping import get_router, remove_router

        folder = self.folder / "plain"
        model = AutoModelForCausalLM.from_pretrained(self.options.export)
        config = get_router(model).config
        unit, layers = config.unit, list(config.layers or [])
        remove_router(model).save_pretrained(folder)
        return folder, unit, layers

    def _fewer(self, plain: Path, layers: list[int], out: int) -> Path:
        from transformers import AutoModelForCausalLM

        from layerroute.exporting.export import drop_layers

        folder = self.folder / f"fewer-{out}"
        if not folder.is_dir():
            model = AutoModelForCausalLM.from_pretrained(plain)
            drop_layers(model, [layers[index * len(layers) // out] for index in range(out)])
            model.save_pretrained(folder)
        return folder

    def _gate(self, texts: list[list[int]], skip: float | None) -> Iterator[Check]:
        """The routed engine in float32 against transformers."""
        from transformers import AutoModelForCausalLM

        import layerroute  # noqa: F401
        from layerroute.skipping import get_router

        engine = self.routed(skip)
        if self.options.dtype != "float32":
            engine = self.engine("gate", self.options.export, dtype="float32")
            if skip is not None:
                self.thresholds = engine.cut(self.texts(8, 128), skip)
        model = AutoModelForCausalLM.from_pretrained(self.options.export, dtype=torch.float32).eval()
        if skip is not None and self.thresholds is not None:
            parts = iter(self.thresholds)
            for routing in get_router(model).all_routings():
                routing.thresholds.value.copy_(torch.tensor([next(parts) for _ in routing.sites]))
        texts = [text[:256] for text in texts]
        if ADAPTIVE in self._running:
            alone, same = self._running[ADAPTIVE].generate(texts[:1], 8), engine.generate(texts[:1], 8)
            yield Check.compare("answers to one request", torch.tensor(alone), torch.tensor(same), 0.0)
        answers = engine.generate(texts, 8)
        whole = [text + answer for text, answer in zip(texts, answers, strict=True)]
        for text, answer, scored in zip(texts, answers, engine.score(whole), strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([text + answer]), use_cache=False).logits[0]
            own = logits[len(text) - 1 : -1].argmax(dim=-1)
            yield Check.compare("greedy answers", torch.tensor(answer), own, 0.0)
            exact = (
                logits[:-1].log_softmax(dim=-1).gather(1, torch.tensor(text + answer)[1:, None]).squeeze(1)
            )
            yield Check.compare("log-probabilities", torch.tensor(scored.scores), exact, _TOLERANCE)


def layers_out(served: float, layers: int) -> int:
    """How many of the routed layers the structural limit leaves out: as many as are skipped in the work timed.

    None of them (no limit) where that is less than half a layer; at least one stays.
    """
    return min(round(served * layers), layers - 1)


def conclude(record: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """By row with a compiled rival: routed against plain vLLM in its best setting; and the noise of the bench."""
    found: dict[str, float] = {}
    lines: list[str] = []
    apart = [abs(row["arms"][AGAIN]["speedup"]["median"] - 1) for row in record["rows"]]
    if apart:
        lines.append(
            f"Two processes of plain vLLM are up to {max(apart):.0%} apart in a row: smaller differences say nothing."
        )
    for title, ratio, rival, speed in against_the_best(record, "routed", ("plain", COMPILED)):
        found[title] = ratio
        lines.append(
            f"{title}: routed is {ratio:.2f}x as fast as {rival}, plain vLLM's best setting; compiling alone "
            f"makes it {speed[COMPILED]:.2f}x as fast."
        )
    return found, lines


CASES = {
    "engine": Case(
        description=__doc__ or "", add_arguments=add_arguments, comparisons=comparisons, conclude=conclude
    )
}
