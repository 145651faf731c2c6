"""``layerroute.decisions``, ``generate``, ``evaluate``, ``compare``: what a model decides, writes, scores, is worth."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerroute.api.texts import Data, texts_of
from layerroute.errors import UserError
from layerroute.evaluation.generation import Generation, Piece
from layerroute.evaluation.generation import generate as generate_with
from layerroute.evaluation.loading import LoadedModel
from layerroute.evaluation.measure import Measured, measure
from layerroute.evaluation.texts import text_batches
from layerroute.precision import Precision, choose_precision
from layerroute.routing import RouteDecision, collect_decisions

if TYPE_CHECKING:
    from layerroute.lab.compare import Comparison


def in_use(model: Any, tokenizer: Any, precision: Precision = "fp32") -> LoadedModel:
    """A model that is in memory, as what is done with loaded ones takes it."""
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        path=Path(str(getattr(model.config, "_name_or_path", "")) or "."),
        record=None,
        precision=choose_precision(precision, model.device).name,
    )


def decisions(model: Any, *, graph: bool = False) -> AbstractContextManager[list[RouteDecision]]:
    """Collect the decision of each forward call within a ``with`` block.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> model = layerroute.add_router(model)
    >>> inputs = tokenizer("the router reads", return_tensors="pt")
    >>> with layerroute.decisions(model) as collected:
    ...     output = model(**inputs)
    >>> [float(decision.mean_rate()) for decision in collected]  # share of tokens that ran, over all routed layers
    [1.0]

    Args:
        model: hybrid or with a router, also inside PEFT, DDP, FSDP or ``torch.compile``. One that routes nothing gives
            an empty list.
        graph: keep the decisions' graphs, for a loss. Default: detached.

    Returns:
        A context that gives the list. ``generate`` makes one call a token.
    """
    return collect_decisions(model, graph=graph)


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    show: Callable[[Piece], None] = lambda piece: None,
) -> Generation:
    """Continue a prompt, and tell the route of every token.

    The text is that of the model's own ``generate``. ``print(result.coloured)`` shows the routes in a terminal, and a
    notebook shows them by itself.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> model = layerroute.add_router(model)
    >>> text = layerroute.generate(model, tokenizer, "the router reads", max_new_tokens=4)
    >>> text.new_tokens, set(text.layers_run) == {text.layers}  # a new router runs everything
    (4, True)

    Args:
        model: of ``load``, routed or not, in inference mode.
        tokenizer: its own.
        prompt: text to continue.
        max_new_tokens: at most; default 64.
        temperature: 0 (default) takes the most likely token each time, after the penalties of the model's own
            generation configuration, if it has any.
        top_k: draw among the k most likely tokens only.
        seed: of the draw.
        precision: ``fp32`` (default), ``bf16``, or ``auto``: bf16 where the machine multiplies it fast.
        show: called with every piece of text as soon as its route is known.

    Returns:
        ``text`` (the continuation), ``tokens``, ``layers_run`` (how many of ``layers`` each token ran), ``coloured``, …

    Raises:
        UserError: the prompt has no token, or no token is asked for; a temperature below 0.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; give 1 or more")
    if not 0.0 <= temperature < math.inf:
        raise UserError(f"temperature is {temperature}; give 0 or more")
    return generate_with(
        in_use(model, tokenizer, precision),
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        show=show,
    )


def evaluate(
    model: Any,
    tokenizer: Any,
    data: Data = None,
    *,
    length: int = 256,
    batch_size: int = 8,
    windows: int | None = 64,
    text_field: str = "text",
    precision: Precision = "fp32",
    progress: bool = True,
) -> Measured:
    """Score a model on text: cross-entropy, accuracy, what it skips, and FLOPs that it really executes.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> found = layerroute.evaluate(model, tokenizer, "python-docs", windows=2, progress=False)
    >>> found.loss > 0, found.skipped is None  # the model has no router
    (True, True)

    Args:
        model: of ``load``, routed or not.
        tokenizer: its own.
        data: text, in the forms that ``calibrate`` takes. Several kinds are scored apart. Default: text that every
            machine with Python has.
        length: tokens of a window.
        batch_size: windows at once.
        windows: of each kind at most; default 64. None: all.
        text_field: key of the text in records.
        precision: ``fp32`` (default), ``bf16``, or ``auto``: bf16 where the machine multiplies it fast.
        progress: show bars on stderr, or in the notebook.

    Returns:
        ``loss``, ``perplexity``, ``accuracy``, ``skipped``; ``to_dict()`` is what ``layerroute evaluate --json`` tells.

    Raises:
        UserError: text that is not there, or has fewer than 2 tokens; windows that are longer than the model reads, or
            of a single token.
    """
    for argument, value, least in (
        ("length", length, 2),
        ("batch_size", batch_size, 1),
        ("windows", windows, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{argument} is {value}; give {least} or more")
    loaded = in_use(model, tokenizer, precision)
    loaded.check_windows(length)
    texts = texts_of(data, text_field=text_field)
    batches = {
        kind: (
            text_batches(tokenizer, documents, length=length, batch_size=batch_size, limit=windows),
            texts.sources[kind].describe(),
        )
        for kind, documents in texts.documents.items()
    }
    return measure(loaded, batches, progress=progress)


def compare(
    *runs: str | Path,
    baseline: str | None = None,
    subject: str | None = None,
    allow_different_data: bool = False,
) -> "Comparison":
    """Compare runs by their records, at equal cost: what ``layerroute compare`` prints.

    >>> comparison = layerroute.compare("runs/baseline-seed42", "runs/dynamic-seed42")
    >>> comparison.subject.label, comparison.baseline.label
    ('dynamic', 'baseline')

    Args:
        runs: folders of runs, record files, or folders of runs.
        baseline: arm that the others are held against. Default: ``baseline``, or a static arm of equal cost, or any
            static arm; of layer-skipping runs none: the routed arm is held against all others.
        subject: routed arm that the question is about. Default: a learned one whose decisions are causal.
        allow_different_data: compare runs that saw different data nevertheless, without a verdict.

    Returns:
        ``tables`` by name, ``verdict``, ``caveats``; ``to_dict()`` is what ``layerroute compare --json`` prints.

    Raises:
        UserError: there is no run, no such arm, or the runs saw different data.
    """
    from layerroute.lab.compare import compare as compare_runs
    from layerroute.lab.runs import load_runs

    return compare_runs(
        load_runs([Path(run) for run in runs]),
        baseline=baseline,
        subject=subject,
        allow_different_data=allow_different_data,
    )
