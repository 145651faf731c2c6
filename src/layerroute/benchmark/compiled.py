"""``bench decode --compile``: plain and routed, eager and through ``torch.compile``, each in its best setting.

Eager arms decode on a dynamic cache. The compiled plain model is what transformers' ``generate`` makes of a static
cache: the whole model in one graph, with CUDA graphs on a GPU. The compiled routed one is that of ``compile_decoding``.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from transformers import CompileConfig

from layerroute.benchmark.case import Check, Facts, Prepared, against_the_best, agree
from layerroute.benchmark.phases import MASKED, SPARSE, Way, count_all, decoding
from layerroute.benchmark.skipping_models import Models
from layerroute.skipping import compilation_disabled, compile_decoding, get_router
from layerroute.skipping.compiled import choose_way

PLAIN, PLAIN_COMPILED = "dense", "dense compiled"
ROUTED, ROUTED_COMPILED = "sparse", "sparse compiled"


class CompiledPlain:
    """A model whose steps of one token go through transformers' own compiled call."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self._step = model.get_compiled_call(CompileConfig())

    def __call__(self, ids: Tensor, **given: Any) -> Any:
        if ids.shape[1] > 1:  # prompts are read as they are, as in `generate`
            return self.model(ids, **given)
        output = self._step(ids, **given)
        output.logits = output.logits.clone()  # a CUDA graph writes the next ones to the same place
        return output


def prepare_compiled(
    models: Models,
    ids: Tensor,
    new: int,
    choice: Tensor,
    tolerance: float,
) -> Prepared:
    """Four ways to decode the last ``new`` tokens of ``ids``; the routed ones by forced choices.

    Raises:
        UserError: if there is no compiler, or the routed model cannot be compiled.
    """
    routed = compile_decoding(models.routed, way="read")

    uncompiled = partial(compilation_disabled, routed)
    eager = Way.routed(routed, choice, SPARSE, uncompiled)
    dynamic = partial(decoding, ids, new)
    static = partial(decoding, ids, new, static=True)
    arms = {
        PLAIN: Way(models.plain).at(dynamic),
        PLAIN_COMPILED: Way(CompiledPlain(models.plain)).at(static),
        ROUTED: eager.at(dynamic),
        ROUTED_COMPILED: Way.routed(routed, choice, SPARSE).at(static),
    }

    def gate() -> Iterator[Check]:
        """Compiled equals uncompiled and masked: logits, tokens, and what the cache holds."""
        choose_way(routed, arms[ROUTED_COMPILED])
        results = {name: call() for name, call in arms.items()}
        plain, compiled = results[PLAIN], results[PLAIN_COMPILED]
        yield from _same("plain, compiled and eager", compiled, plain, tolerance)
        masked = Way.routed(routed, choice, MASKED, uncompiled).at(dynamic)()
        yield from _same("routed, compiled and masked", results[ROUTED_COMPILED], masked, tolerance)
        yield from _same("routed, eager and masked", results[ROUTED], masked, tolerance)
        same = eager.at(static)()
        yield from agree("{} of compiled and eager", results[ROUTED_COMPILED], same, tolerance)

    def count() -> Facts:
        # A compiled graph hides its FLOPs from the counter.
        found = count_all(arms, ids.shape[0] * new, ids.device)
        for name in (PLAIN_COMPILED, ROUTED_COMPILED):
            del found[name]["executed_flops_per_token"]
        steps = get_router(routed).steps
        seconds = {f"seconds_{way}": taken for way, taken in steps.seconds.items()}
        found[ROUTED_COMPILED] |= {"way": steps.way, **seconds}
        return found

    return Prepared(gate=gate, arms=arms, count=count)


def _same(
    who: str, mine: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float
) -> Iterator[Check]:
    yield Check.compare(f"logits of {who}", mine["logits"], other["logits"], tolerance)
    # The likeliest tokens may swap where the two are closer than round-off.
    best = mine["logits"].argmax(dim=-1, keepdim=True)
    chosen, likeliest = other["logits"].gather(-1, best), other["logits"].amax(dim=-1, keepdim=True)
    yield Check.compare(f"likeliest tokens of {who}", chosen, likeliest, tolerance)


def conclude(record: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """By share skipped: how fast routed compiled is against the better of plain compiled and routed eager."""
    found: dict[str, float] = {}
    lines: list[str] = []
    for title, ratio, rival, _ in against_the_best(record, ROUTED_COMPILED, (PLAIN_COMPILED, ROUTED)):
        found[title] = ratio
        lines.append(
            f"{title}: {ROUTED_COMPILED} is {ratio:.2f}x as fast as {rival}, the better of its rivals."
        )
    return found, lines
