"""Layer skipping as what a run trains: router, skip paths and adapter of a pretrained model."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn

from layerroute.data.configuration import BPE
from layerroute.data.prepare import PreparedData, prepare_data
from layerroute.data.progress import stages
from layerroute.errors import UserError
from layerroute.evaluation.routing_statistics import RoutingStatistics
from layerroute.precision import ChosenPrecision
from layerroute.recipe import Recipe
from layerroute.routing.held_out import calibrate_thresholds
from layerroute.routing.module import Routing
from layerroute.skipping.families import FAMILIES
from layerroute.skipping.flops import SkipFlops, path_costs, skip_flops
from layerroute.skipping.model import get_router
from layerroute.skipping.pretrained import check_windows, local_source, special_tokens, tokens_read
from layerroute.skipping.skip_config import PATHS, SkipConfig
from layerroute.skipping.storage import restore_router, save_router
from layerroute.training.objective import RoutedLoss
from layerroute.training.optimization import ParameterGroup
from layerroute.training.recipe_checks import SEVERAL_BUDGETS
from layerroute.training.samples import Boundaries
from layerroute.training.skipping.configuration import (
    AdaptConfig,
    PretrainedConfig,
    SkippingObjectiveConfig,
    StartConfig,
)
from layerroute.training.skipping.loss import SkippingLoss
from layerroute.training.skipping.start import (
    add_adapter,
    calibrated_arm,
    check_adapter,
    choose_trainable,
    load_base,
    start_router,
    trained_parts,
)
from layerroute.training.summary import describe_data, describe_run
from layerroute.training.trainee import Trainee, parameter_section


class SkippingTrainee(Trainee):
    """See ``Trainee``. Checkpoints hold router, skip paths and adapter; the base is where it came from."""

    told_by: ClassVar[Boundaries] = "position_ids"
    own_weights: ClassVar[bool] = True
    data: PreparedData

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        sections = recipe.sections
        self.pretrained = cast("PretrainedConfig", sections["model"])
        self.skip = cast("SkipConfig", sections["skip"])
        self.start = cast("StartConfig", sections["start"])
        self.adapt = cast("AdaptConfig", sections["adapt"])
        self.objective = cast("SkippingObjectiveConfig", sections["objective"])

    def read(self, *, progress: bool) -> None:
        """Prepare the data with the model's own tokenizer.

        Raises:
            UserError: if the recipe names another tokenizer, or a folder that holds no calibration.
        """
        train, attention = self.recipe.train, self.pretrained.attention or ""
        if train.separate_documents and attention.startswith("flash"):
            raise UserError(
                f"train.separate_documents with model.attention: {attention}: transformers' flash attention sees the "
                "documents of a batch of one window only; use model.attention: sdpa"
            )
        data, name = self.recipe.data, self.pretrained.name
        if data.tokenizer not in (BPE, name):
            raise UserError(
                f"data.tokenizer is {data.tokenizer!r}, but {name} reads the ids of its own; leave data.tokenizer out"
            )
        if self.start.folder is not None:
            calibrated_arm(Path(self.start.folder), self.start.arm)  # told now: reading may take hours
        self.data = prepare_data(replace(data, tokenizer=local_source(name)), progress=progress)

    def build(self, *, device: torch.device, precision: ChosenPrecision, tell: Callable[[str], None]) -> None:
        """The base, the router where it starts, and the adapter."""
        self.precision, self.device = precision, device
        self.model = load_base(self.pretrained, device)
        kind = self.model.config.get_text_config().model_type
        if kind not in FAMILIES:
            raise UserError(
                f"{self.pretrained.name} is of the family {kind!r}, whose FLOPs are not known, and a run records them; "
                f"recipes train {', '.join(FAMILIES)}"
            )
        rows = cast("nn.Embedding", self.model.get_input_embeddings()).num_embeddings
        if self.data.vocabulary_size > rows:
            raise UserError(
                f"{self.pretrained.name}: its tokenizer has {self.data.vocabulary_size} tokens and the model {rows} "
                "embeddings: they do not fit"
            )
        check_windows(self.recipe.data.sequence_length, tokens_read(self.model))
        check_adapter(self.model, self.adapt)
        if self.start.method == "calibrated" and self.start.folder is None:
            tell("start       calibrated on training text; made once for all arms, kept in the cache")
        skip = self.skip
        if skip.sink_ids is None:
            skip = replace(skip, sink_ids=special_tokens(self.tokenizer))
        budgets = self.objective.budgets
        with stages(True) as stage:
            start_router(
                self.model,
                skip,
                self.start,
                self.data.train,
                also=budgets,
                precision=precision.name,
                stage=stage,
            )
        add_adapter(self.model, self.adapt, seed=self.recipe.seed)
        self._groups = choose_trainable(self.model, self.adapt)
        router = get_router(self.model)
        if budgets and router.budgets is None:
            raise UserError(f"{SEVERAL_BUDGETS}; {self.start.folder} holds none such")
        length = self.recipe.data.sequence_length
        self.flops: SkipFlops = skip_flops(self.model.config, router.config, length)
        parts = {
            name: sum(p.numel() for p in part.values()) for name, part in trained_parts(self.model).items()
        }
        base = sum(p.numel() for p in self.model.parameters()) - sum(parts.values())
        self.parameters = parameter_section(self.model, {"base": base, **parts})

    def loss(self) -> RoutedLoss:
        """CE, distillation, compute."""
        return SkippingLoss(self.objective, rate=self.skip.routing.rate, seed=self.recipe.seed)

    def groups(self) -> list[ParameterGroup]:
        """Adapter, routers, skip paths."""
        return self._groups

    def write_weights(self, model: nn.Module, folder: Path) -> None:
        save_router(model, folder, notes=self._notes())

    def read_weights(self, model: nn.Module, folder: Path) -> None:
        restore_router(model, folder)

    @property
    def asked_rate(self) -> float | None:
        """Without ``train.threshold_tokens`` only what holds a budget asks for one."""
        routing, objective = self.skip.routing, self.objective
        held = objective.budget_weight or objective.lagrangian_step or routing.budget != "none"
        asked = routing.control is None and (held or self.recipe.train.threshold_tokens)
        return routing.rate if asked else None

    def ask_rate(self) -> None:
        """As ``Trainee`` does; where each batch draws a budget, ask for the recipe's."""
        super().ask_rate()
        router = get_router(self.model)
        if self.objective.budgets and router.budgets is not None and router.budgets.holds(self.skip.budget):
            router.set_budget(self.skip.budget)

    def set_thresholds(self, routings: Sequence[Routing], forward: Callable[[], None]) -> None:
        """As ``Trainee`` does, for each budget."""
        router = get_router(self.model)
        before = None if router.budgets is None else router.budgets.current
        for budget in [None] if router.budgets is None else router.budgets.known:
            if budget is not None:
                router.set_budget(budget)
            calibrate_thresholds(routings, forward, scope=self.start.threshold_scope)
            router.store_thresholds()
        if before is not None:
            router.set_budget(before)

    def write(self, folder: Path) -> None:
        """A router folder."""
        self.write_weights(self.model, folder)

    def _notes(self) -> dict[str, Any]:
        """Where the folder comes from, and the form of the base on which it was trained."""
        form = {key: asdict(self.pretrained)[key] for key in ("dtype", "quantization", "attention")}
        return {
            "run": f"{self.recipe.name}-seed{self.recipe.seed}",
            "start": self.start.method,
            "precision": self.precision.name,
            "model": form,
        }

    def describe(self, micro_batch: int) -> list[str]:
        """Model, what may be skipped, data, tokens, machine."""
        del micro_batch
        router, data = get_router(self.model), self.data.describe()
        config, parameters = router.config, self.parameters
        decides = config.routing.control or f"{config.granularity} router, {config.routing.estimator}"
        parts = ", ".join(f"{name} {count:,}" for name, count in parameters["by_part"].items())
        return [
            f"model       {self.pretrained.name} ({self.model.config.model_type}, {parameters['total']:,} parameters: "
            f"{parts})",
            f"skip        {config.unit} at {len(router.sites)} sites, budget {config.budget:.0%}; {decides}, "
            f"skip path {config.skip_path}, kv {config.kv}",
            f"trained     {', '.join(group.name for group in self._groups)}: {parameters['trainable']:,} parameters",
            describe_data(data),
            *describe_run(self.recipe, data["train_tokens"], self.device, self.precision),
        ]

    def static_sections(self) -> dict[str, Any]:
        sections = super().static_sections()
        sections["data"]["threshold_split"] = self.threshold_text.split
        return {**sections, "skip": get_router(self.model).config.to_dict()}

    def decided_by(self, statistics: RoutingStatistics) -> dict[str, Any]:
        config = get_router(self.model).config
        return {
            "cost_weighted_rate": statistics.cost_weighted_rate,
            "skipped": 1.0 - statistics.cost_weighted_rate,
            "budget": config.budget,
            "router": config.granularity,
            "control": config.routing.control,
            "context": config.kv,
            "estimator": None if config.routing.control else config.routing.estimator,
        }

    def flops_section(self, statistics: RoutingStatistics | None, executed: float | None) -> dict[str, Any]:
        section = self.flops.to_dict()
        config, length = self.flops.config, self.flops.context_length
        units = path_costs(self.model.config.get_text_config(), config, length)[: len(config.units)]
        section["by_path"] = {path: sum(unit[at] for unit in units) for at, path in enumerate(PATHS)}
        section["executed_per_token"] = executed
        if statistics is not None:
            section["routed_per_token"] = self.flops.sparse_per_token(statistics.rate)
        return section
