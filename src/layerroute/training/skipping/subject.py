"""Layer skipping as what a run trains: router, skip paths and adapter of a pretrained model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn

from layerroute.data.configuration import BPE
from layerroute.data.prepare import prepare_data
from layerroute.data.progress import stages
from layerroute.errors import UserError
from layerroute.evaluation.routing_statistics import RoutingStatistics
from layerroute.precision import ChosenPrecision, autocast
from layerroute.recipe import recipe_to_dict
from layerroute.routing.held_out import calibrate_thresholds
from layerroute.skipping.families import FAMILIES
from layerroute.skipping.flops import SkipFlops, path_costs, skip_flops
from layerroute.skipping.model import get_router
from layerroute.skipping.pretrained import local_source, special_tokens
from layerroute.skipping.skip_config import PATHS, SkipConfig
from layerroute.skipping.storage import restore_router, save_router
from layerroute.training.callbacks.routing import RoutingCallback
from layerroute.training.objective import RoutedLoss
from layerroute.training.optimization import ParameterGroup
from layerroute.training.saving import replace_folder
from layerroute.training.skipping.configuration import (
    AdaptConfig,
    PretrainedConfig,
    SkippingObjectiveConfig,
    StartConfig,
)
from layerroute.training.skipping.loss import SkippingLoss
from layerroute.training.skipping.start import add_adapter, choose_trainable, load_base, start_router
from layerroute.training.subject import Subject
from layerroute.training.summary import describe_data, describe_run
from layerroute.training.thresholds import ThresholdWindows
from layerroute.training.trainer import CheckpointWeights
from layerroute.training.windows import Boundaries


class RouterWeights:
    """Checkpoints hold router, skip paths and adapter; the base is where it came from.

    Args:
        notes: for the router folder.
    """

    def __init__(self, notes: dict[str, Any]) -> None:
        self.notes = notes

    def save(self, model: nn.Module, folder: Path) -> None:
        """See ``CheckpointWeights``."""
        save_router(model, folder, notes=self.notes)

    def load(self, model: nn.Module, folder: Path) -> None:
        """See ``CheckpointWeights``."""
        restore_router(model, folder)


class SkippingSubject(Subject):
    """See ``Subject``."""

    told_by: ClassVar[Boundaries] = "position_ids"

    @property
    def pretrained(self) -> PretrainedConfig:
        """Section `model`."""
        return cast("PretrainedConfig", self.recipe.sections["model"])

    @property
    def skip(self) -> SkipConfig:
        """Section `skip`."""
        return cast("SkipConfig", self.recipe.sections["skip"])

    @property
    def start(self) -> StartConfig:
        """Section `start`."""
        return cast("StartConfig", self.recipe.sections["start"])

    @property
    def adapt(self) -> AdaptConfig:
        """Section `adapt`."""
        return cast("AdaptConfig", self.recipe.sections["adapt"])

    @property
    def objective(self) -> SkippingObjectiveConfig:
        """Section `objective`."""
        return cast("SkippingObjectiveConfig", self.recipe.sections["objective"])

    def plain(self) -> dict[str, Any]:
        """See ``Subject``."""
        return recipe_to_dict(self.recipe)

    def read(self, *, progress: bool) -> None:
        """Prepare the data with the model's own tokenizer.

        Raises:
            UserError: if the recipe names another tokenizer.
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
        self.data = prepare_data(replace(data, tokenizer=local_source(name)), progress=progress)

    def build(self, *, device: torch.device, precision: ChosenPrecision, tell: Callable[[str], None]) -> None:
        """The base, the router where it starts, and the adapter."""
        self.precision, self.device = precision, device
        self.model, _ = load_base(self.pretrained, device)
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
        if self.start.method == "calibrated" and self.start.folder is None:
            tell("start       calibrated on training text; made once for all arms, kept in the cache")
        skip = self.skip
        if skip.sink_ids is None:
            skip = replace(skip, sink_ids=special_tokens(self.tokenizer))
        with stages(True) as stage:
            start_router(
                self.model,
                skip,
                self.start,
                self.data.train,
                also=self.objective.budgets,
                precision=precision.name,
                stage=stage,
            )
        add_adapter(self.model, self.adapt, seed=self.recipe.seed)
        self._groups = choose_trainable(self.model, self.adapt)
        router = get_router(self.model)
        if self.objective.budgets and router.budgets is None:
            raise UserError(
                "objective.budgets needs a router that serves several budgets: start.method: calibrated, arm: routed"
            )
        train = self.recipe.train
        self.held_out = ThresholdWindows.of(
            self.data, train, train.threshold_tokens or 1, told_by=self.told_by
        )
        self.flops: SkipFlops = skip_flops(self.model.config, router.config, self.recipe.data.sequence_length)

    def loss(self) -> RoutedLoss:
        """CE, distillation, compute."""
        return SkippingLoss(self.objective, rate=self.skip.routing.rate, seed=self.recipe.seed)

    def routing(self) -> RoutingCallback:
        """By the recipe's objective."""
        return RoutingCallback(self.model, self.objective)

    def groups(self) -> list[ParameterGroup]:
        """Adapter, routers, skip paths."""
        return self._groups

    def weights(self) -> CheckpointWeights:
        """Without the base."""
        return RouterWeights(self._notes())

    def before_evaluation(self) -> None:
        """Set the thresholds on held-out text in inference mode, for each budget."""
        router = get_router(self.model)
        if not self.recipe.train.threshold_tokens or not any(r.router for r in router.all_routings()):
            return

        def forward() -> None:
            self.held_out.run(self.model, lambda: autocast(self.precision.name, self.device))

        before = None if router.budgets is None else router.budgets.current
        router.set_rate(router.config.routing.rate)
        for budget in [None] if router.budgets is None else router.budgets.known:
            if budget is not None:
                router.set_budget(budget)
            calibrate_thresholds(router.all_routings(), forward, scope=self.start.threshold_scope)
            router.store_thresholds()
        if before is not None:
            budgets = router.budgets
            assert budgets is not None
            router.set_budget(self.skip.budget if budgets.holds(self.skip.budget) else before)

    def save(self, path: Path) -> None:
        """A router folder."""
        replace_folder(path, lambda folder: _write(self.model, folder, self._notes()))

    def _notes(self) -> dict[str, Any]:
        """Where the folder comes from, and the form of the base on which it was trained."""
        model = self.pretrained
        return {
            "run": f"{self.recipe.name}-seed{self.recipe.seed}",
            "start": self.start.method,
            "precision": self.precision.name,
            "model": {
                "dtype": model.dtype,
                "quantization": model.quantization,
                "attention": model.attention,
            },
        }

    def describe(self, *, micro_batch: int, device: torch.device, precision: ChosenPrecision) -> list[str]:
        """Model, what may be skipped, data, tokens, machine."""
        del micro_batch
        router, data = get_router(self.model), self.data.describe()
        config, parts = router.config, self._parameters()
        decides = config.routing.control or f"{config.granularity} router, {config.routing.estimator}"
        return [
            f"model       {self.pretrained.name} ({self.model.config.model_type}, "
            f"{sum(parts.values()):,} parameters: {', '.join(f'{k} {v:,}' for k, v in parts.items())})",
            f"skip        {config.unit} at {len(router.sites)} sites, budget {config.budget:.0%}; {decides}, "
            f"skip path {config.skip_path}, kv {config.kv}",
            f"trained     {', '.join(group.name for group in self._groups)}: "
            f"{sum(p.numel() for p in self.model.parameters() if p.requires_grad):,} parameters",
            describe_data(data),
            *describe_run(
                self.recipe.train,
                sequence_length=self.recipe.data.sequence_length,
                train_tokens=data["train_tokens"],
                device=device,
                precision=precision,
            ),
        ]

    def static_sections(self) -> dict[str, Any]:
        """See ``Subject``."""
        parts, data = self._parameters(), self.data.describe()
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {
            "parameters": {"total": sum(parts.values()), "trainable": trainable, "by_part": parts},
            "flops": self.flops_section(None, None),
            "data": {**data, "threshold_split": self.held_out.split},
            "model_config": self.model.config.to_dict(),
            "skip": get_router(self.model).config.to_dict(),
        }

    def routing_section(self, statistics: RoutingStatistics) -> dict[str, Any]:
        """See ``Subject``."""
        config = get_router(self.model).config
        return {
            **statistics.record(),
            "cost_weighted_rate": statistics.cost_weighted_rate,
            "skipped": 1.0 - statistics.cost_weighted_rate,
            "budget": config.budget,
            "router": config.granularity,
            "control": config.routing.control,
            "context": config.kv,
            "estimator": None if config.routing.control else config.routing.estimator,
        }

    def flops_section(self, statistics: RoutingStatistics | None, executed: float | None) -> dict[str, Any]:
        """See ``Subject``."""
        section = self.flops.to_dict()
        config, length = self.flops.config, self.flops.context_length
        units = path_costs(self.model.config.get_text_config(), config, length)[: len(config.units)]
        section["by_path"] = {path: sum(unit[at] for unit in units) for at, path in enumerate(PATHS)}
        section["executed_per_token"] = executed
        if statistics is not None:
            section["routed_per_token"] = self.flops.sparse_per_token(statistics.rate)
        return section

    def _parameters(self) -> dict[str, int]:
        router = get_router(self.model)
        own = sum(p.numel() for p in router.routings.parameters())
        skips = sum(p.numel() for p in router.skip_paths.parameters())
        adapter = sum(p.numel() for name, p in self.model.named_parameters() if "lora_" in name)
        total = sum(p.numel() for p in self.model.parameters())
        return {
            "base": total - own - skips - adapter,
            "adapter": adapter,
            "router": own,
            "skip paths": skips,
        }


def _write(model: nn.Module, folder: Path, notes: dict[str, Any]) -> None:
    save_router(model, folder, notes=notes)
