"""lm-evaluation-harness over our models: ``--model layerroute`` of its own registry.

Importing this module registers the name; ``lm_eval.simple_evaluate(model="layerroute", model_args={...})`` finds it.
Scores are the harness's own: a routed model whose router is off is scored to the last digit as its base is.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from layerroute.data.sources.hub import hub_user_error
from layerroute.data.windows import DocumentEncoder
from layerroute.errors import UserError, require
from layerroute.evaluation.loading import load_model
from layerroute.evaluation.routing_statistics import RoutingAccumulator, RoutingStatistics
from layerroute.precision import Device, Precision
from layerroute.routing import RouteDecision, collect_decisions, routings_of
from layerroute.skipping import find_router
from layerroute.skipping.layer import RoutedLayer

require("lm_eval", "datasets", extra="evaluate")
from lm_eval import evaluator
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from lm_eval.tasks import TaskManager, get_task_dict

PAD = 0
"""What the harness fills shorter rows of a batch with, on the right."""


class RoutingWatch:
    """Counts, by forward hooks, what the router decided and how many tokens routed layers were given.

    Attributes:
        decisions: of real tokens, in all calls.
        offered, seen: tokens that came to routed units, and those that they computed, by what the last projection of
            attention, or the MLP, was given. Masked execution computes all of them; sparse execution computes fewer,
            and that it did is read here and not believed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.decisions = RoutingAccumulator()
        self.offered = self.seen = 0
        self._held: list[RouteDecision] | None = None
        self._handles = [model.register_forward_hook(self._after, with_kwargs=True)]
        self.router = find_router(model)
        self._exit = contextlib.ExitStack()
        self._new = self._exit.enter_context(collect_decisions(model))
        kinds = self.router.config.units if self.router is not None else ()
        self.layers = [module for module in model.modules() if isinstance(module, RoutedLayer)]
        parts = [_last_part(layer, kind) for layer in self.layers for kind in kinds]
        self.units = [part for part in parts if part is not None]
        self._handles += [unit.register_forward_pre_hook(self._before_unit) for unit in self.units]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._exit.close()

    @property
    def executed_share(self) -> float | None:
        """Share of (token, routed unit) pairs that were computed; None for models without skipped layers."""
        return self.seen / self.offered if self.units and self.offered else None

    @contextlib.contextmanager
    def holding(self) -> Iterator[list[RouteDecision]]:
        """Decisions made meanwhile are handed out and not counted: who generates knows later which rows had stopped."""
        self._held = []
        try:
            yield self._held
        finally:
            self._held = None

    def check_active(self, statistics: RoutingStatistics) -> None:
        """Compare what was decided with what was computed.

        Raises:
            RuntimeError: tokens were to skip, and everything was computed for all of them where it need not be: what
                was scored is the model at full depth.
        """
        router, computed = self.router, self.executed_share
        if router is None or not router.enabled:
            return
        if not self.layers:
            raise RuntimeError("the model has a router, and no layer that does what it decides")
        if router.execution == "masked" or router.sparse_obstacle or computed is None or computed < 1.0:
            return
        skipped, enough = 1.0 - min(statistics.rate.values()), 0.0
        if router.execution == "auto":
            # From its threshold on a site is computed sparsely; calls that fall short of it have others that do not.
            profitable = router.config.profitability
            enough = max(0.5, profitable.prefill, profitable.decode)
        if skipped > enough:
            raise RuntimeError(
                f"{skipped:.0%} of the tokens were to skip a layer, and all of them were computed in every layer: "
                "these would be scores at full depth"
            )

    def _before_unit(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.seen += inputs[0].numel() // inputs[0].shape[-1]

    def _after(
        self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        ids = options.get("input_ids", inputs[0] if inputs else None)
        if ids is not None:
            self.offered += ids.numel() * len(self.units)
        if not self._new:
            return
        decision = self._new.pop()
        if ids is not None and options.get("attention_mask") is None and decision.valid.shape == ids.shape:
            decision = replace(decision, valid=decision.valid & _before_padding(ids))
        if self._held is not None:
            self._held.append(decision)
        else:
            self.decisions.add(decision)


def _last_part(layer: nn.Module, unit: str) -> nn.Module | None:
    """The module that is given exactly the tokens which run a unit: a block ends with its MLP."""
    wanted = ".o_proj" if unit == "attention" else ".mlp"
    return next((module for name, module in layer.named_modules() if f".{name}".endswith(wanted)), None)


def _before_padding(ids: Tensor) -> Tensor:
    """Tokens (B, T) that are not part of the padding at the end of their row. A row keeps its first token."""
    real = (ids != PAD).flip(-1).cumsum(-1).flip(-1) > 0
    real[:, 0] = True
    return real


def mixed_precision(precision: str) -> str | None:
    """A precision (``bf16`` or ``fp32``) in the harness's words."""
    return "bfloat16" if precision == "bf16" else None


class TaskModel(Protocol):
    """A model of the harness, and what it served."""

    full_depth: bool
    execution: str | None
    precision: str

    def served(self) -> dict[str, Any] | None:
        """``routing`` for a record; None for a model that routes nothing."""

    def close(self) -> None:
        """Let go of what scoring needed."""


@register_model("layerroute")
class LayerrouteLM(HFLM):
    """A hybrid model or a pretrained model with a router, as the harness wants its models.

    Args:
        pretrained: run, saved model or router folder, as ``load_model`` takes it.
        full_depth: switch a layer router off: the base model's own scores, by the same path.
        budget, serve, precision: see ``load_model``.
        execution: ``auto``, ``sparse`` or ``masked``; default as the model's configuration says.
        device: ``auto``, ``cpu`` or ``cuda``.
        settings: further arguments of the harness's ``HFLM`` (``batch_size``, ``max_length``, …).

    Raises:
        UserError: ``full_depth`` or ``budget`` for a model that has no layer router, or not that budget; an
            ``execution`` or ``serve`` that it cannot have.
    """

    def __init__(
        self,
        pretrained: str | Path,
        *,
        full_depth: bool = False,
        budget: float | None = None,
        serve: str | None = None,
        precision: Precision | None = None,
        execution: str | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        target: Device = "cpu" if device == "cpu" else "cuda" if str(device).startswith("cuda") else "auto"
        loaded = load_model(pretrained, device=target, precision=precision, budget=budget, serve=serve)
        model = loaded.model
        if full_depth:
            loaded.switch_router_off()
        if execution is not None:
            loaded.execute(execution)
        self.execution = loaded.execution
        self.routed = not full_depth and bool(routings_of(model))
        require_end(loaded.tokenizer, str(loaded.path))
        self.loaded, self.full_depth, self.precision = loaded, full_depth, loaded.precision
        super().__init__(
            pretrained=model,
            tokenizer=loaded.tokenizer,
            mixed_precision_dtype=mixed_precision(loaded.precision),
            **settings,
        )
        self.watch = RoutingWatch(model)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        """As the harness's own, but tokens that a row was given after it had stopped count in no rate."""
        with self.watch.holding() as decisions:
            output: Tensor = super()._model_generate(context, max_length, stop, **settings)
        read = torch.tensor([self._read(row, context.shape[1], stop) for row in output], device=output.device)
        place = 0
        for decision in decisions:
            width = decision.valid.shape[1]
            columns = torch.arange(place, place + width, device=output.device)
            alive = (columns < read.unsqueeze(1)).to(decision.valid.device)
            self.watch.decisions.add(replace(decision, valid=decision.valid & alive))
            place += width
        return output

    def _read(self, row: Tensor, prompt: int, stop: list[str]) -> int:
        """How many tokens (padding before them too) of a row a model reads that generates it alone."""
        ends = self.model.generation_config.eos_token_id
        known = set(ends if isinstance(ends, list) else [ends])
        criteria = stop_sequences_criteria(self.tokenizer, stop, prompt, 1)
        for length in range(prompt + 1, len(row)):
            if int(row[length - 1]) in known or bool(
                torch.as_tensor(criteria(row[None, :length], None)).all()
            ):
                return length - 1  # the last token is not read
        return len(row) - 1

    def routing(self) -> RoutingStatistics | None:
        """Rates by site over everything scored so far; None for a model that routes nothing.

        Raises:
            RuntimeError: a routed model decided nothing, or computed everything for tokens that were to skip: its
                scores are not those of a routed model.
        """
        found = self.watch.decisions.result()
        if self.routed and found is None:
            raise RuntimeError("the model is routed, but no decision was made while it was scored")
        if found is not None:
            self.watch.check_active(found)
        return found

    def served(self) -> dict[str, Any] | None:
        """``routing`` for a record, with the share of (token, routed unit) pairs that was computed."""
        found = self.routing()
        if found is None:
            return None
        return {**asdict(found), "mean_rate": found.mean_rate, "executed_share": self.watch.executed_share}

    def close(self) -> None:
        """Take the hooks off the model."""
        self.watch.close()


def require_end(tokenizer: Any, name: str) -> None:
    """Give a tokenizer what the harness asks of one: a token that ends a text, its own or the base model's.

    Raises:
        UserError: it has none.
    """
    if tokenizer.eos_token is not None:
        return
    end = DocumentEncoder.of(tokenizer).end
    if end is None:
        raise UserError(
            f"--tasks: the tokenizer of {name} has no token that ends a text, and the harness needs one; name one as "
            "eos_token in its tokenizer_config.json"
        )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def task_manager(tasks: Sequence[Any]) -> TaskManager:
    """The index of tasks, once all that come from the hub are there: before a model is loaded or anything is scored.

    Raises:
        UserError: a task that the harness does not know; data that cannot be had, for want of a network, say.
    """
    names = [task for task in tasks if isinstance(task, str)]
    # The index of the harness's own tasks takes seconds to read: not where all of them are local.
    manager = TaskManager(include_defaults=bool(names))
    for name in names:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                get_task_dict([name], manager)
        except KeyError as error:
            raise UserError(f"--tasks: the harness knows no task {error}") from error
        except Exception as error:  # whatever its libraries raise for a hub that is not there
            raise hub_user_error(
                f"--tasks: the data of {name}", error, instead="a JSON Lines file"
            ) from error
    return manager


def metrics_by_task(tasks: Sequence[Any], manager: TaskManager) -> dict[str, set[str]]:
    """By name, what each task measures; of a group, each task in it."""

    def each(found: dict[Any, Any]) -> Iterator[tuple[str, set[str]]]:
        for name, task in found.items():
            if isinstance(task, dict):
                yield from each(task)
            else:
                yield str(name), set(task.aggregation())

    with contextlib.redirect_stdout(sys.stderr):
        return dict(each(get_task_dict(list(tasks), manager)))


def score(
    model: Any,
    tasks: Sequence[Any],
    *,
    limit: int | None,
    shots: int | None,
    bootstrap_iterations: int,
    manager: TaskManager,
) -> dict[str, Any]:
    """The harness itself: what it prints goes to stderr, and it does not look for the machine's git and packages."""
    asked = evaluator.get_git_commit_hash, evaluator.add_env_info
    # Records have their own provenance; these call git where there may be no repository, and list all packages.
    evaluator.get_git_commit_hash, evaluator.add_env_info = lambda: None, lambda storage: None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found: dict[str, Any] | None = evaluator.simple_evaluate(
                model=model,
                tasks=list(tasks),
                limit=limit,
                num_fewshot=shots,
                task_manager=manager,
                bootstrap_iters=bootstrap_iterations,
                log_samples=True,
            )
    finally:
        evaluator.get_git_commit_hash, evaluator.add_env_info = asked
    assert found is not None
    return found


def run_tasks(
    checkpoint: str | Path,
    tasks: Sequence[Any],
    *,
    batch_size: int = 8,
    limit: int | None = None,
    shots: int | Sequence[int | None] | None = None,
    full_depth: bool = False,
    budget: float | None = None,
    serve: str | None = None,
    execution: str | None = None,
    device: str | None = None,
    bootstrap_iterations: int = 1000,
) -> dict[str, Any]:
    """Score a checkpoint on tasks of the harness.

    Args:
        tasks: names known to the harness, and tasks made by ``local_task``.
        limit: documents of each task. None: all.
        shots: examples before each question, for all tasks or one number each. None: the task's own number.
        full_depth, budget, serve, execution: see :class:`LayerrouteLM`.
        bootstrap_iterations: for the harness's standard errors.

    Returns:
        See ``score_tasks``.

    Raises:
        UserError: a task that the harness does not know, or whose data cannot be had.
    """
    open_model = partial(
        LayerrouteLM,
        checkpoint,
        full_depth=full_depth,
        budget=budget,
        serve=serve,
        execution=execution,
        device=device,
        batch_size=batch_size,
    )
    each = list(shots) if isinstance(shots, Sequence) else [shots] * len(tasks)
    return score_tasks(open_model, tasks, limit=limit, shots=each, bootstrap_iterations=bootstrap_iterations)


def score_tasks(
    open_model: Callable[[], TaskModel],
    tasks: Sequence[Any],
    *,
    limit: int | None = None,
    shots: Sequence[int | None],
    bootstrap_iterations: int = 1000,
) -> dict[str, Any]:
    """Score a model on tasks of the harness.

    Args:
        open_model: opens it, once all tasks are there: :class:`LayerrouteLM`, or an engine.
        tasks: names known to the harness, and tasks made by ``local_task``.
        limit: documents of each task. None: all.
        shots: of each task, examples before each question. None: the task's own number.
        bootstrap_iterations: for the harness's standard errors.

    Returns:
        ``tasks`` (metrics by task), ``samples`` (every document's result by task), ``versions``, ``n_samples``,
        ``shots``, ``precision``, and ``routing``: rates by site over all that was scored, with ``executed_share``.

    Raises:
        UserError: a task that the harness does not know, or whose data cannot be had.
    """
    manager = task_manager(tasks)
    keys = ("results", "n-samples", "versions", "samples", "n-shot")
    found: dict[str, dict[str, Any]] = {key: {} for key in keys}
    with contextlib.closing(open_model()) as model:
        # The harness knows one number of shots a call.
        together: dict[Any, list[int]] = {}
        for place, count in enumerate(shots):
            together.setdefault(count, []).append(place)
        for places in together.values():
            part = score(
                model,
                [tasks[place] for place in places],
                limit=limit,
                shots=shots[places[0]],
                bootstrap_iterations=bootstrap_iterations,
                manager=manager,
            )
            for key, entries in found.items():
                entries.update(part[key])
        routing = model.served()
    return {
        "full_depth": model.full_depth,
        "execution": model.execution,
        "precision": model.precision,
        "tasks": {name: _metrics(result) for name, result in found["results"].items()},
        "n_samples": {name: counts["effective"] for name, counts in found["n-samples"].items()},
        "shots": found["n-shot"],
        "versions": found["versions"],
        "routing": routing,
        "samples": found["samples"],
    }


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """``{"acc": 0.5, "acc_stderr": 0.02}`` from ``{"acc,none": 0.5, "acc_stderr,none": 0.02, "alias": …}``."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in key
    }
