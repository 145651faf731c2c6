"""Attention routing as what a run trains: a hybrid model from scratch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from layerroute.data.prepare import prepare_data
from layerroute.evaluation.bigram import bigram_cross_entropy
from layerroute.evaluation.routing_statistics import RoutingStatistics
from layerroute.hybrid import HybridConfig
from layerroute.precision import ChosenPrecision, autocast
from layerroute.routing import routings_of
from layerroute.routing.held_out import calibrate_thresholds
from layerroute.training.callbacks.routing import RoutingCallback
from layerroute.training.memory import estimate_memory
from layerroute.training.models import Vocabulary, build_model, model_config, model_figures, resolved_recipe
from layerroute.training.objective import HybridLoss, RoutedLoss
from layerroute.training.run_record import flops_section, routing_section, static_sections
from layerroute.training.saving import save_model
from layerroute.training.subject import Subject
from layerroute.training.summary import describe_data, describe_model, describe_training
from layerroute.training.thresholds import ThresholdWindows


class HybridSubject(Subject):
    """See ``Subject``."""

    def plain(self) -> dict[str, Any]:
        """The recipe with every default of the model written out, except what follows from the data."""
        return resolved_recipe(self.recipe)

    def read(self, *, progress: bool) -> None:
        """Prepare the data; the model's vocabulary follows from them."""
        self.data = prepare_data(self.recipe.data, progress=progress)
        vocabulary = Vocabulary(
            size=self.data.vocabulary_size,
            end_of_text=self.data.end_of_text,
            padding=self.data.tokenizer.pad_token_id,
        )
        self.config: HybridConfig = model_config(self.recipe.model, vocabulary)

    def build(self, *, device: torch.device, precision: ChosenPrecision, tell: Callable[[str], None]) -> None:
        """Fresh weights, which depend on configuration and seed alone."""
        del tell
        self.precision, self.device = precision, device
        self.model = build_model(self.config, seed=self.recipe.seed)
        self.figures = model_figures(self.model, self.recipe.data.sequence_length)

    def loss(self) -> RoutedLoss:
        """The model's own cross-entropy, and the terms of the recipe."""
        return HybridLoss(self.recipe.objective)

    def routing(self) -> RoutingCallback:
        """By the recipe's objective."""
        return RoutingCallback(self.model, self.recipe.objective)

    def before_evaluation(self) -> None:
        """Set the quantile budget's thresholds on held-out text: their running mean lags a rate that is annealed."""
        modules = [m for m in routings_of(self.model) if m.config.budget == "quantile"]
        tokens = self.recipe.train.threshold_tokens
        if not modules or not tokens:
            return
        held_out = self.threshold_windows(tokens)

        def forward() -> None:
            held_out.run(self.model, lambda: autocast(self.precision.name, self.device))

        calibrate_thresholds(modules, forward)

    def threshold_windows(self, tokens: int) -> ThresholdWindows:
        """So many tokens on which thresholds are set."""
        return ThresholdWindows.of(self.data, self.recipe.train, tokens)

    def save(self, path: Path) -> None:
        """Weights, configuration and tokenizer."""
        save_model(self.model, self.tokenizer, path)

    def describe(self, *, micro_batch: int, device: torch.device, precision: ChosenPrecision) -> list[str]:
        """Model by part, data, tokens, machine, memory."""
        train, length = self.recipe.train, self.recipe.data.sequence_length
        memory = estimate_memory(
            self.config,
            parameters=self.figures.total,
            micro_batch=micro_batch,
            sequence_length=length,
            precision=precision.name,
            gradient_checkpointing=train.gradient_checkpointing,
        )
        data = self.data.describe()
        return [
            *describe_model(self.config, self.figures),
            describe_data(data),
            *describe_training(
                train,
                sequence_length=length,
                train_tokens=data["train_tokens"],
                memory=memory,
                device=device,
                precision=precision,
            ),
        ]

    def static_sections(self) -> dict[str, Any]:
        """See ``Subject``."""
        return {
            **static_sections(self.figures, self.data.describe()),
            "model_config": self.config.to_dict(),
        }

    def routing_section(self, statistics: RoutingStatistics) -> dict[str, Any]:
        """See ``Subject``."""
        return routing_section(statistics, self.config)

    def flops_section(self, statistics: RoutingStatistics | None, executed: float) -> dict[str, Any]:
        """See ``Subject``."""
        rate = None if statistics is None else statistics.mean_rate
        return flops_section(self.figures, rate=rate, executed=executed)

    def bigram_loss(self) -> float | None:
        """The floor: a bigram model of the same training tokens, on the same validation windows."""
        windows = torch.cat([batch["input_ids"] for batch in self.validation()])
        return bigram_cross_entropy(self.data.train.tokens, windows.numpy(), self.config.vocab_size)
