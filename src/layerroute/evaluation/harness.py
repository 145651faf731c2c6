"""lm-evaluation-harness over our models: ``--model layerroute`` of its own registry.

Importing this module registers the name; ``lm_eval.simple_evaluate(model="layerroute", model_args={...})`` finds it.
Scores are the harness's own: a routed model whose router is off is scored to the last digit as its base is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from layerroute.errors import UserError
from layerroute.evaluation.decisions import decision_of
from layerroute.evaluation.loading import load_model
from layerroute.evaluation.routing_statistics import RoutingAccumulator, RoutingStatistics
from layerroute.ops.flops import flop_counter
from layerroute.precision import Device
from layerroute.routing import Routing
from layerroute.skipping.layer import RoutedLayer
from layerroute.skipping.router import LayerRouter

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise UserError("tasks need lm-evaluation-harness: pip install 'layerroute[evaluation]'") from error

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
        self._handles = [model.register_forward_hook(self._after, with_kwargs=True)]
        self.router = next((module for module in model.modules() if isinstance(module, LayerRouter)), None)
        kinds = self.router.config.units if self.router is not None else ()
        self.layers = [module for module in model.modules() if isinstance(module, RoutedLayer)]
        parts = [_last_part(layer, kind) for layer in self.layers for kind in kinds]
        self.units = [part for part in parts if part is not None]
        self._handles += [unit.register_forward_pre_hook(self._before_unit) for unit in self.units]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    @property
    def executed_share(self) -> float | None:
        """Share of (token, routed unit) pairs that were computed; None for models without skipped layers."""
        return self.seen / self.offered if self.units and self.offered else None

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
        decision = decision_of(self.model, output)
        if decision is None:
            return
        if ids is not None and options.get("attention_mask") is None and decision.valid.shape == ids.shape:
            decision = replace(decision, valid=decision.valid & _before_padding(ids))
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


@register_model("layerroute")
class LayerrouteLM(HFLM):
    """A hybrid model or a pretrained model with a router, as the harness wants its models.

    Args:
        pretrained: run, saved model or router folder, as ``load_model`` takes it.
        full_depth: switch a layer router off: the base model's own scores, by the same path.
        budget, serve: see ``load_model``.
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
        execution: str | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        target: Device = "cpu" if device == "cpu" else "cuda" if str(device).startswith("cuda") else "auto"
        loaded = load_model(pretrained, device=target, budget=budget, serve=serve)
        model = loaded.model
        routers = [module for module in model.modules() if isinstance(module, LayerRouter)]
        if full_depth:
            loaded.switch_router_off()
        if execution is not None:
            loaded.execute(execution)
        self.execution = loaded.execution
        self.routed = not full_depth and (
            bool(routers) or any(isinstance(m, Routing) for m in model.modules())
        )
        mixed = "bfloat16" if loaded.precision == "bf16" else None
        super().__init__(
            pretrained=model, tokenizer=loaded.tokenizer, mixed_precision_dtype=mixed, **settings
        )
        self.watch = RoutingWatch(model)

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
    one_by_one: bool = False,
) -> dict[str, Any]:
    """Score a checkpoint on tasks of the harness.

    Args:
        tasks: names known to the harness, and tasks made by ``local_task``.
        limit: documents of each task. None: all.
        shots: examples before each question, for all tasks or one number each. None: the task's own number.
        full_depth, budget, serve, execution: see :class:`LayerrouteLM`.
        bootstrap_iterations: for the harness's standard errors.
        one_by_one: score one task after the other, and count the FLOPs that each takes. Default: tasks with as many
            shots share batches.

    Returns:
        ``tasks`` (metrics by task), ``samples`` (every document's result by task), ``versions``, ``n_samples``,
        ``shots``, and ``routing``: rates by site over all that was scored, with ``executed_share``;
        with ``one_by_one`` also ``executed``: FLOPs of all forward passes by task.

    Raises:
        UserError: a task that the harness does not know.
    """
    import lm_eval

    # The index of the harness's own tasks takes seconds to read: not where all of them are local.
    manager = TaskManager(include_defaults=any(isinstance(task, str) for task in tasks))
    model = LayerrouteLM(
        checkpoint,
        full_depth=full_depth,
        budget=budget,
        serve=serve,
        execution=execution,
        device=device,
        batch_size=batch_size,
    )
    each = list(shots) if isinstance(shots, Sequence) else [shots] * len(tasks)
    found: dict[str, dict[str, Any]] = {
        "results": {},
        "n-samples": {},
        "versions": {},
        "samples": {},
        "n-shot": {},
    }
    executed: dict[str, float] = {}
    try:
        # The harness knows one number of shots a call.
        together: dict[Any, list[int]] = {}
        for place, count in enumerate(each):
            together.setdefault(place if one_by_one else count, []).append(place)
        for places in together.values():
            with flop_counter() if one_by_one else nullcontext() as counter:
                part = lm_eval.simple_evaluate(
                    model=model,
                    tasks=[tasks[place] for place in places],
                    limit=limit,
                    num_fewshot=each[places[0]],
                    task_manager=manager,
                    bootstrap_iters=bootstrap_iterations,
                    log_samples=True,
                )
            assert part is not None
            if counter is not None:
                executed |= dict.fromkeys(part["samples"], float(counter.get_total_flops()))
            for key, entries in found.items():
                entries.update(part[key])
    except KeyError as error:
        raise UserError(f"--tasks: the harness knows no task {error}") from error
    finally:
        model.watch.close()
    statistics = model.routing()
    routing = None
    if statistics is not None:
        routing = {**asdict(statistics), "mean_rate": statistics.mean_rate}
        routing["executed_share"] = model.watch.executed_share
    return {
        "full_depth": full_depth,
        "execution": model.execution,
        "tasks": {name: _metrics(result) for name, result in found["results"].items()},
        "n_samples": {name: counts["effective"] for name, counts in found["n-samples"].items()},
        "shots": found["n-shot"],
        "versions": found["versions"],
        "routing": routing,
        "samples": found["samples"],
        **({"executed": executed} if one_by_one else {}),
    }


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """``{"acc": 0.5, "acc_stderr": 0.02}`` from ``{"acc,none": 0.5, "acc_stderr,none": 0.02, "alias": …}``."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in key
    }
